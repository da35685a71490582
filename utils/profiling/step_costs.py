"""Chapter 18's records, and a layer's step without data to hold against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from utils.models.device import ASSETS
from utils.profiling.traffic import Operation


def _only(rows: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any]:
    found = [row for row in rows if wanted.items() <= row.items()]
    if len(found) != 1:
        raise ValueError(f"the record has {len(found)} rows with {wanted}, not one")
    return found[0]


class LayerRecord:
    """A record in assets/measurements that tools/gpu/layer.py wrote: one layer's step, and a GPU's two speeds.

    `name` is layer, or layer_h200, which has torch.compile's rows and some with r=64, and no single products.
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
    """assets/measurements/step.json, written by tools/gpu/step.py: a whole training step of Llama-2-7B's shape."""

    def __init__(self) -> None:
        self.head = json.loads((ASSETS / "measurements" / "step.json").read_text(encoding="utf-8"))
        self.rows = self.head["rows"]

    def row(self, targets: str, way: str, checkpointing: bool = False) -> dict[str, Any]:
        """A way to train. Raises ValueError when it wasn't measured."""
        return _only(self.rows, {"targets": targets, "way": way, "checkpointing": checkpointing, "graph": False})


def layer_step(
    wrap: Callable[[nn.Linear], nn.Module], n: int = 8192, d_in: int = 4096, d_out: int = 4096
) -> Callable[[], Any]:  # fmt: skip
    """A function that runs forward and backward of ``wrap(linear)`` for `n` tokens in bfloat16, without data."""
    with torch.device("meta"):
        layer = wrap(nn.Linear(d_in, d_out, bias=False, dtype=torch.bfloat16))
        x = torch.empty(n, d_in, dtype=torch.bfloat16, requires_grad=True)
        g = torch.empty(n, d_out, dtype=torch.bfloat16)
    return lambda: layer(x).backward(g)


def deep_gradients(
    how: Callable[[nn.Module], nn.Module], dtype: torch.dtype = torch.bfloat16, *, layers: int = 24
) -> Tensor:  # fmt: skip
    """The adapters' gradients, as one float64 vector, of a random Llama that is 64 wide and `layers` deep.

    `how` adds LoRA to the model and returns it. Base and adapters are the same numbers for every `how`; the base is
    rounded to bfloat16, and then everything computes in `dtype`, except that adapters stay as `how` made them unless
    `dtype` is float64.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=176, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, initializer_range=0.16,
        )  # fmt: skip
        model = how(LlamaForCausalLM(config).bfloat16()).train()
    draw = torch.Generator().manual_seed(0)
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for p in adapters.values():
        p.data.copy_(torch.randn(p.shape, generator=draw) / (2 * p.shape[1] ** 0.5))
    if dtype == torch.float64:
        model = model.double()
    ids = torch.randint(0, 512, (2, 32), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([cast(Tensor, p.grad).double().flatten() for p in adapters.values()])
