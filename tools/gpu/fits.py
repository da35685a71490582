"""Whether utils.profiling.fit's verdicts hold on smaller cards, which a limit on PyTorch's allocator plays: fits.json.

For each size of card the largest batch that the guard lets pass must run; the next ones are tried until one does not.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.gpu.record import Record
from utils.profiling.fit import CONTEXT, GAPS, needed
from utils.profiling.gpu_step import allocated, base_model, free, outside, run_one
from utils.profiling.memory import GB, Setup, predict

WHAT = "training steps on an H100 whose allocator was limited to what a smaller card would have"
CARDS = (8, 12, 16, 24, 40)
SETUPS = (
    Setup("Llama-3.2-1B", "lora", length=512),
    Setup("Llama-3.2-1B", "lora", length=2048, checkpointing=True),
    Setup("Llama-3.2-1B", "full", length=512, checkpointing=True),
)


def largest_batch(setup: Setup, card: float) -> int:
    """The largest batch that the guard lets pass, 0 for none: two predictions, then the line through them."""
    low, high = (needed(predict(dataclasses.replace(setup, batch=b)).peak) for b in (2, 8))
    batch = int(2 + (card * GB - low) / ((high - low) / 6))
    while batch > 0 and needed(predict(dataclasses.replace(setup, batch=batch)).peak) > card * GB:
        batch -= 1
    return max(batch, 0)


def tried(model: nn.Module, setup: Setup, card: float, device: str, trial: bool) -> dict[str, Any]:
    """Run a setting with no more than the card's bytes for the allocator."""
    free()
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, (card * GB - outside()) / total))
    row = run_one(model, setup, device, trial)
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
    reserved = max((phase["reserved"] for phase in row.get("phases", {}).values()), default=0)
    return {
        "card_gb": card, "setup": dataclasses.asdict(setup), "predicted": predict(setup).peak,
        "ran": "out_of_memory" not in row, "peak": row.get("peak"), "reserved": reserved, "outside": outside(),
        "held": allocated(),
    }  # fmt: skip


def run(out: Path, trial: bool, seconds: float) -> None:
    """Measure what the record doesn't have, until `seconds` are over."""
    start = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = Record(out / "fits.json", WHAT, seed=0, gaps=GAPS, context=CONTEXT)
    model = base_model(SETUPS[0], device, trial)
    for setup in SETUPS:
        for card in CARDS:
            if time.monotonic() - start > seconds:
                print("out of time: run it again to go on")
                return
            best = largest_batch(setup, card)
            for batch in dict.fromkeys((best, best + 1, int(best * 1.15) + 2)):
                key = f"{card} GB {setup.method} {batch}x{setup.length}"
                if batch == 0 or key in record:
                    continue
                row = tried(model, dataclasses.replace(setup, batch=batch), card, device, trial)
                record.add(key, verdict="fits" if batch <= best else "no", **row)
                print(key, "fits" if batch <= best else "no", "ran" if row["ran"] else "out of memory", flush=True)
                if not row["ran"]:
                    break
