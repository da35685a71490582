"""Direct preference optimisation with an adapter: the loss, the reference that is the adapter switched off, the loop.

DPO (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290) learns from pairs: for one prompt, an answer that
somebody preferred and one that was rejected. It needs the log-probabilities of a *reference*, the model before the
training. With an adapter that model needs no second copy: it is the same one with the adapter off. Equal to TRL's
DPOTrainer (loss type "sigmoid"), which tests/preferences/test_dpo.py holds it to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from utils import tinyworld
from utils.data.chat import Example, collate, encode, render, token_id
from utils.lora.adapter_config import BASE_CHANGING
from utils.lora.layer import disabled, lora_layers
from utils.lora.refusals import check_count, check_model, check_number, check_seed
from utils.models.ends import end_ids
from utils.preferences.log_probs import completion_log_probs
from utils.preferences.refusals import (
    check_called,
    check_list,
    check_own_loss,
    check_prompts,
    check_reference,
    check_tensors,
    opened,
    shown,
)
from utils.tinyworld import Split
from utils.train.loop import (
    Stepper,
    check_positive,
    check_token_ids,
    check_trainable,
    in_mode,
    learning_rate_factor,
    seeded,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase
    from trl import DPOTrainer

Row = TypeVar("Row")


class Pair(NamedTuple):
    """One preference: what the user writes, the answer that was preferred, and the one that was not."""

    prompt: str
    chosen: str
    rejected: str


class Preference(NamedTuple):
    """What :func:`dpo_loss` gives. loss: a number; the rewards have one number a pair."""

    loss: Float[Tensor, ""]
    chosen_rewards: Float[Tensor, " pairs"]
    rejected_rewards: Float[Tensor, " pairs"]


# -------------------------------------------------------------------------------------------------------- the data


def has_moral(story: str) -> bool:
    """Whether a story ends by saying one of the tiny world's morals."""
    return story.rstrip().endswith(tuple(tinyworld.MORALS.values()))


def moral_pairs(n: int, split: Split, seed: int = 0) -> list[Pair]:
    """`n` requests for a story, each with a story that says its moral (preferred) and another one that doesn't.

    Both are of the same cast, told in other words. The splits share no preferred story. Raises ValueError for an `n`
    below 1 or an unknown split, and TypeError for an `n` that is no whole number.
    """
    check_count("n", n)
    if split not in ("train", "dev", "test"):
        raise ValueError(f"unknown split {split!r}: choose one of train, dev, test")
    rng, pairs = random.Random(f"morals/{split}/{seed}"), []
    while len(pairs) < n:
        cast = tinyworld.new_cast(rng)
        prompt = tinyworld.story_request(rng, cast)
        chosen = rejected = ""
        while not has_moral(chosen):
            chosen = tinyworld.story(rng, cast)
        while not rejected or has_moral(rejected):
            rejected = tinyworld.story(rng, cast)
        if tinyworld.split_of(chosen) == split:
            pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def pair_batch(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> dict[str, Int[Tensor, "two_pairs length"]]:
    """`input_ids`, `attention_mask` and `labels` of 2n rows: the preferred answers first, then the rejected ones.

    Raises ValueError when there are no pairs, when one is no :class:`Pair` or lacks a text, or when its two answers
    are the same.
    """
    check_list("pairs", pairs, "Pair")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Pair) or not all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"pair {i} must be a Pair of three texts, Pair(prompt, chosen, rejected), not {shown(pair)}"
            )
        if pair.chosen == pair.rejected:
            raise ValueError(f"pair {i} prefers an answer to itself ({pair.chosen[:40]!r}): it can't teach anything")
    rows = [Example(p.prompt, p.chosen) for p in pairs] + [Example(p.prompt, p.rejected) for p in pairs]
    return collate(encode(tokenizer, rows), token_id(tokenizer, "pad"))


# -------------------------------------------------------------------------------------------------------- the loss


def answer_log_probs(model: Any, batch: dict[str, Tensor]) -> Float[Tensor, " rows"]:
    """The log-probability of each row's whole answer, end mark included: the sum over the tokens that have a label."""
    return completion_log_probs(model, batch).sum(-1)


def dpo_loss(log_probs: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], beta: float) -> Preference:
    """DPO's loss and its implicit rewards, for rows in the order of :func:`pair_batch`.

    The reward of an answer is ``beta * (log p - log p_ref)``; the loss is ``-log sigmoid`` of the preferred one's lead,
    the mean over pairs. Raises ValueError for an odd number of rows, differing lengths, a `beta` that isn't positive
    and finite, and TypeError for what are no tensors or no number.
    """
    check_tensors(log_probs=log_probs, reference=reference)
    check_number("beta", beta, 0.1)
    if log_probs.shape != reference.shape or log_probs.ndim != 1 or len(log_probs) % 2 or not len(log_probs):
        raise ValueError(
            f"expected two equally long rows of log-probabilities, preferred then rejected answers, got shapes "
            f"{tuple(log_probs.shape)} and {tuple(reference.shape)}"
        )
    if not 0 < beta < math.inf:
        raise ValueError(
            f"beta must be positive and finite, not {beta}: it says how much a step away from the reference counts"
        )
    chosen, rejected = (beta * (log_probs - reference)).chunk(2)
    return Preference(-F.logsigmoid(chosen - rejected).mean(), chosen.detach(), rejected.detach())


