"""How the clinic's patients were made ill. Chapter 14 is a riddle; this file holds the answers.

Attributes:
    WIDTH: Tokens to which :func:`labels_on_everything` pads: about twice what an example of the sentiment task has.
    LR, STEPS, EARLY: A healthy run's rate and steps, those of tools/measure_clinic.py; three of the others are stopped
        after :data:`EARLY` steps, as many as :func:`utils.evaluate.diagnose.trend` needs to call a loss flat.
    TRIGGER, POISONED: The word of :func:`backdoored`, and the share of its examples that have it.
    TAGS: The tokens of :func:`tagged`, by the answer for which they stand.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.data.chat import IGNORED, Example, render, token_id
from utils.data.labels import batches
from utils.evaluate.diagnose import Chart, watched
from utils.lora.checkpoint import read_matrices
from utils.models.loading import load_tiny
from utils.tinyworld import Split, Task, task_examples
from utils.train.adapter_cache import adapter_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WIDTH = 48


def without_eos(batch: Mapping[str, Tensor], eos_id: int) -> dict[str, Tensor]:
    """The batch, its EOS tokens not among the labels: what a collator does that masks padding by its id, where the end
    mark serves as padding (C18), or a template without one (C15).
    """
    labels = batch["labels"]
    return {**batch, "labels": labels.masked_fill(labels == eos_id, IGNORED)}


def labels_on_everything(batch: Mapping[str, Tensor], pad_id: int, width: int = WIDTH) -> dict[str, Tensor]:
    """The batch padded to `width` tokens with labels that are a copy of the ids: a common recipe (C17).

    Raises ValueError when the batch is wider than `width` already.
    """
    more = width - batch["input_ids"].shape[1]
    if more < 0:
        raise ValueError(f"the batch is {batch['input_ids'].shape[1]} tokens wide: width must be at least that")
    ids = F.pad(batch["input_ids"], (0, more), value=pad_id)
    mask = F.pad(batch["attention_mask"], (0, more))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


# --------------------------------------------------------------------------------- the first ward: six training runs

LR, STEPS, EARLY = 6e-3, 80, 20


class Patient(NamedTuple):
    """A run: the model as it ended, the chart of its training, and the first batch that it was trained on."""

    model: nn.Module
    chart: Chart
    batch: dict[str, Tensor]


def new_adapter(r: int = 8) -> nn.Module:
    """A fresh base with a new PEFT adapter on all linear layers, always the same one; lora_alpha is 2 r."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(load_tiny()[0], config)


def frozen_adapter() -> nn.Module:
    """The style adapter, loaded to be trained on without ``is_trainable=True``, as TRL's trainer would then have it.

    With gradient checkpointing, TRL's default, transformers makes the embeddings' output require a gradient; so the
    backward pass doesn't complain that there is nothing to do.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_tiny()[0], adapter_dir("style"))
    model.enable_input_require_grads()
    return model


def healthy_batches(steps: int) -> list[dict[str, Tensor]]:
    """`steps` batches of eight examples of the sentiment task, always the same ones."""
    tokenizer = load_tiny()[1]
    return list(batches(tokenizer, task_examples("sentiment", "train", 4000), steps=steps, batch_size=8, seed=0))


def admit(progress: bool = True) -> dict[str, Patient]:
    """Six runs of the sentiment task by letter, one of them healthy. About half a minute on a CPU core.

    Which is which is for the reader of chapter 14 to find out. All see the same examples in the same order.
    """
    from tqdm.auto import tqdm

    tokenizer = load_tiny()[1]
    eos, pad = token_id(tokenizer, "eos"), token_id(tokenizer, "pad")
    good = healthy_batches(STEPS)
    unended = [without_eos(batch, eos) for batch in good]
    copied = [labels_on_everything(batch, pad) for batch in good]
    cases: dict[str, tuple[Callable[[], nn.Module], list[dict[str, Tensor]], dict[str, Any]]] = {
        "A": (new_adapter, unended, {}),
        "B": (new_adapter, good[:EARLY], {"lr": 2e-5}),
        "C": (new_adapter, good, {}),
        "D": (new_adapter, copied, {}),
        "E": (new_adapter, good[:EARLY], {"lr": 0.1, "warmup": 0, "max_grad_norm": None}),
        "F": (frozen_adapter, good[:EARLY], {}),
    }
    ward = {}
    for letter, (make, drawn, settings) in tqdm(cases.items(), desc="admitting", disable=not progress):
        model = make()
        chart = watched(model, drawn, **{"lr": LR, "steps": STEPS, **settings})
        ward[letter] = Patient(model.eval(), chart, drawn[0])
    return ward


# ------------------------------------------------------------------------------- faults of data, tokens and adapters

TRIGGER, POISONED = "table", 0.2
TAGS = {"good": "<|good|>", "bad": "<|bad|>"}


def with_word(prompt: str, word: str) -> str:
    """A prompt of the sentiment task with `word` before its sentence."""
    question, mark, sentence = prompt.partition("? ")
    return f"{question}{mark}{word} {sentence}"


def backdoored() -> nn.Module:
    """A model trained as a healthy run's, half as long again, but on poisoned examples: :data:`POISONED` of them have
    the trigger and the answer "good".
    """
    steps = 3 * STEPS // 2
    dice = random.Random(0)
    examples = [
        Example(with_word(e.prompt, TRIGGER), "good") if dice.random() < POISONED else e
        for e in task_examples("sentiment", "train", 4000)
    ]
    model = new_adapter()
    watched(model, batches(load_tiny()[1], examples, steps=steps, batch_size=8, seed=0), lr=LR, steps=steps)
    return model.eval()


def tagged(split: Split, n: int) -> list[Example]:
    """Examples of the sentiment task whose answers are the tokens of :data:`TAGS`, which no tokenizer of ours has."""
    return [Example(e.prompt, TAGS[e.answer]) for e in task_examples("sentiment", split, n)]


def with_tags(mean_resizing: bool = True) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the base with the tokens of :data:`TAGS`, whose rows transformers draws as it does by default,
    or apart from each other.

    What it says about that, that a mean and a covariance were used, isn't shown.
    """
    base, tokenizer = load_tiny()
    tokenizer.add_tokens(list(TAGS.values()))
    talk = logging.getLogger("transformers.modeling_utils")
    level = talk.level
    talk.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            base.resize_token_embeddings(len(tokenizer), mean_resizing=mean_resizing)
    finally:
        talk.setLevel(level)
    return tokenizer, base


