"""FP8, MXFP4 and NVFP4, byte for byte as torchao 0.18 and torch make them: against their record, and against torchao
itself where it is installed. ``tools/record_torchao.py`` says how to install it and why the course doesn't."""

import importlib.util
import json

import pytest
import torch

from tools.record_torchao import KINDS, RECORD, awkward, our_bytes, rows, torchao_bytes
from utils.quant.small_floats import float_book, float_codes

torch.set_num_threads(1)


def test_every_layer_and_every_awkward_value_has_the_bytes_of_the_record():
    stored = json.loads(RECORD.read_text())["rows"]
    assert len(stored) == (29 + len(awkward())) * len(KINDS)
    different = [
        f"{theirs['of']} in {theirs['kind']}"
        for theirs, ours in zip(stored, rows(our_bytes), strict=True)
        if theirs != ours
    ]
    assert not different


def test_a_code_that_is_off_by_one_is_seen():
    def careless(values, kind):
        return {part: (t + 1 if part == "codes" else t) for part, t in our_bytes(values, kind).items()}

    stored = json.loads(RECORD.read_text())["rows"]
    assert not any(theirs == ours for theirs, ours in zip(stored, rows(careless), strict=True))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2), ("e8m0", torch.float8_e8m0fnu)]
)
def test_all_256_values_of_a_code_book_are_torchs(kind, dtype):
    theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    assert torch.equal(float_book(kind).isnan(), theirs.isnan())
    assert torch.equal(float_book(kind).nan_to_num(0.0), theirs.nan_to_num(0.0))


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_rounding_is_torchs_next_to_every_middle(kind, dtype):
    book = float_book(kind)
    ordered = book[book.isfinite()].unique()
    middles = (ordered[:-1] + ordered[1:]) / 2
    around = [middles.nextafter(torch.tensor(side)) for side in (-1e9, 1e9)]
    values = torch.cat([middles, *around, ordered])
    assert torch.equal(float_codes(values, kind), values.to(dtype).view(torch.uint8))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao isn't installed; its record is tested")
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_random_values_are_torchaos(kind):
    generator = torch.Generator().manual_seed(1)
    for spread in (0.0, 1.0, 6.0):
        values = torch.randn(256, 96, generator=generator)
        values *= torch.exp(spread * torch.randn(256, 1, generator=generator))
        for dtype in (torch.float32, torch.bfloat16):
            theirs = torchao_bytes(values.to(dtype).float(), kind)
            for part, ours in our_bytes(values.to(dtype), kind).items():
                assert torch.equal(theirs[part], ours), (part, spread, dtype)
