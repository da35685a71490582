"""The LoRA layer, the one of this repository, and how it gets into a model and out again.

Low-Rank Adaptation (Hu et al., 2021, https://arxiv.org/abs/2106.09685) leaves a weight `W` as it is and learns a
correction of rank `r` beside it: ``y = W x + (lora_alpha / r) * B (A x)``. Names and shapes are those of PEFT:
`lora_A` is (r, in), `lora_B` is (out, r), `scaling` is ``lora_alpha / r``.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ALL_LINEAR = "all-linear"
"""As a value of `target_modules`: every linear layer but the output head."""


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank correction.

    `base_layer` is the linear layer itself, not a copy; its weight is (out, in). `lora_A` (r, in) begins as PEFT's
    does, uniform with standard deviation ``1 / sqrt(3 * in)``, and `lora_B` (out, r) begins at zero, so that a new
    layer computes what its base computes. Both are float32, or float64 over a float64 base.

    Raises TypeError when `base_layer` is not an ``nn.Linear`` or `r` is no integer, ValueError for a rank below 1, a
    `lora_alpha` that isn't positive and a `lora_dropout` outside [0, 1); warns when the rank exceeds what the layer's
    own shape allows.
    """

    def __init__(self, base_layer: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        super().__init__()
        check_hyperparameters(r, lora_alpha, lora_dropout)
        if not isinstance(base_layer, nn.Linear):
            raise TypeError(f"LoRALinear wraps an nn.Linear, not {type(base_layer).__name__}: choose another target")
        self.base_layer = base_layer.requires_grad_(False)
        self.r, self.lora_alpha, self.scaling = r, lora_alpha, lora_alpha / r
        self.make_parameters(
            base_layer.in_features,
            base_layer.out_features,
            dtype=torch.promote_types(base_layer.weight.dtype, torch.float32),
            device=base_layer.weight.device,
        )
        self.lora_dropout = nn.Dropout(lora_dropout)
        self.merged = False
        self.enabled = True
        self.train(base_layer.training)

    # A variant of LoRA (utils/lora/variants.py, chapter 12) is this class with one or more of the next four changed.

    def make_parameters(self, d_in: int, d_out: int, **where: Any) -> None:
        """Make what is trained, as it is at the start; `where` is the dtype and the device."""
        if self.r > min(d_in, d_out):
            warnings.warn(
                f"r={self.r} is more than a {d_out} x {d_in} weight's full rank, {min(d_in, d_out)}: the extra rank "
                "adds parameters and no freedom",
                stacklevel=3,
            )
        self.lora_A = nn.Parameter(torch.empty(self.r, d_in, **where))
        self.lora_B = nn.Parameter(torch.zeros(d_out, self.r, **where))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def delta_weight(self) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``scaling * lora_B @ lora_A``, of the base weight's shape."""
        return self.scaling * (self.lora_B @ self.lora_A)

    def correction(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """What is added to `y`, the base layer's output for `x`: ``scaling * B (A x)``, with dropout on `x`."""
        dropped = self.lora_dropout(x.to(self.lora_A.dtype))
        return self.scaling * F.linear(F.linear(dropped, self.lora_A), self.lora_B)

    def release(self) -> nn.Linear:
        """The base layer as it was before it was wrapped."""
        return self.base_layer

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        y = self.base_layer(x)
        if self.merged or not self.enabled:
            return y
        return y + self.correction(x, y).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the correction to the base weight, which then computes alone. Raises RuntimeError when it is merged
        already, or when the weight is quantized.
        """
        if self.merged:
            raise RuntimeError(
                "this layer is merged already: merging again would add the correction twice. Call unmerge first"
            )
        if not self.base_layer.weight.is_floating_point():
            raise RuntimeError(
                "the base weight is quantized, and its few values can't hold the correction: dequantize the base first "
                "(utils.lora.nf4_linear.dequantize), then merge"
            )
        self.base_layer.weight += self.delta_weight().to(self.base_layer.weight.dtype)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the correction out again, up to the weight's rounding. Raises RuntimeError when it isn't merged."""
        if not self.merged:
            raise RuntimeError("this layer is not merged, so there is nothing to take out of its weight")
        self.base_layer.weight -= self.delta_weight().to(self.base_layer.weight.dtype)
        self.merged = False

    def extra_repr(self) -> str:
        return f"r={self.r}, lora_alpha={self.lora_alpha}, merged={self.merged}"


def check_hyperparameters(r: int, lora_alpha: float, lora_dropout: float) -> None:
    """Raise TypeError or ValueError, in words for a learner, when no LoRA layer can have these."""
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"the rank r must be a whole number such as 8, not {r!r}")
    if r < 1:
        raise ValueError(f"the rank r must be at least 1, not {r}: a correction of rank 0 can't learn anything")
    if not lora_alpha > 0:
        raise ValueError(
            f"lora_alpha must be positive, not {lora_alpha}: the correction is multiplied by lora_alpha / r; with 0 "
            "it would never have an effect or a gradient. Take 2 * r to begin with"
        )
    if not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout is a probability from 0 up to, not including, 1; it can't be {lora_dropout}")


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by name, empty when it has none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def _injected(model: nn.Module) -> dict[str, LoRALinear]:
    layers = lora_layers(model)
    if not layers:
        raise RuntimeError("this model has no LoRA layers: call inject or load_adapter first")
    return layers


def find_targets(model: nn.Module, target_modules: Sequence[str] | str) -> list[str]:
    """The full names of the linear layers that `target_modules` means, in the model's order.

    A name such as ``"q_proj"`` means every module that is called so, in any block, and
    ``"layers.0.self_attn.q_proj"`` one of them; ``"all-linear"`` means every linear layer but the output head. Raises
    ValueError for a name that matches nothing (PEFT ignores it beside one that does) or a layer whose weight is tied
    to another module's, and TypeError for a module that is not linear.
    """
    modules = dict(model.named_modules())
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head]
    if isinstance(target_modules, str):
        if target_modules != ALL_LINEAR:
            raise ValueError(f"target_modules is the text {target_modules!r}: pass a list of names, or {ALL_LINEAR!r}")
        if not linear:
            raise ValueError(f"this {type(model).__name__} has no linear layer to target")
        _refuse_shared(model, linear)
        return linear
    if not target_modules:
        raise ValueError(f"target_modules is empty: name at least one linear layer, or pass {ALL_LINEAR!r}")
    found: set[str] = set()
    for target in target_modules:
        matches = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not target or not matches:
            known = sorted({name.rpartition(".")[2] for name in linear})
            close = difflib.get_close_matches(target, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"target {target!r} matches no module.{hint} The linear layers here are called {', '.join(known)}"
            )
        for name in matches:
            if not isinstance(modules[name], nn.Linear):
                raise TypeError(
                    f"target {target!r} is a {type(modules[name]).__name__} ({name}); LoRA here wraps nn.Linear only"
                )
        found.update(matches)
    names = [name for name in modules if name in found]
    _refuse_shared(model, names)
    return names


