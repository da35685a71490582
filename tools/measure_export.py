"""Measure what llama.cpp makes of exported models and adapters, and write assets/measurements/export.json.

    python -m tools.measure_export            everything (one CPU core: about ten minutes)
    python -m tools.measure_export --trial    two prompts a task, two dtypes, in seconds; written only where --out says

The tiny Llama is written as GGUF in several dtypes, and asked by llama.cpp the test prompts of the four tasks in three
ways: alone (the control, which is what quantizing the base costs), with each task's shipped adapter beside it, and with
the adapter merged before the file was written. Beside it NF4, as chapter 10 has it, in transformers. Everything is
compared with transformers and PEFT in float32, of the same kind: the base with the base, the adapted with the adapted.
Random models of each architecture follow, of which an error in one architecture's names or rotation would show.

Then three breakages that people make, each with what it does to the answers: rotation forgotten, alpha forgotten, and
four faults of the prompt's form (no template, BOS doubled, another model's template, EOS unknown).

Attributes:
    DTYPES: In the order of the table. HALF: Of these, in which the adapters are used at half their strength as well:
        whole, they are sure of every answer, and half, of few, so that an error shows.
    ASKED: Test prompts of each task. KL_ASKED: of these, the first that the divergence is averaged over.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tools import export_models
from tools.ensemble import provenance, write
from utils.data.chat import Example, encode
from utils.evaluate.merged_answers import Answered, answered
from utils.evaluate.metrics import answer
from utils.export import LlamaCpp, to_gguf
from utils.export.breakages import broken_exports
from utils.models.device import ROOT, TINY_DIR
from utils.models.loading import load_4bit, load_tiny
from utils.quiet import quiet_upstream
from utils.tinyworld import task_examples

OUT = ROOT / "assets" / "measurements" / "export.json"
TASKS = ("style", "translation", "sentiment", "summarization")
DTYPES = ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0")
HALF = ("f32", "q8_0", "q4_0")
ASKED, KL_ASKED, RANDOM_ASKED = 50, 25, 50


def adapter_folder(task: str) -> Path:
    return ROOT / "assets" / "adapters" / task


def texts(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[str]:
    """transformers' greedy answers, one prompt at a time."""
    return [one.text for one in answer(model, tokenizer, [e.prompt for e in examples], batch_size=1)]


def seen(server: LlamaCpp, tokenizer: Any, examples: Sequence[Example], **asked: Any) -> Answered:
    """What :func:`answered` says of a model in transformers, of one in llama.cpp: a request for each answer token."""
    rows, right = [], []
    for prompt, wanted in encode(tokenizer, examples):
        found = torch.stack([server.log_probabilities(prompt + wanted[:at], **asked) for at in range(len(wanted))])
        rows.append(found)
        right.append(bool((found.argmax(-1) == torch.tensor(wanted)).all()))
    return Answered(torch.cat(rows), torch.tensor(right))


def adapted(base: Any, task: str, strength: float = 1.0) -> Any:
    """The base with the task's adapter beside it, its scaling times `strength`."""
    model: Any = PeftModel.from_pretrained(base, str(adapter_folder(task))).eval()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: value * strength for name, value in module.scaling.items()}
    return model


