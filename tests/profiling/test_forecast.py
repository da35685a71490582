"""The memory forecast: exact where it claims to be, near what a GPU measured, and a refusal in time."""

import json

import pytest

from utils.models import ASSETS
from utils.profiling import forecast as module
from utils.profiling.flops import dry_run
from utils.profiling.forecast import GB, RESERVE, Forecast, WontFit, forecast, refuse_unless_it_fits


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_short_runs_tell_what_a_longer_one_keeps(monkeypatch, checkpointing):
    """Four blocks by extrapolation and by playing all four through: to the byte."""
    monkeypatch.setattr(module, "_counts", lambda name: (0, 0, 4))
    module.activations.cache_clear()
    try:
        told = module.activations("Llama-2-7B", 2, 64, checkpointing=checkpointing)
    finally:
        module.activations.cache_clear()
    whole = dry_run("Llama-2-7B", 2, 64, target_modules=list(module.ATTENTION), checkpointing=checkpointing, layers=4)
    assert told == whole.activations


def test_the_whole_model_is_told_from_two_blocks():
    """The value that dry_run gives for all 32 blocks (it takes ten seconds; chapter 5 runs it)."""
    assert module.activations("Llama-2-7B", 4, 512) == 13_198_180_356


def test_a_run_needs_a_block():
    with pytest.raises(ValueError, match="at least one block"):
        dry_run("Llama-2-7B", 1, 8, layers=0)


def test_the_forecast_is_below_the_measured_peak_by_less_than_the_reserve():
    rows = json.loads((ASSETS / "measurements" / "loading_7b.json").read_text())["rows"]
    seen = 0
    for row in rows:
        if row["trains"].startswith("LoRA") and row["base"] in ("bf16", "NF4, double quantization"):
            told = forecast("Llama-2-7B", 4, 512, checkpointing=row["checkpointing"], four_bit=row["base"] != "bf16")
            without_optimizer = told.total - told.optimizer  # as the record's steps
            assert 0 < row["peak"] - without_optimizer < RESERVE
            seen += 1
    assert seen == 4


def test_parameters_are_counted_right():
    linear, rest, blocks = module._counts("Llama-2-7B")
    assert linear + rest == 6_738_415_616 and blocks == 32
    assert rest == 2 * 32_000 * 4096 + (2 * 32 + 1) * 4096, "embedding, head and norms stay in 16 bits"
    assert forecast("Llama-2-7B", 1, 64).gradients == 4 * 8_388_608  # C30


def test_the_refusal_names_the_largest_part_and_its_cure():
    run = Forecast(weights=13 * GB, gradients=GB, optimizer=2 * GB, activations=6 * GB)
    refuse_unless_it_fits(run, 23 * GB)  # to the byte
    with pytest.raises(WontFit, match=r"needs 22.0 GB .* 4 bits"):
        refuse_unless_it_fits(run, 23 * GB - 1)
    with pytest.raises(MemoryError, match="checkpoint the blocks"):
        refuse_unless_it_fits(run._replace(activations=14 * GB), 16 * GB)


def test_every_part_has_a_cure():
    assert set(module.CURES) == set(Forecast._fields)
