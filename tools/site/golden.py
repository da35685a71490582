"""What the website's engine must compute, by transformers, PEFT and utils.lora: the values that node is held to.

    python -m tools.site.golden         writes tests/site/answers.json: greedy answers to 200 prompts (two minutes)

The rest is made while the tests run, by :func:`golden`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from utils.data.chat import IGNORED, encode, render
from utils.data.chat import padded as padded_ids
from utils.data.labels import assistant_labels, prompt_completion_labels
from utils.inference.decoding import top_p, with_temperature
from utils.lora import combine as combining
from utils.lora import inject, lora_layers
from utils.lora.combine import Adapter, How, combine, into_peft, padded, read_adapter
from utils.models.loading import load_tiny
from utils.tinyworld import TASKS, task_examples
from utils.tinyworld.corpus import Split
from utils.train.adapter_cache import adapter_dir
from utils.train.loop import train

BASE, MIX = "base", "mix"
WAYS: tuple[How, ...] = ("cat", "linear", "ties", "dare_linear", "dare_ties", "svd")
WEIGHTS = (1.0, 0.5, -1.0, 0.3)
LAYERS = ("model.layers.0.self_attn.k_proj", "model.layers.3.self_attn.v_proj")
DENSITY, SEED, SVD_RANK = 0.5, 7, 16
MAX_NEW_TOKENS = 24
# Chat templates of the figure "mask": TRL's file (none: the tiny model's own) and the special tokens, EOS last.
CHAT_TEMPLATES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "tiny": (None, ()),
    "chatml": ("qwen2_5_training", ("<|im_start|>", "<|im_end|>")),
    "llama3": (
        "llama3_training",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}
TEMPERATURES, TOP_PS = (0.1, 0.7, 1.0, 2.0), (0.05, 0.5, 0.9, 1.0)
SPLIT: Split = "test"
ANSWERS = Path(__file__).resolve().parents[2] / "tests" / "site" / "answers.json"


# --------------------------------------------------------------------------------------------- the engine's randomness


def mulberry32(seed: int) -> Iterator[float]:
    """The numbers that `random(seed)` in site/engine/generate.js gives, so that DARE can draw the same masks here."""

    def imul(a: int, b: int) -> int:
        return a * b & 0xFFFFFFFF

    state = seed
    while True:
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        t = imul(state ^ state >> 15, state | 1)
        t ^= (t + imul(t ^ t >> 7, t | 61)) & 0xFFFFFFFF
        yield ((t ^ t >> 14) & 0xFFFFFFFF) / 2**32


def first_largest(tensor: Tensor, density: float) -> Tensor:
    """``keep_largest``, which of equal entries keeps the first; torch's topk doesn't say which it takes."""
    order = tensor.abs().flatten().sort(descending=True, stable=True).indices[: int(density * tensor.numel())]
    mask = torch.zeros(tensor.numel())
    mask[order] = 1
    return tensor * mask.view_as(tensor)


@contextmanager
def drawn_as_in_the_engine(seed: int) -> Iterator[None]:
    """Inside the block :func:`combine` draws DARE's masks as the engine does, and TIES keeps the first of equals."""
    draw, before = mulberry32(seed), (combining.keep_random, combining.keep_largest)

    def keep_random(tensor: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
        kept = torch.tensor([next(draw) < density for _ in range(tensor.numel())]).view_as(tensor)
        return tensor * kept / density

    combining.keep_random, combining.keep_largest = keep_random, first_largest
    try:
        yield
    finally:
        combining.keep_random, combining.keep_largest = before


# --------------------------------------------------------------------------------------------------------- the strings


def strings(count: int) -> list[str]:
    """`count` strings: every character up to U+00FF, emoji with their joiners, white space of all kinds, special
    tokens, the tiny world's own prompts, and a seeded mixture of these and of characters from all of Unicode."""
    whole = [chr(code) for code in range(256)]
    hard = [
        "", " ", "  ", "\n\n \t x", "don't we'll I'VE they've", "a\u0085b\u2028c\u00a0d\u3000e\ufefff", "١٢٣ ४५ ½ ⅷ",
        "👩‍👩‍👧‍👦 🏴‍☠️ 🇫🇷 👍🏽 ❤️", "é e\u0301 ﬁ ß İ ı", "日本語のテキスト", "العربية עברית", "\U00010348\U0010ffff",
        "<|user|>Hi<|assistant|>good<|end|><|pad|>", "<|user", "|>", "<|user|><|user|>", "a<|end|> b",
    ]  # fmt: skip
    prompts = [f"<|user|>{e.prompt}<|assistant|>{e.answer}<|end|>" for t in TASKS for e in task_examples(t, SPLIT, 25)]
    rng = random.Random(0)

    def mixture() -> str:
        parts: list[str] = []
        for _ in range(rng.randint(1, 12)):
            anything = chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))
            begun = rng.choice(prompts)[: rng.randint(1, 30)]
            parts.append(rng.choice((anything, rng.choice(whole), rng.choice(hard), begun)))
        return "".join(parts)

    found = [*whole, *hard, *prompts]
    return [*found, *(mixture() for _ in range(count - len(found)))]


