"""AdaLoRA: an adapter in the form of a singular value decomposition, and the allocator that prunes its ranks.

AdaLoRA (Zhang et al., 2023, https://arxiv.org/abs/2303.10512) writes the update as ``P diag(lambda) Q``. A *triplet* is
one lambda with its column of P and its row of Q. All layers begin with `init_r` triplets; while training goes on, the
least important of the whole model are put to zero, until `target_r` a layer are left on average. PEFT's names are kept:
`lora_B` is P (out, r), `lora_E` lambda (r, 1), `lora_A` Q (r, in).

What counts is computed on dictionaries of tensors in which any leading dimensions may stand before the shapes above, so
that many runs can be kept in one tensor.

Attributes:
    RANK_EPSILON: PEFT divides by the rank and this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from utils.lora.layer import LoRA, LoRALinear, lora_layers

MATRICES = ("lora_A", "lora_E", "lora_B")
ORTHOGONALITY_WEIGHT = 0.5
RANK_EPSILON = 1e-5


@dataclass(frozen=True)
class AdaLoRA(LoRA):
    """``y = W x + lora_alpha / r * B (E * (A x))``. A and B begin as Gaussian noise of 0.02, E at zero."""

    def scaling(self, r: int, lora_alpha: float) -> float:
        return lora_alpha / (r + RANK_EPSILON)

    def make_parameters(self, layer: LoRALinear, d_in: int, d_out: int, **where: Any) -> None:
        layer.lora_A = nn.Parameter(torch.empty(layer.r, d_in, **where).normal_(std=0.02))
        layer.lora_E = nn.Parameter(torch.zeros(layer.r, 1, **where))
        layer.lora_B = nn.Parameter(torch.empty(d_out, layer.r, **where).normal_(std=0.02))

    def correction(
        self, layer: LoRALinear, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        dropped = layer.lora_dropout(x.to(layer.lora_A.dtype))
        return layer.scaling * F.linear(F.linear(dropped, layer.lora_A * layer.lora_E), layer.lora_B)

    def delta_weight(self, layer: LoRALinear) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix: ``scaling * B diag(E) A``."""
        return layer.scaling * (layer.lora_B @ (layer.lora_A * layer.lora_E))

    def as_lora(self, layer: LoRALinear) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"], float]:
        return layer.lora_A * layer.lora_E, layer.lora_B, layer.scaling


