"""Chapter 19's record: training steps of Llama-2-7B's shape on one, two and four GPUs, by tools/gpu/several.py.

A row is one way to train at one size, once; the same again is a row with another `repeat`. Its `peaks` are the bytes
that PyTorch's allocator gave out at most, one number for each rank whose peak was kept.

Attributes:
    WAYS: The names of the ways, engine first.
    TWO_GPUS: A second record, of two GPUs of another machine, with the speeds of single collectives.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from utils.distributed.bytes import Collective, sent
from utils.models.device import ASSETS
from utils.profiling.memory import GB

TWO_GPUS = ASSETS / "measurements" / "several_two_gpus.json"
WAYS = (
    "DDP, LoRA", "DDP, LoRA 16-bit", "DDP, LoRA fused", "DDP, LoRA compiled", "DDP, LoRA CUDA graphs", "DDP, full",
    "FSDP2, LoRA", "FSDP2, LoRA fused", "FSDP2, QLoRA", "FSDP2, full",
)  # fmt: skip


def key_of(way: str, gpus: int, batch: int, length: int, checkpointing: bool, repeat: int) -> str:
    """A row's key: the way, the GPUs, the batch of each, and which repeat it is."""
    recomputed = ", checkpointing" if checkpointing else ""
    return f"{way}: {gpus} GPU{'s' if gpus > 1 else ''}, {batch} x {length}{recomputed}, {repeat}"


class SeveralRecord:
    """assets/measurements/several_gpus.json, or the record at `path`."""

    def __init__(self, path: Path = ASSETS / "measurements" / "several_gpus.json") -> None:
        self.head: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.rows: list[dict[str, Any]] = [r for r in self.head["rows"] if "way" in r and "milliseconds" in r]
        self.collectives: list[dict[str, Any]] = [row for row in self.head["rows"] if "collective" in row]

    def repeats(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> list[dict[str, Any]]:
        """All rows of one way at one size: `batch` sequences on each GPU. Raises ValueError when it wasn't measured."""
        wanted = {"way": way, "gpus": gpus, "batch": batch, "checkpointing": checkpointing}
        found = [row for row in self.rows if wanted.items() <= row.items()]
        if not found:
            raise ValueError(f"the record has no row with {wanted}; its ways: {', '.join(sorted(self.ways()))}")
        return found

    def elsewhere(self) -> list[str]:
        """The same way on another machine, a line each: GPUs, the median step in milliseconds and its range over the
        run's steps, and weak scaling's efficiency by the medians. [] for a record without any."""
        rows = self.head.get("elsewhere", {}).get("rows", [])
        alone = {row["way"]: row["milliseconds"]["median"] for row in rows if row["gpus"] == 1}
        lines = []
        for row in rows:
            took = row["milliseconds"]
            spread = f"({took['lowest']}-{took['highest']})"
            kept = f"  {alone[row['way']] / took['median']:.2f}" if row["gpus"] > 1 else ""
            lines.append(f"{row['way']:22} {row['gpus']} GPU  {took['median']} ms {spread}{kept}")
        return lines

    def speed(self, collective: Collective) -> float:
        """Bytes a second that each GPU sends in the record's largest `collective` ("all_reduce", "all_gather"), as a
        ring sends them. Raises ValueError when none was measured.
        """
        rows = [row for row in self.collectives if row["collective"] == collective and row["gpus"] > 1]
        if not rows:
            raise ValueError(
                f"the record has no {collective}: tools.measure_gpu several measures it on two GPUs or more"
            )
        row = max(rows, key=lambda row: (row["bytes"], row["gpus"]))
        return sent(collective, row["bytes"], row["gpus"]) / (row["milliseconds"]["median"] / 1000)

    def ways(self) -> set[str]:
        """The ways that were measured at any size."""
        return {row["way"] for row in self.rows}

    def sizes(self) -> list[tuple[str, int, int, bool]]:
        """Way, GPUs, batch of each GPU and whether blocks are recomputed, of all that was measured, each once."""
        return list(dict.fromkeys((r["way"], r["gpus"], r["batch"], r["checkpointing"]) for r in self.rows))

    def milliseconds(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> float:
        """A step's time: the median over the repeats' medians."""
        found = self.repeats(way, gpus, batch, checkpointing=checkpointing)
        return statistics.median(row["milliseconds"]["median"] for row in found)

    def peak(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> int:
        """The bytes of the rank that held most, the largest of the repeats."""
        return max(max(row["peaks"]) for row in self.repeats(way, gpus, batch, checkpointing=checkpointing))

    def weak_efficiency(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> float:
        """Weak scaling: a step's time on one GPU over that on `gpus`, each with the same batch; 1 is perfect."""
        times = [self.milliseconds(way, n, batch, checkpointing=checkpointing) for n in (1, gpus)]
        return times[0] / times[1]

    def strong_efficiency(self, way: str, gpus: int, total: int = 16, *, checkpointing: bool = False) -> float:
        """Strong scaling: `total` sequences on one GPU's time over `gpus` times theirs; 1 is perfect.

        Raises ValueError when the GPUs don't divide `total` or it wasn't measured.
        """
        if total % gpus:
            raise ValueError(f"{gpus} GPUs can't share {total} sequences evenly")
        one = self.milliseconds(way, 1, total, checkpointing=checkpointing)
        return one / (gpus * self.milliseconds(way, gpus, total // gpus, checkpointing=checkpointing))

    def line(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> str:
        """A row of a table: way, GPUs, batch, the step's time with the repeats' range, tokens a second, the peak."""
        found = self.repeats(way, gpus, batch, checkpointing=checkpointing)
        took, times = statistics.median(t := [r["milliseconds"]["median"] for r in found]), sorted(t)
        spread = f"({times[0]:.0f}-{times[-1]:.0f})" if len(times) > 1 else "(once)"
        speed = gpus * batch * found[0]["length"] / took * 1000
        peak = self.peak(way, gpus, batch, checkpointing=checkpointing) / GB
        size = f"{batch} x {found[0]['length']}{' ckpt' if checkpointing else ''}"
        return f"{way:22} {gpus:4} {size:13} {took:6.0f} ms {spread:11} {speed:7,.0f} tokens/s {peak:6.1f} GB"
