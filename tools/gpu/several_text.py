"""Reads the first run on four GPUs, which was kept as text, into a record of the form that tools/gpu/several.py writes.

    python -m tools.gpu.several_text tests/tools/gpu/scale_h200x4.txt assets/measurements/several_gpus.json

The text has one JSON object a line and notes behind `#`. It names the hardware, the versions and how often a step was
taken; it names no day and no seed. The script that it names is `tests/tools/gpu/scale_spike.py`, which sets the seed.

Attributes:
    OTHER_MS: What a row's `other_ms` is, by that script.
    WAYS: What the text calls a way, and what the record does.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from utils.profiling.several import key_of

OTHER_MS = (
    "one more step under torch.profiler: all CUDA events but NCCL's, added up. Annotations on the GPU, which span "
    "kernels, may be among them, so it isn't the kernels' share of a step and may exceed it"
)
WAYS = {"ddp-lora": "DDP, LoRA", "fsdp-lora": "FSDP2, LoRA", "fsdp-full": "FSDP2, full"}
_SPREAD = re.compile(r"(\d+) \((\d+)-(\d+)\)")


def row_of(line: dict[str, Any], length: int, runs: int) -> dict[str, Any]:
    """A line's object as a row of the record. Raises ValueError for a way that isn't known."""
    if line["mode"] not in WAYS:
        raise ValueError(f"no way is called {line['mode']!r} in the text: {', '.join(WAYS)}")
    size = {"gpus": line["gpus"], "batch": line["batch"], "length": length, "checkpointing": line["ckpt"]}
    way = WAYS[line["mode"]]
    row = {"key": key_of(way, *size.values(), 0), "way": way, **size, "repeat": 0}
    row |= {"milliseconds": {"median": line["ms"], "runs": runs}, "peaks": [round(line["peak_gib"] * 2**30)]}
    return row | ({"other_ms": line["other_kernels_ms"]} if "other_kernels_ms" in line else {})


def elsewhere(line: str) -> list[dict[str, Any]]:
    """The last line's numbers, of another machine: GPUs, adapters, and milliseconds as median, lowest and highest.

    The names stand at the first number of GPUs only. Raises ValueError when the others have more or fewer times.
    """
    parts = [(int(part.split()[0]), _SPREAD.findall(part)) for part in line.split(";")]
    names = re.findall(r"[:,] ([A-Za-z][\w -]*?) \d+ \(", line.partition(";")[0])
    if any(len(spreads) != len(names) for _, spreads in parts):
        raise ValueError(f"{line!r} has {len(names)} names and not so many times for each number of GPUs")
    found = []
    for gpus, spreads in parts:
        for name, numbers in zip(names, spreads, strict=True):
            median, lowest, highest = map(int, numbers)
            times = {"median": median, "lowest": lowest, "highest": highest, "runs": 14}
            found.append({"way": f"DDP, LoRA, {name}", "gpus": gpus, "batch": 4, "length": 512, "milliseconds": times})
    return found


def record_of(text: str) -> dict[str, Any]:
    """The whole text as a record. Raises ValueError when a row's tokens a second contradict its milliseconds."""
    notes = [line for line in text.splitlines() if line.startswith("#")]
    machine, _, rest = notes[0].removeprefix("# ").partition(", torch ")
    length = int(re.findall(r"(\d+) tokens a sequence", notes[0])[0])
    runs = int(re.findall(r"median of the last (\d+)", text)[0])
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for line in lines:
        said, follows = line["tokens_per_s"], line["gpus"] * line["batch"] * length * 1000 / line["ms"]
        if abs(said / follows - 1) > 0.005:
            raise ValueError(f"{line} says {said} tokens/s, and from its milliseconds follow {follows:.0f}")
    found = dict(re.findall(r"(torch|transformers|peft) ([\d.]+\d)", "torch " + rest))
    other = next(line for line in text.splitlines() if line.startswith("1 GPU: "))
    return {
        "what": "training steps of Llama-2-7B's shape with random weights in bfloat16 on several GPUs, LoRA r=16 on "
        "all linear layers, float32 adapters under DDP and bfloat16 ones under FSDP2, fused AdamW, 512 tokens a "
        "sequence, batch of each GPU; a first run, each row once; milliseconds, and the bytes that rank 0's allocator "
        "gave out at most, from GiB with two decimals",
        "hardware": machine.replace("4 x", "4 x NVIDIA", 1),
        "versions": found,
        "date": "2026-11",
        "tool": "tools/gpu/several_text.py, from tests/tools/gpu/scale_h200x4.txt",
        "seed": 0,
        "other_ms": OTHER_MS,
        "elsewhere": {"hardware": "2 x NVIDIA H100, another machine", "rows": elsewhere(other)},
        "rows": [row_of(line, length, runs) for line in lines],
    }


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.gpu.several_text TEXT RECORD")
    record = record_of(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(record['rows'])} rows of {record['hardware']}, and {len(record['elsewhere']['rows'])} from elsewhere")


if __name__ == "__main__":
    main()