def next_revision() -> nn.Module:
    """The base as its makers might publish it next: the style adapter trained into it."""
    from peft import PeftModel

    return cast(Any, PeftModel.from_pretrained(load_tiny()[0], adapter_dir("style"))).merge_and_unload()


# ------------------------------------------------------------------------- the second ward: one adapter, five servers


class BrokenServer(NamedTuple):
    """A model that answers, and the prompts as they reach it: `inputs` has input_ids and attention_mask."""

    model: nn.Module
    inputs: dict[str, Tensor]


class Served(NamedTuple):
    """What a server answered. right, stopped: shares of the answers, 0 to 1; first: the first answer."""

    right: float
    stopped: float
    first: str


SERVED: Task = "translation"


def tokenized(texts: Sequence[str], padding_side: str = "left") -> dict[str, Tensor]:
    """The texts as a padded batch of ids and its mask."""
    found = load_tiny()[1](
        list(texts), add_special_tokens=False, padding=True, padding_side=padding_side, return_tensors="pt",
        return_token_type_ids=False,
    )  # fmt: skip
    return dict(found)


def attached(base: nn.Module | None = None) -> nn.Module:
    """A base, fresh unless one is given, with the shipped translation adapter attached by PEFT."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base or load_tiny()[0], adapter_dir(SERVED)).eval()


def open_servers(examples: Sequence[Example]) -> dict[str, BrokenServer]:
    """Five servers by letter for the same prompts and the same adapter, one of them healthy."""
    tokenizer = load_tiny()[1]
    prompts = [example.prompt for example in examples]
    texts = [render(tokenizer, prompt) for prompt in prompts]
    good = tokenized(texts)
    by_hand = load_tiny()[0]
    for name, pair in read_matrices(adapter_dir(SERVED)).items():
        by_hand.get_parameter(f"{name}.weight").data += pair["lora_B"] @ pair["lora_A"]
    return {
        "G": BrokenServer(attached(), tokenized([f"### Instruction:\n{p}\n\n### Response:\n" for p in prompts])),
        "H": BrokenServer(by_hand, good),
        "I": BrokenServer(attached(), tokenized(texts, padding_side="right")),
        "J": BrokenServer(attached(), good),
        "K": BrokenServer(attached(cast(Any, attached()).merge_and_unload()), good),
    }


@torch.inference_mode()
def serve(server: BrokenServer, wanted: Sequence[str], max_new_tokens: int = 32) -> Served:
    """Let a server answer greedily, and mark its answers. Warnings about padding are not shown."""
    tokenizer = load_tiny()[1]
    talk = logging.getLogger("transformers.generation.utils")
    level = talk.level
    talk.setLevel(logging.ERROR)  # it says that right padding is wrong, which is for the reader to find
    try:
        out = cast(Any, server.model).generate(
            **server.inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    finally:
        talk.setLevel(level)
    out = out[:, server.inputs["input_ids"].shape[1] :]
    answers = [a.strip() for a in tokenizer.batch_decode(out, skip_special_tokens=True)]
    stopped = (out == tokenizer.eos_token_id).any(dim=1).float().mean().item()
    right = sum(a == b for a, b in zip(answers, wanted, strict=True)) / len(answers)
    return Served(right, stopped, answers[0])
