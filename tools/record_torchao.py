"""What torchao makes of the tiny model's weights in FP8, MXFP4 and NVFP4: the record that chapter 7 is held to.

    pip install --no-deps --target /tmp/torchao "torchao>=0.18,<1"
    PYTHONPATH=/tmp/torchao:. python -m tools.record_torchao

It takes ten seconds. torchao (BSD-3-Clause) is no dependency of the course: where it is installed, PEFT imports it with
every model and it writes warnings to stderr, which a notebook would show. So its results are stored:
``assets/measurements/torchao_formats.json`` has the SHA-256 of the bytes of codes and scales of each linear layer of
the tiny model in float32, and the bytes themselves for the awkward values of :func:`awkward`.
tests/quant/test_small_floats_torchao.py compares our bytes with the record, and with torchao itself where there is one.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import json
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from utils.models import ASSETS, load_base

RECORD = ASSETS / "measurements" / "torchao_formats.json"
KINDS = ("fp8_e4m3", "fp8_e5m2", "mxfp4 floor", "mxfp4 even", "mxfp4 up", "mxfp8 floor", "nvfp4")


def layers() -> dict[str, Tensor]:
    """The weights of the tiny model's linear layers, in float32."""
    model, _ = load_base(torch.float32)
    return {n: m.weight.detach().cpu() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def awkward() -> dict[str, Tensor]:
    """Values at which implementations differ: halves, zeros of both signs, huge and tiny, blocks of unlike size."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "normal": normal(4, 64),
        "sixteenths": (torch.arange(-96, 96) / 16).view(2, 96),
        "blocks of unlike size": normal(16, 64) * torch.exp(5 * normal(16, 1)),
        "a block of zeros": torch.cat([torch.zeros(1, 32), -torch.zeros(1, 32), normal(2, 32)]),
        "tiny": normal(2, 32) * 1e-30,
        "huge": normal(2, 32) * 1e30,
        "bf16": normal(4, 64).bfloat16().float(),
    }


def torchao_bytes(values: Tensor, kind: str) -> dict[str, Tensor]:
    """The bytes of codes, and of scales where there are any, that torchao (or torch, for FP8) makes of `values`."""
    if kind.startswith("fp8"):
        dtype = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[kind]
        end = torch.finfo(dtype).max
        return {"codes": values.clamp(-end, end).to(dtype).view(torch.uint8).flatten()}
    mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
    if kind == "nvfp4":
        nv = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")
        scale = nv.per_tensor_amax_to_scale(values.abs().max())
        scales, codes = nv.nvfp4_quantize(values, per_tensor_scale=scale)
        return {"codes": codes.flatten(), "scales": scales.view(torch.uint8).flatten(), "tensor": scale.view(1)}
    name, rounding = kind.split()
    mode = {"floor": "FLOOR", "even": "EVEN", "up": "RCEIL"}[rounding]
    elements = {"mxfp4": torch.float4_e2m1fn_x2, "mxfp8": torch.float8_e4m3fn}[name]
    scales, codes = mx.to_mx(values, elements, 32, mx.ScaleCalculationMode[mode])
    return {"codes": codes.view(torch.uint8).flatten(), "scales": scales.view(torch.uint8).flatten()}


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def our_bytes(values: Tensor, kind: str) -> dict[str, Tensor]:
    """The same parts, as the course's own code makes them."""
    from utils.quant.small_floats import float_codes, quantize_floats

    if kind.startswith("fp8"):
        return {"codes": float_codes(values, kind.removeprefix("fp8_")).flatten()}
    name, *rounding = kind.split()
    made = quantize_floats(values, name, rounding=rounding[0] if rounding else "floor")
    tensor = {"tensor": made.tensor_scale.view(1)} if made.tensor_scale is not None and name == "nvfp4" else {}
    return {"codes": made.codes, "scales": made.scales, **tensor}


def rows(make: Any = torchao_bytes) -> list[dict[str, str]]:
    """What `make` makes of every tensor in every kind: digests for the layers, bytes in hexadecimal for the rest."""

    def entry(values: Tensor, kind: str, shown: Any) -> dict[str, str]:
        return {part: shown(tensor) for part, tensor in make(values, kind).items()}

    def hexadecimal(tensor: Tensor) -> str:
        return tensor.contiguous().view(torch.uint8).numpy().tobytes().hex()

    made = []
    for shown, tensors in ((digest, layers()), (hexadecimal, awkward())):
        for name, values in tensors.items():
            made += [{"of": name, "kind": kind, **entry(values, kind, shown)} for kind in KINDS]
    return made


def main() -> None:
    """Write the record."""
    record = {
        "what": "codes and scales of the tiny model's linear layers (SHA-256 of the bytes), of awkward values (hex)",
        "tool": "python -m tools.record_torchao",
        "seeds": [0],
        "date": str(datetime.date.today()),
        "torch": torch.__version__,
        "torchao": version("torchao"),
        "rows": rows(),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(record['rows'])} rows in {RECORD.name}, {RECORD.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
