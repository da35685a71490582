"""The batch size: equal numbers of examples, and the record."""

import json

import pytest

from tools import ensemble
from tools import measure_batch_size as sizes
from tools.sweep_rank import FULL, Job, Run, measured


@pytest.mark.parametrize("task", sizes.EXAMPLES)
def test_every_run_sees_the_same_number_of_examples(task):
    jobs = sizes.jobs_of(task, sizes.EXAMPLES[task], sizes.BATCHES, sizes.RANKS, sizes.GRID, sizes.SEEDS, 200, "cpu")
    assert {job.steps * job.batch_size for job in jobs} == {sizes.EXAMPLES[task]}
    for batch in sizes.BATCHES:
        runs = [run for job in jobs if job.batch_size == batch for run in job.runs]
        assert len(runs) == len(set(runs)) == (len(sizes.RANKS) + 1) * len(sizes.SEEDS) * sizes.GRID


def test_so_many_are_drawn(monkeypatch):
    seen = []

    def counted(*args, **kwargs):
        for batch in drawn(*args, **kwargs):
            seen.append(len(batch["input_ids"]))
            yield batch

    drawn = ensemble.batches
    monkeypatch.setattr(ensemble, "batches", counted)
    for batch_size in (2, 8):
        seen.clear()
        job = Job([Run("all-linear", 4, 1e-3, 0, 32)], "style", 16 // batch_size, batch_size, 50, 4, "cpu")
        (result,) = measured(job)
        assert sum(seen) == 16 == result["steps"] * result["batch_size"] and set(seen) == {batch_size}


def test_a_batch_that_does_not_divide_the_examples_is_refused():
    for examples, batch in ((100, 16), (2**13, 2**13)):
        with pytest.raises(ValueError, match="don't divide"):
            sizes.jobs_of("style", examples, (batch,), (4,), 7, (0,), 10, "cpu")


def test_a_larger_batch_is_given_larger_rates_and_all_grids_have_the_same_length():
    for rates in (sizes.RATES, sizes.FULL_RATES):
        grids = [sizes.grid(rates, batch) for batch in sizes.BATCHES]
        assert {len(grid) for grid in grids} == {sizes.GRID} and [grid[0] for grid in grids] == sorted(
            grid[0] for grid in grids
        )
        assert grids[0][0] == rates[0] and grids[-1][-1] == rates[-1]


def test_the_trial_writes_a_record(tmp_path, monkeypatch):
    out = tmp_path / "batch_size.json"
    monkeypatch.setattr("sys.argv", ["x", "--trial", "--workers", "0", "--device", "cpu", "--out", str(out)])
    sizes.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["targets"], row["r"], row["batch_size"], row["steps"], row["examples"]) for row in rows] == [
        ("all-linear", 2, 4, 4, 16), ("all-linear", 2, 8, 2, 16), (FULL, None, 4, 4, 16), (FULL, None, 8, 2, 16),
    ]  # fmt: skip
    assert all(row["seeds"] == [0, 1] and row["test_loss_mean"] > 0 for row in rows)
