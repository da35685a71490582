"""The variants of LoRA, each as what it changes in :class:`utils.lora.layer.LoRALinear`.

rsLoRA, DoRA, VeRA and PiSSA are layers; pass one as `layer` to :func:`utils.lora.layer.inject`. LoRA+ is a choice of
learning rates. AdaLoRA, which also needs an allocator of ranks, is in utils/lora/adalora.py; QLoRA, a frozen base in 4
bits, in utils/lora/nf4_linear.py. Names and shapes are PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora.layer import LoRALinear, find_targets, inject, lora_layers
from utils.lora.lowrank import best_factors

# ------------------------------------------------------------------------------------------------------------ rsLoRA


class RsLoRALinear(LoRALinear):
    """rsLoRA (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732): the scaling is ``lora_alpha / sqrt(r)``.

    With ``lora_alpha / r`` the correction and its gradients shrink as the rank grows.
    """

    def __init__(self, base_layer: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        super().__init__(base_layer, r, lora_alpha, lora_dropout)
        self.scaling = lora_alpha / math.sqrt(r)


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


class DoRALinear(LoRALinear):
    """DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353): direction and magnitude are learnt apart.

    The weight is ``m * (W + s B A) / norm``, with `norm` the length of each row (one row an output; the paper, which
    writes matrices the other way round, says column) and `lora_magnitude_vector` m (out), which begins as W's own
    lengths. The gradient treats `norm` as a constant (the paper's section 4.3). Raises TypeError for a quantized
    base, whose weight has no rows to measure.
    """

    def make_parameters(self, d_in: int, d_out: int, **where: Any) -> None:
        super().make_parameters(d_in, d_out, **where)
        if not self.base_layer.weight.is_floating_point():
            raise TypeError("DoRA measures the rows of the weight, and this one is quantized: take plain LoRA on it")
        self.lora_magnitude_vector = nn.Parameter(self.norm())

    def norm(self) -> Float[Tensor, " d_out"]:
        """The length of every row of the base weight with the correction on it, outside the gradient."""
        with torch.no_grad():
            return torch.linalg.norm(self.base_layer.weight + super().delta_weight(), dim=1)

    def correction(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        ratio = self.lora_magnitude_vector / self.norm()
        bias = self.base_layer.bias
        if self.training and self.lora_dropout.p:  # then the base's part of the correction sees dropped inputs too
            x = self.lora_dropout(x)
            direction = F.linear(x, self.base_layer.weight)
        else:
            direction = y if bias is None else y - bias
        low_rank = F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return (ratio - 1) * direction + ratio * low_rank * self.scaling

    def delta_weight(self) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``m / norm * (W + s B A) - W``, while the layer isn't merged."""
        weight = self.base_layer.weight
        return (self.lora_magnitude_vector / self.norm())[:, None] * (weight + super().delta_weight()) - weight

    @torch.no_grad()
    def merge(self) -> None:
        ratio = self.lora_magnitude_vector / self.norm()
        super().merge()
        self.merged_ratio = ratio

    @torch.no_grad()
    def unmerge(self) -> None:
        if not self.merged:
            raise RuntimeError("this layer is not merged, so there is nothing to take out of its weight")
        weight = self.base_layer.weight
        weight.copy_(weight / self.merged_ratio[:, None] - super().delta_weight())
        self.merged = False


# -------------------------------------------------------------------------------------------------------------- VeRA


class VeRAProjection(nn.Module):
    """The two frozen random matrices that all VeRA layers of a model share: `A` (r, d_in) and `B` (d_out, r).

    Both are uniform, with the standard deviation sqrt(2 / fan_in), and follow from `key` alone, so nobody saves them.
    """

    def __init__(self, d_in: int, d_out: int, r: int, key: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(key)
        for name, shape in (("A", (r, d_in)), ("B", (d_out, r))):
            bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))
            self.register_buffer(name, torch.empty(shape).uniform_(-bound, bound, generator=draw), persistent=False)


