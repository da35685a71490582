"""The record of what was passed outlives kernels, loses nothing to another kernel, and never stops a check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.course import progress
from utils.course.progress import NOT_RIGHT, NOT_SOLVED, NOT_TRIED, PASSED, Entry, described, record, recorded

ROOT = Path(__file__).resolve().parents[2]
OF_THE_TESTS = os.environ.get("COURSE_PROGRESS")  # before any test has changed it


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch) -> Path:
    """The record of this test, in a kernel that has kept and said nothing."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    monkeypatch.setattr(progress, "STRICT", False)
    new_kernel(monkeypatch)
    return path


def new_kernel(monkeypatch) -> None:
    """What a restart forgets."""
    monkeypatch.setattr(progress, "_kept", {})
    monkeypatch.setattr(progress, "_said", set())


def entries(path: Path) -> dict[str, dict]:
    """The exercises in the file, as they stand there."""
    return json.loads(path.read_text(encoding="utf-8"))["exercises"]


# -------------------------------------------------------------------------------- what is kept


def test_the_file_holds_names_states_and_tries_and_nothing_else(file):
    record("lora_layer", NOT_RIGHT)
    record("lora_layer", PASSED)
    record("answer_labels", NOT_SOLVED)
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "version": 1,
        "exercises": {
            "lora_layer": {"state": "passed", "tries": 2, "passed": True},
            "answer_labels": {"state": "not solved yet", "tries": 0, "passed": False},
        },
    }
    assert list(file.parent.iterdir()) == [file], "no lock and no half-written file is left"


def test_tries_are_the_answers_up_to_the_first_that_passed():
    entry = Entry()
    for state in (NOT_SOLVED, NOT_RIGHT, NOT_RIGHT, NOT_SOLVED, PASSED, PASSED, NOT_RIGHT):
        entry = entry.after(state)
    assert entry == Entry(NOT_RIGHT, tries=3, passed=True)


def test_the_record_outlives_a_kernel(file, monkeypatch):
    record("lora_layer", PASSED)
    new_kernel(monkeypatch)
    assert recorded() == {"lora_layer": Entry(PASSED, 1, True)}


@pytest.mark.parametrize(
    ("now", "entry", "shown"),
    [
        (None, None, (NOT_TRIED, False)),
        (NOT_RIGHT, None, (NOT_RIGHT, False)),
        (PASSED, None, (PASSED, True)),
        (None, Entry(NOT_RIGHT, 3), (NOT_RIGHT, False)),
        (None, Entry(PASSED, 1, True), (PASSED, True)),
        (NOT_RIGHT, Entry(NOT_RIGHT, 1, True), ("not right yet (passed before)", True)),
        (None, Entry(NOT_SOLVED, 1, True), ("not solved yet (passed before)", True)),
        (PASSED, Entry(NOT_RIGHT, 1), (PASSED, True)),  # another kernel was wrong later
    ],
)
def test_once_passed_counts_as_passed_and_a_later_state_is_shown(now, entry, shown):
    assert described(now, entry) == shown


def test_the_course_line_counts_exercises_of_the_course_only():
    known = {
        "a": Entry(PASSED, 1, True),
        "b": Entry(NOT_RIGHT, 2, True),
        "c": Entry(NOT_RIGHT, 1),
        "gone": Entry(PASSED),
    }
    assert progress.course_line(["a", "b", "c", "d"], known) == "The course: 2 of 4 exercises passed."


def test_the_same_state_again_writes_nothing(file):
    record("lora_layer", PASSED)
    before = file.stat().st_ino, file.stat().st_mtime_ns
    record("lora_layer", PASSED)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


# -------------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("variable", "strict", "where"),
    [
        ("", False, "work/progress.json"),
        ("mine/a.json", False, "mine/a.json"),
        ("/else/where.json", False, "/else/where.json"),
        ("off", False, None),
        ("OFF", False, None),
        ("", True, None),
    ],
)
def test_the_variables_say_where(variable, strict, where, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", variable)
    monkeypatch.setattr(progress, "STRICT", strict)
    root = Path("/course")
    assert progress.place(root) == (where and root / where)


@pytest.mark.parametrize("by", ["variable", "strictness"])
def test_off_reads_and_writes_nothing(file, monkeypatch, by):
    record("lora_layer", PASSED)
    before = file.read_bytes()
    if by == "variable":
        monkeypatch.setenv("COURSE_PROGRESS", "off")
    else:
        monkeypatch.setattr(progress, "STRICT", True)
    record("answer_labels", PASSED)
    assert recorded() == {} and file.read_bytes() == before


def test_the_folder_is_made_in_the_course_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "ROOT", tmp_path)
    monkeypatch.setenv("COURSE_PROGRESS", "")
    record("lora_layer", PASSED)  # utils/ without the course around it
    assert not (tmp_path / "work").exists() and "can't be kept" in capsys.readouterr().out
    (tmp_path / "lessons").mkdir()
    record("lora_layer", PASSED)
    assert entries(tmp_path / "work" / "progress.json")["lora_layer"]["passed"]
    monkeypatch.setenv("COURSE_PROGRESS", "no-such-folder/a.json")
    record("lora_layer", PASSED)
    assert not (tmp_path / "no-such-folder").exists()


def test_the_tests_themselves_keep_no_record():
    assert OF_THE_TESTS == "off"


# -------------------------------------------------------------------------------- several kernels

WRITER = """
import sys
from utils.course.progress import record
for n in range(30):
    record(f"{sys.argv[1]}_{n}", "passed")
    record("both", "not right yet")
"""


