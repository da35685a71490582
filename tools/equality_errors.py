"""How far the course's own code is from PEFT, bitsandbytes, torchao, TRL and transformers.

    python -m tools.equality_errors             (the tiny model on the CPU: a minute; writes nothing)
    python -m tools.equality_errors --record    writes assets/measurements/parity.json and parity.md

Each line is the largest difference found and what it is a difference of. The tests hold each of them under a tolerance;
this gives the numbers themselves, for the README, for a report or after a library has moved.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.ensemble import provenance, write
from utils import lora, models
from utils.data import labels, packing
from utils.data.chat import render
from utils.evaluate import parity
from utils.inference import decoding
from utils.lora import (
    combine,
    merging,
    multi_adapter,
    variants,
)
from utils.lora.checkpoint import load_adapter, read_matrices, save_adapter
from utils.models import load_4bit, load_base, profile
from utils.quant import nf4
from utils.quant.nf4 import dequantize
from utils.tinyworld import TASKS, task_examples
from utils.train.adapter_cache import trained_adapter

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "measurements" / "parity.json"

Line = tuple[str, float]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Part(NamedTuple):
    """Comparisons of one chapter with one library, and the test that holds them."""

    chapter: str
    library: str
    test: str
    lines: Any  # a function that yields Lines


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def token_ids(rows: int) -> torch.Tensor:
    return torch.randint(5, 900, (rows, 20), generator=torch.Generator().manual_seed(0))


def layers() -> Iterator[Line]:
    """Chapters 4 and 16: our layer and its variants beside PEFT's, from the same start, over five steps of AdamW."""
    from peft import LoraConfig, get_peft_model

    examples = task_examples("style", "train", 40)
    batches = list(labels.batches(models.load_tokenizer(), examples, steps=6, batch_size=4, seed=0))
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "LoRA": (lora.LoRA(), {}), "rsLoRA": (variants.RsLoRA(), {"use_rslora": True}),
        "DoRA": (variants.DoRA(), {"use_dora": True}), "PiSSA": (variants.PiSSA(), {"init_lora_weights": "pissa"}),
    }  # fmt: skip
    for name, (variant, fields) in kinds.items():
        config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0, **fields)
        ours = load_base()[0]
        for seeded in ("theirs", "ours"):
            torch.manual_seed(0)
            if seeded == "theirs":
                theirs = get_peft_model(load_base()[0], config).train()
            else:
                lora.inject(ours, "all-linear", 4, 16, variant=variant)
        if name != "PiSSA":  # which draws nothing
            parity.copy_start(ours, theirs)
        found = parity.differences(ours, theirs, batches, lr=1e-2)
        yield f"{name}: logits, as a share of the largest", found.output
        yield f"{name}: gradients, as a share of the largest", found.gradient
        yield f"{name}: weights after five steps, as a share of the largest", found.trained


def nf4_bytes() -> Iterator[Line]:
    """Chapter 7: NF4's codes and scales of every linear weight, as the share of bytes and scales that differ."""
    from bitsandbytes import functional

    weights = [m.weight.detach() for m in load_base()[0].modules() if isinstance(m, torch.nn.Linear)]
    for double in (False, True):
        unlike = total = 0
        for weight in weights:
            packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
            ours = nf4.quantize(weight, double=double)
            scales = (state.absmax, ours.scales.codes) if double else (state.absmax, ours.scales)
            for theirs, mine in ((packed.flatten(), ours.packed), scales):
                unlike, total = unlike + int((theirs != mine).sum()), total + theirs.numel()
        yield f"NF4{', double quantization' if double else ''}: share of codes and scales unlike", unlike / total


def small_floats() -> Iterator[Line]:
    """Chapter 7: FP8, MXFP4 and NVFP4 against torchao's bytes, as the share of tensors unlike its record."""
    from tools.record_torchao import RECORD, our_bytes, rows

    stored = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    unlike = sum(theirs != ours for theirs, ours in zip(stored, rows(our_bytes), strict=True))
    yield f"FP8, MXFP4 and NVFP4: share of {len(stored)} tensors unlike", unlike / len(stored)


