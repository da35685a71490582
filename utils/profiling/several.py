"""Chapter 19's record: training steps of Llama-2-7B's shape on one, two and four GPUs, by tools/gpu/several.py.

A row is one way to train at one size, once; the same again is a row with another `repeat`. Its `peaks` are the bytes
that PyTorch's allocator gave out at most, one number for each rank whose peak was kept. Rows with a `day` ran on
another machine than those without, with another processor, so that :meth:`SeveralRecord.weak_efficiencies` divides
times of one machine only.

Attributes:
    WAYS: The names of the ways, engine first.
    TWO_GPUS: The repeated record, of two GPUs, with the speeds of single collectives and what the profiler saw.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from utils.distributed.bytes import Collective, StepBytes, exchange, sent
from utils.models.device import ASSETS
from utils.profiling.memory import GB

TWO_GPUS = ASSETS / "measurements" / "several_two_gpus.json"
WAYS = (
    "DDP, LoRA", "DDP, LoRA 16-bit", "DDP, LoRA autocast", "DDP, LoRA fused", "DDP, LoRA compiled",
    "DDP, LoRA CUDA graphs", "DDP, full", "FSDP2, LoRA", "FSDP2, LoRA fused", "FSDP2, QLoRA", "FSDP2, full",
)  # fmt: skip

_COLLECTIVES = ("_allgather_base", "_reduce_scatter_base", "allreduce")  # NCCL's names of what StepBytes has


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

    def medians(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> list[float]:
        """Each repeat's median step in milliseconds, fastest first."""
        return sorted(
            row["milliseconds"]["median"] for row in self.repeats(way, gpus, batch, checkpointing=checkpointing)
        )

    def milliseconds(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> float:
        """A step's time: the median over the repeats' medians."""
        return statistics.median(self.medians(way, gpus, batch, checkpointing=checkpointing))

    def peak(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> int:
        """The bytes of the rank that held most, the largest of the repeats."""
        return max(max(row["peaks"]) for row in self.repeats(way, gpus, batch, checkpointing=checkpointing))

    def weak_efficiencies(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> list[float]:
        """Weak scaling: a step's time on one GPU over that on `gpus`, each with the same batch; 1 is perfect.

        One number for each repeat on `gpus` GPUs whose machine has a time on one, lowest first. Raises ValueError when
        none has.
        """
        one, many = (self.repeats(way, n, batch, checkpointing=checkpointing) for n in (1, gpus))
        alone = {
            day: statistics.median(row["milliseconds"]["median"] for row in one if row.get("day") == day)
            for day in {row.get("day") for row in one}
        }
        kept = [alone[row.get("day")] / row["milliseconds"]["median"] for row in many if row.get("day") in alone]
        if not kept:
            raise ValueError(f"{way}: 1 and {gpus} GPUs were measured on two machines, which have hosts of their own")
        return sorted(kept)

    def strong_efficiency(self, way: str, gpus: int, total: int = 16, *, checkpointing: bool = False) -> float:
        """Strong scaling: `total` sequences on one GPU's time over `gpus` times theirs; 1 is perfect.

        By the medians, of whichever machine they are: a large `total`, where the kernels set the pace, has the same
        time on all. Raises ValueError when the GPUs don't divide `total` or it wasn't measured.
        """
        if total % gpus:
            raise ValueError(f"{gpus} GPUs can't share {total} sequences evenly")
        one = self.milliseconds(way, 1, total, checkpointing=checkpointing)
        return one / (gpus * self.milliseconds(way, gpus, total // gpus, checkpointing=checkpointing))

    def exchanged(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> StepBytes:
        """The bytes of one step's collectives as the profiler saw them on rank 0; DDP's broadcast of buffers left out.

        Raises ValueError when the profiler didn't run at that size.
        """
        seen = self.profile(way, gpus, batch, checkpointing=checkpointing)["collectives"]
        gathered, scattered, reduced = (seen.get(name, {"bytes": 0})["bytes"] for name in _COLLECTIVES)
        return exchange(gathered, scattered, reduced, gpus)

    def nccl(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> float:
        """Milliseconds of NCCL's kernels in the profiled step, which wait for the slowest rank. Raises ValueError when
        the profiler didn't run at that size.
        """
        return self.profile(way, gpus, batch, checkpointing=checkpointing)["nccl_ms"]

    def profile(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> dict[str, Any]:
        """What the profiler saw in one step on rank 0: `other_kernels`, all but NCCL's, and their `other_ms` added up;
        `nccl_ms`; and by name the `collectives`. Raises ValueError when it didn't run at that size.
        """
        found = [r["profile"] for r in self.repeats(way, gpus, batch, checkpointing=checkpointing) if "profile" in r]
        if not found:
            raise ValueError(f"the profiler didn't run for {way} on {gpus} GPUs with {batch} sequences each")
        return found[0]

    def line(self, way: str, gpus: int, batch: int = 4, *, checkpointing: bool = False) -> str:
        """A row of a table: way, GPUs, batch, the step's time with the repeats' range, tokens a second, the peak."""
        length = self.repeats(way, gpus, batch, checkpointing=checkpointing)[0]["length"]
        times = self.medians(way, gpus, batch, checkpointing=checkpointing)
        took = statistics.median(times)
        spread = f"({times[0]:.0f}-{times[-1]:.0f})" if len(times) > 1 else "(once)"
        speed = gpus * batch * length / took * 1000
        peak = self.peak(way, gpus, batch, checkpointing=checkpointing) / GB
        size = f"{batch} x {length}{' ckpt' if checkpointing else ''}"
        return f"{way:22} {gpus:4} {size:13} {took:6.0f} ms {spread:11} {speed:7,.0f} tokens/s {peak:6.1f} GB"