def test_kernels_that_write_at_once_lose_nothing(file):
    kernels = [subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=ROOT) for name in ("one", "two")]
    assert [kernel.wait(60) for kernel in kernels] == [0, 0]
    found = entries(file)
    assert set(found) == {f"{name}_{n}" for name in ("one", "two") for n in range(30)} | {"both"}
    assert found["both"]["tries"] == 60


class Clock:
    """Stands in for `time`: each sleep takes a third of the patience, and then `turn` is called with its number."""

    def __init__(self, turn):
        self.now, self.turns, self.turn = 0.0, 0, turn

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now, self.turns = self.now + progress.PATIENCE / 3, self.turns + 1
        self.turn(self.turns)


def test_a_lock_that_a_killed_kernel_left_is_taken_away(file, monkeypatch):
    lock = file.with_name(".progress.json.lock")
    lock.touch()
    clock = Clock(lambda turn: None)
    monkeypatch.setattr(progress, "time", clock)
    record("lora_layer", PASSED)
    assert entries(file)["lora_layer"]["passed"] and not lock.exists()
    assert 3 <= clock.turns <= 6


def test_a_lock_that_changes_hands_is_waited_for(file, monkeypatch):
    """Longer than for one that is dead: others are at work."""
    lock = file.with_name(".progress.json.lock")
    lock.touch()

    def turn(number: int) -> None:
        if number < 20:
            os.utime(lock, ns=(number, number))  # as the next file of this name has another time
        else:
            lock.unlink()

    clock = Clock(turn)
    monkeypatch.setattr(progress, "time", clock)
    record("lora_layer", PASSED)
    assert clock.turns == 20 and entries(file)["lora_layer"]["passed"]


def test_a_file_that_is_busy_for_a_moment_is_tried_again(file, monkeypatch):
    """As on Windows, where a file that somebody reads can't be replaced."""
    really, refusals = os.replace, [PermissionError(13, "in use")] * 2

    def replace(*paths):
        if refusals:
            raise refusals.pop()
        really(*paths)

    monkeypatch.setattr(progress, "_BUSY", (PermissionError,))
    monkeypatch.setattr(progress.os, "replace", replace)
    record("lora_layer", PASSED)
    assert refusals == [] and entries(file)["lora_layer"]["passed"]


# -------------------------------------------------------------------------------- trouble with the file


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"[1]",
    b"null",
    b'{"version": 1}',
    b'{"version": "1", "exercises": {}}',
    b'{"version": 0, "exercises": {}}',
    b'{"version": 1, "exercises": []}',
    b'{"version": 1, "exercises": {"a": {"state": "passed", "tries": 1}}}',
    b'{"version": 1, "exercises": {"a": {"state": "won", "tries": 1, "passed": true}}}',
    b'{"version": 1, "exercises": {"a": {"state": "passed", "tries": -1, "passed": true}}}',
    b'{"version": 1, "exercises": {"a": {"state": "passed", "tries": true, "passed": true}}}',
    b'{"version": 1, "exercises": {"a": {"state": "passed", "tries": 1, "passed": "yes"}}}',
]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_set_aside_with_one_sentence(file, capsys, data):
    file.write_bytes(data)
    assert recorded() == {}
    record("lora_layer", PASSED)
    said = capsys.readouterr().out
    assert said == f"Your progress in {file} is damaged: the file is now progress.json.old-1, and a new one begins.\n"
    assert file.with_name("progress.json.old-1").read_bytes() == data
    assert set(entries(file)) == {"lora_layer"}


def test_a_newer_versions_record_is_set_aside_beside_earlier_ones(file, capsys):
    file.with_name("progress.json.old-1").write_text("kept")
    newer = '{"version": 2, "chapters": {}}'
    file.write_text(newer)
    record("lora_layer", PASSED)
    assert (
        "was written by a newer version of the course: the file is now progress.json.old-2" in capsys.readouterr().out
    )
    assert file.with_name("progress.json.old-2").read_text() == newer
    assert file.with_name("progress.json.old-1").read_text() == "kept"


def test_a_folder_that_cannot_be_written_is_said_once_and_the_kernel_remembers(file, monkeypatch, capsys):
    record("lora_layer", NOT_RIGHT)

    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(progress.os, "open", refuse)
        record("lora_layer", PASSED)
        record("answer_labels", NOT_RIGHT)
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and f"can't be kept in {file} (Read-only file system)" in said
        assert recorded()["lora_layer"].passed and recorded()["answer_labels"] == Entry(NOT_RIGHT, 1)
    record("merged_weight", PASSED)  # it can be written again: what was kept goes along
    assert {name: fields["passed"] for name, fields in entries(file).items()} == {
        "lora_layer": True,
        "merged_weight": True,
        "answer_labels": False,
    }


def test_a_missing_folder_and_a_file_for_a_folder_stop_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "a-file").touch()
    for place in ("no-such-folder/progress.json", "a-file/progress.json", "."):
        new_kernel(monkeypatch)
        monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / place))
        record("lora_layer", PASSED)
        assert recorded() == {"lora_layer": Entry(PASSED, 1, True)}
        assert capsys.readouterr().out.startswith("Your progress can't be kept in ")


def test_a_disk_that_is_full_leaves_the_old_record_whole(file, monkeypatch, capsys):
    record("lora_layer", PASSED)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress.os, "fsync", full)
    record("answer_labels", PASSED)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]
    assert "(No space left on device)" in capsys.readouterr().out


def test_forgetting_deletes_the_record_and_what_was_set_aside(file):
    file.write_text("{")
    record("lora_layer", PASSED)
    other = file.with_name("other.json")
    other.touch()
    assert progress.forget(file) == [file, file.with_name("progress.json.old-1")]
    assert list(file.parent.iterdir()) == [other] and progress.forget(file) == [] and recorded() == {}
