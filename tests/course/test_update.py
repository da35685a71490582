"""A new version of the course comes in from git, a folder or a zip file; nothing of the learner's is overwritten."""

import json
import subprocess
import zipfile

import pytest

from utils.course.update import CanNot, fetch
from utils.course.workspace import bring_over, make_copies


def git(where, *arguments):
    config = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "init.defaultBranch=main",
    ]
    subprocess.run(["git", "-C", str(where), *config, *arguments], check=True, capture_output=True)


def notebook(*sources):
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": s, "outputs": [], "execution_count": None}
        for n, s in enumerate(sources)
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def version(root, text, *sources):
    """A version of the course in a folder."""
    for folder in ("notebooks", "utils/course", "utils/start"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "utils/course/update.py").write_text("# code\n")
    (root / "utils/start/notebooks.py").write_text("# code\n")
    (root / "start.py").write_text(f"# {text}\n")
    (root / ".gitignore").write_text("/work/\n")
    (root / "notebooks/00_start.ipynb").write_text(notebook(*sources))
    return root


@pytest.fixture
def origin(tmp_path):
    root = version(tmp_path / "origin", "one", "import torch", "r = 8")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


@pytest.fixture
def clone(origin, tmp_path):
    git(tmp_path, "clone", "-q", str(origin), str(tmp_path / "clone"))
    make_copies(tmp_path / "clone")
    return tmp_path / "clone"


def publish(origin, *sources):
    version(origin, "two", *sources)
    git(origin, "add", "-A")
    git(origin, "commit", "-q", "-m", "two")


def work_in(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_a_clone_is_moved_on(clone, origin):
    assert fetch(clone) == "The course is the newest version already."
    publish(origin, "import torch", "r = 8", "print(r)")
    assert "1 commit newer" in fetch(clone)
    assert (clone / "start.py").read_text() == "# two\n"


def test_answers_survive_it(clone, origin):
    work_in(clone / "work/00_start.ipynb", "r = 8", "r = 16")
    publish(origin, "import torch", "r = 8", "print(r)")
    fetch(clone)
    bring_over(clone)
    cells = json.loads((clone / "work/00_start.ipynb").read_text())["cells"]
    assert [cell["source"] for cell in cells] == ["import torch", "r = 16", "print(r)"]


def test_a_notebook_that_was_worked_in_where_it_was_given_becomes_the_copy(clone, origin):
    work_in(clone / "notebooks/00_start.ipynb", "r = 8", "r = 16")
    publish(origin, "import torch", "r = 8", "print(r)")
    fetch(clone)
    bring_over(clone)
    assert "r = 16" in (clone / "work/00_start.ipynb").read_text()
    assert "r = 16" not in (clone / "notebooks/00_start.ipynb").read_text()


def test_one_that_was_opened_only_is_no_copy(clone, origin):
    work_in(clone / "notebooks/00_start.ipynb", '"metadata": {}, "nbformat"', '"metadata": {"opened": 1}, "nbformat"')
    publish(origin, "import torch", "r = 8", "print(r)")
    fetch(clone)
    assert not (clone / "work/old").exists()


def test_with_work_in_both_places_both_are_kept(clone, origin):
    work_in(clone / "notebooks/00_start.ipynb", "r = 8", "r = 16")
    work_in(clone / "work/00_start.ipynb", "r = 8", "r = 32")
    publish(origin, "import torch", "r = 8", "print(r)")
    fetch(clone)
    assert "r = 32" in (clone / "work/00_start.ipynb").read_text()
    assert "r = 16" in (clone / "work/old/00_start-1.ipynb").read_text()


def test_other_changed_files_stop_it_before_anything_is_touched(clone, origin):
    (clone / "start.py").write_text("# mine\n")
    work_in(clone / "notebooks/00_start.ipynb", "r = 8", "r = 16")
    publish(origin, "import torch")
    with pytest.raises(CanNot, match="changed here: start.py.*git stash"):
        fetch(clone)
    assert (clone / "start.py").read_text() == "# mine\n"
    assert "r = 16" in (clone / "notebooks/00_start.ipynb").read_text()


@pytest.mark.parametrize("how", ["git", "folder"])
def test_what_was_taken_from_the_new_version_is_no_change(clone, origin, how):
    """As one does who has a version from before there was an update: its start.py is taken first, then run. And as it
    is after an update from a folder."""
    work_in(clone / "notebooks/00_start.ipynb", "r = 8", "r = 16")
    (origin / "new.py").write_text("")
    publish(origin, "import torch", "r = 8", "print(r)")
    if how == "git":
        git(clone, "fetch", "-q")
        git(clone, "checkout", "-q", "origin/main", "--", "start.py", "new.py")
    else:
        fetch(clone, str(origin))
    said = fetch(clone)
    assert ("is in work/00_start.ipynb now" in said) == (how == "git") and "1 commit newer" in said
    assert "r = 16" in (clone / "work/00_start.ipynb").read_text()
    assert "print(r)" in (clone / "notebooks/00_start.ipynb").read_text()


def test_a_file_in_the_way_is_told_with_gits_own_words(clone, origin):
    (clone / "new.py").write_text("# mine")
    (origin / "new.py").write_text("")
    publish(origin, "import torch")
    with pytest.raises(CanNot, match="untracked working tree files would be overwritten"):
        fetch(clone)
    assert (clone / "new.py").read_text() == "# mine" and (clone / "start.py").read_text() == "# one\n"


def test_commits_of_ones_own_are_left_to_git(clone, origin):
    (clone / "start.py").write_text("# mine\n")
    git(clone, "commit", "-qam", "mine")
    with pytest.raises(CanNot, match="1 commit of its own.*git merge origin/main"):
        fetch(clone)


def test_a_branch_that_follows_nothing_is_told(clone):
    git(clone, "switch", "-q", "-c", "mine")
    with pytest.raises(CanNot, match="git switch main"):
        fetch(clone)


def test_what_git_says_is_passed_on(clone, origin):
    origin.rename(origin.with_name("away"))
    with pytest.raises(CanNot, match="git could not do `git fetch`"):
        fetch(clone)


@pytest.fixture(params=["folder", "zip"])
def new(request, tmp_path):
    root = version(tmp_path / "new/lora-zero-to-hero-main", "two", "import torch", "r = 8", "print(r)")
    (root / "utils/new.py").write_text("")
    if request.param == "folder":
        return root
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root.parent))
    return tmp_path / "new.zip"


