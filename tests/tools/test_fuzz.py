"""Fuzzing: what the frame counts as what, and a bounded run of every target."""

from __future__ import annotations

import json
import random
import sys

import pytest

from tools.fuzz import adapters, frame
from tools.fuzz.__main__ import main
from tools.fuzz.kills import POSSIBLE, killed
from utils.files import replaced_folder
from utils.lora.checkpoint import read_header


def refused_by_us():
    read_header("/nowhere")


def refused_by_python():
    with replaced_folder("/tmp") as scratch:
        json.loads((scratch / "x").read_text())


@pytest.mark.parametrize(
    ("call", "wrong", "outcome"),
    [
        (refused_by_us, None, "clear error"),
        (refused_by_python, None, "raw"),
        (lambda: 1 / 0, None, "raw"),
        (lambda: 1, None, "right"),
        (lambda: 1, "silent", "silent"),
    ],
)
def test_how_a_trial_ends(call, wrong, outcome):
    done = frame.judged("damage", "reader", call, lambda _: wrong)
    assert done[:3] == ("damage", "reader", outcome)
    assert bool(done.words) == ("error" in outcome or outcome == "raw")


def test_the_table_and_the_faults():
    trials = [frame.Trial("a bit", "load", outcome, "why") for outcome in ("right", "right", "raw", "silent")]
    report = frame.Report([*enumerate(trials), (9, frame.Trial("a byte", "merge", "clear error", "no"))], 0.1)
    assert report.table().splitlines()[2:] == [
        "| load | 4 | 0 | 2 | 1 | 0 | 1 | 0 |",
        "| merge | 1 | 1 | 0 | 0 | 0 | 0 | 0 |",
    ]
    assert report.faults() == ["#2 load, a bit: raw: why", "#3 load, a bit: silent: why"]
    assert report.faults("raw") == report.faults()[:1] and report.count("right") == 2


def test_a_number_of_a_seed_is_the_same_by_itself(monkeypatch):
    monkeypatch.setattr(adapters, "trial", lambda draw, folder: [frame.Trial(str(draw.random()), "r", "right")])
    every = frame.run("adapters", 5, seed=3).trials
    assert frame.run("adapters", 0, seed=3, only=4).trials == every[4:]
    assert len({trial.damage for _, trial in every}) == 5 and frame.run("adapters", 5, seed=4).trials != every
    with pytest.raises(ValueError, match="no target 'x': choose from adapters"):
        frame.run("x", 1)


@pytest.mark.skipif(not POSSIBLE, reason="no fork here")
def test_work_is_killed_before_the_step_that_is_named(tmp_path):
    def work():
        for name in "abc":
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(0o600)

    assert killed(work, 4) and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert not killed(work, 99) and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", adapters.DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_changes_the_adapter_and_is_the_same_for_the_same_number(tmp_path, damage):
    seen = set()
    for number in range(4):
        states = []
        for again in range(2):
            (tmp_path / f"{number}-{again}").mkdir()
            folder = adapters.put(tmp_path / f"{number}-{again}" / "adapter")
            before = {p.name: p.read_bytes() for p in folder.iterdir()}
            words = damage(random.Random(number), folder)
            states.append((words, {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}))
        assert states[0][0] == states[1][0]
        seen.add(states[0][1] != before)
    assert True in seen


def test_adapter_files_are_read_rightly_or_refused_in_words():
    report = frame.run("adapters", 100)
    assert report.faults("raw", "silent, not finite", "half-written") == []
    assert [line for line in report.faults("silent") if adapters.PEFTS not in line and "read_adapter" not in line] == []
    assert report.count("clear error") > 200 and report.count("right") > 50


def test_the_command_prints_the_table_and_a_single_trial(monkeypatch, capsys):
    for arguments, words in ((["--only", "2"], "#2 Trial(damage="), (["--count", "3"], "the slowest input took")):
        monkeypatch.setattr(sys, "argv", ["fuzz", "adapters", "--seed", "1", *arguments])
        assert main() == 0
        said = capsys.readouterr().out
        assert said.startswith("| reader | tried |") and words in said
    monkeypatch.setattr(adapters, "trial", lambda draw, folder: [frame.Trial("a bit", "load", "raw", "why")])
    assert main() == 1 and "#0 load, a bit: raw: why" in capsys.readouterr().out