# ----------------------------------------------------------------------------------------------------------- the model


def _greedy(model: Any, tokenizer: Any, rows: Sequence[list[int]]) -> list[list[int]]:
    """The greedy answers' ids without the end-of-turn token. Each prompt is asked alone: nothing is padded."""
    answers = []
    for ids in rows:
        inputs = torch.tensor([ids])
        out = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
        )
        new = out[0, len(ids) :].tolist()
        answers.append(new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new)
    return answers


def _asked(tokenizer: Any, prompts: int) -> tuple[list[str], list[list[int]]]:
    """`prompts` held-out prompts of each task, and their ids in chat form."""
    texts = [example.prompt for task in TASKS for example in task_examples(task, SPLIT, prompts)]
    return texts, [tokenizer.encode(f"<|user|>{p}<|assistant|>", add_special_tokens=False) for p in texts]


def mixed(adapters: Sequence[Adapter], how: How, weights: Sequence[float] = WEIGHTS, seed: int = SEED) -> Adapter:
    """A mix of adapters with the ranks that each way needs, drawn as the engine draws."""
    most = max(f.r for adapter in adapters for f in adapter.values())
    even = adapters if how in ("cat", "svd") else [padded(adapter, most) for adapter in adapters]
    density = None if how in ("cat", "svd", "linear") else DENSITY
    with drawn_as_in_the_engine(seed):
        return combine(even, weights, how, density=density, svd_rank=SVD_RANK)


@torch.inference_mode()
def answers(prompts: int, with_logits: int = 0) -> dict[str, Any]:
    """The greedy answers of the base, each adapter and the mix by ``cat`` to `prompts` prompts of each task.

    And of the first `with_logits` of each task the logits behind the prompt.
    """
    from peft import PeftModel

    base, tokenizer = load_tiny()
    texts, rows = _asked(tokenizer, prompts)
    some = [i for i in range(len(rows)) if i % prompts < with_logits]
    model = PeftModel.from_pretrained(base, adapter_dir(TASKS[0]), adapter_name=TASKS[0])
    for task in TASKS[1:]:
        model.load_adapter(adapter_dir(task), adapter_name=task)
    model.eval()
    into_peft(model, MIX, mixed([read_adapter(adapter_dir(task)) for task in TASKS], "cat"))

    def values() -> dict[str, Any]:
        logits = [model(torch.tensor([rows[i]])).logits[0, -1].tolist() for i in some]
        return {"answers": _greedy(model, tokenizer, rows), "logits": logits}

    systems: dict[str, Any] = {}
    with model.disable_adapter():
        systems[BASE] = values()
    for name in (*TASKS, MIX):
        model.set_adapter(name)
        systems[name] = values()
    return {
        "prompts": texts, "prompt_ids": rows, "logits_of": some, "tasks": list(TASKS), "systems": systems,
        "max_new_tokens": MAX_NEW_TOKENS, "mix": {"weights": WEIGHTS},
    }  # fmt: skip


