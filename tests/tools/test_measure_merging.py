"""The record merging.json says what chapter 10 and the ledger say of it, and its tool still makes such rows."""

import json

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


def test_into_four_bits_and_into_the_original_cost_about_the_same():
    """Claims C59 and C60: half learnt a net loss of one answer in a hundred, both ways, by seed in both directions."""
    for way in (INTO, ORIGINAL):
        lost, won = turned(60, way)
        assert 0.008 < (lost - won) / 2400 < 0.016 and lost < 2 * won
        by_seed = [row[way]["won"] - row[way]["lost"] for row in rows(60)]
        assert min(by_seed) < 0 < max(by_seed)
    assert max(*turned(180, INTO), *turned(180, ORIGINAL)) <= 9


def test_dequantizing_first_keeps_the_answers_and_drift_does_not_tell_the_two_adapters_apart():
    assert (turned(60, FIRST), turned(180, FIRST)) == ((1, 0), (0, 1))
    half, learnt = ([row[INTO]["drift"] for row in rows(steps)] for steps in (60, 180))
    assert abs(sum(half) - sum(learnt)) < 0.01 * sum(half)
    half, learnt = ([row[INTO]["nats"] for row in rows(steps)] for steps in (60, 180))
    assert sum(half) > 10 * sum(learnt)


@pytest.mark.slow
def test_the_tool_makes_such_a_row(tmp_path):
    measure_merging.main(["--trial", "--out", str(tmp_path / "merging.json")])
    made = json.loads((tmp_path / "merging.json").read_text())
    assert made.keys() == RECORD.keys() and made["rows"][0].keys() == RECORD["rows"][0].keys()
    ways = made["rows"][0]["ways"]
    assert ways[FIRST]["nats"] < 0.1 * ways[INTO]["nats"] and ways["into 4 bits"].keys() == ways[FIRST].keys()
