"""tools/gpu/four_bit.py on a small model: what is stored, that the forms compute the same, and the record."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tools.gpu import four_bit as tool
from tools.gpu.step import base_model
from utils.models import ASSETS
from utils.profiling.latency import prompts
from utils.quant import dequantize, quantize

RECORD = ASSETS / "measurements" / "generation_4bit.json"


def small() -> nn.Module:
    """Rows of whole blocks: bitsandbytes 0.50 restores others wrongly on a CPU with AVX-512."""
    return base_model(True, torch.device("cpu"), intermediate_size=128).float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def found(model):
    return tool.forms(model)


def test_both_ways_to_compute_give_what_the_course_s_own_nf4_gives(model, found):
    own, ids = small(), prompts(model, 2, 9)
    with torch.inference_mode():
        for name, module in own.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                module.weight.copy_(dequantize(quantize(module.weight)).view_as(module.weight))
        expected = own(input_ids=ids).logits
        for form in ("NF4", "NF4, restored first"):
            torch.testing.assert_close(found[form](input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert (expected - model(input_ids=ids).logits).abs().max() > 0.001, "four bits change nothing?"


def test_every_linear_layer_but_the_head_is_stored_in_4_bits(model, found):
    linear = [m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    rest = sum(p.numel() for p in model.parameters()) - sum(linear)
    assert tool.weight_bytes(model) == 4 * (rest + sum(linear))
    assert tool.weight_bytes(found["NF4"]) == 4 * rest + sum(n // 2 + 4 * (n // 64) for n in linear)
    scales = sum(n // 64 + 4 + 4 * -(-n // 64 // 256) for n in linear)
    assert tool.weight_bytes(found["NF4, double quantization"]) == 4 * rest + sum(n // 2 for n in linear) + scales


def test_the_record_is_of_every_form_and_of_what_7b_takes():
    record = json.loads(RECORD.read_text())
    assert {(row["batch"], row["way"]) for row in record["rows"]} == {
        (batch, way) for batch in tool.BATCHES for way in ("eager", "graph")
    }
    for row in record["rows"]:
        assert set(row["times"]) == set(tool.FORMS), row["key"]
    loaded = json.loads((ASSETS / "measurements" / "loading_7b.json").read_text())["rows"]
    allocated = {row["base"]: row["weights"] for row in loaded if row["trains"].startswith("LoRA")}
    for base, weights in allocated.items():
        assert record["weight_bytes"][base] == pytest.approx(weights, rel=3e-4)
