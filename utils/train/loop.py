"""The short training loop, and the pieces that every loop of the course is made of.

The model may carry LoRA layers or none; whatever requires a gradient is trained. :class:`Stepper` takes the optimizer's
steps, :func:`seeded` and :func:`in_mode` leave the caller's random state and the model's mode as they were.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from utils.data.chat import Example
from utils.data.labels import batches
from utils.data.records import Record
from utils.lora.refusals import check_model, check_number, check_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARMUP_STEPS = 10
MAX_GRAD_NORM = 1.0


class Diverged(ValueError):
    """The loss, the gradient or a weight of a run stopped being a finite number."""


# -------------------------------------------------------------------------------------------------- pieces of a loop


def learning_rate_factor(step: int, steps: int, warmup: int = WARMUP_STEPS) -> float:
    """What the peak learning rate is multiplied by at `step` of `steps`, counted from 0: a ramp up over `warmup` steps
    (0: none), then a line down.
    """
    return min(1.0, (step + 1) / max(1, warmup)) * (1 - step / steps)


@contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Inside the block torch draws as it does after ``torch.manual_seed(seed)``, on the CPU and where the model is.

    Behind it both generators are as they were before.
    """
    cards = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cards):
        torch.default_generator.manual_seed(seed)
        for card in cards:
            torch.cuda.default_generators[card].manual_seed(seed)
        yield


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside the block the model is in training mode, or in evaluation mode; behind it every module is as it was."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def check_positive(**numbers: float) -> None:
    """Raises TypeError, with its name, for what is no number, and ValueError for one that isn't above 0 and finite."""
    for name, value in numbers.items():
        check_number(name, value, 1)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")


