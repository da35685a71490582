"""A folder is replaced as a whole or left as it was."""

import os

import pytest

from utils import files
from utils.files import new_folder, replaced_folder


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


def test_each_file_is_moved_by_one_rename_and_never_written_in_place(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda old, new: (renamed.append(os.fspath(new)), replace(old, new)))
    for _ in range(2):
        with replaced_folder(tmp_path / "folder") as scratch:
            for name in "ba":
                (scratch / name).write_text(name)
    once, *each = renamed
    assert once == str(tmp_path / "folder"), "a new folder appears with all its files at once"
    assert each == [str(tmp_path / "folder" / name) for name in "ab"]


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
