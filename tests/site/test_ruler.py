"""The ruler of 4-bit formats stores what utils/quant stores, and is worked by keyboard, pointer and its URL."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from tests.site.nodes import needs_node, run
from tests.site.served import browser, needs_browser, opened, served
from utils.quant.nf4 import bits_per_parameter, dequantize, quantize, unpack_codes
from utils.quant.small_floats import ROUNDINGS, dequantize_floats, quantize_floats

BLOCKS = {"nf4": 64, "mxfp4": 32, "nvfp4": 16}


def stored(name: str, weight: float, block: float, tensor: float, rounding: str) -> tuple[int, float]:
    """The code and the value of `weight` in Python, in a tensor of two blocks with these largest values."""
    values = torch.zeros(2, BLOCKS[name])
    values[0, 0], values[0, 1], values[1, 0] = block, weight, tensor
    if name == "nf4":
        nf4 = quantize(values)
        return int(unpack_codes(nf4.packed, 2)[1]), float(dequantize(nf4)[0, 1])
    floats = quantize_floats(values, name, rounding=rounding)
    return int(floats.codes[0]) >> 4, float(dequantize_floats(floats)[0, 1])


def cases() -> list[dict]:
    """Drawn weights, and the awkward ones: the ends, both sides of a power of two, exactly halfway, minus zero."""
    draw = random.Random(7)
    found = []
    for _ in range(600):
        block = 10 ** draw.uniform(-3, 0.5)
        tensor = block * 10 ** draw.uniform(0, draw.choice([0.2, 6]))
        found.append((draw.uniform(-1, 1) * block, block, tensor))
    for block in (0.124, 0.125, 0.0625, math.nextafter(0.125, 0), 0.109375, 0.1, 6.0, 7.0, 1.5):
        for share in (1, -1, 0, -0.0, 0.25 / 6, 0.75 / 6, 1.25 / 6, 2.5 / 6, 3.5 / 6, 5 / 6, -5 / 6, 1e-7, 0.5):
            found.append((share * block, block, block))
    ways = zip(found, ROUNDINGS * len(found), strict=False)
    return [{"weight": w, "block": b, "tensor": t, "rounding": way} for (w, b, t), way in ways]


@needs_node
def test_weights_are_stored_as_in_python(tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(rows := cases()), encoding="utf-8")
    answer = run("ruler_check.js", tmp_path / "cases.json")
    assert answer["bits"] == {"nf4": bits_per_parameter(), "mxfp4": 4.25, "nvfp4": 4.5}
    for row, found in zip(rows, answer["found"], strict=True):
        for name, own in found.items():
            code, value = stored(name, row["weight"], row["block"], row["tensor"], row["rounding"])
            assert (own["code"], own["value"]) == (code, value), (name, row)
            assert own["value"] in own["marks"] and own["marks"] == sorted(own["marks"])
            assert len(own["marks"]) == (16 if name == "nf4" else 15)
