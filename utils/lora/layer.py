"""The LoRA layer, the one of this repository, and how it gets into a model and out again.

Low-Rank Adaptation (Hu et al., 2021, https://arxiv.org/abs/2106.09685) leaves a weight `W` as it is and learns a
correction of rank `r` beside it: ``y = W x + (lora_alpha / r) * B (A x)``. Names and shapes are those of PEFT:
`lora_A` is (r, in), `lora_B` is (out, r), `scaling` is ``lora_alpha / r``.

:class:`LoRA` computes, :class:`LoRALinear` holds: the base layer, the parameters, and a `variant`, which is
:class:`LoRA` or one of its kind (:mod:`utils.lora.variants`, :mod:`utils.lora.adalora`). What is refused, and in which
words, is in :mod:`utils.lora.refusals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora import refusals
from utils.lora.target_modules import find_targets, refuse_unfit

if TYPE_CHECKING:
    from utils.lora.variants import VeRAProjection

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class LoRA:
    """Plain LoRA: what a layer computes. A variant overrides what it does otherwise.

    A variant holds settings and nothing that is learnt: parameters and buffers are made on the layer, so that they
    have PEFT's names. One object serves all layers of a model.
    """

    changes_base = False  # whether `attach` changes the base weight

    def scaling(self, r: int, lora_alpha: float) -> float:
        """The factor of the correction."""
        return lora_alpha / r

    def make_parameters(self, layer: LoRALinear, d_in: int, d_out: int, **where: Any) -> None:
        """Make what is trained, as it is at the start; `where` is the dtype and the device."""
        refusals.warn_above_full_rank(layer.r, d_in, d_out)
        layer.lora_A = nn.Parameter(torch.empty(layer.r, d_in, **where))
        layer.lora_B = nn.Parameter(torch.zeros(d_out, layer.r, **where))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))

    def correction(
        self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """What is added to `y`, the base layer's output for `x`: ``scaling * B (A x)``, with dropout on `x`."""
        dropped = layer.lora_dropout(x.to(layer.lora_A.dtype))
        return layer.scaling * F.linear(F.linear(dropped, layer.lora_A), layer.lora_B)

    def delta_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``scaling * lora_B @ lora_A``, of the base weight's shape."""
        return layer.scaling * (layer.lora_B @ layer.lora_A)

    def merged_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """The base weight with the correction added, in the wider of their dtypes, while the layer isn't merged."""
        return layer.base_layer.weight + self.delta_weight(layer)

    def unmerged_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """The base weight of a merged layer with the correction taken out again."""
        return layer.base_layer.weight - self.delta_weight(layer)

    def merge(self, layer: LoRALinear) -> None:
        """Store :meth:`merged_weight`, rounded once, in the base layer."""
        layer.base_layer.weight.copy_(self.merged_weight(layer))

    def unmerge(self, layer: LoRALinear) -> None:
        """Store :meth:`unmerged_weight`."""
        layer.base_layer.weight.copy_(self.unmerged_weight(layer))

    # The rest is for variants that need a base of some kind, change it, or share something among layers.

    def check(self, base_layer: nn.Linear, r: int, lora_alpha: float | None, lora_dropout: float) -> None:
        """Raise TypeError or ValueError when no layer of this variant can be made of these."""
        refusals.check_linear(base_layer)
        refusals.check_hyperparameters(r, lora_alpha, lora_dropout)

    def for_model(self, base_layers: Sequence[nn.Linear], r: int) -> LoRA:
        """The variant for a model in which all of these are wrapped: with what the layers share."""
        return self

    def attach(self, layer: LoRALinear) -> None:
        """Change the base weight, where the variant does; the last step in making a layer."""

    def release(self, layer: LoRALinear) -> None:
        """Undo :meth:`attach`."""

    def base_output(self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What the layer would give without LoRA."""
        return layer.base_layer(x)

    @property
    def is_product(self) -> bool:
        """Whether the correction is plain LoRA's ``scaling * B (A x)``, which other forms of computing know."""
        return type(self).correction is LoRA.correction

    def as_lora(self, layer: LoRALinear) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"], float]:
        """`A`, `B` and the scaling of a plain LoRA layer that computes the same on the base as it was.

        Raises ValueError when there is none.
        """
        refusals.check_product(self)
        return layer.lora_A, layer.lora_B, layer.scaling


PLAIN = LoRA()


def plain(layer: LoRALinear, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    """A layer's output as the formula has it: the base's, and the correction on top."""
    y = layer.base_layer(x)
    return y + layer.correction(x, y).to(y.dtype)


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank correction.

    `base_layer` is the linear layer itself, not a copy; its weight is (out, in). `lora_A` (r, in) begins as PEFT's
    does, uniform with standard deviation ``1 / sqrt(3 * in)``, and `lora_B` (out, r) begins at zero, so that a new
    layer computes what its base computes. Both are float32, or float64 over a float64 base. Another `variant` may have
    other parameters and another start. `compute` is how the output is computed: :func:`plain`, or another form of the
    same numbers (:mod:`utils.lora.fused`).

    Raises TypeError when `base_layer` is not an ``nn.Linear``, its weight is in 8-bit floating point, `r` is no integer
    (NumPy's will do) or another setting no number, ValueError for a rank below 1, a `lora_alpha` that isn't positive
    and finite and a `lora_dropout` outside [0, 1), and what the variant's ``check`` raises; the base layer is then as
    it was. Warns when the rank exceeds what the layer's own shape allows.
    """

    base_layer: nn.Linear
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    # What some variants make beside them, or instead.
    lora_E: nn.Parameter  # AdaLoRA
    lora_magnitude_vector: nn.Parameter  # DoRA, which remembers what it merged
    merged_ratio: Tensor
    merged_rows: Tensor
    projection: VeRAProjection  # VeRA
    vera_lambda_d: nn.Parameter
    vera_lambda_b: nn.Parameter
    initial_A: Tensor  # PiSSA
    initial_B: Tensor

    def __init__(
        self,
        base_layer: nn.Linear,
        r: int,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        variant: LoRA = PLAIN,
    ) -> None:
        super().__init__()
        refusals.check_variant(variant)
        variant.check(base_layer, r, lora_alpha, lora_dropout)
        self.base_layer, self.variant = base_layer, variant
        self.r, self.lora_alpha = int(r), _plain_number(lora_alpha)
        self.scaling = variant.scaling(self.r, cast(float, self.lora_alpha))  # `check` saw it where it is used
        self.lora_dropout = nn.Dropout(float(lora_dropout))
        self.merged, self.enabled = False, True
        self.compute: Callable[[LoRALinear, Tensor], Tensor] = plain
        weight = base_layer.weight
        where = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        variant.make_parameters(self, base_layer.in_features, base_layer.out_features, **where)
        base_layer.requires_grad_(False)
        variant.attach(self)
        self.train(base_layer.training)

    @classmethod
    def over(cls, layer: nn.Module) -> LoRALinear:
        """The LoRA layer that computes what `layer` does, a layer of another class with the same parts: it holds the
        very base layer and matrices, so what is read, merged or saved is that layer's. Raises TypeError, naming what is
        missing, when `layer` hasn't the parts.
        """
        if missing := _missing_part(layer):
            raise TypeError(f"a {type(layer).__name__} is no LoRA layer: {missing}")
        same = cls.__new__(cls)
        nn.Module.__init__(same)
        parts = cast(LoRALinear, layer)
        same.base_layer, same.variant = parts.base_layer, PLAIN
        same.lora_A, same.lora_B = parts.lora_A, parts.lora_B
        same.r, same.scaling = len(parts.lora_A), float(parts.scaling)
        same.lora_alpha = same.scaling * same.r
        dropout = getattr(layer, "lora_dropout", None)
        same.lora_dropout = dropout if isinstance(dropout, nn.Dropout) else nn.Dropout(0.0)
        same.merged, same.enabled, same.compute = False, True, plain
        same.training = layer.training
        return same

    @property
    def weight(self) -> Tensor:
        """The base layer's, for models that ask a layer for it, as T5 asks for a dtype. As in PEFT the correction is in
        it only while the layer is merged.
        """
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's."""
        return self.base_layer.bias

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        if self.merged:
            return self.base_layer(x)
        return self.compute(self, x) if self.enabled else self.variant.base_output(self, x)

    def correction(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """What is added to `y`, the base layer's output for `x`."""
        return self.variant.correction(self, x, y)

    def delta_weight(self) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix, of the base weight's shape."""
        return self.variant.delta_weight(self)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the correction to the base weight, which then computes alone. Raises RuntimeError when it is merged
        already or the weight is quantized, ValueError when the sum isn't finite in the weight's dtype; the layer is
        then as it was.
        """
        refusals.refuse_merge({"this layer": self})
        self._merge()

    def _merge(self) -> None:
        self.variant.merge(self)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the correction out again, up to the weight's rounding. Raises RuntimeError when it isn't merged or the
        weight was quantized since, ValueError when the difference isn't finite; the layer is then as it was.
        """
        refusals.refuse_unmerge({"this layer": self})
        self._unmerge()

    def _unmerge(self) -> None:
        self.variant.unmerge(self)
        self.merged = False

    @torch.no_grad()
    def release(self) -> nn.Linear:
        """The base layer as it was before it was wrapped. Raises RuntimeError when it can't be had back."""
        refusals.refuse_release({"this layer": self})
        self.variant.release(self)
        return self.base_layer

    def extra_repr(self) -> str:
        variant = "" if type(self.variant) is LoRA else f", variant={self.variant}"
        return f"r={self.r}, lora_alpha={self.lora_alpha}, merged={self.merged}{variant}"


def _plain_number(value: Any) -> float | None:
    """NumPy's numbers as Python's own, which JSON can write."""
    return value if value is None else int(value) if isinstance(value, Integral) else float(value)


# ------------------------------------------------------------------------------------------------------- in a model


def _missing_part(module: nn.Module) -> str:
    """Which part of a LoRA layer a module lacks, in words; an empty text when it has all of them."""
    base, A, B = (getattr(module, name, None) for name in ("base_layer", "lora_A", "lora_B"))
    if not isinstance(base, nn.Linear):
        return "its base_layer is no nn.Linear"
    if not isinstance(A, nn.Parameter) or not isinstance(B, nn.Parameter):
        return "lora_A and lora_B have to be nn.Parameters"
    if A.ndim != 2 or B.shape != (base.out_features, len(A)) or A.shape[1] != base.in_features:
        return f"lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} don't fit its base_layer"
    if not isinstance(getattr(module, "scaling", None), int | float):
        return "scaling has to be a number"
    names = (name for name, _ in module.named_parameters() if not name.startswith("base_layer."))
    other = next((name for name in names if name not in ("lora_A", "lora_B")), None)
    return f"it has a {other} as well, and so computes more than scaling * B A x" if other else ""


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by name, empty when it has none.

    A LoRA layer of another class is known by its parts, `base_layer`, `lora_A`, `lora_B` and `scaling`, and comes as
    the :class:`LoRALinear` over the same tensors (:meth:`LoRALinear.over`).
    """
    return {
        name: module if isinstance(module, LoRALinear) else LoRALinear.over(module)
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear) or not _missing_part(module)
    }


def injected_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """:func:`lora_layers` of a model that has some. Raises RuntimeError when there are none."""
    layers = lora_layers(model)
    if not layers:
        raise RuntimeError("this model has no LoRA layers: call inject or load_adapter first")
    return layers


def own_layers(model: nn.Module, what: str) -> dict[str, LoRALinear]:
    """:func:`injected_layers` where all are LoRALinear, for what needs its state.

    Raises TypeError, which says `what` can't be done and what can, when a layer is of another class.
    """
    for name in (layers := injected_layers(model)):
        module = model.get_submodule(name)
        if not isinstance(module, LoRALinear):
            raise TypeError(f"{name or 'this layer'} is a {type(module).__name__}, which {what}")
    return layers


_ONLY_FOR_GOOD = (
    "can't be merged and unmerged: merge_and_unload(model) adds the update to the weight and puts the plain layer in "
    "its place"
)


def refuse_second(model: nn.Module) -> None:
    """Raise RuntimeError when the model has LoRA layers already, or other layers with a `base_layer`, as PEFT's."""
    if existing := lora_layers(model):
        raise RuntimeError(
            f"this model has LoRA on {len(existing)} layers already: call remove(model) first, or load the base again"
        )
    others = (module for module in model.modules() if isinstance(getattr(module, "base_layer", None), nn.Module))
    if other := next(others, None):
        raise RuntimeError(
            f"this model has adapters already, in its layers of {type(other).__module__}.{type(other).__name__}: load "
            "the base again"
        )


def wrap(
    model: nn.Module,
    names: Sequence[str],
    r: int,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    variant: LoRA = PLAIN,
    layer: Callable[..., nn.Module] = LoRALinear,
) -> None:
    """Freeze the whole model and put a :class:`LoRALinear` in the place of each linear layer of `names`.

    layer: another class of LoRA layer, which is called with ``(base_layer, r, lora_alpha, lora_dropout)``; no variant
    then. Raises RuntimeError when the model has LoRA layers already, TypeError when it is itself the linear layer,
    `layer` makes none that :func:`lora_layers` would know, or comes with a variant, and what :class:`LoRALinear` and
    :func:`utils.lora.target_modules.refuse_unfit` raise. Nothing is changed when anything is wrong.
    """
    refuse_second(model)
    if "" in names:
        raise TypeError("the model is itself one nn.Linear: use LoRALinear(layer, r, lora_alpha) in its place")
    refusals.check_variant(variant)
    if layer is not LoRALinear and variant is not PLAIN:
        raise TypeError(f"{variant} is a variant of LoRALinear, and another class computes as it does: leave one out")
    bases = {name: cast(nn.Linear, model.get_submodule(name)) for name in names}  # `check` refuses others
    for base in bases.values():
        variant.check(base, r, lora_alpha, lora_dropout)
    refuse_unfit(model, names)
    variant = variant.for_model(list(bases.values()), r)
    trainable = [p for p in model.parameters() if p.requires_grad]
    wrapped: dict[str, nn.Module] = {}
    try:
        for name, base in bases.items():
            if layer is LoRALinear:
                wrapped[name] = LoRALinear(base, r, lora_alpha, lora_dropout, variant)
            else:
                wrapped[name] = layer(base, r, lora_alpha, lora_dropout)
                LoRALinear.over(wrapped[name])
    except BaseException:  # an interrupt too: some variants have changed the weights that were wrapped
        for made in wrapped.values():
            if isinstance(made, LoRALinear):
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
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    variant: LoRA = PLAIN,
    layer: Callable[..., nn.Module] = LoRALinear,
) -> list[str]:
    """Freeze the model, wrap the targets in LoRA layers, in place, and return their names.

    Afterwards `lora_A` and `lora_B` are all that is trainable, or what else the `variant` makes, such as
    :class:`utils.lora.variants.DoRA`. `lora_alpha` may be left out for a variant that has none. `layer` is another
    class of LoRA layer, see :func:`wrap`. Raises what
    :func:`utils.lora.target_modules.find_targets`, :func:`wrap` and :class:`LoRALinear` raise; the model is then as
    it was.
    """
    refuse_second(model)
    names = find_targets(model, target_modules)
    wrap(model, names, r, lora_alpha, lora_dropout, variant, layer)
    return names


def remove(model: nn.Module) -> None:
    """Put the base layers back in their places and forget the corrections. Raises RuntimeError when a base can't be had
    back, as when a layer is merged, TypeError when the model is itself the LoRA layer; then none is changed.
    """
    layers = injected_layers(model)
    refusals.refuse_release(layers)
    _refuse_itself(layers)
    for name, layer in layers.items():
        model.set_submodule(name, layer.release())


def merge(model: nn.Module) -> None:
    """Merge every LoRA layer; :func:`unmerge` takes the corrections out again, :func:`merge_and_unload` makes a plain
    model of it.

    All merged weights are computed, one at a time, and found in order before the first is stored. Raises RuntimeError
    when there is no LoRA or a layer is merged already or quantized, and ValueError when a merged weight isn't finite in
    its dtype, or is another module's too; then none is changed.
    """
    _merge_layers(model, own_layers(model, _ONLY_FOR_GOOD))


@torch.no_grad()
def _merge_layers(model: nn.Module, layers: dict[str, LoRALinear]) -> None:
    refusals.refuse_merge(layers)
    refuse_unfit(model, [f"{name}.base_layer".removeprefix(".") for name in layers])
    for layer in layers.values():
        layer._merge()


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Unmerge every LoRA layer. Raises RuntimeError when there is none, or when one can't be unmerged, and ValueError
    when a weight wouldn't be finite; then none is changed.
    """
    layers = own_layers(model, _ONLY_FOR_GOOD)
    refusals.refuse_unmerge(layers)
    for layer in layers.values():
        layer._unmerge()


def merge_and_unload(model: ModelT) -> ModelT:
    """Merge what isn't merged yet, and put the base layers, with the corrections in their weights, in the places of the
    LoRA layers: a plain model, which ``model.save_pretrained`` writes like any other.

    It is `model` itself that is changed, and given back, as in PEFT. Raises what :func:`merge` raises, and TypeError
    when the model is itself the LoRA layer; then nothing is changed.
    """
    layers = injected_layers(model)
    _refuse_itself(layers)
    _merge_layers(model, {name: layer for name, layer in layers.items() if not layer.merged})
    for name, layer in layers.items():
        model.set_submodule(name, layer.base_layer)
    return model


def _refuse_itself(layers: dict[str, LoRALinear]) -> None:
    if "" in layers:
        raise TypeError("the model is itself one LoRALinear: release() gives its linear layer, base_layer is it")


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes as its base did before it was wrapped, up to rounding where the variant
    changed the base weight (PiSSA). A LoRA layer of another class gives its place to its base layer. Raises
    RuntimeError when it has no LoRA or is merged.
    """
    layers = injected_layers(model)
    refusals.refuse_while_merged(layers, "can't be switched off")
    before = [layer.enabled for layer in layers.values()]
    others = {name: module for name in layers if not isinstance(module := model.get_submodule(name), LoRALinear)}
    if "" in others:
        raise TypeError("the model is itself the LoRA layer: its base_layer is what it computes without the update")
    for layer in layers.values():
        layer.enabled = False
    for name in others:
        model.set_submodule(name, layers[name].base_layer)
    try:
        yield
    finally:
        for layer, enabled in zip(layers.values(), before, strict=True):
            layer.enabled = enabled
        for name, module in others.items():
            model.set_submodule(name, module)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trainable, and how many there are, each shared one counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