class VeRALinear(LoRALinear):
    """VeRA (Kopiczko et al., 2023, https://arxiv.org/abs/2310.11454): ``y = W x + b * B (d * (A x))``.

    A layer takes the first columns of the shared `A` and the first rows of the shared `B`, and trains two vectors
    alone: `vera_lambda_d` (r), which begins at `d_initial`, and `vera_lambda_b` (out), which begins at zero. There is
    no scaling.
    """

    def __init__(
        self, base_layer: nn.Linear, projection: VeRAProjection, lora_dropout: float = 0.0, d_initial: float = 0.1
    ) -> None:
        r = len(projection.A)
        super().__init__(base_layer, r, lora_alpha=r, lora_dropout=lora_dropout)
        self.projection = projection.to(self.vera_lambda_b.device)
        with torch.no_grad():
            self.vera_lambda_d.fill_(d_initial)

    def make_parameters(self, d_in: int, d_out: int, **where: Any) -> None:
        self.vera_lambda_d = nn.Parameter(torch.empty(self.r, **where))
        self.vera_lambda_b = nn.Parameter(torch.zeros(d_out, **where))

    @property
    def matrices(self) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """This layer's part of the shared matrices."""
        return self.projection.A[:, : self.base_layer.in_features], self.projection.B[: self.base_layer.out_features]

    def correction(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        A, B = self.matrices
        low = self.vera_lambda_d * F.linear(self.lora_dropout(x.to(A.dtype)), A)
        return self.vera_lambda_b * F.linear(low, B)

    def delta_weight(self) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``diag(b) B diag(d) A``."""
        A, B = self.matrices
        return (self.vera_lambda_b[:, None] * B) @ (self.vera_lambda_d[:, None] * A)


def inject_vera(
    model: nn.Module,
    target_modules: Sequence[str] | str,
    r: int,
    lora_dropout: float = 0.0,
    d_initial: float = 0.1,
    key: int = 0,
) -> list[str]:
    """Freeze the model, wrap the targets in VeRA layers that share one projection, and return their names.

    The projection is as wide as the largest target. Raises what :func:`utils.lora.layer.inject` raises.
    """
    targets = [model.get_submodule(name) for name in find_targets(model, target_modules)]
    widest_in, widest_out = (max(getattr(t, side) for t in targets) for side in ("in_features", "out_features"))
    if isinstance(r, int) and r >= 1:
        projection = VeRAProjection(widest_in, widest_out, r, key)

    def layer(base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float) -> VeRALinear:
        return VeRALinear(base, projection, lora_dropout, d_initial)

    return inject(model, target_modules, r, 1, lora_dropout, layer=layer)


# ------------------------------------------------------------------------------------------------------------- PiSSA


class PiSSALinear(LoRALinear):
    """PiSSA (Meng et al., 2024, https://arxiv.org/abs/2404.02948): the adapter begins as the weight's principal part.

    ``scaling * B A`` is the best rank-`r` approximation of the weight, and what is left of the weight, the residual, is
    the frozen base: the *base weight is changed in place*. Switched off, the layer computes with the residual, not with
    the base. `initial_A` and `initial_B` remember the start, for :func:`pissa_to_lora` and `release`. Raises ValueError
    when the rank exceeds what the weight's shape allows, and TypeError for a quantized base.
    """

    def make_parameters(self, d_in: int, d_out: int, **where: Any) -> None:
        weight = self.base_layer.weight
        if not weight.is_floating_point():
            raise TypeError("PiSSA takes the weight apart, and this one is quantized: apply it first, then quantize")
        B, A = best_factors(weight.detach().to(where["dtype"]), self.r)
        self.lora_A = nn.Parameter(A / math.sqrt(self.scaling))
        self.lora_B = nn.Parameter(B / math.sqrt(self.scaling))
        self.register_buffer("initial_A", self.lora_A.detach().clone())
        self.register_buffer("initial_B", self.lora_B.detach().clone())
        with torch.no_grad():
            weight -= self.initial_delta().to(weight.dtype)

    def initial_delta(self) -> Float[Tensor, "d_out d_in"]:
        """What was taken out of the base weight."""
        return self.scaling * (self.initial_B @ self.initial_A)

    @torch.no_grad()
    def release(self) -> nn.Linear:
        """The base layer with its principal part put back, up to the weight's rounding."""
        self.base_layer.weight += self.initial_delta().to(self.base_layer.weight.dtype)
        return self.base_layer


@torch.no_grad()
def pissa_to_lora(model: nn.Module) -> None:
    """Put a plain LoRA layer of rank 2r in the place of every PiSSA layer, on the base as it was.

    What was learnt is ``s (B A - B0 A0)``, which is ``s [B, B0] [A; -A0]``: a product of rank 2r. Such an adapter needs
    no residual and can be saved. Raises ValueError when the model has no PiSSA layers or one of them is merged.
    """
    layers = {name: layer for name, layer in lora_layers(model).items() if isinstance(layer, PiSSALinear)}
    if not layers or any(layer.merged for layer in layers.values()):
        why = "one of its PiSSA layers is merged: call unmerge first" if layers else "it has no PiSSA layers"
        raise ValueError(f"this model can't be converted, {why}")
    for name, layer in layers.items():
        state = torch.random.get_rng_state()  # the new layer draws a lora_A that is written over
        plain = LoRALinear(layer.release(), 2 * layer.r, 2 * layer.lora_alpha, layer.lora_dropout.p)
        torch.random.set_rng_state(state)
        plain.lora_A.copy_(torch.cat([layer.lora_A, -layer.initial_A]))
        plain.lora_B.copy_(torch.cat([layer.lora_B, layer.initial_B], dim=1))
        model.set_submodule(name, plain.train(layer.training))


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
"""Trainable parameters that each variant adds to one layer; AdaLoRA's at rank `r`, so at first with r = init_r."""


def expected_parameters(model: nn.Module, target_modules: Sequence[str] | str, variant: str, r: int) -> int:
    """How many parameters `variant` of rank `r` trains on these targets of a plain model, by :data:`COUNTS`.

    Raises ValueError for a variant that isn't known, and what :func:`utils.lora.layer.find_targets` raises.
    """
    if variant not in COUNTS:
        raise ValueError(f"there is no variant {variant!r}: the course has {', '.join(COUNTS)}")
    targets = [model.get_submodule(name) for name in find_targets(model, target_modules)]
    return sum(COUNTS[variant](t.in_features, t.out_features, r) for t in targets)