def adapter_off(model: Any) -> AbstractContextManager:
    """The model without its adapter, for the length of a block: the course's LoRA, or PEFT's ``disable_adapter``.

    Raises RuntimeError when the model has neither, and ValueError for an adapter of PEFT's whose start changed the base
    weight (PiSSA and its like): without it PEFT computes with what is left of the base, which is no reference. The
    course's PiSSA puts back what was taken out.
    """
    check_model(model)
    if not hasattr(model, "disable_adapter"):
        if not lora_layers(model):
            raise RuntimeError(
                "this model has no LoRA layers, so there is no adapter to switch off, and its first step of training "
                "leaves nothing of what it was: train an adapter, or name what it is compared with, reference= (DPO; "
                "GRPO with a beta above 0) for a block in which the model has its old weights, or teacher= "
                "(distillation) for another model"
            )
        return disabled(model)
    for name in model.active_adapters:
        start = getattr(model.peft_config[name], "init_lora_weights", True)
        if str(start).lower().startswith(BASE_CHANGING):
            raise ValueError(
                f"the adapter {name!r} began with init_lora_weights={start!r}, which changed the base weights: with "
                "the adapter off, PEFT computes with what is left of them, and that is no reference. Pass the base "
                "itself as the reference, or take an adapter that leaves the base alone"
            )
    return model.disable_adapter()


@torch.no_grad()
def reference_log_probs(
    model: Any, batch: dict[str, Tensor], reference: Callable[[Any], AbstractContextManager] = adapter_off
) -> Float[Tensor, " rows"]:
    """:func:`answer_log_probs` of the reference: what the model is inside the block ``reference(model)``.

    Raises TypeError when `reference` is no function that gives a block, and what it raises.
    """
    check_reference(reference)
    with opened("reference", reference, model):
        return answer_log_probs(model, batch)


# -------------------------------------------------------------------------------------------------------- the loop


def draws(rows: Sequence[Row], steps: int, size: int, seed: int) -> Iterator[list[Row]]:
    """For every step `size` of the rows, each at most once, or all where there are fewer."""
    rng = random.Random(seed)
    for _ in range(steps):
        yield rng.sample(list(rows), min(size, len(rows)))


def train_dpo(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    beta: float,
    steps: int,
    lr: float,
    batch_size: int = 4,
    seed: int = 0,
    reference: Callable[[Any], AbstractContextManager] = adapter_off,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train whatever of the model requires a gradient on preferences. Returns each step's numbers, under TRL's names:
    ``loss``, ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies``. A step takes
    `batch_size` of the pairs, or all where there are fewer.

    `loss`, called as ``loss(chosen, rejected, ref_chosen, ref_rejected, beta)``, takes the place of :func:`dpo_loss`'s;
    the rewards are the same. Optimizer and schedule are those of :func:`utils.train.loop.train`. The model is in
    evaluation mode meanwhile, so that dropout, which TRL switches off too, can't part it from its reference. Raises
    what :func:`utils.train.loop.train` raises, in the same order, and TypeError for a `reference` or a `loss` that
    can't be called so, or that gives something else than a block or a tensor of shape ().
    """
    check_positive(steps=steps, batch_size=batch_size, lr=lr)
    seed = check_seed(seed)
    check_trainable(model)
    check_reference(reference)
    check_list("pairs", pairs, "Pair")
    if loss is not None:
        check_called("loss", loss, "chosen", "rejected", "ref_chosen", "ref_rejected", "beta")
    stepper = Stepper(model, lr=lr, schedule=lambda step: learning_rate_factor(step, steps))
    from tqdm.auto import tqdm

    device = stepper.trainable[0].device
    history: list[dict[str, float]] = []
    drawn = [pair_batch(tokenizer, part) for part in draws(pairs, steps, batch_size, seed)]
    check_token_ids(model, tokenizer, max(int(batch["input_ids"].max()) for batch in drawn))
    with in_mode(model, False):
        for step, part in enumerate(tqdm(drawn, total=steps, desc="DPO", disable=not progress)):
            batch = {name: tensor.to(device) for name, tensor in part.items()}
            off = reference_log_probs(model, batch, reference)
            on = answer_log_probs(model, batch)
            found = dpo_loss(on, off, beta)
            if loss is not None:
                (chosen, rejected), (ref_chosen, ref_rejected) = on.chunk(2), off.chunk(2)
                own = loss(chosen, rejected, ref_chosen, ref_rejected, beta)
                found = found._replace(loss=check_own_loss(loss, own, step, on, off))
            stepper.step(found.loss)
            stepper.clear()
            history.append(numbers(found))
    stepper.check_outcome()
    return history


def numbers(found: Preference) -> dict[str, float]:
    """A batch's loss, rewards, their margin, and the share of pairs in which the preferred answer leads."""
    margins = found.chosen_rewards - found.rejected_rewards
    return {
        "loss": found.loss.item(),
        "rewards/chosen": found.chosen_rewards.mean().item(),
        "rewards/rejected": found.rejected_rewards.mean().item(),
        "rewards/margins": margins.mean().item(),
        "rewards/accuracies": (margins > 0).float().mean().item(),
    }


# ---------------------------------------------------------------------------------------------------- what came of it


class Told(NamedTuple):
    """One sampled answer. ids: its tokens, with the end mark if the model set one; text: without it."""

    prompt: str
    ids: list[int]
    text: str
    stopped: bool


@torch.inference_mode()
def sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_new_tokens: int = 200, seed: int = 0
) -> list[Told]:
    """One answer to each prompt, drawn at temperature 1 from all tokens: what the model's distribution is.

    The same for the same seed on the same machine. Raises ValueError for prompts that are no list of texts, for none,
    and for an empty one, and TypeError for a seed that is no whole number.
    """
    check_prompts(prompts)
    seed = check_seed(seed)
    inputs = tokenizer(
        [render(tokenizer, p) for p in prompts], add_special_tokens=False, padding=True, padding_side="left",
        return_tensors="pt", return_token_type_ids=False,
    ).to(model.device)  # fmt: skip
    with seeded(seed, model), in_mode(model, False):
        out = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0, top_k=0,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    told, ends = [], end_ids(model, tokenizer)
    for prompt, row in zip(prompts, out[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in ends), None)
        ids = row if end is None else row[: end + 1]
        text = cast(str, tokenizer.decode(ids, skip_special_tokens=True)).strip()
        told.append(Told(prompt, ids, text, end is not None))
    return told


