"""Every method of the installed PEFT is on the map, or left out with a reason; and the record is what PEFT does."""

from __future__ import annotations

import json

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from utils.evaluate.peft_methods import LEFT_OUT, contract, methods
from utils.models import ROOT, load_base

RECORD = json.loads((ROOT / "assets" / "measurements" / "peft_methods.json").read_text(encoding="utf-8"))
ROWS = {row["method"]: row for row in RECORD["rows"]}
IDS = torch.arange(10, 138).reshape(4, 32)


def test_every_method_of_peft_is_on_the_map_or_left_out_with_a_reason():
    known = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - {"LORA"}
    named = set(methods()) | set(LEFT_OUT)
    assert known <= named
    assert not set(methods()) & set(LEFT_OUT)
    assert {name for name in named if not name.startswith("LoRA")} <= known, "a name that PEFT doesn't have"
    assert set(ROWS) == set(methods()) and RECORD["left_out"] == LEFT_OUT


@pytest.mark.parametrize("name", sorted(set(methods()) - {"BOFT"}))  # it compiles, which distutils refuses among tests
def test_a_method_does_what_the_record_says(name):
    found = contract(lambda: load_base()[0], methods()[name](), IDS)
    row = ROWS[name]
    assert (found.trained, found.merged, found.to_lora) == (row["trained"], row["merged"], row["to_lora"])
    assert found.rank == row["rank"] or abs(found.rank - row["rank"]) <= 2, "a direction near the limit"
    assert found.start == pytest.approx(row["start"], rel=0.05, abs=2e-4)


def test_a_start_that_is_not_the_base_is_seen():
    starts = {name for name, row in ROWS.items() if row["start"] > 1e-3}
    assert starts == {"FOURIERFT", "C3A", "VBLORA", "LoRA, False"}
    assert all(row["merged"] is not False for row in ROWS.values())
