"""tools/gpu/full_or_lora.py: the record, and what the ledger says of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from statistics import median

import pytest

from tools.gpu import full_or_lora as tool
from utils.models import ASSETS
from utils.profiling import techniques
from utils.profiling.gpu_step import base_model, base_of

RECORD = json.loads((ASSETS / "measurements" / "full_or_lora.json").read_text())
ROWS = {row["key"]: row for row in RECORD["rows"]}


def times(size: str, way: str) -> list[float]:
    """The medians of the three repeats, in milliseconds."""
    return [ROWS[f"{size}: {way}, {repeat}"]["milliseconds"]["median"] for repeat in range(tool.REPEATS)]


def names(which=lambda model, batch, checkpointing: True) -> list[str]:
    return [f"{m}, {b} x 512{', checkpointing' if on else ''}" for m, b, on in tool.SIZES if which(m, b, on)]


def against_full(size: str, way: str) -> float:
    return median(times(size, way)) / median(times(size, "full"))


def test_the_record_has_every_way_three_times_as_it_was_planned():
    planned = [technique for repeat in range(tool.REPEATS) for technique in tool.techniques(repeat)]
    assert [technique.name for technique in planned] == list(ROWS) and RECORD["seed"] == techniques.SEED
    for technique in planned:
        row = ROWS[technique.name]
        assert row["setup"] == json.loads(json.dumps(dataclasses.asdict(technique.setup)))
        assert (row["autocast"], row["fused"]) == (technique.autocast, technique.fused)
        assert row["milliseconds"]["runs"] == techniques.STEPS
    groups = [base for base, _ in itertools.groupby(base_of(t.setup) for t in tool.techniques(0))]
    assert len(groups) == len(set(groups)), "those of one base follow each other: it is made once"


def test_pefts_step_is_slower_than_the_full_one_at_every_size():
    slower = {size: against_full(size, "LoRA, PEFT as it comes") for size in names()}
    assert len(slower) == 8 and 1.1 < min(slower.values()) and max(slower.values()) < 1.75
    for size in slower:  # the repeats don't overlap
        assert min(times(size, "LoRA, PEFT as it comes")) > max(times(size, "full"))


def test_what_makes_lora_level_or_faster_at_large_batches():
    large = names(lambda model, batch, checkpointing: batch > 1)
    sixteen = [against_full(size, "LoRA, PEFT, 16-bit adapters") for size in large]
    fused = [against_full(size, "LoRA, fused") for size in large]
    assert 0.8 < min(sixteen) < 0.83 and max(sixteen) < 1.15
    assert 0.83 < min(fused) and max(fused) < 1.01


def test_lora_saves_memory_where_weights_and_optimizer_are_what_counts():
    for size in names(lambda model, *_: model == tool.SEVEN):
        peaks = {way: ROWS[f"{size}: {way}, 0"]["peak"] for way in ("full", "LoRA, PEFT as it comes")}
        assert 0.25 < peaks["LoRA, PEFT as it comes"] / peaks["full"] < 0.62
    without = "Llama-3.2-1B, 16 x 512"
    assert ROWS[f"{without}: LoRA, PEFT as it comes, 0"]["peak"] > ROWS[f"{without}: full, 0"]["peak"]


@pytest.mark.parametrize("way", ["full", "LoRA, fused"])
def test_a_trial_row_has_a_time_and_leaves_a_frozen_base_without_adapters(way):
    technique = next(t for t in tool.techniques(0) if t.name.endswith(f"{way}, 0"))
    model = base_model(technique.setup, "cpu", True)
    before = set(model.state_dict())
    row = techniques.measure_technique(model, technique, "cpu", True)
    assert row["milliseconds"]["runs"] == 4
    assert set(model.state_dict()) == before and not any(p.requires_grad for p in model.parameters())
