"""Chapter 21's records, and a layer's step without data to hold against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from utils.models.device import ASSETS
from utils.profiling.traffic import Operation


def _only(rows: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any]:
    found = [row for row in rows if wanted.items() <= row.items()]
    if len(found) != 1:
        raise ValueError(f"the record has {len(found)} rows with {wanted}, not one")
    return found[0]


class LayerRecord:
    """A record in assets/measurements that tools/gpu/layer.py wrote: one layer's step, and a GPU's two speeds.

    `name` is layer, or layer_h200, an earlier run with torch.compile's rows and without the single products.
    """

    def __init__(self, name: str = "layer") -> None:
        self.head = json.loads((ASSETS / "measurements" / f"{name}.json").read_text(encoding="utf-8"))
        self.rows = self.head["rows"]

    def row(
        self, way: str, tokens: int = 8192, d_in: int = 4096, d_out: int = 4096, r: int = 16, *, compiled: bool = False
    ) -> dict[str, Any]:  # fmt: skip
        """A way to compute a layer, at one size. Raises ValueError when it wasn't measured.

        With `compiled` it is from the run that compared with torch.compile.
        """
        size = {"tokens": tokens, "d_in": d_in, "d_out": d_out, "r": r}
        return _only(self.rows, {"way": way, "compiled": compiled} | size)

    def three(self, way: str, tokens: int = 8192) -> dict[str, Any]:
        """A way to compute three layers that read one input. Raises ValueError when it wasn't measured."""
        return _only(self.rows, {"three": True, "way": way, "tokens": tokens})

    def part(self, name: str) -> dict[str, Any]:
        """A single product, with its bytes. Raises ValueError when it wasn't measured."""
        return _only(self.rows, {"key": f"part: {name}"})

    def seconds(self, name: str) -> float:
        """How long a single product took, the median. Raises ValueError when it wasn't measured."""
        return self.part(name)["microseconds"]["median"] / 1e6

    @property
    def flops(self) -> float:
        """Operations a second of a large product, in bfloat16."""
        return 2 * 8192**3 / self.seconds("ceiling: 8192^3 product")

    @property
    def memory(self) -> float:
        """Bytes a second of a large copy, read and written."""
        return 2 * 2**30 / self.seconds("ceiling: copy of 1 GiB")

    def least(self, operations: list[Operation]) -> float:
        """The shortest time of the operations one after the other on the record's GPU, in microseconds."""
        return 1e6 * sum(operation.least_seconds(self.flops, self.memory) for operation in operations)

    def show(self, operations: list[Operation]) -> None:
        """Print the operations with their dtype, bytes and shortest time."""
        for op in operations:
            dtype = str(op.dtype).removeprefix("torch.")
            print(f"{op.name:9} {dtype:9} {op.moved / 1e6:6.1f} MB {self.least([op]):6.1f} µs")


class StepRecord:
    """assets/measurements/whole_step.json: training steps of Llama-2-7B's shape, by tools/gpu/step.py."""

    def __init__(self) -> None:
        self.head = json.loads((ASSETS / "measurements" / "whole_step.json").read_text(encoding="utf-8"))
        self.rows = self.head["rows"]

    def row(self, way: str, targets: str = "none", batch: int = 8) -> dict[str, Any]:
        """A way to train on `batch` sequences of 512 tokens. Raises ValueError when it wasn't measured.

        `targets` are the layers with LoRA: "q,k,v,o", "all-linear" or "none".
        """
        return _only(self.rows, {"way": way, "targets": targets, "batch": batch})

    def ratio(self, way: str, targets: str = "none", batch: int = 8, over: str = "frozen") -> float:
        """A way's median time over that of a way without LoRA. Raises ValueError when it wasn't measured."""
        mine, theirs = self.row(way, targets, batch), self.row(over, batch=batch)
        return mine["milliseconds"]["median"] / theirs["milliseconds"]["median"]

    def line(self, way: str, targets: str = "none", batch: int = 8) -> str:
        """A way's median and quartiles in milliseconds, its time over the frozen model's, and its peak in GB."""
        row = self.row(way, targets, batch)
        if "out_of_memory" in row:
            return "out of memory"
        ms, peak = row["milliseconds"], row["peak_mib"] * 2**20 / 1e9
        spread = f"({ms['lower']:.0f}-{ms['upper']:.0f})"
        return f"{ms['median']:4.0f} ms {spread:9} {self.ratio(way, targets, batch):5.2f} {peak:6.1f} GB"


def layer_step(
    wrap: Callable[[nn.Linear], nn.Module], n: int = 8192, d_in: int = 4096, d_out: int = 4096
) -> Callable[[], Any]:  # fmt: skip
    """A function that runs forward and backward of ``wrap(linear)`` for `n` tokens in bfloat16, without data."""
    with torch.device("meta"):
        layer = wrap(nn.Linear(d_in, d_out, bias=False, dtype=torch.bfloat16))
        x = torch.empty(n, d_in, dtype=torch.bfloat16, requires_grad=True)
        g = torch.empty(n, d_out, dtype=torch.bfloat16)
    return lambda: layer(x).backward(g)
