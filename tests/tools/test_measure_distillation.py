"""The distillation's tool: rates are chosen on dev, both ways cost alike, and a second call measures nothing again."""

import json

import pytest

from tools import measure_distillation as tool
from utils.data.labels import batches


def rows(way, lr, dev, stories, seeds=(0, 1)):
    own = {name: 0.5 for name in tool.NUMBERS} | {"dev": dev, "stories_dev": stories}
    return [{"task": "style", "way": way, "lr": lr, "seed": seed, **own, "stories_test": seed} for seed in seeds]


def test_the_fewest_lost_stories_among_the_rates_that_keep_the_task():
    measured = (
        rows(tool.BEFORE, 0.0, 1.0, 4.0)
        + rows("replay", 0.001, 0.99, 2.0)
        + rows("replay", 0.002, 0.985, 1.7)
        + rows("replay", 0.004, 0.9, 1.6)
        + rows("distillation", 0.001, 0.5, 1.7)
        + rows("distillation", 0.002, 0.4, 1.6)
    )
    found = {one["way"]: one for one in tool.chosen(measured[::-1])}
    assert (found["replay"]["lr"], found["replay"]["reached"]) == (0.002, True)
    assert (found["distillation"]["lr"], found["distillation"]["reached"]) == (0.001, False)
    assert found["replay"]["seeds"] == found["replay"]["stories_test"] == [0, 1]
    assert found["replay"]["mean"]["stories_test"] == 0.5


def test_every_task_and_seed_has_its_own_job_and_file(tmp_path):
    jobs = tool.jobs_of(tmp_path, "cpu", False)
    assert len({job["file"] for job in jobs}) == len(jobs) == len(tool.TASKS) * len(tool.SEEDS)
    assert len(tool.jobs_of(tmp_path, "cpu", True)) == 1


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    out = folder / "distillation.json"
    tool.main(["--trial", "--device", "cpu", "--work", str(folder), "--out", str(out)])
    return folder, out


def test_the_trial_writes_a_record_that_says_so(trial):
    record = json.loads(trial[1].read_text())
    assert record["what"].startswith("TRIAL")
    assert record["tool"] == "python -m tools.measure_distillation" and record["seeds"] == [4]
    ways = {tool.BEFORE, "distillation", "replay", "distillation with the task", "replay with the task"}
    assert {row["way"] for row in record["rows"]} == {one["way"] for one in record["chosen"]} == ways
    passes = {row["way"]: row["passes"] for row in record["rows"]}
    assert passes["distillation with the task"] > passes["distillation"] > passes[tool.BEFORE] == 0


def test_a_second_call_measures_nothing_again(trial, monkeypatch):
    folder, out = trial
    before = json.loads(out.read_text())["rows"]
    monkeypatch.setattr(tool, "Bench", None)
    (job,) = tool.jobs_of(folder / "trial", "cpu", True)
    assert sorted(r["way"] for r in tool.one_job(job)) == sorted(row["way"] for row in before)


def test_replay_gets_the_stories_that_take_so_many_passes():
    bench = tool.Bench("style", 0, "cpu", True)
    for passes in (2000, 5000):
        stories = bench.stories_for(passes)
        drawn = batches(bench.tokenizer, bench.replayed, steps=30, batch_size=stories, seed=1)
        cost = 2 * sum(batch["input_ids"].numel() for batch in drawn) / 30
        assert cost == pytest.approx(passes, rel=0.12)  # half a story at 2,000 is 10%


def test_every_way_begins_at_the_same_weights_and_counts_its_passes():
    bench = tool.Bench("style", 0, "cpu", True)
    name = next(iter(bench.after))
    found = bench.distil(0.01, bench.data[:20])
    moved = bench.model.get_parameter(name).detach().clone()
    assert not moved.equal(bench.after[name])
    assert found["passes"] > found["answer_passes"]
    bench.restore()
    assert all(bench.model.get_parameter(n).equal(value) for n, value in bench.after.items())
    plain, with_task = bench.replay(0.01, (), 2), bench.replay(0.01, bench.data[:20], 2)
    rows = batches(bench.tokenizer, bench.data[:20], steps=2, batch_size=tool.ROWS, seed=0)
    extra = sum(batch["input_ids"].numel() for batch in rows)
    assert with_task["passes"] - plain["passes"] == extra