def with_mix(weights: dict[str, float], how: How, seed: int = 0) -> Any:
    """A PEFT model whose active adapter is a mix of those of some tasks, as the figure "mixing" has it."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_tiny()[0], adapter_dir(TASKS[0]), adapter_name=TASKS[0]).eval()
    adapters = [read_adapter(adapter_dir(task)) for task in weights]
    into_peft(model, MIX, mixed(adapters, how, list(weights.values()), seed))
    model.set_adapter(MIX)
    return model


def golden(prompts: int = 2, texts: int = 500) -> dict[str, Any]:
    """:func:`answers` with logits; the ids of `texts` strings and the texts of random ids; and of each way of
    :data:`WAYS` the updates that a mix of all adapters has in :data:`LAYERS`."""
    found = answers(prompts, with_logits=prompts)
    tokenizer, rng = load_tiny()[1], random.Random(1)
    found["strings"] = strings(texts)
    found["ids"] = [tokenizer.encode(text, add_special_tokens=False) for text in found["strings"]]
    found["random_ids"] = [[rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 20))] for _ in range(200)]
    found["texts"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in found["random_ids"]]
    rows = [row for own in (BASE, "style") for row in found["systems"][own]["logits"][:4]]
    found["distributions"] = distributions(rows)
    adapters = [read_adapter(adapter_dir(task)) for task in TASKS]
    mixes = {how: mixed(adapters, how) for how in WAYS}
    found["mix"] |= {
        "density": DENSITY, "seed": SEED, "svd_rank": SVD_RANK,
        "updates": {how: {la: mix[la].delta().flatten().tolist() for la in LAYERS} for how, mix in mixes.items()},
    }  # fmt: skip
    return found


def distribution(logits: Tensor, temperature: float, p: float) -> Tensor:
    """What a token is drawn from: PyTorch's softmax at a temperature, of what utils.inference's top-p leaves."""
    return top_p(with_temperature(logits[None].double(), temperature), p).softmax(dim=-1)[0]


def distributions(rows: Sequence[list[float]]) -> list[dict[str, Any]]:
    """:func:`distribution` for rows of logits, at every pair of :data:`TEMPERATURES` and :data:`TOP_PS`."""
    return [
        {"logits": row, "temperature": t, "top_p": p, "wanted": distribution(torch.tensor(row), t, p).tolist()}
        for row in rows for t in TEMPERATURES for p in TOP_PS
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the labels


def with_chat_template(name: str, training: bool = True) -> Any:
    """The tiny model's tokenizer with a template of :data:`CHAT_TEMPLATES` and its special tokens.

    Without `training` the template is the model's own, not TRL's copy with ``{% generation %}`` tags.
    """
    import trl

    tokenizer: Any = load_tiny()[1]
    file, special = CHAT_TEMPLATES[name]
    if file:
        stem = file if training else file.removesuffix("_training")
        folder = Path(trl.__file__).parent / "chat_templates"
        tokenizer.chat_template = (folder / f"{stem}.jinja").read_text(encoding="utf-8")
        tokenizer.add_tokens(list(special), special_tokens=True)
        tokenizer.bos_token, tokenizer.eos_token = special[0], special[-1]
    return tokenizer


def conversations(count: int) -> list[list[dict[str, str]]]:
    """`count` conversations of one to three rounds; every third is of :func:`strings`.

    Every fourth has a system message, in one form with ends that Python strips and JavaScript doesn't, or the reverse.
    """
    rng = random.Random(2)
    hard = [text for text in strings(500) if text.strip()]
    easy = [example for task in TASKS for example in task_examples(task, SPLIT, 25)]

    def texts(strange: bool) -> tuple[str, str]:
        return (rng.choice(hard), rng.choice(hard)) if strange else rng.choice(easy)

    found = []
    for number in range(count):
        system = [{"role": "system", "content": rng.choice(("Be brief.", "\x1c Say it\nlike a pirate.\ufeff"))}]
        talk = system if number % 4 == 0 else []
        for _ in range(rng.randint(1, 3)):
            asked, answered = texts(number % 3 == 0)
            talk = [*talk, {"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        found.append(talk)
    return found


def masks(count: int) -> list[dict[str, Any]]:
    """Of each template and :func:`conversations` the text, ids and labels by utils.data and TRL's templates.

    The labels are those of all answers, of the last one, of every token, and of each where EOS is masked by its id.
    Where the template refuses a conversation, ``refused`` says so in place of all that.
    """
    found = []
    for name in CHAT_TEMPLATES:
        tokenizer = with_chat_template(name)
        for talk in conversations(count):
            row: dict[str, Any] = {"template": name, "messages": talk}
            try:
                ids, answers = assistant_labels(tokenizer, talk)
            except ValueError as error:
                found.append(row | {"refused": str(error)})
                continue
            labels = {
                "answers": answers,
                "last": prompt_completion_labels(tokenizer, {"messages": talk})[1],
                "all": ids,
            }
            for mask, own in list(labels.items()):
                masked = [IGNORED if label == tokenizer.eos_token_id else label for label in own]
                labels[f"{mask}, EOS masked"] = masked
            found.append(row | {"text": render(tokenizer, talk, open_turn=False), "ids": ids, "labels": labels})
    return found


def gradients(r: int, double: bool = True) -> dict[str, Any]:
    """The loss and the gradients of an adapter of rank `r`, lora_B drawn too, on a batch of all tasks' examples.

    In float64 unless `double` is off: the rounding that is left is then all the engine's.
    """
    loaded: tuple[Any, Any] = load_tiny()
    model, tokenizer = loaded
    dtype = torch.float64 if double else torch.float32
    inject(model.to(dtype), target_modules="all-linear", r=r, lora_alpha=2 * r)
    generator = torch.Generator().manual_seed(SEED)
    adapter = {}
    for name, layer in lora_layers(model).items():
        with torch.no_grad():
            for factor in (layer.lora_A, layer.lora_B):
                factor.copy_(torch.randn(factor.shape, generator=generator) * 0.05)
        adapter[name] = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
    rows = encode(tokenizer, [example for task in TASKS for example in task_examples(task, "train", 3)])
    pairs = [(prompt + answer, [IGNORED] * len(prompt) + answer) for prompt, answer in rows]
    loss = model(**padded_ids(pairs, tokenizer.pad_token_id)).loss
    loss.backward()

    def lists(of: Callable[[Tensor], Tensor]) -> dict[str, dict[str, list[float]]]:
        rows = {name: factors.items() for name, factors in adapter.items()}
        return {name: {part: of(own).flatten().tolist() for part, own in row} for name, row in rows.items()}

    return {
        "r": r, "alpha": 2 * r, "rows": [{"prompt": prompt, "answer": answer} for prompt, answer in rows],
        "adapter": lists(Tensor.detach), "loss": loss.item(), "gradients": lists(lambda own: cast(Tensor, own.grad)),
    }  # fmt: skip


def training(r: int, lr: float, steps: int) -> list[float]:
    """The losses of a run of the figure "train", by :func:`utils.train.loop.train`: from the same lora_A."""
    from tools.site import train_data

    model, tokenizer = load_tiny()
    inject(model, target_modules="all-linear", r=r, lora_alpha=2 * r)
    with torch.no_grad():
        layers = lora_layers(model)
        for name, values in train_data.start(r).items():
            layers[name].lora_A.copy_(values)
    recipe = train_data.RECIPE
    examples = task_examples(train_data.TASK, "train", recipe.examples)
    settings: dict[str, Any] = {"batch_size": recipe.batch_size, "seed": train_data.SEED, "progress": False}
    return train(model, tokenizer, examples, steps=steps, lr=lr, **settings)


def main() -> None:
    record = answers(50)
    for values in record["systems"].values():
        del values["logits"]
    ANSWERS.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
