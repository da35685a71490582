"""On-policy distillation with an adapter: the student answers, and a teacher says of every token how it would go on.

Supervised training shows a model texts that others wrote; here the model writes them itself and learns from each of its
own tokens (Agarwal et al., 2023, https://arxiv.org/abs/2306.13649, section 3). What is minimised is the reverse KL
divergence, the student's distribution over the next token against the teacher's, over the whole vocabulary. A teacher
for free is the model without its adapter: it brings back what the adapter forgot. Equal to TRL 1.16's
DistillationTrainer with its defaults, which tests/preferences/test_distill.py holds it to.

TRL's other settings. `beta`, 1.0 by default, picks the divergence: 0.0 is the forward KL, KL(teacher || student), and
between them stands the generalized Jensen-Shannon divergence, ``beta * KL(teacher || m) + (1 - beta) * KL(student ||
m)`` with ``m = (1 - beta) * student + beta * teacher``. `temperature` divides both models' logits, in sampling and in
the loss; the loss isn't multiplied by its square, as it is in Hinton et al. (2015). `top_k`, `top_p`, `min_p` and
`repetition_penalty` decide what is sampled, never what is compared: the divergence always takes the whole vocabulary.
Dropout stays on in TRL's student unless `disable_dropout`; here it is off. TRL's teacher is a second model: a base that
is given as the teacher and, with `peft_config`, as the student gets the student's adapter, and the loss is 0 for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from utils.data.chat import Example
from utils.data.labels import batches
from utils.data.records import Record
from utils.lora.refusals import check_count, check_seed
from utils.models.ends import end_ids
from utils.preferences.dpo import adapter_off, draws
from utils.preferences.grpo import sample_groups
from utils.preferences.log_probs import completion_logits, completion_mask
from utils.preferences.refusals import check_called, check_list, check_prompts, check_tensors, opened
from utils.train.loop import (
    Diverged,
    Stepper,
    check_positive,
    check_token_ids,
    check_trainable,
    in_mode,
    learning_rate_factor,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Teacher = nn.Module | Callable[[Any], AbstractContextManager]


class ReverseKL(NamedTuple):
    """What :func:`reverse_kl` gives, in nats. loss: the mean over the tokens that count; each: of every token, 0 where
    it doesn't count."""

    loss: Float[Tensor, ""]
    each: Float[Tensor, "rows length"]


def reverse_kl(
    student_logits: Float[Tensor, "rows length vocab"],
    teacher_logits: Float[Tensor, "rows length vocab"],
    mask: Bool[Tensor, "rows length"] | Int[Tensor, "rows length"],
    temperature: float = 1.0,
) -> ReverseKL:
    """KL(student || teacher) at each position: the sum over the vocabulary of ``p * (log p - log q)``.

    p is the student's distribution, q the teacher's, both at `temperature`; the sum runs in float32 at least. Positions
    where `mask` is 0 don't count, whatever their logits hold. Only the student gets a gradient: of a position's
    divergence ``p * (log p - log q - KL) / temperature`` on its logits. A token whose logit is -inf for the student, as
    masked ones are, adds 0. Raises ValueError for shapes that don't fit, a mask without a token, a temperature that
    isn't positive and finite, and a token whose logit is -inf for the teacher alone, where the divergence is infinite;
    TypeError for what are no tensors and no number; :class:`~utils.train.loop.Diverged`, a ValueError, for a model
    whose logits hold NaN or infinity.
    """
    check_tensors(student_logits=student_logits, teacher_logits=teacher_logits, mask=mask)
    if student_logits.ndim != 3 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the student's and the teacher's logits are of one shape (rows, length, vocabulary), not "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}: both models must read the same ids, and "
            "their vocabularies be the same"
        )
    if mask.shape != student_logits.shape[:2]:
        raise ValueError(
            f"the mask has the shape {tuple(mask.shape)}, and the logits have {tuple(student_logits.shape[:2])} "
            "positions: position i predicts token i + 1, so cut the last one off the logits and the first off the mask"
        )
    counted = mask.bool()
    if not bool(counted.any()):
        raise ValueError("the mask leaves no token over, and the mean over none is no number")
    check_positive(temperature=temperature)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    own, other = (
        (logits[counted].to(dtype) / temperature).log_softmax(-1) for logits in (student_logits, teacher_logits)
    )
    # Through (own - other) the gradient is that of a sum of probabilities, 0 but for rounding, and of rounding AdamW
    # would make whole steps where student and teacher are equal.
    apart = (own - other).detach()
    found = (own.exp() * apart).sum(-1)
    if not bool(found.isfinite().all()):
        for name, log_probs in {"student": own, "teacher": other}.items():
            if bool(log_probs.isnan().any()):
                raise Diverged(
                    f"the {name}'s logits hold NaN or infinity, so it has no distribution over the next token: load "
                    "the model and the adapter again, in bfloat16 or float32 rather than float16, and in the middle of "
                    "a run try a lower learning rate"
                )
        said = own > -torch.inf
        if bool((said & (other == -torch.inf)).any()):
            raise ValueError(
                "the teacher's logit is -inf for a token that the student may say, and KL(student || teacher) is "
                "infinite there: mask the same tokens in both, or with a large negative number such as -1e4"
            )
        found = (own.exp() * torch.where(said, apart, 0.0)).sum(-1)
    each = torch.zeros_like(mask, dtype=dtype).masked_scatter(counted, found)
    return ReverseKL(found.mean(), each)


@contextmanager
def _teaching(model: Any, teacher: Teacher) -> Iterator[Any]:
    """What answers for the teacher inside the block: another model in evaluation mode, or `model` changed by it."""
    if isinstance(teacher, nn.Module):
        with in_mode(teacher, False):
            yield teacher
    else:
        with opened("teacher", teacher, model):
            yield model


