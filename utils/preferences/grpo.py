"""Group relative policy optimisation with an adapter: sample a group of answers, reward them, make the better likelier.

GRPO (Shao et al., 2024, https://arxiv.org/abs/2402.03300) needs no answers to learn from, only a number for each answer
that the model itself wrote: the *reward*. An answer's *advantage* is its reward less the mean of its group, the other
answers to the same prompt. Equal to TRL's GRPOTrainer in loss and gradients, which tests/preferences/test_grpo_trl.py
holds it to, names included; what the names mean: `weighting` is TRL's ``loss_type``, `scale` its ``scale_rewards``,
`level` its ``importance_sampling_level``, `updates` its ``num_iterations``.

:func:`train_on_best` is the control: the same samples, of which the best of each group are learned by cross-entropy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from utils.data.chat import IGNORED, render, token_id
from utils.inference.decoding import generate, sampler
from utils.lora.refusals import check_count, check_model, check_number, check_seed
from utils.models.context import positions, room_for_answer
from utils.models.ends import end_ids
from utils.preferences.dpo import adapter_off, draws
from utils.preferences.log_probs import completion_log_probs, completion_mask
from utils.preferences.refusals import (
    check_called,
    check_given,
    check_own_loss,
    check_prompts,
    check_reference,
    check_rows,
    check_tensors,
    name_of,
    opened,
    shown,
)
from utils.preferences.rewards import Reward, reward_of
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

Scale = Literal["group", "batch", "none"]
Weighting = Literal["dapo", "grpo", "bnpo", "dr_grpo"]
Level = Literal["token", "sequence"]

WITHOUT_SPREAD = 10  # steps in a row in which no group had a spread, until a warning says so
EPSILON = 1e-4  # TRL's, added to the standard deviation


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if isinstance(value, str) and value in get_args(choices):
        return
    hint = {True: '. TRL\'s True is "group" here', False: '. TRL\'s False is "none" here'}
    told = hint[value] if name == "scale" and isinstance(value, bool) else ""
    raise ValueError(f"unknown {name} {shown(value)}: choose one of {', '.join(get_args(choices))}{told}")


# -------------------------------------------------------------------------------------------------------- the loss


def advantages(rewards: Shaped[Tensor, "prompts group"], scale: Scale = "group") -> Float[Tensor, "prompts group"]:
    """How much better each answer is than its group: its reward less the group's mean.

    `scale` "group" divides by the group's standard deviation, "batch" by that of all rewards, both with Bessel's
    correction and 1e-4 added; "none" divides by nothing, as Dr. GRPO does (Liu et al., 2025,
    https://arxiv.org/abs/2503.20783, section 3.1): dividing makes very easy and very hard prompts count more. A group
    of equal rewards has advantages of 0. Whole numbers and bools are taken as float32. Raises ValueError for rewards of
    another shape, no prompt, a group of fewer than two, rewards that hold NaN or infinity or are so large that their
    mean or spread does, and an unknown `scale`; TypeError for what is no tensor.
    """
    _check_choice("scale", scale, Scale)
    check_tensors(rewards=rewards)
    if rewards.ndim == 2 and not len(rewards):
        raise ValueError(f"rewards have a row for each prompt, and the shape {tuple(rewards.shape)} has none")
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards have the shape (prompts, group) with at least two answers a group, not {tuple(rewards.shape)}: "
            "an answer alone is its own mean, and its advantage 0"
        )
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    above = rewards - rewards.mean(dim=1, keepdim=True)
    spread = rewards.std(dim=1, keepdim=True) if scale == "group" else rewards.std()
    if not bool((above + spread).isfinite().all()):
        if not bool(rewards.isfinite().all()):
            raise ValueError("the rewards hold NaN or infinity, and one such number makes the mean of its group so")
        raise ValueError(f"rewards up to {rewards.abs().max():g} overflow in their mean or spread: use smaller numbers")
    return above if scale == "none" else above / (spread + EPSILON)


class PolicyLoss(NamedTuple):
    """What :func:`grpo_loss` gives. loss: a number with a gradient; kl: the mean divergence from the reference in nats
    per token, NaN without a reference; clipped: the share of tokens (at level "sequence": of rows) without a gradient.
    """

    loss: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    clipped: Float[Tensor, ""]


def _check_loss_settings(beta: Any, epsilon: Any, epsilon_high: Any, weighting: Any, level: Any) -> None:
    _check_choice("weighting", weighting, Weighting)
    _check_choice("level", level, Level)
    check_positive(epsilon=epsilon)
    if epsilon > 1:
        raise ValueError(
            f"epsilon must be at most 1, not {epsilon}: the ratio is clipped to 1 - epsilon from below, and none is "
            "negative. The bound from above is epsilon_high's"
        )
    if epsilon_high is not None:
        check_positive(epsilon_high=epsilon_high)
    check_number("beta", beta, 0.04)
    if not 0 <= beta < math.inf:
        what = "finite" if beta == math.inf else "0 or above"
        raise ValueError(f"beta must be {what}, not {beta}: it is the price of moving away from the reference")


def grpo_loss(
    log_probs: Float[Tensor, "rows length"],
    old: Float[Tensor, "rows length"],
    reference: Float[Tensor, "rows length"] | None,
    advantages: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows length"],
    *,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    weighting: Weighting = "dapo",
    level: Level = "token",
    max_length: int | None = None,
    bias_correction: bool = True,
) -> PolicyLoss:
    """GRPO's loss of one batch of completions.

    `log_probs` are the policy's, with a gradient; `old` those of the policy that sampled, which are `log_probs` without
    their gradient on the first update after sampling; `reference` those of the reference, needed when `beta`, the price
    of moving away from it, is above 0. `mask` is True where a completion's tokens are.

    The ratio of policy to sampler is clipped to 1 - `epsilon` and 1 + `epsilon_high` (None: `epsilon`), where that
    makes the loss larger. `level` "token" has a ratio for each token, "sequence" one for each row, the exponential of
    the mean over its tokens (GSPO, Zheng et al., 2025, https://arxiv.org/abs/2507.18071). `weighting` says what the sum
    over tokens is divided by: "grpo" each row's by its length, and then by the rows; "bnpo" by the tokens of the batch;
    "dapo" by the tokens of the optimizer's step, which are the batch's, as a step is one batch here; "dr_grpo" by rows
    times `max_length`, the longest completion that was allowed. The divergence is the estimate k3 (Schulman,
    http://joschu.net/blog/kl-approx.html), times the ratio when `bias_correction`, TRL's ``use_bias_correction_kl``.
    Raises ValueError for shapes that differ, advantages that hold NaN or infinity, a missing `reference` or
    `max_length`, a `beta` below 0 or infinite, an `epsilon` that isn't above 0 and at most 1, an `epsilon_high` that
    isn't positive, and an unknown `weighting` or `level`; TypeError for what are no tensors and no numbers.
    """
    _check_loss_settings(beta, epsilon, epsilon_high, weighting, level)
    check_tensors(log_probs=log_probs, old=old, advantages=advantages, mask=mask)
    if reference is not None:
        check_tensors(reference=reference)
    if beta and reference is None:
        raise ValueError(f"beta is {beta}, so the loss needs the reference's log-probabilities: pass them, or beta=0")
    shapes = {tuple(t.shape) for t in (log_probs, old, mask, *([] if reference is None else [reference]))}
    if len(shapes) > 1 or log_probs.ndim != 2 or advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            "log_probs, old, reference and mask have one shape, (rows, length), and advantages have (rows,); got "
            f"{sorted(shapes)} and {tuple(advantages.shape)}. Flatten what utils.preferences.advantages gives"
        )
    if not bool(advantages.isfinite().all()):
        raise ValueError(
            "the advantages hold NaN or infinity, and so would the loss: look at the rewards, or at `scale`"
        )
    gain = advantages[:, None]
    counts = mask.to(log_probs.dtype)
    log_ratio = log_probs - old
    if level == "sequence":
        log_ratio = ((log_ratio * counts).sum(1) / counts.sum(1).clamp(min=1))[:, None]
    ratio = log_ratio.exp()
    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    per_token = -torch.min(ratio * gain, ratio.clamp(low, high) * gain)
    kl = log_probs.new_tensor(float("nan"))
    if reference is not None:
        away = reference - log_probs
        divergence = away.exp() - away - 1
        if bias_correction:
            divergence = divergence * ratio
        kl = ((divergence * counts).sum() / counts.sum().clamp(min=1)).detach()
        if beta:
            per_token = per_token + beta * divergence
    outside = ((ratio < low) & (gain < 0)) | ((ratio > high) & (gain > 0))
    clipped = outside.float().mean() if level == "sequence" else (outside * counts).sum() / counts.sum().clamp(min=1)
    return PolicyLoss(_weighted(per_token * counts, counts, weighting, max_length), kl, clipped)


def _weighted(per_token: Tensor, counts: Tensor, weighting: Weighting, max_length: int | None) -> Tensor:
    """The masked losses of all tokens as one number."""
    if weighting == "grpo":
        return (per_token.sum(1) / counts.sum(1).clamp(min=1)).mean()
    if weighting == "dr_grpo":
        if max_length is None:
            raise ValueError('weighting="dr_grpo" divides by the longest completion allowed: pass max_length')
        check_count("max_length", max_length)
        return per_token.sum() / (len(per_token) * max_length)
    return per_token.sum() / counts.sum().clamp(min=1)


# -------------------------------------------------------------------------------------------------------- sampling


class Samples(NamedTuple):
    """`group` answers to each of several prompts, those to one prompt side by side.

    prompts, completions: strings, one a row; a completion is without its EOS token. batch: `input_ids`,
    `attention_mask` and `labels` of (rows, tokens), on the model's device, prompts padded on the left and completions
    on the right: what :func:`completion_log_probs` reads. stopped: whether a row ended with an EOS token, (rows,).
    lengths: the tokens of each completion, EOS token included, (rows,).
    """

    prompts: list[str]
    completions: list[str]
    batch: dict[str, Tensor]
    stopped: Tensor
    lengths: Tensor


def sample_groups(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    group: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Samples:
    """`group` answers to each prompt, drawn from all tokens at `temperature`, all rows in one batch.

    Prompts are a user's words and go through the chat template. A row ends with any of the model's and the tokenizer's
    EOS tokens, or is cut at `max_new_tokens`, or where the model has no more positions. `generator` is on the model's
    device; without one PyTorch's own is used. Raises ValueError when there are no prompts, one leaves no room for an
    answer or has a token that the model doesn't know, one is empty or no string, `temperature` isn't positive, a number
    is below 1, or the generator is on another device, TypeError for what is no model and no number, and Diverged, a
    ValueError, when the model's logits hold NaN or infinity.
    """
    check_model(model)
    check_prompts(prompts)
    check_count("group", group)
    check_positive(temperature=temperature)
    device = model.device
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"the generator is on {generator.device} and the model on {device}: make it with "
            f"torch.Generator({str(device)!r})"
        )
    asked = tokenizer(
        [render(tokenizer, prompt) for prompt in prompts], add_special_tokens=False, padding=True, padding_side="left",
        return_tensors="pt", return_token_type_ids=False,
    ).to(device)  # fmt: skip
    check_token_ids(model, tokenizer, int(asked["input_ids"].max()))
    ids, mask = (asked[name].repeat_interleave(group, dim=0) for name in ("input_ids", "attention_mask"))
    ends = sorted(end_ids(model, tokenizer))
    draw, spoilt = sampler(generator, temperature=temperature), torch.zeros((), dtype=torch.bool, device=device)

    def choose(logits: Tensor, seen: Tensor) -> Tensor:
        bad = (logits.isnan() | (logits == torch.inf)).any()  # drawn from, they would kill a GPU's context
        spoilt.logical_or_(bad)
        return draw(torch.where(bad, torch.zeros_like(logits), logits), seen)

    with in_mode(model, False):
        made = generate(
            model, ids, mask, max_new_tokens=room_for_answer(ids.shape[1], max_new_tokens, positions(model)),
            eos_id=ends, pad_id=token_id(tokenizer, "pad"), choose=choose,
        )  # fmt: skip
    if bool(spoilt):
        raise Diverged(
            "the model's logits hold NaN or infinity, so no token can be drawn: in a training run try a lower learning "
            "rate; before one load the model and the adapter again, in bfloat16 or float32 rather than float16"
        )
    new = made.ids.clone()  # an inference tensor can't take part in a backward pass, its copy can
    is_end = torch.isin(new, torch.tensor(ends, device=device))
    own = is_end.cumsum(dim=1) - is_end.long() == 0  # up to the first EOS token, which counts
    batch = {
        "input_ids": torch.cat([ids, new], dim=1),
        "attention_mask": torch.cat([mask, own.to(mask.dtype)], dim=1),
        "labels": torch.cat([torch.full_like(ids, IGNORED), new.masked_fill(~own, IGNORED)], dim=1),
    }
    lengths = own.sum(dim=1)
    answers = [row[:n] for row, n in zip(new.tolist(), lengths.tolist(), strict=True)]
    texts = cast(list[str], tokenizer.batch_decode(answers, skip_special_tokens=True))
    repeated = [prompt for prompt in prompts for _ in range(group)]
    return Samples(repeated, texts, batch, is_end.any(dim=1), lengths)


class Rollout(NamedTuple):
    """A step's samples and their rewards, (prompts, group) on the model's device, with the numbers to record."""

    samples: Samples
    rewards: Tensor
    numbers: dict[str, float]


OnStep = Callable[[int, dict[str, float], Samples], None]


def _rollouts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    reward: Reward,
    *,
    steps: int,
    group: int,
    prompts_per_step: int,
    max_new_tokens: int,
    temperature: float,
    mask_truncated: bool,
    seed: int,
) -> Iterator[Rollout]:
    """For every step: draw prompts, sample their groups from the model as it is then, and reward them. Warns when
    nothing can be learned from them for many steps in a row."""
    columns, seed = check_rows(rows), check_seed(seed)
    generator = torch.Generator(model.device).manual_seed(seed)
    flat_steps = cut_steps = 0
    for drawn in draws(rows, steps, prompts_per_step, seed):
        prompts = [row["prompt"] for row in drawn]
        samples = sample_groups(model, tokenizer, prompts, group, max_new_tokens, temperature, generator)
        given = {name: [row[name] for row in drawn for _ in range(group)] for name in columns}
        rewards = reward_of(reward, samples.prompts, samples.completions, given).view(len(prompts), group)
        flat = int((rewards == rewards[:, :1]).all(dim=1).sum())
        flat_steps = flat_steps + 1 if flat == len(rewards) else 0
        if flat_steps == WITHOUT_SPREAD:
            warnings.warn(
                f"in {WITHOUT_SPREAD} steps in a row every answer to a prompt got the same reward from "
                f"{name_of(reward)!r} (the last: {rewards[0, 0].item():g}), so all advantages were 0 and nothing was "
                "learned: choose a reward that tells these answers apart, easier or harder prompts, a larger group, or "
                "train on examples first",
                stacklevel=3,
            )
        numbers = {
            "reward": rewards.mean().item(),
            "reward_std": rewards.std().item(),
            "length": samples.lengths.float().mean().item(),
            "stopped": samples.stopped.float().mean().item(),
            "groups_without_spread": flat,
            "prompts": len(prompts),
        }
        cut_steps = cut_steps + 1 if mask_truncated and not numbers["stopped"] else 0
        if cut_steps == min(WITHOUT_SPREAD, steps):
            warnings.warn(
                f"in {cut_steps} steps in a row every answer was cut at max_new_tokens={max_new_tokens}, and "
                "mask_truncated leaves out those that were, so nothing was learned: raise max_new_tokens, or pass "
                "mask_truncated=False",
                stacklevel=3,
            )
        yield Rollout(samples, rewards.to(model.device), numbers)


def _checked(model: Any, on_step: OnStep | None, **numbers: float) -> None:
    """Raises TypeError or ValueError for what neither loop can train, in the order of
    :func:`utils.train.loop.train`."""
    check_positive(**{name: value for name, value in numbers.items() if name != "group"})
    for name in ("steps", "group", "prompts_per_step", "max_new_tokens", "updates"):
        if name in numbers:
            check_count(name, numbers[name])
    if numbers["group"] < 2:
        raise ValueError("group must be at least 2, not 1: an answer alone is its own mean, and teaches nothing")
    check_trainable(model)
    if on_step is not None:
        check_called("on_step", on_step, "step", "numbers", "samples")


# -------------------------------------------------------------------------------------------------------- the loops


def train_grpo(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    reward: Reward,
    *,
    steps: int,
    lr: float,
    group: int = 8,
    prompts_per_step: int = 4,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    scale: Scale | Callable[[Tensor], Tensor] = "group",
    weighting: Weighting = "dapo",
    level: Level = "token",
    updates: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    mask_truncated: bool = False,
    seed: int = 0,
    reference: Callable[[Any], AbstractContextManager] = adapter_off,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train whatever of the model requires a gradient on a reward. Returns each step's numbers.

    `rows` are mappings with a ``prompt``, the user's words, and the columns that `reward` wants. A step draws
    `prompts_per_step` of them, or all where there are fewer, samples `group` answers to each, rewards them and takes
    `updates` steps of the optimizer on them all. Optimizer and schedule are those of :func:`utils.train.loop.train`.
    `mask_truncated` leaves out answers that were cut at `max_new_tokens`. With `beta` above 0 the reference is what the
    model is inside the block ``reference(model)``: by default the model with its adapter off. The other settings are
    :func:`grpo_loss`'s and :func:`advantages`'s. The model is in evaluation mode, so that dropout can't part the policy
    from its sampler. `seed` decides prompts and samples; torch's random state is left alone.

    `scale` may be a function from rewards to advantages, both (prompts, group), in place of :func:`advantages`. `loss`,
    called as ``loss(log_probs, old, advantages, mask, epsilon)``, takes the place of :func:`grpo_loss`'s; ``kl`` and
    ``clipped`` are the same. It knows nothing of `weighting`, `level` and `epsilon_high`, which are to be left out, and
    has no divergence, so `beta` is to be 0.

    A step's numbers: ``prompts``, how many were drawn, ``reward``, ``reward_std``, ``length`` in tokens, ``stopped``,
    the share of answers that ended by themselves, ``groups_without_spread``, how many groups had equal rewards, which
    teach nothing; and over the updates the means ``loss``, ``kl`` in nats per token (NaN with a `beta` of 0: the
    reference isn't asked) and ``clipped``. The loss says nothing of progress: with one update it is 0 but for the
    weighting, however good the model is. `on_step` is called after each step with its number, counted from 0, its
    numbers and its :class:`Samples`. Warns when no group had a spread in ten steps in a row, or `mask_truncated` left
    out every answer in as many or in all. Raises RewardError, a ValueError, for a reward that can't be used, ValueError
    for settings and rows that can't, TypeError for settings of another kind, functions among them that can't be called
    so or give something else, and what :func:`utils.train.loop.train` raises.
    """
    _checked(
        model, on_step, steps=steps, lr=lr, group=group, prompts_per_step=prompts_per_step, updates=updates,
        max_new_tokens=max_new_tokens, temperature=temperature,
    )  # fmt: skip
    _check_loss_settings(beta, epsilon, epsilon_high, weighting, level)
    if callable(scale):
        check_called("scale", scale, "rewards")
    else:
        _check_choice("scale", scale, Scale)
    if beta:
        check_reference(reference)
    if loss is not None:
        if beta:
            raise ValueError(
                f"beta is {beta}, and a loss of your own gets no reference: pass beta=0, or leave loss out"
            )
        ignored = {
            "weighting": weighting != "dapo",
            "level": level != "token",
            "epsilon_high": epsilon_high is not None,
        }
        if given := [name for name, is_given in ignored.items() if is_given]:
            raise ValueError(
                f"a loss of your own gets no {' and no '.join(given)}: put it into the function, or leave it out"
            )
        check_called("loss", loss, "log_probs", "old", "advantages", "mask", "epsilon")
    stepper = Stepper(model, lr=lr, schedule=lambda step: learning_rate_factor(step, steps * updates))
    history: list[dict[str, float]] = []
    with in_mode(model, False):
        rollouts = _rollouts(
            model, tokenizer, rows, reward, steps=steps, group=group, prompts_per_step=prompts_per_step,
            max_new_tokens=max_new_tokens, temperature=temperature, mask_truncated=mask_truncated, seed=seed,
        )  # fmt: skip
        for step, (samples, rewards, numbers) in enumerate(_shown(rollouts, steps, "GRPO", progress)):
            gains = (_own_gains(scale, rewards) if callable(scale) else advantages(rewards, scale)).flatten()
            mask = completion_mask(samples.batch)
            if mask_truncated:
                mask = mask & samples.stopped[:, None]
            off = None
            if beta:
                with torch.no_grad(), opened("reference", reference, model):
                    off = completion_log_probs(model, samples.batch, temperature)
            old, found = None, []
            for _ in range(updates):
                log_probs = completion_log_probs(model, samples.batch, temperature)
                old = log_probs.detach() if old is None else old
                one = grpo_loss(
                    log_probs, old, off, gains, mask, beta=beta, epsilon=epsilon, epsilon_high=epsilon_high,
                    weighting=weighting, level=level, max_length=max_new_tokens,
                )  # fmt: skip
                if loss is not None:
                    own = loss(log_probs, old, gains, mask, epsilon)
                    one = one._replace(loss=check_own_loss(loss, own, step, log_probs, old))
                stepper.step(one.loss)
                stepper.clear()
                found.append(torch.stack([one.loss.detach(), one.kl, one.clipped]))
            stepper.check_outcome()
            means = torch.stack(found).mean(dim=0).tolist()
            history.append({**numbers, **dict(zip(PolicyLoss._fields, means, strict=True))})
            if on_step:
                on_step(step, history[-1], samples)
    return history


def _own_gains(scale: Callable[[Tensor], Tensor], rewards: Tensor) -> Tensor:
    """What a `scale` of the caller's own makes of the rewards, once it is sure that these are advantages."""
    gains = scale(rewards)
    check_given("scale", scale, gains, tuple(rewards.shape), "one advantage for each reward, in its place")
    if not bool(gains.isfinite().all()):
        raise ValueError(
            f"the scale {name_of(scale)!r} gave advantages that hold NaN or infinity: look for a division by the "
            "spread of a group of equal rewards, which is 0"
        )
    return gains


def train_on_best(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    reward: Reward,
    *,
    steps: int,
    lr: float,
    group: int = 8,
    prompts_per_step: int = 4,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    mask_truncated: bool = False,
    seed: int = 0,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Rejection sampling, the control for :func:`train_grpo` at the same number of samples.

    A step samples and rewards as GRPO's does, and then takes one step of cross-entropy, the mean over tokens, on the
    best answer of each group, the first of equals, where its reward is above the group's mean. Where no group has one
    nothing changes. A step's numbers are those of :func:`train_grpo` without ``kl`` and ``clipped``; ``loss`` is NaN
    where nothing was learned, and ``learned`` the number of answers that were. Arguments and errors are
    :func:`train_grpo`'s.
    """
    _checked(
        model, on_step, steps=steps, lr=lr, group=group, prompts_per_step=prompts_per_step,
        max_new_tokens=max_new_tokens, temperature=temperature,
    )  # fmt: skip
    step = 0
    stepper = Stepper(model, lr=lr, schedule=lambda _: learning_rate_factor(step, steps))
    history: list[dict[str, float]] = []
    with in_mode(model, False):
        rollouts = _rollouts(
            model, tokenizer, rows, reward, steps=steps, group=group, prompts_per_step=prompts_per_step,
            max_new_tokens=max_new_tokens, temperature=temperature, mask_truncated=mask_truncated, seed=seed,
        )  # fmt: skip
        for step, (samples, rewards, numbers) in enumerate(_shown(rollouts, steps, "best of group", progress)):
            best = best_of_groups(rewards)
            if mask_truncated:
                best = best[samples.stopped[best]]
            loss = float("nan")
            if len(best):
                part = {name: tensor[best] for name, tensor in samples.batch.items()}
                taken = -completion_log_probs(model, part).sum() / completion_mask(part).sum()
                stepper.step(taken)
                stepper.clear()
                stepper.check_outcome()
                loss = taken.item()
            history.append({**numbers, "loss": loss, "learned": len(best)})
            if on_step:
                on_step(step, history[-1], samples)
    return history


def best_of_groups(rewards: Float[Tensor, "prompts group"]) -> Tensor:
    """The rows, counted over all groups, of each group's best answer, the first of equals, in groups with a spread."""
    spread = (rewards != rewards[:, :1]).any(dim=1)
    rows = rewards.argmax(dim=1) + torch.arange(len(rewards), device=rewards.device) * rewards.shape[1]
    return rows[spread]


def _shown(rollouts: Iterator[Rollout], steps: int, name: str, progress: bool) -> Iterator[Rollout]:
    from tqdm.auto import tqdm

    return iter(tqdm(rollouts, total=steps, desc=name, disable=not progress))
