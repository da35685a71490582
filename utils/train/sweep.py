"""The variants as they enter chapter 16's race: rank, scaling and learning rates of each, how to build and to train it.

All have, as nearly as their ranks allow, the parameters of LoRA with r=8 on all linear layers: 108,544. VeRA is there
twice: with a rank that its paper uses, and beside it LoRA with as few parameters; and with the rank that the budget
takes.

Attributes:
    LORA_PLUS_RATIO: B's learning rate over A's, as the paper of LoRA+ advises.
    INIT_R: AdaLoRA's rank at the start; `r` of its entry is where it ends, on average.
    COURSES: Short on purpose: twice as many steps, and nearly everything gets everything right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.data.chat import Example
from utils.lora import nf4_linear, variants
from utils.lora.adalora import ORTHOGONALITY_WEIGHT, AdaLoRA, RankAllocator, Schedule, orthogonality
from utils.lora.layer import LoRA, inject
from utils.tinyworld import Task
from utils.train import loop

VARIANTS = {"rsLoRA": variants.RsLoRA(), "DoRA": variants.DoRA(), "PiSSA": variants.PiSSA(), "AdaLoRA": AdaLoRA()}
LORA_PLUS_RATIO = 16.0
INIT_R = 12


class SweepEntry(NamedTuple):
    """What races: a variant with its rank, ``lora_alpha = 2 r``, and the learning rates that are tried."""

    variant: str
    r: int | None
    rates: tuple[float, ...]


def _rates(middle: float) -> tuple[float, ...]:
    """Nine rates around the middle, each the root of two times the one before: from a quarter of it to four times."""
    return tuple(float(f"{middle * 2 ** (i / 2):.2g}") for i in range(-4, 5))


ENTRIES: dict[str, SweepEntry] = {
    "full fine-tuning": SweepEntry("full", None, _rates(1.4e-3)),
    "LoRA": SweepEntry("LoRA", 8, _rates(5.6e-3)),
    "QLoRA": SweepEntry("QLoRA", 8, _rates(5.6e-3)),
    "DoRA": SweepEntry("DoRA", 7, _rates(5.6e-3)),
    "rsLoRA": SweepEntry("rsLoRA", 8, _rates(4e-3)),
    "LoRA+": SweepEntry("LoRA+", 8, _rates(2e-3)),
    "PiSSA": SweepEntry("PiSSA", 8, _rates(5.6e-3)),
    "AdaLoRA": SweepEntry("AdaLoRA", 8, _rates(4.5e-2)),
    "VeRA r=3630": SweepEntry("VeRA", 3630, _rates(9e-2)),
    "VeRA r=256": SweepEntry("VeRA", 256, _rates(0.13)),
    "LoRA r=1": SweepEntry("LoRA", 1, _rates(2e-2)),
}


class Course(NamedTuple):
    """What a run trains on: so many steps on a task."""

    steps: int
    batch_size: int
    examples: int = 4000


COURSES: dict[Task, Course] = {"translation": Course(300, 16), "style": Course(120, 8)}


def schedule(entry: SweepEntry, steps: int) -> Schedule:
    """AdaLoRA's schedule: a tenth of the steps without pruning, then pruning, and a third of the steps behind it."""
    return Schedule(INIT_R, entry.r or 1, steps, tinit=steps // 10, tfinal=steps // 3, deltaT=5)


def build(entry: SweepEntry, model: nn.Module, seed: int) -> None:
    """Make the model trainable as the entry says, in place. `seed` decides what is drawn."""
    torch.manual_seed(seed)
    if entry.variant == "full":
        model.requires_grad_(True)
        return
    if entry.r is None:
        raise ValueError(f"the entry of {entry.variant} has no rank r; only full fine-tuning does without one")
    if entry.variant == "QLoRA":
        nf4_linear.quantize_layers(model)
    if entry.variant == "VeRA":
        inject(model, "all-linear", entry.r, variant=variants.VeRA(key=seed))
    else:
        r = INIT_R if entry.variant == "AdaLoRA" else entry.r
        inject(model, "all-linear", r, 2 * r, variant=VARIANTS.get(entry.variant, LoRA()))


def train(
    entry: SweepEntry,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Train a model that :func:`build` has made, with the entry's own rates and hooks, and return the losses.

    Raises what :func:`utils.train.loop.train` raises.
    """
    hooks: dict[str, Any] = {}
    if entry.variant == "LoRA+":
        hooks["groups"] = variants.lora_plus_groups(model, lr, LORA_PLUS_RATIO)
    if entry.variant == "AdaLoRA":
        parameters = dict(model.named_parameters())
        hooks["extra_loss"] = lambda: ORTHOGONALITY_WEIGHT * orthogonality(parameters)
        hooks["after_step"] = RankAllocator(model, schedule(entry, steps)).step
    return loop.train(
        model, tokenizer, examples, steps=steps, lr=lr, batch_size=batch_size, seed=seed, progress=progress, **hooks
    )