class Reference:
    """transformers' base and adapted models in float32: their answers and predictions for each task.

    `adapted` is by the strength that the adapters are used at.
    """

    def __init__(self, asked: int, kl_asked: int) -> None:
        self.examples = {task: task_examples(task, "test", asked) for task in TASKS}
        self.tokenizer = load_tiny()[1]
        self.kl_asked = kl_asked
        self.base = self.of(lambda task: load_tiny()[0])
        self.adapted = {s: self.of(lambda task, s=s: adapted(load_tiny()[0], task, s)) for s in (1.0, 0.5)}

    def of(self, make: Callable[[str], Any]) -> dict[str, tuple[list[str], Answered]]:
        """By task the answers and the predictions of the models that `make` makes."""
        found = {}
        for task, examples in self.examples.items():
            model = make(task).eval()
            few = examples[: self.kl_asked]
            found[task] = (texts(model, self.tokenizer, examples), answered(model, self.tokenizer, few))
        return found

    def of_files(
        self, files: Callable[[str], tuple[Path, Path | None]], strength: float
    ) -> dict[str, tuple[list[str], Answered]]:
        """The same of llama.cpp, for the files of each task: a model's, and an adapter's or None."""
        found = {}
        for task, examples in self.examples.items():
            model, adapter = files(task)
            use = None if adapter is None else task
            with LlamaCpp(model, {} if adapter is None else {task: adapter}) as server:
                answers = server.complete([e.prompt for e in examples], adapter=use, scale=strength)
                few = examples[: self.kl_asked]
                found[task] = (answers, seen(server, self.tokenizer, few, adapter=use, scale=strength))
        return found

    def row(
        self, got: dict[str, tuple[list[str], Answered]], wanted: dict[str, tuple[list[str], Answered]]
    ) -> dict[str, Any]:
        """What differs between the two: answers that are equal, right answers, the mean divergence in nats."""
        equal = right = tokens = 0
        nats = 0.0
        for task, (answers, predictions) in got.items():
            equal += sum(a == b for a, b in zip(answers, wanted[task][0], strict=True))
            right += sum(a == e.answer for a, e in zip(answers, self.examples[task], strict=True))
            nats += predictions.changes(wanted[task][1]).nats * len(predictions.logits)
            tokens += len(predictions.logits)
        asked = sum(map(len, self.examples.values()))
        return {"asked": asked, "equal": equal, "right": right, "nats": float(f"{nats / tokens:.3g}"), "tokens": tokens}


