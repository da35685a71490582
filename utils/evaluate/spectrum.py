"""What an update looks like inside a weight: its rank in two soft senses, intruder dimensions and their controls.

An update is a tuned weight minus the base's, both (d_out, d_in) as PyTorch keeps them; for LoRA it is
``scaling * lora_B @ lora_A``. A singular vector here is a left one, a direction of the layer's output, as in
Shuttleworth et al., 2024, *LoRA vs Full Fine-tuning: An Illusion of Equivalence* (https://arxiv.org/abs/2410.21228).
All of it is computed in float64. Best approximations and their energy are in :mod:`utils.lora.lowrank`.

Attributes:
    LEADING: So many leading singular vectors of a tuned weight are looked at for intruders, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from utils.lora.layer import LoRALinear, lora_layers

LEADING = 10


def _checked(*matrices: Tensor) -> None:
    for matrix in matrices:
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"expected a matrix with rows and columns, got a tensor of shape {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise ValueError("the matrix holds numbers that are not finite: did the training diverge?")


def stable_rank(W: Float[Tensor, "d_out d_in"]) -> float:
    """The sum of W's squared singular values in units of the largest: between 1 and the rank.

    Rudelson and Vershynin, 2007 (https://arxiv.org/abs/math/0503442). Raises ValueError for a zero matrix, and what is
    no matrix of finite numbers.
    """
    _checked(W)
    squares = torch.linalg.svdvals(W.double()) ** 2
    if squares[0] == 0:
        raise ValueError("a matrix of zeros has no direction at all, and so no stable rank")
    return (squares.sum() / squares[0]).item()


def effective_rank(W: Float[Tensor, "d_out d_in"]) -> float:
    """``exp(H)``, where H is the entropy of W's singular values taken as shares of their sum: between 1 and the rank.

    Roy and Vetterli, 2007. It counts small directions more than :func:`stable_rank` does. Raises ValueError as there.
    """
    _checked(W)
    S = torch.linalg.svdvals(W.double())
    if S[0] == 0:
        raise ValueError("a matrix of zeros has no direction at all, and so no effective rank")
    return torch.exp(torch.special.entr(S / S.sum()).sum()).item()


# --------------------------------------------------------------------------------------------- intruder dimensions


def closest_cosines(
    base: Float[Tensor, "d_out d_in"], tuned: Float[Tensor, "d_out d_in"], leading: int = LEADING
) -> Float[Tensor, " leading"]:
    """For each of the `leading` first left singular vectors of `tuned`: its largest |cosine| with any of `base`'s.

    Close to 1, the direction was there before; small, it is new. float64. Raises ValueError when the shapes differ,
    `leading` is not between 1 and the weights' smaller side, or a number isn't finite.
    """
    _checked(base, tuned)
    if base.shape != tuned.shape:
        raise ValueError(f"the base is {tuple(base.shape)} and the tuned weight {tuple(tuned.shape)}: not the same one")
    if not 1 <= leading <= min(base.shape):
        raise ValueError(
            f"leading is {leading}, but a weight of this shape has 1 to {min(base.shape)} singular vectors"
        )
    old = torch.linalg.svd(base.double(), full_matrices=False).U
    new = torch.linalg.svd(tuned.double(), full_matrices=False).U[:, :leading]
    return (old.T @ new).abs().amax(0).clamp(max=1)


def intruders(
    base: Float[Tensor, "d_out d_in"], tuned: Float[Tensor, "d_out d_in"], threshold: float, leading: int = LEADING
) -> int:
    """How many of `tuned`'s `leading` singular vectors are intruder dimensions: closest cosine below `threshold`.

    Raises ValueError as :func:`closest_cosines`, and for a threshold outside 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold for a cosine lies between 0 and 1, not at {threshold}")
    return int((closest_cosines(base, tuned, leading) < threshold).sum())


# ---------------------------------------------------------------------------------------------------- whole models


@torch.no_grad()
def tuned_weights(model: nn.Module, names: list[str] | None = None) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """The weights that a model computes with, by layer name, as copies in float32.

    With LoRA layers: theirs, the correction added. Without: those of the linear layers called `names`. Raises
    ValueError when there is neither.
    """
    found = lora_layers(model)
    wanted = list(found) if names is None else names
    layers = {name: found.get(name, module) for name, module in model.named_modules() if name in wanted}
    if not layers:
        raise ValueError("this model has no LoRA layers: say with names=[...] which linear layers to take")
    weights = {}
    for name, layer in layers.items():
        if isinstance(layer, LoRALinear):
            weight = layer.base_layer.weight
            weights[name] = (weight if layer.merged else weight + layer.delta_weight()).float()
        else:
            weights[name] = layer.get_parameter("weight").detach().clone().float()
    return weights


def all_closest_cosines(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], leading: int = LEADING
) -> Float[Tensor, " n"]:
    """:func:`closest_cosines` of every matrix, one behind the other. Raises ValueError when the names differ."""
    if base.keys() != tuned.keys():
        raise ValueError(f"the two hold different layers: {sorted(base.keys() ^ tuned.keys())[:3]}")
    return torch.cat([closest_cosines(base[name], tuned[name], leading) for name in base])


# ----------------------------------------------------------------------------------------- intruders and their controls


def damped(W: Float[Tensor, "d_out d_in"], chosen: Sequence[int] | Tensor, times: float) -> Float[Tensor, "d_out d_in"]:
    """W with the singular values numbered in `chosen` (0 is the largest) multiplied by `times`; its dtype, by float64.

    This is what ``peft.tuners.lora.intruders.reduce_intruder_dimension`` does to the intruders of base plus update,
    before it cuts the update back to its rank. Raises ValueError for what is no matrix of finite numbers.
    """
    _checked(W)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    picked = torch.as_tensor(chosen, dtype=torch.long, device=W.device)
    return (W + (times - 1) * (U[:, picked] * S[picked]) @ Vh[picked]).to(W.dtype)


def equal_changes(
    base: Float[Tensor, "d_out d_in"],
    tuned: Float[Tensor, "d_out d_in"],
    times: float,
    threshold: float = 0.5,
    leading: int = LEADING,
) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """The tuned weight with its intruders damped by `times`, and four other weights that differ from it by as much.

    As much is the Frobenius norm of the difference from `tuned`. ``intruders``: those of :func:`intruders`.
    ``other leading``: as many of the leading directions that aren't intruders, or all of those there are. ``whole
    update``: the update times a factor. ``without its first``: the update's singular directions but the first.
    ``first alone``: that one. A part that is too small to change so much is taken out whole. Raises ValueError as
    :func:`closest_cosines` does.
    """
    new = closest_cosines(base, tuned, leading) < threshold
    found, kept = new.nonzero()[:, 0], (~new).nonzero()[:, 0][: int(new.sum())]
    update = (tuned - base).double()
    wanted = (damped(tuned.double(), found, times) - tuned.double()).norm()
    U, S, Vh = torch.linalg.svd(tuned.double(), full_matrices=False)
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    parts = {
        "other leading": (U[:, kept] * S[kept]) @ Vh[kept],
        "whole update": update,
        "without its first": (u[:, 1:] * s[1:]) @ vh[1:],
        "first alone": (u[:, :1] * s[:1]) @ vh[:1],
    }
    changed = {"intruders": damped(tuned, found, times)}
    for name, part in parts.items():
        size = part.norm()
        share = float(min(wanted / size, 1)) if size > 0 else 0.0
        changed[name] = (tuned.double() - share * part).to(tuned.dtype)
    return changed
