"""The variants of LoRA, each as what it computes otherwise than :class:`utils.lora.layer.LoRA`.

Pass one as `variant` to :func:`utils.lora.layer.inject`, such as ``variant=DoRA()``: rsLoRA, DoRA, VeRA and PiSSA are
here, AdaLoRA, which also needs an allocator of ranks, is in utils/lora/adalora.py. LoRA+ is a choice of learning rates.
QLoRA, a frozen base in 4 bits, is no variant in this sense: any of them may stand on it
(utils/lora/nf4_linear.py). Names and shapes are PEFT's, and tests/lora/test_variants.py holds each equal to it.

Attributes:
    COUNTS: Trainable parameters that each variant adds to one layer; AdaLoRA's at rank `r`, so at first with r =
        init_r.
    SMALLEST_RATIO: Where DoRA makes a row shorter than this share, unmerging doesn't divide it back, but remembers it:
        nothing comes back from zero, and little from float16's smallest numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora import refusals
from utils.lora.layer import LoRA, LoRALinear
from utils.lora.lowrank import best_factors
from utils.lora.nf4_linear import dense_weight, is_quantized
from utils.lora.target_modules import find_targets

SMALLEST_RATIO = 1e-2

# ------------------------------------------------------------------------------------------------------------ rsLoRA


@dataclass(frozen=True)
class RsLoRA(LoRA):
    """rsLoRA (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732): the scaling is ``lora_alpha / sqrt(r)``.

    With ``lora_alpha / r`` the correction and its gradients shrink as the rank grows.
    """

    def scaling(self, r: int, lora_alpha: float) -> float:
        return lora_alpha / math.sqrt(r)


# ------------------------------------------------------------------------------------------------------------- LoRA+


def lora_plus_groups(model: nn.Module, lr: float, ratio: float = 16.0) -> list[dict[str, Any]]:
    """LoRA+ (Hayou et al., 2024, https://arxiv.org/abs/2402.12354): parameter groups for an optimizer, `lr` for every
    trainable matrix but `lora_B`, and `ratio` times as much for `lora_B` (and for trainable vectors, as in PEFT).

    Raises ValueError when nothing is trainable, or `ratio` isn't positive.
    """
    if not ratio > 0:
        raise ValueError(f"the ratio of B's rate to A's must be positive, not {ratio}; the paper takes 16")
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("nothing to train: no parameter of the model has requires_grad. Inject the adapter first")
    fast = [p for name, p in trainable if "lora_B" in name or p.ndim == 1]
    slow = [p for name, p in trainable if not ("lora_B" in name or p.ndim == 1)]
    return [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * ratio}]


# -------------------------------------------------------------------------------------------------------------- DoRA


@dataclass(frozen=True)
class DoRA(LoRA):
    """DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353): direction and magnitude are learnt apart.

    The weight is ``m * (W + s B A) / norm``, with `norm` the length of each row (one row an output; the paper, which
    writes matrices the other way round, says column) and `lora_magnitude_vector` m (out), which begins as W's own
    lengths. The gradient treats `norm` as a constant (the paper's section 4.3). A base in 4 bits is dequantized to
    measure its rows, in every forward pass.
    """

    def make_parameters(self, layer: LoRALinear, d_in: int, d_out: int, **where: Any) -> None:
        super().make_parameters(layer, d_in, d_out, **where)
        layer.lora_magnitude_vector = nn.Parameter(self.norm(layer))

    def ratio(self, layer: LoRALinear) -> Float[Tensor, " d_out"]:
        """``m / norm``. A row of zeros has no direction: it stays a row of zeros, where PEFT's becomes NaN."""
        norm = self.norm(layer)
        return layer.lora_magnitude_vector / norm.masked_fill(norm == 0, 1)

    def norm(self, layer: LoRALinear) -> Float[Tensor, " d_out"]:
        """The length of every row of the base weight with the correction on it, outside the gradient."""
        with torch.no_grad():
            return torch.linalg.norm(dense_weight(layer.base_layer) + super().delta_weight(layer), dim=1)

    def correction(
        self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        ratio = self.ratio(layer)
        bias = layer.base_layer.bias
        if layer.training and layer.lora_dropout.p:  # then the base's part of the correction sees dropped inputs too
            x = layer.lora_dropout(x)
            direction = F.linear(x, dense_weight(layer.base_layer, x.dtype))
        else:
            direction = y if bias is None else y - bias
        low_rank = F.linear(F.linear(x.to(layer.lora_A.dtype), layer.lora_A), layer.lora_B)
        return (ratio - 1) * direction + ratio * low_rank * layer.scaling

    def delta_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``m / norm * (W + s B A) - W``, while the layer isn't merged."""
        return self.merged_weight(layer) - dense_weight(layer.base_layer)

    def merged_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        return self.ratio(layer)[:, None] * (dense_weight(layer.base_layer) + super().delta_weight(layer))

    def merge(self, layer: LoRALinear) -> None:
        ratio = self.ratio(layer)  # the merged weight doesn't tell it
        too_small = ratio.abs() < SMALLEST_RATIO
        layer.merged_ratio, layer.merged_rows = ratio, layer.base_layer.weight[too_small]
        super().merge(layer)

    def unmerged_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        too_small = layer.merged_ratio.abs() < SMALLEST_RATIO
        divisor = layer.merged_ratio.masked_fill(too_small, 1)
        weight = layer.base_layer.weight / divisor[:, None] - super().delta_weight(layer)
        weight[too_small] = layer.merged_rows.to(weight.dtype)
        return weight


# -------------------------------------------------------------------------------------------------------------- VeRA


class VeRAProjection(nn.Module):
    """The two frozen random matrices that all VeRA layers of a model share: `A` (r, d_in) and `B` (d_out, r).

    Both are uniform, with the standard deviation sqrt(2 / fan_in), and follow from `key` alone, so nobody saves them.
    """

    A: Tensor
    B: Tensor

    def __init__(self, d_in: int, d_out: int, r: int, key: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(key)
        for name, shape in (("A", (r, d_in)), ("B", (d_out, r))):
            bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))
            self.register_buffer(name, torch.empty(shape).uniform_(-bound, bound, generator=draw), persistent=False)


@dataclass(frozen=True)
class VeRA(LoRA):
    """VeRA (Kopiczko et al., 2023, https://arxiv.org/abs/2310.11454): ``y = W x + b * B (d * (A x))``.

    A layer takes the first columns of the shared `A` and the first rows of the shared `B`, and trains two vectors
    alone: `vera_lambda_d` (r), which begins at `d_initial`, and `vera_lambda_b` (out), which begins at zero. `key` is
    where the shared matrices come from; they are as wide as the largest target. There is no scaling, and so no
    `lora_alpha`.
    """

    key: int = 0
    d_initial: float = 0.1
    projection: VeRAProjection | None = dataclasses.field(default=None, repr=False, compare=False)

    def check(self, base_layer: nn.Linear, r: int, lora_alpha: float | None, lora_dropout: float) -> None:
        refusals.check_linear(base_layer)
        refusals.check_no_alpha("VeRA", r, lora_alpha, lora_dropout)

    def scaling(self, r: int, lora_alpha: float | None) -> float:
        return 1.0

    def for_model(self, base_layers: Sequence[nn.Linear], r: int) -> VeRA:
        widest_in, widest_out = (max(getattr(b, side) for b in base_layers) for side in ("in_features", "out_features"))
        return dataclasses.replace(self, projection=VeRAProjection(widest_in, widest_out, r, self.key))

    def make_parameters(self, layer: LoRALinear, d_in: int, d_out: int, **where: Any) -> None:
        projection = self.projection or VeRAProjection(d_in, d_out, layer.r, self.key)
        layer.projection = projection.to(where["device"])
        layer.vera_lambda_d = nn.Parameter(torch.full((layer.r,), self.d_initial, **where))
        layer.vera_lambda_b = nn.Parameter(torch.zeros(d_out, **where))

    def matrices(self, layer: LoRALinear) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """The layer's part of the shared matrices."""
        base = layer.base_layer
        return layer.projection.A[:, : base.in_features], layer.projection.B[: base.out_features]

    def correction(
        self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        A, B = self.matrices(layer)
        low = layer.vera_lambda_d * F.linear(layer.lora_dropout(x.to(A.dtype)), A)
        return layer.vera_lambda_b * F.linear(low, B)

    def delta_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``diag(b) B diag(d) A``."""
        A, B = self.matrices(layer)
        return (layer.vera_lambda_b[:, None] * B) @ (layer.vera_lambda_d[:, None] * A)


# ------------------------------------------------------------------------------------------------------------- PiSSA


@dataclass(frozen=True)
class PiSSA(LoRA):
    """PiSSA (Meng et al., 2024, https://arxiv.org/abs/2404.02948): the adapter begins as the weight's principal part.

    ``scaling * B A`` is the best rank-`r` approximation of the weight, and what is left of the weight, the residual, is
    the frozen base: `attach` *changes the base weight in place*, `release` puts the part back, and switched off the
    layer adds it, so that it computes as the base did (each up to rounding). `initial_A` and `initial_B` remember the
    start. What was learnt, ``s (B A - B0 A0)``, is ``s [B, B0] [A; -A0]``: a plain LoRA of rank 2r.

    Raises ValueError when the rank exceeds what the weight's shape allows or the weight isn't finite, and TypeError for
    a quantized base.
    """

    changes_base = True

    def check(self, base_layer: nn.Linear, r: int, lora_alpha: float | None, lora_dropout: float) -> None:
        super().check(base_layer, r, lora_alpha, lora_dropout)
        if is_quantized(base_layer):
            raise TypeError("PiSSA takes the weight apart, and this one is quantized: apply it first, then quantize")
        if not base_layer.weight.isfinite().all():
            raise ValueError("PiSSA takes the weight apart, and this one holds NaN or infinity: load the base again")
        if r > (full := min(base_layer.weight.shape)):
            raise ValueError(f"PiSSA takes r directions out of the weight: the rank can't be {r}, above its {full}")

    def make_parameters(self, layer: LoRALinear, d_in: int, d_out: int, **where: Any) -> None:
        B, A = best_factors(layer.base_layer.weight.detach().to(where["dtype"]), layer.r)
        layer.lora_A = nn.Parameter(A / math.sqrt(layer.scaling))
        layer.lora_B = nn.Parameter(B / math.sqrt(layer.scaling))
        layer.register_buffer("initial_A", layer.lora_A.detach().clone())
        layer.register_buffer("initial_B", layer.lora_B.detach().clone())

    def initial_delta(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """What is taken out of the base weight."""
        return self.scaling(layer.r, cast(float, layer.lora_alpha)) * (layer.initial_B @ layer.initial_A)

    @torch.no_grad()
    def attach(self, layer: LoRALinear) -> None:
        layer.base_layer.weight -= self.initial_delta(layer).to(layer.base_layer.weight.dtype)

    @torch.no_grad()
    def release(self, layer: LoRALinear) -> None:
        layer.base_layer.weight += self.initial_delta(layer).to(layer.base_layer.weight.dtype)

    def base_output(self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = layer.base_layer(x)
        principal = F.linear(F.linear(x.to(layer.initial_A.dtype), layer.initial_A), layer.initial_B)
        return y + (self.scaling(layer.r, cast(float, layer.lora_alpha)) * principal).to(y.dtype)

    def as_lora(self, layer: LoRALinear) -> tuple[Float[Tensor, "twice_r d_in"], Float[Tensor, "d_out twice_r"], float]:
        A, B = torch.cat([layer.lora_A, -layer.initial_A]), torch.cat([layer.lora_B, layer.initial_B], dim=1)
        return A, B, layer.scaling


# ---------------------------------------------------------------------------------------------------------- counting

COUNTS: dict[str, Callable[[int, int, int], int]] = {
    "LoRA": lambda d_in, d_out, r: r * (d_in + d_out),
    "QLoRA": lambda d_in, d_out, r: r * (d_in + d_out),
    "rsLoRA": lambda d_in, d_out, r: r * (d_in + d_out),
    "LoRA+": lambda d_in, d_out, r: r * (d_in + d_out),
    "PiSSA": lambda d_in, d_out, r: r * (d_in + d_out),
    "DoRA": lambda d_in, d_out, r: r * (d_in + d_out) + d_out,
    "VeRA": lambda d_in, d_out, r: r + d_out,
    "AdaLoRA": lambda d_in, d_out, r: r * (d_in + d_out + 1),
}


def expected_parameters(model: nn.Module, target_modules: Sequence[str] | str, variant: str, r: int) -> int:
    """How many parameters `variant` of rank `r` trains on these targets of a plain model, by :data:`COUNTS`.

    Raises ValueError for a variant that isn't known, and what :func:`utils.lora.target_modules.find_targets` raises.
    """
    if variant not in COUNTS:
        raise ValueError(f"there is no variant {variant!r}: the course has {', '.join(COUNTS)}")
    targets = [cast(nn.Linear, model.get_submodule(name)) for name in find_targets(model, target_modules)]
    return sum(COUNTS[variant](t.in_features, t.out_features, r) for t in targets)