def packed_rows() -> Iterator[Line]:
    """Chapter 5: documents packed into rows, as the share of rows that TRL doesn't make."""
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    tokenizer = models.load_tokenizer()
    ids = [tokenizer(render(tokenizer, e.prompt) + e.answer).input_ids for e in task_examples("style", "train", 200)]
    ours = sorted(row.input_ids for row in packing.pack(ids, 100))
    theirs = sorted(pack_dataset(Dataset.from_dict({"input_ids": ids}), 100, "bfd")["input_ids"])
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True)]
    yield f"packing: share of {len(ours)} rows unlike", sum(a != b for a, b in pairs) / len(pairs)


@torch.inference_mode()
def files() -> Iterator[Line]:
    """Chapter 10: our loader and PEFT's on the same folder, and a folder that went to PEFT and back."""
    from peft import PeftModel

    ours, ids = load_base()[0], token_ids(4)
    load_adapter(ours, trained_adapter("style", profile()))
    theirs = PeftModel.from_pretrained(load_base()[0], trained_adapter("style", profile())).eval()
    yield "adapter beside its base, logits against PEFT's", largest(ours.eval()(ids).logits, theirs(ids).logits)
    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(ours, Path(scratch, "ours"))
        back = PeftModel.from_pretrained(load_base()[0], Path(scratch, "ours"))
        back.save_pretrained(Path(scratch, "theirs"), save_embedding_layers=False)
        a, b = (read_matrices(Path(scratch, name)) for name in ("ours", "theirs"))
    yield "matrices written by us, read and written by PEFT", max(largest(a[n][m], b[n][m]) for n in a for m in a[n])


