"""What is learned by heart: the strings, the count of bits, and a run that remembers."""

import json
import math

import pytest

from tools import measure_capacity as capacity
from tools.sweep_rank import FULL, Run
from utils.data.chat import IGNORED


def test_strings_have_their_own_keys_and_nine_bits_a_token():
    rows, others = capacity.random_strings(2000, 0), capacity.random_strings(2000, 1)
    assert rows == capacity.random_strings(2000, 0) and rows[:500] != others[:500]
    keys = {tuple(row["input_ids"][: capacity.KEY]) for row in rows}
    assert len(keys) == 2000, "two strings with one key can't both be remembered"
    drawn = [token for row in rows for token in row["labels"][capacity.KEY :]]
    assert all(row["labels"][: capacity.KEY] == [IGNORED] * capacity.KEY for row in rows)
    assert len(set(drawn)) == capacity.ALPHABET and min(drawn) >= capacity.SPECIAL and max(drawn) < 1024
    assert len(drawn) == 2000 * capacity.LENGTH and capacity.string_bits(2000) == 9 * len(drawn)
    often = [drawn.count(token) for token in set(drawn)]
    assert 25 < min(often) and max(often) < 110, "62.5 times each on average"


def test_bits_are_those_of_the_strings_less_those_of_the_loss():
    assert capacity.bits_remembered(10, 0.0) == capacity.string_bits(10) == 10 * 16 * 9
    assert capacity.bits_remembered(10, math.log(512)) == pytest.approx(0, abs=1e-9)
    assert capacity.bits_remembered(10, math.log(512) / 3) == pytest.approx(10 * 16 * 6)
    assert capacity.bits_remembered(10, 8.0) == 0 == capacity.bits_remembered(10, None)


def test_an_untrained_model_remembers_nothing():
    """LoRA begins at zero: the loss is the base's, which knows no more of the strings than chance."""
    runs = [Run("all-linear", 2, 1e-2, seed) for seed in (0, 1)]
    for result in capacity.measured(capacity.Job(runs, 32, 0, "cpu")):
        assert result["loss"] > math.log(512) and result["exact"] == 0
        assert capacity.bits_remembered(32, result["loss"]) == 0


def test_a_model_that_is_trained_long_enough_remembers_them():
    (result,) = capacity.measured(capacity.Job([Run(FULL, None, 2e-3, 0)], 4, 80, "cpu"))
    bits = capacity.bits_remembered(4, result["loss"])
    assert 0.95 * capacity.string_bits(4) < bits < capacity.string_bits(4) and result["exact"] == 1
    assert result["curve"][0] > result["curve"][-1]


def test_every_rank_gets_its_sets_and_the_largest_come_first():
    jobs = capacity.all_jobs(capacity.RANKS, capacity.PER_RANK, (4096,), 2, 100, (4, 512), "cpu")
    sizes = {r: sorted({job.strings for job in jobs for run in job.runs if run.r == r}) for r in (1, 8, 32, None)}
    assert sizes == {1: [16, 32, 64, 128, 256], 8: [128, 256, 512, 1024, 2048], 32: [512, 1024, 2048, 4096],
                     None: [4096]}  # fmt: skip
    assert jobs[0].strings == 4096
    assert [(job.steps, job.strings, {run.r for run in job.runs}) for job in jobs if job.steps != 100] == [
        (50, 512, {4})
    ]


def test_a_row_takes_the_rate_with_the_lower_loss_and_the_capacity_the_most_bits():
    def result(strings, lr, seed, loss, exact):
        return {"targets": "all-linear", "r": 1, "strings": strings, "steps": capacity.STEPS, "lr": lr, "seed": seed,
                "loss": loss, "exact": exact, "curve": [loss]}  # fmt: skip

    nine = math.log(512)
    results = [result(64, lr, seed, loss, 1.0) for lr, loss in ((1e-3, 0.0), (2e-3, None)) for seed in (0, 1)]
    results += [result(256, lr, seed, loss, 0.1) for lr, loss in ((1e-3, nine), (2e-3, nine / 2)) for seed in (0, 1)]
    small, large = capacity.summarize(results, {("all-linear", 1): 13568})
    assert (small["lr"], small["bits_remembered"], small["share_remembered"]) == (1e-3, 9216, 1)
    assert (large["lr"], large["bits_remembered"], large["share_remembered"]) == (2e-3, 18432, 0.5)
    (row,) = capacity.capacities([small, large], capacity.STEPS)
    assert (row["bits_remembered"], row["of_strings"], row["strings_known"]) == (18432, 256, 64)
    assert row["bits_per_parameter"] == pytest.approx(18432 / 13568, abs=1e-4)


def test_the_trial_writes_a_record(tmp_path, monkeypatch):
    out = tmp_path / "capacity.json"
    monkeypatch.setattr("sys.argv", ["x", "--trial", "--workers", "0", "--device", "cpu", "--out", str(out)])
    capacity.main()
    record = json.loads(out.read_text())
    assert {(row["r"], row["strings"], row["steps"]) for row in record["rows"]} == {
        (1, 8, 4), (1, 16, 4), (2, 16, 4), (2, 32, 4), (2, 16, 2), (None, 16, 4),
    }  # fmt: skip
    assert {row["r"] for row in record["capacity"]} == {1, 2, None} and record["hardware"] == "CPU"