def tiny_llama(reference: Reference, dtypes: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each dtype, way and strength, NF4's among them."""
    rows = []
    adapters = {task: to_gguf(adapter_folder(task), folder / f"{task}.gguf", "f32") for task in TASKS}
    for strength, task in itertools.product(reference.adapted, TASKS):
        adapted(load_tiny()[0], task, strength).merge_and_unload().save_pretrained(folder / f"{task}-{strength}")
        reference.tokenizer.save_pretrained(folder / f"{task}-{strength}")

    for dtype in dtypes:
        base = to_gguf(TINY_DIR, folder / f"tiny-{dtype}.gguf", dtype)

        def merged(task: str, strength: float, dtype: str = dtype) -> tuple[Path, None]:
            return to_gguf(folder / f"{task}-{strength}", folder / f"{task}-{strength}-{dtype}.gguf", dtype), None

        def row(way: str, strength: float, files: Callable[[str], Any], wanted: Any, base: Path = base) -> None:
            found = reference.row(reference.of_files(files, strength), wanted)
            size = base.stat().st_size
            rows.append(
                {
                    "runs in": "llama.cpp",
                    "dtype": base.stem[5:],
                    "way": way,
                    "strength": strength,
                    "bytes": size,
                    **found,
                }
            )
            print(rows[-1], flush=True)

        row("base alone", 0.0, lambda task, base=base: (base, None), reference.base)
        for strength in reference.adapted if dtype in HALF else (1.0,):
            wanted = reference.adapted[strength]
            row("adapter beside", strength, lambda task, base=base: (base, adapters[task]), wanted)
            row("merged, then written", strength, lambda task, s=strength: merged(task, s), wanted)
    return rows + nf4(reference)


def four_bits() -> Any:
    """The base in NF4, computing in float32, so that nothing else is rounded."""
    return load_4bit(compute_dtype=torch.float32)[0]


def nf4(reference: Reference) -> list[dict[str, Any]]:
    """The same ways with bitsandbytes' NF4 in transformers."""
    ways: list[tuple[str, float, Callable[[str], Any], Any]] = [
        ("base alone", 0.0, lambda task: four_bits(), reference.base)
    ]
    for strength, wanted in reference.adapted.items():
        ways += [
            ("adapter beside", strength, lambda task, s=strength: adapted(four_bits(), task, s), wanted),
            (
                "merged, then written", strength,
                lambda task, s=strength: adapted(four_bits(), task, s).merge_and_unload(), wanted,
            ),
        ]  # fmt: skip
    rows = []
    for way, strength, make, wanted in ways:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says that a merge into 4 bits rounds
            row = reference.row(reference.of(make), wanted)
        rows.append({"runs in": "transformers, bitsandbytes", "dtype": "nf4", "way": way, "strength": strength, **row})
        print(rows[-1], flush=True)
    return rows


def random_models(asked: int, dtypes: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each architecture, dtype and way: greedy token ids that are equal, the largest difference of a
    log-probability and the mean divergence of the token behind the prompt."""
    rows, tokenizer, prompts = [], export_models.tiny_tokenizer(), export_models.prompts(asked)
    for name in export_models.CONFIGS:
        model = export_models.random_model(name)
        files = {dtype: to_gguf(model, folder / f"{dtype}.gguf", dtype, tokenizer=tokenizer) for dtype in dtypes}
        config = model.config
        adapted = export_models.random_adapter(model, folder / "adapter")
        adapter = to_gguf(folder / "adapter", folder / "adapter.gguf", "f32", base=config)
        wanted = [
            (export_models.greedy(adapted, ids), export_models.log_probabilities(adapted, ids)) for ids in prompts
        ]
        merged = adapted.merge_and_unload()
        for dtype, base in files.items():
            alone = to_gguf(merged, folder / f"merged-{dtype}.gguf", dtype, tokenizer=tokenizer)
            for way, file, use in (("adapter beside", base, "a"), ("merged, then written", alone, None)):
                with LlamaCpp(file, {"a": adapter} if use else {}) as server:
                    equal = sum(
                        server.new_ids(ids, 12, adapter=use) == new
                        for ids, (new, _) in zip(prompts, wanted, strict=True)
                    )
                    pairs = [
                        (server.log_probabilities(ids, adapter=use), p)
                        for ids, (_, p) in zip(prompts, wanted, strict=True)
                    ]
                nats = [float((p.double().exp() * (p.double() - q.double())).sum()) for q, p in pairs]
                rows.append({
                    "architecture": name, "dtype": dtype, "way": way, "asked": asked, "equal": equal,
                    "nats": float(f"{max(0.0, sum(nats) / len(nats)):.3g}"),
                    "largest": float(f"{max(float((q - p).abs().max()) for q, p in pairs):.3g}"),
                })  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def breakages(asked: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each breakage: how many of the style task's answers are right, and the first."""
    examples, rows = task_examples("style", "test", asked), []
    model = to_gguf(TINY_DIR, folder / "model.gguf", "f32")
    adapter = to_gguf(adapter_folder("style"), folder / "style.gguf", "f32")
    for name, export in broken_exports(model, adapter, folder).items():
        answers = export.answers([e.prompt for e in examples])
        right = sum(a.text == e.answer for a, e in zip(answers, examples, strict=True))
        rows.append({
            "breakage": name, "asked": asked, "right": right, "ended": sum(a.stopped for a in answers),
            "prompt": examples[0].prompt, "first answer": answers[0].text,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help=f"default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--trial", action="store_true", help="two prompts a task, two dtypes")
    args = parser.parse_args(arguments)
    quiet_upstream()
    torch.set_num_threads(1)
    began = time.monotonic()
    dtypes = ("f32", "q4_0") if args.trial else DTYPES
    asked, few, random = (2, 1, 2) if args.trial else (ASKED, KL_ASKED, RANDOM_ASKED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            "breakages": breakages(2 if args.trial else 200, folder),
            "random models": random_models(random, ("f32",) if args.trial else ("f32", "f16", "q8_0"), folder),
            "tiny llama": tiny_llama(Reference(asked, few), dtypes, folder),
        }
    record = {
        "what": "greedy answers and next-token predictions of llama.cpp beside transformers' and PEFT's in float32. "
        "tiny llama: the shipped adapters of four tasks (held-out prompts), at their strength and at half of it: "
        "answers that are equal, right answers, nats per answer token (KL). random models: two layers, random adapter "
        "(r=4): token ids of 12-token answers, KL and the largest difference of a log-probability behind the prompt. "
        "breakages: the style task",
        "tool": "python -m tools.measure_export", **provenance("cpu"),
        **{name: version(name) for name in ("peft", "gguf", "xllamacpp")}, "threads": 1, "seeds": [0, 1], **found,
    }  # fmt: skip
    print(f"{time.monotonic() - began:.0f} s")
    if args.trial and args.out is None:
        print(json.dumps(record)[:400])
        return
    write(args.out or OUT, record)


if __name__ == "__main__":
    main()