@torch.inference_mode()
def merges() -> Iterator[Line]:
    """Chapter 10: merged weights in each dtype, and in 4 bits."""
    from peft import PeftModel

    folder = trained_adapter("style", profile())
    for dtype in DTYPES:
        ours = load_base(dtype)[0]
        names = merging.merge_files(ours, folder)
        theirs = PeftModel.from_pretrained(load_base(dtype)[0], folder).merge_and_unload()
        pairs = [[m.get_submodule(n).weight for m in (ours, theirs)] for n in names]
        yield f"merged weights in {str(dtype)[6:]}, against merge_and_unload", max(largest(*pair) for pair in pairs)
    base = load_4bit()[0]
    stored = {n: merging.stored_4bit(base.get_submodule(n)) for n in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(base, folder).merge_and_unload()
    worst = 0.0
    for name, factors in combine.read_adapter(folder).items():
        mine = dequantize(merging.merge_quantized(stored[name], factors.delta()))
        worst = max(worst, largest(mine, dequantize(merging.stored_4bit(theirs.get_submodule(name)))))
    yield "weights merged in 4 bits, against merge_and_unload", worst


@torch.inference_mode()
def many() -> Iterator[Line]:
    """Chapter 11: the mixed batch, and the eleven combinations, on the shipped adapters."""
    from peft import PeftModel

    first = trained_adapter(TASKS[0], profile())
    model = PeftModel.from_pretrained(load_base()[0], first, adapter_name=TASKS[0]).eval()
    for task in TASKS[1:]:
        model.load_adapter(trained_adapter(task, profile()), adapter_name=task)
    adapters = {task: combine.from_peft(model, task) for task in TASKS}
    ours, names = load_base()[0], [*TASKS, "__base__"]
    multi_adapter.stack_adapters(ours, adapters)
    ids = token_ids(len(names))
    with multi_adapter.route(ours, names):
        mine = ours(ids).logits
    yield "mixed batch, logits against adapter_names", largest(mine, model(ids, adapter_names=names).logits)
    pair = ["sentiment", "summarization"]
    for how in combine.HOW:
        options = {} if how in ("cat", "linear", "svd") else {"density": 0.5}
        with combine.mask_seed(model, 0):
            model.add_weighted_adapter(pair, [0.7, 0.3], how, how, **options)
        masks = torch.Generator().manual_seed(0)
        built = combine.combine([adapters[t] for t in pair], [0.7, 0.3], how, generator=masks, **options)
        yield f"corrections of {how}, against PEFT", combine.largest_difference(built, combine.from_peft(model, how))


@torch.inference_mode()
def generation() -> Iterator[Line]:
    """Chapter 12: the processors on random logits (as probabilities), and the loop (as the share of other tokens)."""
    from transformers.generation import logits_process as hf

    g = torch.Generator().manual_seed(0)
    rows = 4 * torch.randn(500, 200, generator=g)
    rows[::2] = rows[::2].round()  # half of them with many ties
    seen = torch.randint(0, 200, (500, 30), generator=g)
    pairs = {
        "temperature 0.7": (decoding.with_temperature(rows, 0.7), hf.TemperatureLogitsWarper(0.7)),
        "top-k 50": (decoding.top_k(rows, 50), hf.TopKLogitsWarper(50)),
        "top-p 0.95": (decoding.top_p(rows, 0.95), hf.TopPLogitsWarper(0.95)),
        "min-p 0.05": (decoding.min_p(rows, 0.05), hf.MinPLogitsWarper(0.05)),
        "penalty 1.1": (decoding.repetition_penalty(rows, seen, 1.1), hf.RepetitionPenaltyLogitsProcessor(1.1)),
    }
    for name, (ours, theirs) in pairs.items():
        yield f"{name}, probabilities on 500 rows", largest(ours.softmax(-1), theirs(seen, rows.clone()).softmax(-1))
    model, tokenizer = load_base(torch.float64)
    texts = [render(tokenizer, e.prompt) for task in TASKS for e in task_examples(task, "test", 5)]
    padded = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    marks = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    ours = decoding.generate(model, **padded, max_new_tokens=30, **marks).ids
    theirs = model.generate(**padded, max_new_tokens=30, do_sample=False)[:, padded.input_ids.shape[1] :]
    yield "greedy loop, share of tokens unlike generate's, float64", (ours != theirs).double().mean().item()


PARTS = (
    Part("04, 16", "PEFT", "tests/lora/test_variants.py", layers),
    Part("05", "TRL", "tests/data/test_packing.py", packed_rows),
    Part("07", "bitsandbytes", "tests/quant/test_nf4_bitsandbytes.py", nf4_bytes),
    Part("07", "torchao", "tests/quant/test_small_floats_torchao.py", small_floats),
    Part("10", "PEFT", "tests/lora/test_layer_peft.py", files),
    Part("10", "PEFT", "tests/lora/test_merging.py", merges),
    Part("11", "PEFT", "tests/lora/test_combine.py", many),
    Part("12", "transformers", "tests/inference/test_decoding.py", generation),
)


def page(record: Mapping[str, Any]) -> str:
    """The record as a page: one comparison a line, and how many are exact."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    exact = sum(row["difference"] == 0 for row in rows)
    versions = ", ".join(f"{name} {record[name]}" for name in ("torch", "transformers", "peft", "trl", "bitsandbytes"))
    lines = [
        "# The course's own code beside the libraries'", "",
        f"{record['date']}, {record['hardware']}, {versions}. Of {len(rows)} comparisons {exact} have no difference at "
        "all; in the others the same sums are taken in another order. The largest difference found, on the tiny model:",
        "", "| chapter | what | library | largest difference | test |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        test = f"[{Path(row['test']).name}](../../{row['test']})"
        lines.append(f"| {row['chapter']} | {row['what']} | {row['library']} | {row['difference']:.2g} | {test} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the record and its page")
    recorded = parser.parse_args(arguments).record
    torch.set_num_threads(1)
    rows = []
    for part in PARTS:
        for what, difference in part.lines():
            print(f"{difference:9.2g}  {part.library:13} {what}", flush=True)
            rows.append({"chapter": part.chapter, "what": what, "library": part.library,
                         "difference": float(f"{difference:.2g}"), "test": part.test})  # fmt: skip
    record = {
        "what": "the course's own code beside the libraries', on the tiny model: the largest differences",
        "tool": "python -m tools.equality_errors --record", **provenance("cpu"),
        **{name: version(name) for name in ("peft", "trl", "bitsandbytes")}, "seeds": [0], "rows": rows,
    }  # fmt: skip
    if recorded:
        write(OUT, record)
        OUT.with_suffix(".md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