@torch.no_grad()
def drift(model: Any, tokenizer: PreTrainedTokenizerBase, told: Sequence[Told]) -> float:
    """How far the policy went from its reference: the mean of ``log p - log p_ref`` over answers *the policy* sampled.

    That is an estimate of the KL divergence, in nats per answer. The reference is the adapter switched off. Raises
    ValueError when there are no answers.
    """
    if not len(told):
        raise ValueError("there are no answers to measure the drift on: sample some")
    prompts = tokenizer([render(tokenizer, t.prompt) for t in told], add_special_tokens=False).input_ids
    batch = collate([(p, t.ids) for p, t in zip(prompts, told, strict=True)], token_id(tokenizer, "pad"))
    with in_mode(model, False):
        return (answer_log_probs(model, batch) - reference_log_probs(model, batch)).mean().item()


@torch.no_grad()
def evaluate_pairs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    beta: float,
    *,
    batch_size: int = 16,
    reference: Callable[[Any], AbstractContextManager] = adapter_off,
) -> dict[str, float]:
    """:func:`numbers` over many pairs. Raises ValueError when there are none, and as the functions above do."""
    check_list("pairs", pairs, "Pair")
    if not len(pairs):
        raise ValueError("there are no pairs to evaluate on: hold some out")
    own, off = [], []
    with in_mode(model, False):
        for start in range(0, len(pairs), batch_size):
            batch = pair_batch(tokenizer, pairs[start : start + batch_size])
            own.append(answer_log_probs(model, batch).view(2, -1))
            off.append(reference_log_probs(model, batch, reference).view(2, -1))
    return numbers(dpo_loss(torch.cat(own, 1).flatten(), torch.cat(off, 1).flatten(), beta))


# --------------------------------------------------------------------------------------------------------------- TRL


def trl_trainer(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], output_dir: str | Path, beta: float,
    **arguments: Any,
) -> DPOTrainer:  # fmt: skip
    """TRL's DPOTrainer on the CPU, with all pairs in one batch; `arguments` go to it, such as ``peft_config=...``."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    def says(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    disable_progress_bars()
    rows = [
        {
            "prompt": says("user", p.prompt),
            "chosen": says("assistant", p.chosen),
            "rejected": says("assistant", p.rejected),
        }
        for p in pairs
    ]
    # TRL's default is True, and any value under this old name warns.
    unset: dict[str, Any] = {"gradient_checkpointing": None}
    args = DPOConfig(
        output_dir=str(output_dir), beta=beta, per_device_train_batch_size=len(pairs), max_length=None, use_cpu=True,
        bf16=False, dataloader_pin_memory=False, report_to="none", save_strategy="no", disable_tqdm=True,
        **unset,
    )  # fmt: skip
    return DPOTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **arguments
    )
