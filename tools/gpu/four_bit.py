"""Answering with the base in 16 and in 4 bits: what a decoding step costs, fused and with the weights restored first.

Writes ``generation_4bit.json``. Llama-2-7B's shape with random weights, prompts of 512 tokens. All forms lie on the GPU
at once and are measured in turns. bitsandbytes multiplies by 4-bit weights in one kernel where it holds that to be
faster (``gemm_4bit``, which restores them first for many rows); "NF4, restored first" is the control, which always
restores the 16-bit matrix and multiplies by that. "bf16 again" shows what a difference in time has to exceed.

Attributes:
    FORMS: How the linear layers but the head are stored and used: double quantization, restored first; None is bf16.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.gpu.latency import decode_row, eager_row, graphed, note
from tools.gpu.record import Record
from tools.gpu.step import base_model
from utils.profiling.adapter_forms import shared

SEED = 0
FORMS: dict[str, tuple[bool, bool] | None] = {
    "bf16": None,
    "NF4": (False, False),
    "NF4, double quantization": (True, False),
    "NF4, restored first": (False, True),
    "bf16 again": None,
}
BATCHES = (1, 4, 16, 64)


def restored_first(layer: Any, x: Tensor) -> Tensor:
    """What a 4-bit layer computes, in two steps: the whole matrix in x's dtype, and the product."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight, layer.weight.quant_state).to(x.dtype)
    return F.linear(x, weight, layer.bias)


def in_4_bits(model: nn.Module, *, double: bool) -> nn.Module:
    """The model with every linear layer but the head in NF4, one after the other, as loading does it; changed in place.

    The layers that are replaced keep their weights where another model shares them.
    """
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            settings: dict[str, Any] = {"compress_statistics": double, "quant_type": "nf4"}
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=module.bias is not None,
                compute_dtype=module.weight.dtype, **settings, device="meta",
            )  # fmt: skip
            device = module.weight.device
            layer.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, **settings)
            layer.bias = module.bias
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.to(device))
            module.weight = None  # the last to hold it, unless it is shared
    return model


def forms(model: nn.Module) -> dict[str, nn.Module]:
    """The model in each of FORMS; `model` itself stays as it is."""
    found: dict[str, nn.Module] = {}
    for form, stored in FORMS.items():
        if stored is None:
            found[form] = model
            continue
        double, restore = stored
        found[form] = in_4_bits(shared(model), double=double)
        if restore:
            for layer in found[form].modules():
                if hasattr(layer, "compute_dtype") and hasattr(layer, "quant_state"):
                    layer.forward = partial(restored_first, layer)
    return found


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and of the scales that belong to them."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            scales = [state.absmax] + ([state.offset, state.state2.absmax] if state.nested else [])
            total += sum(t.nbytes for t in scales)
    return total


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``generation_4bit.json`` into `out`, until `seconds` are over."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() and not trial else "cpu")
    length, new_tokens = (16, 2) if trial else (512, 16)
    model = base_model(trial, device).eval().requires_grad_(False)
    found = forms(model)
    record = Record(
        out / "generation_4bit.json",
        "answering with Llama-2-7B's shape, random weights; milliseconds of reading the prompts (prefill) and of a "
        "decoding step, which makes a token for every text: medians and quartiles",
        seed=SEED,
        prompt=length,
        new_tokens=new_tokens,
        weight_bytes={form: weight_bytes(one) for form, one in found.items()},
    )
    for batch in BATCHES:
        for way, work in (("eager", eager_row), ("graph", partial(decode_row, graphed))):
            key = f"batch {batch}, {way}"
            if key in record:
                continue
            if time.monotonic() - began > seconds:
                print(f"  stopped after {seconds:.0f} s: run it again to go on", flush=True)
                return
            note(record, key, work(found, batch, length, new_tokens), batch=batch, way=way)
