"""A folder is replaced as a whole or left as it was, also by a process that is killed on the way."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from tools.fuzz.kills import POSSIBLE, killed
from utils import files
from utils.files import expanded, finish_interrupted, interrupted, new_folder, replaced_file, replaced_folder


def contents(folder):
    return {f.name: f.read_text() for f in folder.iterdir()}


def test_files_arrive_when_the_block_ends(tmp_path):
    with replaced_folder(tmp_path / "new" / "folder") as scratch:
        (scratch / "a").write_text("1")
        (scratch / "b").write_text("2")
        assert not (tmp_path / "new" / "folder").exists()
        assert scratch.parent == tmp_path / "new"  # the same disk, so that moving is renaming
    assert contents(tmp_path / "new" / "folder") == {"a": "1", "b": "2"}
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["folder"]


def test_files_of_the_same_name_are_replaced_and_others_stay(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    (tmp_path / "folder" / "other").write_text("mine")
    with replaced_folder(str(tmp_path / "folder")) as scratch:
        (scratch / "a").write_text("new")
        assert contents(tmp_path / "folder") == {"a": "old", "other": "mine"}
    assert contents(tmp_path / "folder") == {"a": "new", "other": "mine"}


@pytest.mark.parametrize("there", [{}, {"a": "half"}], ids=["new", "incomplete before"])
def test_what_another_process_made_whole_meanwhile_stays(tmp_path, there):
    """Sixteen processes unpacked SmolLM2 at once, and three found its files gone: each later one replaced them."""

    def whole(folder):
        return {"a", "b"} <= {f.name for f in folder.glob("*")}

    def write(scratch, text):
        for name in "ab":
            (scratch / name).write_text(text)

    folder = tmp_path / "folder"
    for name, text in there.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with replaced_folder(folder, whole) as mine:
        write(mine, "mine")
        with replaced_folder(folder, whole) as theirs:
            write(theirs, "theirs")
        opened = (folder / "a").stat().st_ino
    assert contents(folder) == {"a": "theirs", "b": "theirs"} and (folder / "a").stat().st_ino == opened
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_appears_at_the_last_moment_stays_where_it_is_whole(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    monkeypatch.setattr(files.Path, "exists", lambda self: False)
    for whole, said in ((lambda _: True, None), (lambda _: False, OSError), (None, OSError)):
        (folder / "a").parent.mkdir(exist_ok=True)
        (folder / "a").write_text("theirs")
        with pytest.raises(said) if said else nullcontext(), replaced_folder(folder, whole) as scratch:
            (scratch / "a").write_text("mine")
        assert contents(folder) == {"a": "theirs"}
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_changes_nothing(tmp_path, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    with pytest.raises(error), replaced_folder(tmp_path / "folder") as scratch:
        (scratch / "a").write_text("new")
        raise error
    assert contents(tmp_path / "folder") == {"a": "old"}
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


def test_a_block_that_fails_makes_no_folder(tmp_path):
    with pytest.raises(ValueError), replaced_folder(tmp_path / "folder"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_one_file_is_replaced_by_one_rename(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    monkeypatch.setattr(files.Path, "unlink", lambda *_, **__: pytest.fail("there would be no file for a moment"))
    with replaced_folder(tmp_path / "folder") as scratch:
        (scratch / "a").write_text("new")
    assert contents(tmp_path / "folder") == {"a": "new"}


def test_each_file_is_moved_by_one_rename_and_never_written_in_place(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda old, new: (renamed.append(os.fspath(new)), replace(old, new)))
    for _ in range(2):
        with replaced_folder(tmp_path / "folder") as scratch:
            for name in "ba":
                (scratch / name).write_text(name)
    once, ready, *each = renamed
    assert once == str(tmp_path / "folder"), "a new folder appears with all its files at once"
    assert ready.endswith(".ready") and each == [str(tmp_path / "folder" / name) for name in "ab"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_files_are_readable_by_everyone_though_temporary_ones_are_not(tmp_path):
    with replaced_folder(tmp_path / "folder") as scratch:
        (scratch / "a").write_text("1")
        (scratch / "a").chmod(0o600)
    assert (tmp_path / "folder" / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_a_file_where_the_folder_should_be_is_left_alone(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"), replaced_folder(tmp_path / "folder"):
        pytest.fail("it should be refused before the work")
    assert (tmp_path / "folder").read_text() == "a file"
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    assert new_folder(str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(FileExistsError, match="exists already: choose another folder"):
        new_folder(tmp_path)


# ------------------------------------------------------------------------------------------------------------- killed


forks = pytest.mark.skipif(not POSSIBLE, reason="no fork here")


def write(folder, text):
    with replaced_folder(folder) as scratch:
        for name in "ab":
            (scratch / name).write_text(text)


def kept(folder):
    """What the folder holds of the old and the new files, and whether all of one kind are whole somewhere."""
    inside = contents(folder)
    texts = {inside[name] for name in "ab" if name in inside}
    ready = [contents(path) for path in interrupted(folder)]
    for one in ("new", "old"):
        if all(one in [place.get(name) for place in (inside, *ready)] for name in "ab"):
            return texts, one
    return texts, None


@forks
def test_killed_at_any_step_there_is_never_old_beside_new_and_the_next_save_cleans_up(tmp_path):
    folder, seen, step = tmp_path / "folder", set(), 0
    while True:
        step += 1
        write(folder, "old")
        (folder / "other").write_text("mine")
        stopped = killed(lambda: write(folder, "new"), step)
        texts, whole = kept(folder)
        assert len(texts) <= 1 and whole, f"step {step}: {contents(folder)}"
        seen.add((whole, len(texts)))
        finish_interrupted(folder)
        assert contents(folder) == {"a": whole, "b": whole, "other": "mine"}
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        if not stopped:
            break
    assert whole == "new" and step > 8
    assert seen == {("old", 1), ("new", 0), ("new", 1)}


@forks
def test_killed_at_any_time_in_saves_without_end(tmp_path):
    folder, draw = tmp_path / "folder", random.Random(0)
    write(folder, "old")
    for _ in range(12):
        pid = os.fork()
        if not pid:
            while True:
                write(folder, "new")
                write(folder, "old")
        time.sleep(0.01 + 0.01 * draw.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        texts, whole = kept(folder)
        assert len(texts) <= 1 and whole
    write(folder, "last")
    assert contents(folder) == {"a": "last", "b": "last"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_belongs_to_a_living_process_or_another_machine_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        mine = [f".folder-{files._machine()}-{alive.pid}-a_1{end}" for end in ("", ".ready")]
        names = [*mine, f".folder-elsewhere-{2**22 + 1}-a_1.ready", ".folder-x", f".fold-{files._machine()}-1-a"]
        for name in names:
            (tmp_path / name).mkdir()
        write(tmp_path / "folder", "new")
        assert interrupted(tmp_path / "folder") == []
        assert {path.name for path in tmp_path.iterdir()} == {"folder", *names}
        alive.communicate(b"\n")
    finish_interrupted(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", *names[2:]}


@pytest.mark.parametrize("step", ["unlink", "rename"])
def test_ctrl_c_between_two_steps_is_obeyed_after_the_last(tmp_path, monkeypatch, step):
    write(tmp_path / "folder", "old")
    where, name = {"unlink": (Path, "unlink"), "rename": (os, "replace")}[step]
    real, calls = getattr(where, name), []

    def once(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(where, name, once)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder") == {"a": "new", "b": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_files_that_cannot_be_moved_are_kept_whole_and_brought_in_later(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    write(folder, "old")
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise PermissionError("another program has it open")

        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(OSError, match=r"another program has it open.*whole in .*ready.*finish_interrupted"):
            write(folder, "new")
    assert contents(folder) == {"a": "old", "b": "old"} and contents(*interrupted(folder)) == {"a": "new", "b": "new"}
    write(folder, "newer")
    assert contents(folder) == {"a": "newer", "b": "newer"} and interrupted(folder) == []


# ------------------------------------------------------------------------------------------------------------- one file


def test_a_file_appears_whole_under_its_name(tmp_path):
    target = tmp_path / "new" / "file.gguf"
    with replaced_file(target) as scratch:
        scratch.write_text("half")
        assert scratch.parent == target.parent and not target.exists()
        scratch.write_text("whole")
    assert contents(target.parent) == {"file.gguf": "whole"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_file_whose_writing_fails_is_as_it_was(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), replaced_file(tmp_path / "file") as scratch:
        scratch.write_text("half")
        raise error
    assert contents(tmp_path) == {"file": "old"}


def test_a_folder_where_the_file_should_be_is_left_alone(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match="name a file in it"), replaced_file(tmp_path / "file"):
        raise AssertionError("the block isn't entered")
    assert (tmp_path / "file").is_dir()


def test_a_home_is_put_in_the_place_of_its_sign(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert expanded("~/a b") == expanded(Path("~/a b")) == tmp_path / "a b" and expanded("~") == tmp_path
    for other in ("a/~", "/x/~", "a", "~nobody-here/a"):
        assert expanded(other) == Path(other)
