"""What techniques save and cost: checkpointing, 4-bit weights, dtypes, attention, optimizers, small batches.

Writes ``techniques.json``. A row is one change to the same step (Llama-2-7B's shape, 4 sequences of 512 tokens, LoRA
r=8 on q, k, v, o, bfloat16): the largest allocation of a step, and the time of a whole step over all four sequences.
The unchanged step is measured first and again at the end, on a model made anew, which shows how far the machine
drifted.

Attributes:
    TECHNIQUES: In the order in which they are measured; those of one base model follow each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tools.gpu.memory import QKVO
from tools.gpu.record import Record
from utils.profiling.memory import Setup
from utils.profiling.techniques import SEED, Technique, each

USUAL = Setup("Llama-2-7B", "lora", 4, 512, target_modules=QKVO)


def _with(**changes: Any) -> Setup:
    return dataclasses.replace(USUAL, **changes)


TECHNIQUES = (
    Technique("unchanged", USUAL),
    Technique("checkpointing", _with(checkpointing=True)),
    Technique("accumulation, 4 pieces", USUAL, pieces=4),
    Technique("8-bit AdamW", _with(optimizer="adamw-8bit")),
    Technique("paged 8-bit AdamW", _with(optimizer="adamw-paged-8bit")),
    Technique("adapters in 16 bits", _with(adapter_dtype="bfloat16")),
    Technique("eager attention", _with(attention="eager")),
    Technique("float16", _with(dtype="float16")),
    Technique("NF4", _with(method="qlora", double=False)),
    Technique("NF4, checkpointing", _with(method="qlora", double=False, checkpointing=True)),
    Technique("NF4, double", _with(method="qlora")),
    Technique("NF4, double, checkpointing", _with(method="qlora", checkpointing=True)),
    Technique(
        "NF4, double, checkpointing, 4 pieces, paged 8-bit AdamW",
        _with(method="qlora", checkpointing=True, optimizer="adamw-paged-8bit"),
        pieces=4,
    ),
    Technique("float32", _with(dtype="float32")),
    Technique("float32, TF32 products", _with(dtype="float32")),
    Technique("float32, autocast to bfloat16", _with(dtype="float32"), autocast=True),
    Technique("unchanged, again", USUAL),
)


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``techniques.json`` into `out`, until `seconds` are over."""
    record = Record(
        out / "techniques.json",
        "a training step of Llama-2-7B's shape (4 x 512 tokens, LoRA r=8 on q,k,v,o) with one thing changed; bytes "
        "that PyTorch's allocator gave out at most, and milliseconds of the whole step over all four sequences",
        seed=SEED,
    )
    fill(record, TECHNIQUES, ("autocast", "pieces"), trial, seconds)


def fill(record: Record, wanted: Iterable[Technique], fields: Sequence[str], trial: bool, seconds: float) -> None:
    """Measure those of `wanted` that the record lacks, a row each, until `seconds` are over.

    fields: what of a technique its row says beside the setup.
    """
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() and not trial else "cpu"
    missing = [technique for technique in wanted if technique.name not in record]
    in_time = itertools.takewhile(lambda _: time.monotonic() - began <= seconds, missing)
    for technique, row in each(in_time, device, trial):
        changed = {name: getattr(technique, name) for name in fields}
        record.add(technique.name, setup=dataclasses.asdict(technique.setup), **changed, **row)
        took = row["milliseconds"]["median"] if "milliseconds" in row else float("nan")
        print(f"  {technique.name:72s} {row.get('peak', 0) / 2**30:6.2f} GiB  {took:8.1f} ms", flush=True)
    if any(technique.name not in record for technique in missing):
        print(f"  stopped after {seconds:.0f} s: run it again to go on", flush=True)
