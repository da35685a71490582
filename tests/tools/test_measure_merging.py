"""The record merging.json says what chapter 10 and the ledger say of it, and its tool still makes such rows."""

import json
import statistics

import pytest

from tools import measure_merging

RECORD = json.loads(measure_merging.OUT.read_text(encoding="utf-8"))
INTO, FIRST, ORIGINAL = "into 4 bits", "dequantized, bf16", "into the original, bf16"


def rows(steps):
    return [row["ways"] for row in RECORD["rows"] if row["steps"] == steps]


def turned(steps, way):
    return tuple(sum(row[way][what] for row in rows(steps)) for what in ("lost", "won"))


def test_it_holds_every_seed_and_way_of_its_tool():
    asked = {(task, steps, seed) for task, steps in measure_merging.JOBS for seed in measure_merging.SEEDS}
    assert {(row["task"], row["steps"], row["seed"]) for row in RECORD["rows"]} == asked
    assert all(set(row["ways"]) == set(measure_merging.WAYS) for row in RECORD["rows"])


def t_of(differences):
    return statistics.mean(differences) / statistics.stdev(differences) * len(differences) ** 0.5


def by_seed(steps, way):
    return [row[way]["won"] - row[way]["lost"] for row in rows(steps)]


def test_into_four_bits_and_into_the_original_change_as_many_answers_as_quantizing():
    """Claims C59 and C60: about 100 of 2,400 half-learnt answers change in each, more lost than won by a merge and more
    won than lost by quantizing, all near the seeds' noise, and in both directions by seed."""
    control = {s: [r["quantizing the base"] for r in RECORD["rows"] if r["steps"] == s] for s in (60, 180)}
    quantized = {s: tuple(sum(row[what] for row in control[s]) for what in ("lost", "won")) for s in (60, 180)}
    assert quantized == {60: (41, 67), 180: (9, 4)}
    assert turned(60, INTO) == (66, 37) and turned(60, ORIGINAL) == (67, 40)
    assert turned(180, INTO) == (4, 4) and turned(180, ORIGINAL) == (4, 9)
    for way in (INTO, ORIGINAL):
        assert min(by_seed(60, way)) < 0 < max(by_seed(60, way))
    assert t_of(by_seed(60, INTO)) == pytest.approx(-2.16, abs=0.01)
    assert t_of(by_seed(60, ORIGINAL)) == pytest.approx(-1.43, abs=0.01)
    assert t_of(by_seed(180, ORIGINAL)) == pytest.approx(2.16, abs=0.01)


def test_dequantizing_first_keeps_the_answers_and_drift_does_not_tell_the_two_adapters_apart():
    assert (turned(60, FIRST), turned(180, FIRST)) == ((1, 0), (0, 1))
    half, learnt = ([row[INTO]["drift"] for row in rows(steps)] for steps in (60, 180))
    assert abs(sum(half) - sum(learnt)) < 0.01 * sum(half)
    half, learnt = ([row[INTO]["nats"] for row in rows(steps)] for steps in (60, 180))
    assert sum(half) > 10 * sum(learnt)


def test_a_small_update_is_rounded_away_and_a_large_one_stays():
    """Claim C59: what 4 bits keep hangs on the update's size, and SmolLM2's is small."""
    rows = json.loads(measure_merging.OUT.with_name("merging_kept.json").read_text(encoding="utf-8"))["rows"]
    kept = {name: [(r["update"], r["kept"]) for r in rows if r["model"] == name] for name, _, _ in
            measure_merging.KEPT.values()}  # fmt: skip
    assert all(len(found) == 3 for found in kept.values())
    assert all(0.24 < update < 0.28 and kept > 0.98 for update, kept in kept["tiny Llama"])
    assert all(0.005 < update < 0.007 and kept < 0.02 for update, kept in kept["SmolLM2-135M-Instruct"])
    real = json.loads(measure_merging.OUT.with_name("real_model.json").read_text(encoding="utf-8"))
    lost = [row for row in real["tables"]["merging"]["small"] if row["way"] == INTO]
    assert [row["steps"] for row in lost] == [20, 80]
    assert [round(row["lost"]["mean"], 1) for row in lost] == [94.7, 100.0]
    assert all(row["lost"] == row["right"] and row["won"]["mean"] == 0 for row in lost)


def test_the_share_that_is_kept_is_measured_on_a_trial(tmp_path):
    measure_merging.main(["--kept", "--trial", "--out", str(tmp_path / "kept.json")])
    (row,) = json.loads((tmp_path / "kept.json").read_text())["rows"]
    assert row["model"] == "tiny Llama" and 0 < row["update"] < 0.05 and row["kept"] < 0.2
    with pytest.raises(SystemExit):
        measure_merging.main(["--kept", "--trial"])


@pytest.mark.slow
def test_the_tool_makes_such_a_row(tmp_path):
    measure_merging.main(["--trial", "--out", str(tmp_path / "merging.json")])
    made = json.loads((tmp_path / "merging.json").read_text())
    assert made.keys() == RECORD.keys() and made["rows"][0].keys() == RECORD["rows"][0].keys()
    ways = made["rows"][0]["ways"]
    assert ways[FIRST]["nats"] < 0.1 * ways[INTO]["nats"] and ways["into 4 bits"].keys() == ways[FIRST].keys()