def test_a_folder_and_a_zip_file_bring_a_version_without_a_network(new, tmp_path):
    home = version(tmp_path / "home", "one", "import torch", "r = 8")
    (home / "notebooks/01_gone.ipynb").write_text(notebook("x"))
    (home / "notebooks/mine.ipynb").write_text(notebook("y"))
    make_copies(home)
    work_in(home / "work/00_start.ipynb", "r = 8", "r = 16")
    assert "files are those of" in fetch(home, str(new))
    bring_over(home)
    assert (home / "start.py").read_text() == "# two\n" and (home / "utils/new.py").exists()
    assert not (home / "notebooks/01_gone.ipynb").exists() and (home / "notebooks/mine.ipynb").exists()
    assert "r = 16" in (home / "work/00_start.ipynb").read_text()


def test_files_that_nobody_else_has_are_kept_when_a_folder_replaces_them(clone, new):
    (clone / "utils/old.py").write_text("# gone in the new version")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "mine")
    (clone / "utils/new.py").write_text("# of the same name by chance")
    said = fetch(clone, str(new))
    assert "Old files kept: 1, in work/old/course-1" in said
    assert (clone / "work/old/course-1/utils/new.py").read_text() == "# of the same name by chance"
    assert not (clone / "utils/old.py").exists() and (clone / "start.py").read_text() == "# two\n"
    assert not (clone / "work/old/course-1/utils/old.py").exists(), "git has it"
    assert "work/old" not in fetch(clone, str(new)), "nothing is replaced by its like"


def test_without_git_a_notebook_that_was_worked_in_is_kept(new, tmp_path):
    home = version(tmp_path / "home", "one", "import torch", "r = 8")
    make_copies(home)
    work_in(home / "notebooks/00_start.ipynb", "r = 8", "r = 16")
    fetch(home, str(new))
    assert "r = 16" in (home / "work/00_start.ipynb").read_text()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.mkdir(), "holds no whole version of the course"),
        (lambda path: path.write_text("no zip"), "can't be read as a zip file"),
    ],
)
def test_what_is_no_version_is_refused(tmp_path, make, said):
    home = version(tmp_path / "home", "one", "r = 8")
    make(tmp_path / "other")
    with pytest.raises(CanNot, match=said):
        fetch(home, str(tmp_path / "other"))
    with pytest.raises(CanNot, match="this very folder"):
        fetch(home, str(home))
    with pytest.raises(CanNot, match="no clone"):
        fetch(home)


def test_what_is_no_whole_version_deletes_nothing(tmp_path):
    home = version(tmp_path / "home", "one", "r = 8")
    other = version(tmp_path / "other", "two", "r = 9")
    (other / "utils/course/update.py").unlink()
    (other / "utils/course").rmdir()
    with pytest.raises(CanNot, match="no whole version of the course: start.py, notebooks, utils/course, utils/start"):
        fetch(home, str(other))
    assert (home / "utils/course/update.py").exists() and (home / "start.py").read_text() == "# one\n"


def test_a_zip_file_that_is_damaged_inside_is_told_in_a_sentence(tmp_path):
    home, packed = version(tmp_path / "home", "one", "r = 8"), tmp_path / "new.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("start.py", "a quick brown fox " * 500)
    damaged = bytearray(packed.read_bytes())
    damaged[40:60] = b"\xff" * 20
    packed.write_bytes(damaged)
    with pytest.raises(CanNot, match="can't be read as a zip file"):
        fetch(home, str(packed))


def test_a_chapter_that_was_renamed_is_no_change_of_the_learners(clone, origin):
    """As after an update from a folder, or one that was killed in the middle: the files are the new version's."""
    publish(origin, "import torch", "r = 8")
    git(origin, "mv", "notebooks/00_start.ipynb", "notebooks/00_begin.ipynb")
    git(origin, "commit", "-qm", "renamed")
    for name in ("start.py", "notebooks/00_begin.ipynb"):
        (clone / name).write_bytes((origin / name).read_bytes())
    (clone / "notebooks/00_start.ipynb").unlink()
    assert "The course is brought to" in fetch(clone)


def test_a_lock_that_git_left_is_named(clone, origin):
    publish(origin, "import torch", "r = 9")
    (clone / ".git/index.lock").touch()
    with pytest.raises(CanNot, match="index.lock: delete that file and run the same command again"):
        fetch(clone)


def test_a_file_in_the_way_is_named(clone, origin):
    (origin / "new.txt").write_text("theirs")
    publish(origin, "import torch", "r = 9")
    (clone / "new.txt").write_text("mine")
    with pytest.raises(CanNot, match="would be overwritten by merge: new.txt"):
        fetch(clone)
