"""Hold a model with our LoRA layers against PEFT's: the same outputs, the same gradients, the same after training.

Used by chapter 16 and by tests/lora/test_variants.py, for every variant in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from utils.train.loop import Stepper, in_mode


class Differences(NamedTuple):
    """The largest differences, each as a share of the largest number compared: outputs, gradients of the first step,
    parameters after the last step, outputs after it.
    """

    output: float
    gradient: float
    trained: float
    trained_output: float


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, so named: PEFT's ``base_model.model.<layer>.lora_A.default.weight`` is ``<layer>.lora_A``."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".default", "")
            found[name.removesuffix(".weight") if ".lora_" in name else name] = parameter
    return found


def _pairs(ours: nn.Module, theirs: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    a, b = trainable(ours), trainable(theirs)
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"the two models don't train the same: {len(odd)} names differ, the first is {odd[0]}")
    return a, b


@torch.no_grad()
def copy_start(ours: nn.Module, theirs: nn.Module) -> None:
    """Give our layers the numbers that PEFT drew. Raises ValueError when the two don't train the same."""
    a, b = _pairs(ours, theirs)
    for name, parameter in a.items():
        parameter.copy_(b[name])


@torch.no_grad()
def shake(model: nn.Module, size: float = 0.05, seed: int = 1) -> None:
    """Move every trainable number a little, so that no zero at the start hides a term."""
    draw = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(trainable(model).items()):
        parameter += size * torch.randn(parameter.shape, generator=draw)


def largest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference between tensors of the same name, over the largest number in `theirs`."""
    scale = max(t.abs().max().item() for t in theirs.values())
    return max((ours[name] - t).abs().max().item() for name, t in theirs.items()) / scale


def _run(model: Any, batches: Sequence, lr: float, groups: Any, extra: Any, after: Any) -> list[dict]:
    parameters = trainable(model)
    groups = groups and [{"params": group["params"], "lr": group["lr"]} for group in groups]
    stepper = Stepper(model, lr=lr, max_grad_norm=None, groups=groups, eps=1e-4)
    if stepper.scaler.is_enabled():
        raise ValueError("in float16 a step may be left out, for loss scaling: load both in float32 to compare")
    states: list[dict] = []
    with in_mode(model, True):
        for step, batch in enumerate(batches[:-1]):
            out = model(**batch)
            stepper.step(out.loss + extra() if extra else out.loss)
            if not step:
                gradients = {name: cast(Tensor, p.grad).clone() for name, p in parameters.items()}
                states = [{"": out.logits.detach()}, gradients]
            if after:
                after(step)
            stepper.clear()
        with torch.no_grad():
            return [*states, {n: p.detach().clone() for n, p in parameters.items()}, {"": model(**batches[-1]).logits}]


def differences(
    ours: nn.Module,
    theirs: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    lr: float = 1e-2,
    groups: tuple[Any, Any] = (None, None),
    extra_loss: tuple[Callable[[], Tensor] | None, Callable[[], Tensor] | None] = (None, None),
    after_step: tuple[Callable[[int], None] | None, Callable[[int], None] | None] = (None, None),
) -> Differences:
    """Shake both models alike, train both on all batches but the last, and compare on the way.

    Both are trained with AdamW, whose epsilon is 1e-4: it divides a gradient by its size, and so would blow up the
    rounding of one that is nearly zero. `groups` (of which parameters and rates are used), `extra_loss` and
    `after_step` are pairs, ours and theirs, for variants that need them. The learning rate stays `lr`, nothing is
    clipped, and both models are in training mode meanwhile. Raises ValueError when the two don't train the same
    or one holds float16 weights, and :class:`utils.train.loop.Diverged` when a loss or a gradient isn't finite.
    """
    _pairs(ours, theirs)
    shake(ours)
    shake(theirs)
    mine, other = (
        _run(model, batches, lr, groups[i], extra_loss[i], after_step[i]) for i, model in enumerate((ours, theirs))
    )
    return Differences(*(largest(x, y) for x, y in zip(mine, other, strict=True)))