def orthogonality(parameters: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """How far the columns of every B and the rows of every A are from being orthonormal.

    `parameters` maps names to tensors, as ``dict(model.named_parameters())`` does; those that end in lora_A or lora_B
    count. The result is the mean of the Frobenius norms of ``A A^T - I`` and ``B^T B - I``. Times
    :data:`ORTHOGONALITY_WEIGHT` it is added to the loss: without it the size of a triplet's lambda would say nothing.
    Raises ValueError when no name ends so.
    """
    grams = [p @ p.mT for name, p in parameters.items() if name.endswith("lora_A")]
    grams += [p.mT @ p for name, p in parameters.items() if name.endswith("lora_B")]
    if not grams:
        raise ValueError("there is neither a lora_A nor a lora_B: pass dict(model.named_parameters()) of a LoRA model")
    return torch.stack([torch.linalg.norm(g - torch.eye(len(g), dtype=g.dtype, device=g.device)) for g in grams]).mean()


def adalora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's AdaLoRA layers by name. Raises ValueError when there are none."""
    layers = {name: layer for name, layer in lora_layers(model).items() if isinstance(layer.variant, AdaLoRA)}
    if not layers:
        raise ValueError("this model has no AdaLoRA layers: inject(..., variant=AdaLoRA()) first")
    return layers


# ------------------------------------------------------------------------------------------------------ the schedule


class Schedule(NamedTuple):
    """When ranks are pruned: not in the first `tinit` steps, not in the last `tfinal`, every `deltaT` steps between."""

    init_r: int
    target_r: int
    total_step: int
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1

    def checked(self) -> Schedule:
        """The schedule itself. Raises ValueError when it can't be followed."""
        if not 1 <= self.target_r < self.init_r:
            raise ValueError(f"target_r is {self.target_r}: it must be at least 1 and below init_r, {self.init_r}")
        if self.deltaT < 1 or self.tinit < 0 or self.tfinal < 0:
            raise ValueError(f"deltaT must be at least 1, tinit and tfinal at least 0: {self}")
        if self.tinit >= self.total_step - self.tfinal:
            raise ValueError(
                f"of {self.total_step} steps, {self.tinit} before the pruning and {self.tfinal} behind it leave none "
                "to prune in: make tinit or tfinal smaller"
            )
        return self

    def budget(self, step: int, layers: int) -> int:
        """How many triplets of all `layers` together may be left after `step`: they fall with the third power."""
        first, last, end = self.init_r * layers, self.target_r * layers, self.total_step - self.tfinal
        if step <= self.tinit:
            return first
        if step > end:
            return last
        left = 1 - (step - self.tinit) / (end - self.tinit)
        return int((first - last) * left**3 + last)

    def prunes(self, step: int) -> bool:
        """Whether the triplets are chosen anew after `step`: at the end of the pruning, and at every `deltaT` th step.

        Between two of these steps a lambda that was put to zero may grow again.
        """
        end = self.total_step - self.tfinal
        return step == end or (self.tinit < step < end and step % self.deltaT == 0)

    def masks(self, step: int) -> bool:
        """Whether lambdas are put to zero after `step`: when they were chosen anew, and in all of the last steps."""
        return self.prunes(step) or step > self.total_step - self.tfinal


# ---------------------------------------------------------------------------------------------------- the importance


class Importance:
    """How much each number matters: ``|p * gradient|``, smoothed (sensitivity), times how much it wavers (uncertainty).

    Both are exponential averages, with `beta1` and `beta2`.
    """

    def __init__(self, beta1: float = 0.85, beta2: float = 0.85) -> None:
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 < beta < 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {beta}")
        self.beta1, self.beta2 = beta1, beta2
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Take one step's numbers and their gradients in."""
        for name, p in values.items():
            now = (p * gradients[name]).abs()
            before = self.sensitivity.get(name, torch.zeros_like(now))
            self.sensitivity[name] = self.beta1 * before + (1 - self.beta1) * now
            wavering = (now - self.sensitivity[name]).abs()
            before = self.uncertainty.get(name, torch.zeros_like(now))
            self.uncertainty[name] = self.beta2 * before + (1 - self.beta2) * wavering

    def score(self, name: str) -> Tensor:
        """The importance of every entry of one tensor."""
        return self.sensitivity[name] * self.uncertainty[name]

    def triplets(self, layer: str) -> Float[Tensor, "... r"]:
        """The importance of a layer's triplets: that of lambda, and the means over its row of A and its column of B."""
        A, E, B = (self.score(f"{layer}.{matrix}") for matrix in MATRICES)
        return E.squeeze(-1) + (A.mean(-1) + B.mean(-2))


def survivors(scores: Mapping[str, Float[Tensor, "... r"]], budget: int) -> dict[str, Bool[Tensor, "... r"]]:
    """Which triplets are among the `budget` most important ones of all layers. Equal ones at the edge all go."""
    every = torch.cat(list(scores.values()), dim=-1)
    if not 0 <= budget < every.shape[-1]:
        raise ValueError(f"the budget is {budget} of {every.shape[-1]} triplets: it must be smaller, and not negative")
    threshold = torch.kthvalue(every, every.shape[-1] - budget, dim=-1, keepdim=True).values
    return {layer: score > threshold for layer, score in scores.items()}


class RankAllocator:
    """Prunes a model's AdaLoRA layers while it trains. Call :meth:`step` behind ``optimizer.step()``, before the
    gradients are dropped.

    Raises ValueError for a schedule that can't be followed, a model without AdaLoRA layers, or layers whose rank isn't
    the schedule's `init_r`.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, beta1: float = 0.85, beta2: float = 0.85) -> None:
        self.layers, self.schedule = adalora_layers(model), schedule.checked()
        if wrong := {layer.r for layer in self.layers.values()} - {schedule.init_r}:
            raise ValueError(f"the layers have rank {sorted(wrong)}, and the schedule begins with {schedule.init_r}")
        self.importance = Importance(beta1, beta2)
        self.kept: dict[str, Bool[Tensor, " r"]] = {}

    def step(self, step: int) -> None:
        """Take in the gradients of `step`, counted from 0, and put to zero what the budget doesn't allow any more.

        Raises RuntimeError when there are no gradients.
        """
        parameters = {f"{n}.{m}": getattr(layer, m) for n, layer in self.layers.items() for m in MATRICES}
        if missing := [name for name, p in parameters.items() if p.grad is None]:
            raise RuntimeError(
                f"{missing[0]} has no gradient: call step behind backward() and optimizer.step(), and zero_grad() after"
            )
        if step < self.schedule.total_step - self.schedule.tfinal:
            self.importance.update(parameters, {name: p.grad for name, p in parameters.items()})
        if self.schedule.prunes(step):
            scores = {name: self.importance.triplets(name) for name in self.layers}
            self.kept = survivors(scores, self.schedule.budget(step, len(self.layers)))
        if self.schedule.masks(step):
            with torch.no_grad():
                for name, mask in self.kept.items():
                    self.layers[name].lora_E.masked_fill_(~mask[:, None], 0.0)

    def ranks(self) -> dict[str, int]:
        """How many triplets each layer has left."""
        return {name: int(self.kept[name].sum()) if self.kept else layer.r for name, layer in self.layers.items()}