def _check_teacher(model: nn.Module, teacher: Teacher) -> None:
    if not isinstance(teacher, nn.Module):
        advice = ": leave it out, and it is the model with its adapter off, or pass another model"
        check_called("teacher", teacher, "model", advice=advice)
        return
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    if any(id(p) in learning for p in teacher.parameters()):
        raise ValueError(
            "the teacher holds the parameters that the student trains, so both always say the same and nothing is "
            "learned: LoRA changes a base in place. Leave teacher out, and it is the model without its adapter, or "
            "load the teacher as a model of its own"
        )


def distillation_loss(
    model: Any, batch: dict[str, Tensor], teacher: Teacher = adapter_off, temperature: float = 1.0
) -> ReverseKL:
    """:func:`reverse_kl` of `model` on the tokens of `batch` that have a label.

    batch: `input_ids`, `attention_mask` and `labels`, as utils.data.chat.collate or
    :func:`utils.preferences.grpo.sample_groups` give them; ``each`` has the columns of
    :func:`utils.preferences.log_probs.completion_mask`. teacher: a block that makes `model` the teacher, such as
    :func:`utils.preferences.dpo.adapter_off`, or another model with the same tokenizer. Only the student gets a
    gradient. Raises what :func:`reverse_kl` and `teacher` raise, TypeError for a `teacher` that is neither, and
    ValueError for one that shares what the model trains.
    """
    _check_teacher(model, teacher)
    with torch.no_grad(), _teaching(model, teacher) as teaching:
        wanted = completion_logits(teaching, batch)
    return reverse_kl(completion_logits(model, batch), wanted, completion_mask(batch), temperature)


def train_distillation(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    teacher: Teacher = adapter_off,
    steps: int,
    lr: float,
    batch_size: int = 8,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    rows: Sequence[Example | Record] = (),
    rows_per_step: int = 8,
    seed: int = 0,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train whatever of the model requires a gradient to answer `prompts` as the teacher would.

    Each step draws `batch_size` different prompts, or all where there are fewer, samples one answer to each from the
    student as it is now, at `temperature` from the whole vocabulary and at most `max_new_tokens` long, and takes one
    step down :func:`distillation_loss`. Of `rows`, demonstrations that the model is to keep to, each step also learns
    `rows_per_step` by cross-entropy; the two means are added. The optimizer and the schedule are those of
    :func:`utils.train.loop.train`; the model is in evaluation mode meanwhile, so its dropout is off. An adapter that
    hasn't learned anything yet is its own teacher: with :func:`utils.preferences.dpo.adapter_off` its loss and gradient
    are 0.

    Returns each step's numbers, with which `on_step` is called too: ``prompts``, how many were drawn; ``loss``, what
    was minimised; ``kl``, nats per
    token; ``task_loss``, the cross-entropy of `rows`, 0 without them; ``length``, the mean number of tokens of an
    answer, and ``stopped``, the share that ended by itself; and positions, padding included, that went through a model:
    ``sampled`` to write the answers, ``taught`` through the teacher, ``trained`` forward and backward.

    Raises ValueError when there are no prompts, one is empty or leaves no room for an answer, when a number isn't
    positive, for a teacher that shares what is trained, and for what :func:`utils.train.loop.check_trainable`,
    :func:`utils.train.loop.check_token_ids` and :func:`utils.data.labels.batches` refuse; TypeError for what is no
    number, a count or a seed that is no whole one, and a teacher or an `on_step` that can't be called so; then, as the
    loop does, :class:`utils.train.loop.Diverged`, and ValueError where the weights have left no token to draw.
    """
    from tqdm.auto import tqdm

    check_positive(lr=lr, temperature=temperature)
    counts = {
        "steps": steps,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "rows_per_step": rows_per_step,
    }
    for name, value in counts.items():
        check_count(name, value)
    seed = check_seed(seed)
    check_prompts(prompts)
    check_list("rows", rows, "examples")
    check_trainable(model)
    _check_teacher(model, teacher)
    if on_step is not None:
        check_called("on_step", on_step, "numbers")
    check_token_ids(model, tokenizer, max(end_ids(model, tokenizer), default=0))
    drawn = list(batches(tokenizer, rows, steps=steps, batch_size=rows_per_step, seed=seed)) if len(rows) else []
    stepper = Stepper(model, lr=lr, schedule=lambda step: learning_rate_factor(step, steps))
    generator = torch.Generator(model.device).manual_seed(seed)
    history: list[dict[str, float]] = []
    with in_mode(model, False):
        parts = draws(prompts, steps, batch_size, seed)
        for step, part in enumerate(tqdm(parts, total=steps, desc="distillation", disable=not progress)):
            samples = sample_groups(model, tokenizer, part, 1, max_new_tokens, temperature, generator)
            found = distillation_loss(model, samples.batch, teacher, temperature)
            seen = samples.batch["input_ids"]
            loss, passed, task = found.loss, seen.numel(), 0.0
            if drawn:
                kept = {name: tensor.to(model.device) for name, tensor in drawn[step].items()}
                demonstrated = model(**kept).loss
                loss, task = loss + demonstrated, demonstrated.item()
                passed += kept["input_ids"].numel()
            stepper.step(loss)
            stepper.clear()
            history.append({
                "prompts": len(part), "loss": loss.item(), "kl": found.loss.item(), "task_loss": task,
                "length": samples.lengths.float().mean().item(), "stopped": samples.stopped.float().mean().item(),
                "sampled": seen.numel() - len(seen), "taught": seen.numel(), "trained": passed,
            })  # fmt: skip
            if on_step:
                on_step(history[-1])
    stepper.check_outcome()
    return history