def _refuse_shared(model: nn.Module, names: Sequence[str]) -> None:
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(weight := getattr(module, "weight", None), Tensor):
            users.setdefault(id(weight), []).append(name)
    for name in names:
        others = [user for user in users[id(model.get_submodule(name).weight)] if user != name]
        if others:
            raise ValueError(
                f"the weight of {name!r} is shared with {others[0]!r}, which a merge would change too: leave {name!r} "
                "out of the targets"
            )


def refuse_second(model: nn.Module) -> None:
    """Raise RuntimeError when the model has LoRA layers already."""
    if existing := lora_layers(model):
        raise RuntimeError(
            f"this model has LoRA on {len(existing)} layers already: call remove(model) first, or load the base again"
        )


def wrap(
    model: nn.Module,
    names: Sequence[str],
    r: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    layer: Callable[..., LoRALinear] = LoRALinear,
) -> None:
    """Freeze the whole model and put a :class:`LoRALinear` in the place of each linear layer of `names`.

    `layer` is the class, or whatever else makes a layer of ``(linear, r, lora_alpha, lora_dropout)``: a variant.
    Raises RuntimeError when the model has LoRA layers already, TypeError when it is itself the linear layer, and what
    :class:`LoRALinear` raises. Nothing is changed when anything is wrong.
    """
    refuse_second(model)
    if "" in names:
        raise TypeError("the model is itself one nn.Linear: use LoRALinear(layer, r, lora_alpha) in its place")
    trainable = [p for p in model.parameters() if p.requires_grad]
    wrapped: dict[str, LoRALinear] = {}
    try:
        for name in names:
            wrapped[name] = layer(model.get_submodule(name), r, lora_alpha, lora_dropout)
    except Exception:
        for made in wrapped.values():
            made.release()
        for parameter in trainable:  # the layers wrapped before the one that failed were frozen
            parameter.requires_grad_(True)
        raise
    model.requires_grad_(False)
    for name, made in wrapped.items():
        model.set_submodule(name, made)


def inject(
    model: nn.Module,
    target_modules: Sequence[str] | str,
    r: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    layer: Callable[..., LoRALinear] = LoRALinear,
) -> list[str]:
    """Freeze the model, wrap the targets in LoRA layers, in place, and return their names.

    Afterwards `lora_A` and `lora_B` are all that is trainable, or what else `layer` makes: see :func:`wrap`. Raises
    what :func:`find_targets`, :func:`wrap` and
    :class:`LoRALinear` raise; the model is then as it was.
    """
    refuse_second(model)
    check_hyperparameters(r, lora_alpha, lora_dropout)
    names = find_targets(model, target_modules)
    wrap(model, names, r, lora_alpha, lora_dropout, layer)
    return names


def remove(model: nn.Module) -> None:
    """Put the base layers back in their places and forget the corrections. Raises RuntimeError when a layer is
    merged.
    """
    layers = _injected(model)
    if any(layer.merged for layer in layers.values()):
        raise RuntimeError("the corrections are merged into the weights: call unmerge first to have the base back")
    for name, layer in layers.items():
        model.set_submodule(name, layer.release())


def merge(model: nn.Module) -> None:
    """Merge every LoRA layer. Raises RuntimeError when there is none, or when one is merged already; then none is
    changed.
    """
    layers = _injected(model).values()
    if any(layer.merged for layer in layers):
        raise RuntimeError(
            "this model is merged already: merging again would add the corrections twice. Call unmerge first"
        )
    for layer in layers:
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Unmerge every LoRA layer. Raises RuntimeError when there is none, or when one is not merged; then none is
    changed.
    """
    layers = _injected(model).values()
    if not all(layer.merged for layer in layers):
        raise RuntimeError("this model is not merged, so there is nothing to take out of its weights")
    for layer in layers:
        layer.unmerge()


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes as its base does. Raises RuntimeError when it has no LoRA or is merged."""
    layers = _injected(model).values()
    if any(layer.merged for layer in layers):
        raise RuntimeError("the corrections are merged into the weights and can't be switched off: call unmerge first")
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trainable, and how many there are, each shared one counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
