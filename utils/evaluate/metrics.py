"""How a model is asked and marked: greedy answers, exact match, perplexity.

Every prompt goes through :func:`utils.data.chat.render`, as in training. Nothing here changes the model's mode.

Attributes:
    OTHER_OUTPUT: Settings of ``generate`` that make it give something else than a row for each prompt, unless they have
        this value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from utils.data.chat import Example, encode, prompt_completions, render
from utils.data.records import Message, Record
from utils.models.ends import end_ids
from utils.train.loop import in_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


OTHER_OUTPUT = {"num_return_sequences": 1, "return_dict_in_generate": False}


class Answer(NamedTuple):
    """What a model wrote. text: without the end-of-turn token; tokens: how many before it; stopped: whether it came, or
    one of the `stop_strings` that were asked for.
    """

    text: str
    tokens: int
    stopped: bool


@torch.inference_mode()
def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 100,
    **sampling: Any,
) -> list[Answer]:
    """What the model answers to each prompt, greedily: a user's words, or a conversation that waits for an answer.

    `sampling` goes to transformers' ``generate``: with ``do_sample=True, temperature=0.7`` it isn't greedy any more;
    with ``stop_strings=["!"]`` an answer also ends with that text, which stays in it. Prompts are padded on the left,
    so that every answer begins right behind its prompt; the answer is cut by token ids, not by characters. Raises
    ValueError when there are no prompts, and for settings of :data:`OTHER_OUTPUT`.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"there are no prompts to answer: pass a list of texts, not {prompts!r}")
    for name, usual in OTHER_OUTPUT.items():
        if sampling.get(name, usual) not in (usual, None):
            raise ValueError(
                f"{name}={sampling[name]!r} would give something else than one answer to each prompt: for several "
                "answers repeat the prompt, or call model.generate itself"
            )
    ends, found = end_ids(model, tokenizer), []
    settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **sampling}
    stops = settings.get("stop_strings") or []
    if stops:
        settings["tokenizer"] = tokenizer  # generate looks up which tokens can make the strings
    stops = [stops] if isinstance(stops, str) else stops
    with in_mode(model, False):
        for start in range(0, len(prompts), batch_size):
            inputs = tokenizer(
                [render(tokenizer, prompt) for prompt in prompts[start : start + batch_size]],
                add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt",
                return_token_type_ids=False,
            ).to(model.device)  # fmt: skip
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
            for row in output[:, inputs.input_ids.shape[1] :].tolist():
                end = next((i for i, token in enumerate(row) if token in ends), None)
                if end is None and any(stop in cast(str, tokenizer.decode(row)) for stop in stops):
                    end = len(row)
                    while row[end - 1] == settings["pad_token_id"]:  # what waits for the longer answers of its batch
                        end -= 1
                text = cast(str, tokenizer.decode(row[:end], skip_special_tokens=True)).strip()
                found.append(Answer(text, len(row) if end is None else end, end is not None))
    return found


def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 100,
    **sampling: Any,
) -> list[str]:
    """The texts alone of what :func:`answer` gives, with the same arguments."""
    return [a.text for a in answer(model, tokenizer, prompts, max_new_tokens, batch_size, **sampling)]


def questions(rows: Sequence[Example | Record]) -> list[tuple[Sequence[Message], str]]:
    """Of every row the messages that a model is asked with and the answer that is wanted, without white space around.

    Raises ValueError when there are no rows or one holds plain texts and no messages, BadRecords for one that can't be
    used.
    """
    pairs = prompt_completions(rows)
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair["prompt"], str):
            raise ValueError(
                f"number {number} of {len(pairs)} is a plain prompt and completion, and a model is asked in chat form: "
                "make messages of them"
            )
    return [([*pair["prompt"], *pair["completion"][:-1]], pair["completion"][-1]["content"].strip()) for pair in pairs]


def exact_match(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example | Record]) -> float:
    """The share, between 0 and 1, of examples or records whose greedy answer is the right one to the letter.

    Raises what :func:`questions` raises.
    """
    asked = questions(rows)
    longest = max(len(ids) for _, ids in encode(tokenizer, rows))
    answers = complete(model, tokenizer, [prompt for prompt, _ in asked], max_new_tokens=longest + 1)
    return sum(a == wanted for a, (_, wanted) in zip(answers, asked, strict=True)) / len(asked)


@torch.inference_mode()
def perplexity(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], window: int = 256) -> float:
    """The perplexity of the model on texts that are joined by end marks and cut into windows of `window` tokens.

    Raises ValueError when the texts don't fill one window.
    """
    ids = [i for text in texts for i in [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]]
    count = len(ids) // window
    if not count:
        raise ValueError(f"the texts hold {len(ids)} tokens, less than one window of {window}: pass more of them")
    rows = torch.tensor(ids[: count * window], device=model.device).view(count, window)
    with in_mode(model, False):
        losses = [model(input_ids=part, labels=part).loss * len(part) for part in rows.split(16)]
    return float(torch.exp(torch.stack(losses).sum() / count))