def check_trainable(model: nn.Module) -> list[nn.Parameter]:
    """What of `model` requires a gradient, once it is sure that training can change it and that no weight is spoilt.

    Raises ValueError when nothing is trainable, when an adapter is merged, so that its matrices take no part, when a
    parameter to train is float16, whose gradients can't be scaled back, or when a weight holds NaN or infinity, and
    TypeError for what is no model.
    """
    check_model(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "nothing to train: no parameter of the model has requires_grad. Did you freeze it before adding LoRA?"
        )
    if merged := [name for name, module in model.named_modules() if getattr(module, "merged", False) is True]:
        raise ValueError(
            f"the adapter of {merged[0]} is merged into the base weight, so its matrices take no part and can't learn "
            f"({len(merged)} such layers): unmerge it first, train, and merge afterwards"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise ValueError(
                f"{name} is to be trained in float16, which has no room for its gradients: make what trains float32 "
                "(utils.models.device.widen_trainable)"
            )
        codes = hasattr(parameter, "quant_state")  # 4-bit codes, two or more to a number of whatever dtype holds them
        if not codes and not is_finite(parameter):
            raise ValueError(
                f"{name} holds NaN or infinity before training, and so every loss would: load the "
                f"{'adapter' if 'lora_' in name else 'model'} again, or find what made it so (float16 ends at 65,504)"
            )
    return trainable


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; packed and 8-bit ones, and those without data, count as finite."""
    if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() < 2:
        return True
    return bool(torch.isfinite(tensor.detach()).all())


def check_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, largest: int) -> None:
    """Raise ValueError when a token's id, of which `largest` is the largest, has no row in the model's embedding."""
    try:
        weight = cast(Any, model).get_input_embeddings().weight  # of transformers' models
        rows = getattr(weight, "ds_shape", weight.shape)[0]  # under ZeRO-3 a process has none of them
    except (AttributeError, NotImplementedError):
        return
    if largest >= rows:
        raise ValueError(
            f"the data hold the token {tokenizer.convert_ids_to_tokens(largest)!r} with the id {largest}, and the "
            f"model's embedding has {rows} rows (0 to {rows - 1}): tokens were added to the tokenizer alone. Call "
            "model.resize_token_embeddings(len(tokenizer)) on the base, before LoRA is put on it"
        )


def tell_too_long(model: nn.Module, longest: int) -> None:
    """Warn when a row of `longest` tokens is longer than the model has positions (`max_position_embeddings`)."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions and longest > positions:
        warnings.warn(
            f"the longest example has {longest} tokens, and the model was made for {positions} positions: what is "
            "behind them trains badly, and a model with a table of positions stops there. Cut or split such examples",
            stacklevel=3,
        )


class Stepper:
    """The optimizer's steps of one run: AdamW without weight decay on whatever of the model requires a gradient.

    lr: the peak learning rate; `schedule` gives what it is multiplied by at a step, counted from 0 (None: always 1).
    max_grad_norm: the norm to which all gradients together are clipped; None clips nothing. groups: AdamW's parameter
    groups, with a peak rate each, in the place of one group with `lr`. A model that holds float16 weights trains with
    loss scaling; what trains must be float32 then.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        schedule: Callable[[int], float] | None = None,
        max_grad_norm: float | None = MAX_GRAD_NORM,
        groups: Sequence[dict[str, Any]] | None = None,
        eps: float = 1e-8,
    ) -> None:
        self.lr, self.schedule, self.count, self.taken = lr, schedule, 0, 0
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(groups or [{"params": self.trainable}], lr=lr, eps=eps, weight_decay=0.0)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        float16 = any(p.dtype == torch.float16 for p in model.parameters())
        device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=float16 and bool(self.trainable))

    def step(self, loss: Tensor) -> float:
        """Compute the gradients of `loss`, clip them and take a step. Returns their norm before clipping.

        The gradients, clipped, are there until :meth:`clear`. Raises :class:`Diverged`, and changes no weight, when the
        loss or the norm isn't finite, and ValueError for a loss that depends on nothing trainable. In float16 an
        infinite norm is no error yet: that step is left out and the loss is scaled by less, as long as the scale stays
        above 1.
        """
        self._refuse_infinite("loss", loss.item())
        if not loss.requires_grad:
            raise ValueError(
                "the loss depends on no trainable parameter, so there is nothing to learn: is the adapter switched off "
                "or merged, or does checkpointing cut the graph (model.enable_input_require_grads)?"
            )
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * (self.schedule(self.count) if self.schedule else 1.0)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.trainable, self.max_grad_norm))
        if self.scaler.get_scale() <= 1.0:  # 1 where nothing is scaled
            self._refuse_infinite("gradient's norm", norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.count += 1
        self.taken += math.isfinite(norm)
        return norm

    def _refuse_infinite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        if not self.taken:
            raise Diverged(
                f"the {what} is {value} at step {self.count}, and no step was taken before, so the learning rate isn't "
                "the cause: look which layer gives the first number that isn't finite. DoRA over a row of zeros does, "
                "and so does float16 above 65,504"
            )
        raise Diverged(
            f"the {what} is {value} at step {self.count}, no finite number any more: try a learning rate below "
            f"{self.lr}"
        )

    def check_outcome(self) -> None:
        """Behind the last step. Raises :class:`Diverged` when a weight isn't finite, or when no step was ever taken."""
        if self.count and not self.taken:
            raise Diverged(
                f"in float16 the gradient overflowed in each of the {self.count} steps, and all were left out: nothing "
                "was learnt. Take more steps, or train in bfloat16 or float32"
            )
        if not all(map(is_finite, self.trainable)):
            raise Diverged(
                f"the last step left weights that aren't finite any more, behind a finite loss: try a learning rate "
                f"below {self.lr}"
            )

    def clear(self) -> None:
        """Let go of the gradients, before the next step."""
        self.optimizer.zero_grad(set_to_none=True)


# -------------------------------------------------------------------------------------------------------- the loop


def train(
    model: PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example | Record],
    *,
    steps: int,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    groups: Sequence[dict[str, Any]] | None = None,
    extra_loss: Callable[[], Tensor] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train whatever of the model requires a gradient, with AdamW, and return the loss of every step (nats per token).

    `rows` are examples, or records as :func:`utils.data.formats.read_own` gives them; the answer is learned, of a
    conversation every one (:func:`utils.data.labels.encode_rows`). The rate rises to `lr` in ten steps and falls to
    zero along a line; gradients are clipped to norm 1. `seed` decides the batches and the dropout. Three more are for
    variants of LoRA: `groups`, the optimizer's parameter groups with a peak rate each, in the place of one group with
    `lr`; `extra_loss`, whose value is added to what is minimised, not to what is returned; `after_step`, called with
    the step's number while the gradients are still there. A model in float16 trains with loss scaling; what trains must
    be float32 then. Afterwards the model's mode and torch's random state are what they were before. Before the first
    step are raised TypeError for settings that are no numbers, ValueError when `steps`, `batch_size` or `lr` isn't
    positive and for what :func:`check_trainable` and :func:`check_token_ids` refuse, and BadRecords, a ValueError, for
    a row that can't be used; then :class:`Diverged`, a ValueError, when the loss, the gradient or a weight stops being
    a finite number.
    """
    check_positive(steps=steps, batch_size=batch_size, lr=lr)
    seed = check_seed(seed)
    check_trainable(model)
    stepper = Stepper(model, lr=lr, schedule=lambda step: learning_rate_factor(step, steps), groups=groups)
    from tqdm.auto import tqdm

    device = stepper.trainable[0].device
    losses: list[float] = []
    drawn = list(batches(tokenizer, rows, steps=steps, batch_size=batch_size, seed=seed))
    check_token_ids(model, tokenizer, max(int(batch["input_ids"].max()) for batch in drawn))
    tell_too_long(model, max(batch["input_ids"].shape[1] for batch in drawn))
    with seeded(seed, model), in_mode(model, True):
        for step, batch in enumerate(tqdm(drawn, total=steps, desc="training", disable=not progress)):
            loss = model(**{k: v.to(device) for k, v in batch.items()}).loss
            losses.append(loss.item())
            stepper.step(loss if extra_loss is None else loss + extra_loss())
            if after_step:
                after_step(step)
            stepper.clear()
    stepper.check_outcome()
    return losses
