"""The record export.json says what chapter 13 says of it, and its tool still makes such rows."""

import json

import pytest

from tools import measure_export

RECORD = json.loads(measure_export.OUT.read_text(encoding="utf-8"))
TINY = {(row["dtype"], row["way"], row["strength"]): row for row in RECORD["tiny llama"]}
BESIDE, MERGED = "adapter beside", "merged, then written"


def test_it_holds_every_row_of_its_tool():
    ways = [("base alone", 0.0), (BESIDE, 1.0), (MERGED, 1.0)]
    half = [(BESIDE, 0.5), (MERGED, 0.5)]
    wanted = {(dtype, *way) for dtype in (*measure_export.DTYPES, "nf4") for way in ways}
    wanted |= {(dtype, *way) for dtype in (*measure_export.HALF, "nf4") for way in half}
    assert set(TINY) == wanted
    assert {row["asked"] for row in TINY.values()} == {200}
    assert {row["asked"] for row in RECORD["random models"]} == {50}


def test_in_float32_llama_cpp_answers_as_transformers_and_peft():
    for way, strength in ((BESIDE, 1.0), (MERGED, 1.0), (BESIDE, 0.5), (MERGED, 0.5)):
        row = TINY["f32", way, strength]
        assert row["equal"] == 200 and abs(row["nats"]) < 1e-6, (way, strength)
    assert TINY["f32", "base alone", 0.0]["equal"] == 200
    for row in RECORD["random models"]:
        if row["dtype"] == "f32":
            assert row["equal"] == 50 and row["largest"] < 5e-4, row["architecture"]


def test_a_sure_adapter_answers_alike_in_every_dtype_and_the_base_does_not():
    """All 200 answers of the adapters are right down to 4 bits, beside the base and merged; the control is the base."""
    for dtype in (*measure_export.DTYPES, "nf4"):
        for way in (BESIDE, MERGED):
            assert TINY[dtype, way, 1.0]["right"] == 200, (dtype, way)
    assert TINY["q4_0", "base alone", 0.0]["equal"] < 20


@pytest.mark.slow
def test_the_tool_still_makes_such_rows(tmp_path):
    pytest.importorskip("xllamacpp")
    measure_export.main(["--trial", "--out", str(tmp_path / "export.json")])
    made = json.loads((tmp_path / "export.json").read_text())
    assert made.keys() == RECORD.keys()
    for part in ("tiny llama", "random models", "breakages"):
        assert made[part][0].keys() == RECORD[part][0].keys()
    assert [row["breakage"] for row in made["breakages"]] == [row["breakage"] for row in RECORD["breakages"]]
