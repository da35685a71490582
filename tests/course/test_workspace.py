"""The learner's copies: made once, brought to a new version with everything in them that is the learner's."""

import copy
import json

import pytest

from utils.course import workspace
from utils.course.workspace import bring_over, follow_renames, make_copies, reset


def code(id_, source, outputs=(), **nbgrader):
    metadata = {"nbgrader": nbgrader} if nbgrader else {}
    return {
        "cell_type": "code", "id": id_, "metadata": metadata, "source": source, "outputs": list(outputs),
        "execution_count": None,
    }  # fmt: skip


def text(id_, source):
    return {"cell_type": "markdown", "id": id_, "metadata": {}, "source": source}


def exercise(name, id_, stub):
    return code(id_, stub, grade_id=name, solution=True)


def notebook(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


FIRST = notebook(
    text("t1", "# Rank"),
    code("c1", "import torch"),
    exercise("best_rank", "e1", "def best_rank(W): ..."),
    code("k1", 'best_rank = check("best_rank", best_rank)'),
    text("t2", "And now the energy."),
    exercise("energy", "e2", "def energy(W): ..."),
    code("c2", "print(energy(W))"),
)


@pytest.fixture
def home(tmp_path):
    put(tmp_path, "02_rank.ipynb", FIRST)
    put(tmp_path, "03_layer.ipynb", notebook(text("l1", "# A layer"), exercise("layer", "l2", "class Layer: ...")))
    make_copies(tmp_path)
    return tmp_path


def put(home, name, content, folder="notebooks"):
    (home / folder).mkdir(exist_ok=True)
    (home / folder / name).write_text(json.dumps(content))


def mine(home, name="02_rank.ipynb"):
    return json.loads((home / "work" / name).read_text())


def edit(home, changes, name="02_rank.ipynb"):
    """The learner's copy with other sources, by cell id."""
    content = mine(home, name)
    for cell in content["cells"]:
        cell["source"] = changes.get(cell["id"], cell["source"])
    put(home, name, content, "work")


def sources(home, name="02_rank.ipynb"):
    return [cell["source"] for cell in mine(home, name)["cells"]]


# ---------------------------------------------------------------------------------------------- copies and fresh ones


def test_copies_are_made_once_and_hold_what_the_course_has(home):
    assert mine(home) == FIRST
    edit(home, {"c1": "import torch, math"})
    assert make_copies(home) == []
    assert "import torch, math" in sources(home)
    put(home, "04_new.ipynb", FIRST)
    assert make_copies(home) == ["04_new.ipynb"]


def test_a_reset_gives_a_fresh_copy_and_keeps_the_old_one(home):
    edit(home, {"e1": "def best_rank(W): return W"})
    name, old = reset(home, "02")
    assert name == "02_rank.ipynb" and mine(home) == FIRST
    assert "return W" in old.read_text() and old.parent.name == "old"
    assert reset(home, "02")[1] != old
    with pytest.raises(ValueError, match="no chapter '9'; the chapters are 02 to 03"):
        reset(home, "9")


# ------------------------------------------------------------------------------------------------------ a new version


def test_nothing_new_changes_nothing(home):
    edit(home, {"e1": "def best_rank(W): return W"})
    before = (home / "work/02_rank.ipynb").read_bytes()
    assert bring_over(home) == []
    assert (home / "work/02_rank.ipynb").read_bytes() == before
    assert not (home / "work/old").exists()


def test_a_copy_without_changes_becomes_the_new_version(home):
    new = copy.deepcopy(FIRST)
    new["cells"][0]["source"] = "# Rank, rewritten"
    new["cells"][0]["id"] = "t1b"
    put(home, "02_rank.ipynb", new)
    (report,) = bring_over(home)
    assert report.fresh and mine(home) == new and "nothing of yours" in str(report)
    assert not (home / "work/old").exists()


def test_answers_and_other_changes_are_carried_over(home):
    edit(home, {"e1": "def best_rank(W): return W", "c1": "import torch, math", "e2": "def energy(W): return 1"})
    content = mine(home)
    content["cells"].insert(4, code("own", "print('a note of mine')"))
    put(home, "02_rank.ipynb", content, "work")
    old = (home / "work/02_rank.ipynb").read_text()
    new = copy.deepcopy(FIRST)
    new["cells"].insert(1, text("t0", "A new paragraph."))
    put(home, "02_rank.ipynb", new)
    (report,) = bring_over(home)
    assert report.answers == ["best_rank", "energy"] and report.cells == 2 and report.kept == 0
    assert sources(home) == [
        "# Rank",
        "A new paragraph.",
        "import torch, math",
        "def best_rank(W): return W",
        'best_rank = check("best_rank", best_rank)',
        "print('a note of mine')",
        "And now the energy.",
        "def energy(W): return 1",
        "print(energy(W))",
    ]
    assert (home / "work/old/02_rank-1.ipynb").read_text() == old


def test_an_exercise_that_changed_shows_its_new_stub_beside_the_answer(home):
    edit(home, {"e1": "def best_rank(W): return W"})
    new = copy.deepcopy(FIRST)
    new["cells"][2] = exercise("best_rank", "e1new", "def best_rank(W, r): ...")
    put(home, "02_rank.ipynb", new)
    (report,) = bring_over(home)
    assert report.changed == ["best_rank"] and "check again: best_rank" in str(report)
    stub, answer = sources(home)[2:4]
    assert "def best_rank(W, r): ..." in stub and answer == "def best_rank(W): return W"
    assert mine(home)["cells"][3]["metadata"]["nbgrader"]["grade_id"] == "best_rank"
    before = sources(home)
    assert bring_over(home) == []  # and it stays so
    assert sources(home) == before


def test_an_answer_follows_its_exercise_into_another_chapter(home):
    edit(home, {"e2": "def energy(W): return 1"})
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"][:4]))
    put(home, "03_layer.ipynb", notebook(text("l1", "# A layer"), *FIRST["cells"][4:]))
    reports = {report.name: report for report in bring_over(home)}
    assert reports["03_layer.ipynb"].answers == ["energy"]
    assert "def energy(W): return 1" in sources(home, "03_layer.ipynb")


def renumbered(home):
    """Chapter 3 is chapter 4 now, with another title, and what was chapter 2's second half is chapter 3."""
    (home / "notebooks/03_layer.ipynb").unlink()
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"][:4]))
    put(home, "03_update.ipynb", notebook(text("u1", "# The update"), *FIRST["cells"][4:]))
    stub = exercise("layer", "l2", "class Layer: ...")
    put(home, "04_layer.ipynb", notebook(text("l1b", "# Chapter 4"), stub, code("l3", "r = 8")))


def test_a_chapter_with_another_number_keeps_everything_of_the_learners(home):
    edit(home, {"l2": "class Layer: mine = 1"}, "03_layer.ipynb")
    content = mine(home, "03_layer.ipynb")
    content["cells"].append(code("own", "print('my note')"))
    put(home, "03_layer.ipynb", content, "work")
    edit(home, {"e2": "def energy(W): return 1", "e1": "def best_rank(W): return W"})
    renumbered(home)
    reports = {report.name: report for report in bring_over(home)}
    assert sources(home, "04_layer.ipynb") == ["# Chapter 4", "class Layer: mine = 1", "print('my note')", "r = 8"]
    assert "def energy(W): return 1" in sources(home, "03_update.ipynb")
    assert "def best_rank(W): return W" in sources(home) and "def energy(W): return 1" not in sources(home)
    assert not (home / "work/03_layer.ipynb").exists()
    assert reports["04_layer.ipynb"].answers == ["layer"] and reports["04_layer.ipynb"].cells == 1
    assert reports["03_update.ipynb"].answers == ["energy"]
    assert bring_over(home) == []


def test_a_reset_of_a_chapter_with_another_number_keeps_the_old_copy(home):
    edit(home, {"l2": "class Layer: mine = 1"}, "03_layer.ipynb")
    renumbered(home)
    name, old = reset(home, "04")
    assert name == "04_layer.ipynb" and "mine = 1" in old.read_text()
    assert sorted(path.name for path in (home / "work").glob("*.ipynb")) == ["02_rank.ipynb", "04_layer.ipynb"]


def test_no_copy_is_renamed_onto_another_or_for_a_name_alone(home):
    renumbered(home)
    put(home, "04_layer.ipynb", notebook(text("x", "mine already")), "work")
    put(home, "09_rank.ipynb", notebook(text("x", "a copy that the learner made")), "work")
    assert follow_renames(home) == {}
    assert sources(home, "04_layer.ipynb") == ["mine already"] and (home / "work/03_layer.ipynb").exists()


def test_a_chapter_that_is_gone_keeps_its_file_and_gives_its_answers(home):
    edit(home, {"e2": "def energy(W): return 1"})
    (home / "notebooks/02_rank.ipynb").unlink()
    put(home, "04_energy.ipynb", notebook(*FIRST["cells"][4:]))
    bring_over(home)
    assert "def energy(W): return 1" in sources(home, "04_energy.ipynb")
    assert "def energy(W): return 1" in sources(home, "02_rank.ipynb")


def test_a_changed_cell_that_is_gone_stands_marked_below_its_old_neighbour(home):
    edit(home, {"c2": "print(energy(2 * W))"})
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"][:-1]))
    (report,) = bring_over(home)
    assert report.kept == 1
    mark, cell = sources(home)[-2:]
    assert mark.startswith("**Kept from your copy.**") and cell == "print(energy(2 * W))"
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"][:-1], text("t9", "Another end.")))
    bring_over(home)
    assert sources(home).count(mark) == 1 and sources(home).count(cell) == 1


def test_outputs_stay_where_the_cell_is_the_same_and_go_with_an_answer(home):
    content = mine(home)
    shown = [{"output_type": "stream", "name": "stdout", "text": "seen\n"}]
    for cell in content["cells"]:
        if cell["id"] in ("c1", "e1"):
            cell["outputs"] = shown
    content["cells"][2]["source"] = "def best_rank(W): return W"
    put(home, "02_rank.ipynb", content, "work")
    new = copy.deepcopy(FIRST)
    new["cells"].append(text("t3", "The end."))
    put(home, "02_rank.ipynb", new)
    bring_over(home)
    assert [cell.get("outputs") for cell in mine(home)["cells"][1:3]] == [shown, shown]


@pytest.mark.parametrize("damage", ["{", "[]", '{"cells": [{"id": "a"}]}'])
def test_a_copy_that_cannot_be_read_is_kept_and_made_afresh(home, damage):
    (home / "work/02_rank.ipynb").write_text(damage)
    new = copy.deepcopy(FIRST)
    new["cells"].append(text("t3", "The end."))
    put(home, "02_rank.ipynb", new)
    (report,) = bring_over(home)
    assert "can't be read" in str(report) and "it is kept in work/old" in str(report)
    assert (home / "work/old/02_rank-1.ipynb").read_text() == damage and sources(home)[-1] == "The end."
    assert bring_over(home) == [] and workspace.adopt(home, "02_rank.ipynb") is None


def test_a_copy_from_before_anything_was_noted_loses_nothing(home):
    """work/.given.json was deleted: every cell counts as the learner's."""
    edit(home, {"e1": "def best_rank(W): return W"})
    (home / "work" / workspace.GIVEN).unlink()
    new = copy.deepcopy(FIRST)
    new["cells"].append(text("t3", "The end."))
    put(home, "02_rank.ipynb", new)
    bring_over(home)
    assert "def best_rank(W): return W" in sources(home) and sources(home)[-1] == "The end."
    assert len(sources(home)) == len(FIRST["cells"]) + 1


def test_cells_without_ids_and_sources_in_lines_are_read(home):
    content = mine(home)
    for cell in content["cells"]:
        del cell["id"]
        cell["source"] = cell["source"].splitlines(keepends=True)
    content["cells"][2]["source"] = ["def best_rank(W):\n", "    return W"]
    put(home, "02_rank.ipynb", content, "work")
    new = copy.deepcopy(FIRST)
    new["cells"].append(text("t3", "The end."))
    put(home, "02_rank.ipynb", new)
    bring_over(home)
    assert ["def best_rank(W):\n", "    return W"] in sources(home)
    assert len(sources(home)) == len(FIRST["cells"]) + 1


# ---------------------------------------------------------------------------------------- what JupyterLab writes itself


def test_what_opening_and_looking_write_is_no_change_and_stays(home):
    """JupyterLab notes the kernel's version and what was folded; neither is a new version nor the learner's work."""
    content = mine(home)
    content["metadata"] = {
        "language_info": {"version": "3.14.2"},
        "widgets": {"state": {}},
        "kernelspec": {"name": "o"},
    }
    content["cells"][1]["metadata"]["collapsed"] = True
    put(home, "02_rank.ipynb", content, "work")
    assert bring_over(home) == [] and mine(home) == content
    new = copy.deepcopy(FIRST) | {"metadata": {"language_info": {"version": "3.11.0"}, "kernelspec": {"name": "k"}}}
    new["cells"].append(text("t3", "The end."))
    put(home, "02_rank.ipynb", new)
    (report,) = bring_over(home)
    assert report.fresh and mine(home)["metadata"] == content["metadata"] | {"kernelspec": {"name": "k"}}


@pytest.mark.parametrize("line", ["version = 3.14.2", "version_info = 3.14.2", "version_info = 3.14.2.final.0"])
def test_a_copy_names_the_python_that_will_run_it(home, line):
    (home / ".venv").mkdir()
    (home / ".venv/pyvenv.cfg").write_text(f"home = /usr/bin\n{line}\n")
    whole = FIRST | {"metadata": {"language_info": {"name": "python", "version": "3.11.0"}}}
    for name in ("02_rank.ipynb", "05_new.ipynb"):
        put(home, name, whole)
    reset(home, "02")
    bring_over(home)
    for name in ("02_rank.ipynb", "05_new.ipynb"):
        assert mine(home, name)["metadata"]["language_info"] == {"name": "python", "version": "3.14.2"}


def test_a_chapter_that_is_left_out_is_left_alone(home):
    edit(home, {"e1": "def best_rank(W): return W"})
    put(home, "02_rank.ipynb", notebook(text("t1", "# Rank")))
    before = mine(home)
    assert bring_over(home, leave={"02_rank.ipynb"}) == [] and mine(home) == before


def test_an_old_setup_cell_is_not_carried_over_and_stays_in_the_old_copy(home):
    """An edited one would fetch the old course again."""
    put(home, "02_rank.ipynb", notebook(code("course-setup", "# version 1"), *FIRST["cells"]))
    bring_over(home)
    edit(home, {"course-setup": "# version 1, edited", "e1": "def best_rank(W): return 1"})
    put(home, "02_rank.ipynb", notebook(code("course-setup", "# version 2"), *FIRST["cells"]))
    (report,) = bring_over(home)
    assert report.answers == ["best_rank"] and sources(home)[0] == "# version 2"
    assert "# version 1, edited" in (home / "work" / "old" / "02_rank-1.ipynb").read_text()


def test_a_cell_of_the_courses_that_was_changed_in_colab_stands_there_once(home):
    """Colab keeps a cell's id in its metadata."""
    content = mine(home)
    for cell in content["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
    content["cells"][1]["source"] = "import torch  # changed"
    put(home, "02_rank.ipynb", content, "work")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    (report,) = bring_over(home)
    assert report.cells == 1 and sources(home)[1] == "import torch  # changed"
    assert sources(home) == [*(cell["source"] for cell in content["cells"]), "More."]


def test_an_exercises_cell_in_two_parts_stays_in_two_parts(home):
    """JupyterLab copies nbgrader's mark to both when it splits a cell."""
    content = mine(home)
    parts = [
        exercise("best_rank", "e1", "import math"),
        exercise("best_rank", "u1", "def best_rank(W): return math.pi"),
    ]
    content["cells"][2:3] = parts
    put(home, "02_rank.ipynb", content, "work")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    (report,) = bring_over(home)
    assert sources(home)[2:4] == ["import math", "def best_rank(W): return math.pi"] and report.answers == ["best_rank"]


def test_a_stub_that_was_duplicated_does_not_take_the_answers_place(home):
    content = mine(home)
    content["cells"][2]["source"] = "def best_rank(W): return 3"
    content["cells"].insert(3, exercise("best_rank", "u1", "def best_rank(W): ..."))
    put(home, "02_rank.ipynb", content, "work")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    bring_over(home)
    assert sources(home)[2:4] == ["def best_rank(W): return 3", 'best_rank = check("best_rank", best_rank)']


@pytest.mark.parametrize("ids", [True, False])
def test_two_cells_with_one_id_are_two_cells(home, ids):
    content = mine(home)
    for at in (2, 5):
        content["cells"].insert(at, code("same", "1 + 1"))
    if not ids:
        for cell in content["cells"]:
            del cell["id"]
    put(home, "02_rank.ipynb", content, "work")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    (report,) = bring_over(home)
    assert sources(home).count("1 + 1") == 2 and report.cells == 2


def test_a_copy_of_a_copy_is_no_source_of_answers(home):
    put(home, "02_rank (1).ipynb", mine(home), "work")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    assert [str(report) for report in bring_over(home)] == [
        "02_rank.ipynb: the new version; there was nothing of yours in it"
    ]


def test_without_ids_a_changed_exercise_is_told_as_well(home):
    content = mine(home)
    content["cells"][2]["source"] = "def best_rank(W): return 3"
    for cell in content["cells"]:
        del cell["id"]
    put(home, "02_rank.ipynb", content, "work")
    changed = copy.deepcopy(FIRST)
    changed["cells"][2] = exercise("best_rank", "e9", "def best_rank(W, share): ...")
    put(home, "02_rank.ipynb", changed)
    (report,) = bring_over(home)
    assert report.changed == ["best_rank"] and any("def best_rank(W, share)" in source for source in sources(home))


def test_an_answer_whose_exercise_moved_is_in_its_new_place_alone(home):
    edit(home, {"e1": "def best_rank(W): return 3"})
    put(home, "02_rank.ipynb", notebook(FIRST["cells"][0], text("t3", "More.")))
    put(home, "03_layer.ipynb", notebook(*mine(home, "03_layer.ipynb")["cells"], FIRST["cells"][2]))
    bring_over(home)
    assert "def best_rank(W): return 3" in sources(home, "03_layer.ipynb")
    assert sources(home) == ["# Rank", "More."]


def test_a_mark_of_nobodys_and_a_bom_are_read(home):
    content = mine(home)
    content["cells"][1]["metadata"]["nbgrader"] = None
    content["cells"][2]["source"] = "def best_rank(W): return 3"
    (home / "work/02_rank.ipynb").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    (report,) = bring_over(home)
    assert report.answers == ["best_rank"]


def test_where_a_link_leads_is_brought_over(home, tmp_path):
    there = tmp_path / "synchronized.ipynb"
    (home / "work/02_rank.ipynb").rename(there)
    (home / "work/02_rank.ipynb").symlink_to(there)
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"], text("t3", "More.")))
    bring_over(home)
    assert (home / "work/02_rank.ipynb").is_symlink() and "More." in there.read_text()


def test_what_was_worked_in_before_the_first_start_is_the_learners_without_git_too(tmp_path):
    """The solved copies say how the course's cells were."""
    solved = copy.deepcopy(FIRST)
    solved["cells"][2]["source"] = "def best_rank(W): return 'solved'"
    stubs = copy.deepcopy(FIRST)
    for at in (2, 5):
        stubs["cells"][at]["source"] += "  # YOUR CODE HERE"
    worked = copy.deepcopy(stubs)
    worked["cells"][2]["source"] = "def best_rank(W): return 3"
    worked["cells"].insert(3, code("u1", "1 + 1"))
    worked["cells"][-1]["source"] = "print(energy(W), 2)"
    put(tmp_path, "02_rank.ipynb", solved, "solutions")
    put(tmp_path, "02_rank.ipynb", worked)
    make_copies(tmp_path)
    put(tmp_path, "02_rank.ipynb", notebook(*stubs["cells"], text("t3", "More.")))
    (report,) = bring_over(tmp_path)
    assert (report.answers, report.cells) == (["best_rank"], 2)
    assert [sources(tmp_path)[at] for at in (2, 3, -2)] == [
        "def best_rank(W): return 3",
        "1 + 1",
        "print(energy(W), 2)",
    ]


# -------------------------------------------------------------------------------------------- answers that go elsewhere


def moving(home):
    """The learner's answer in two parts, and a changed cell, all of which stand in chapter 3 now."""
    content = mine(home)
    content["cells"][5]["source"] = "def energy(W): return 1"
    content["cells"][6]["source"] = "print(energy(W), 2)"
    content["cells"].insert(6, exercise("energy", "u1", "print(energy(1))"))
    put(home, "02_rank.ipynb", content, "work")
    put(home, "02_rank.ipynb", notebook(*FIRST["cells"][:4]))
    put(home, "03_layer.ipynb", notebook(text("l1", "# A layer"), *FIRST["cells"][4:]))


MOVED = ["# A layer", "And now the energy.", "def energy(W): return 1", "print(energy(1))", "print(energy(W), 2)"]


def test_all_of_a_moved_answer_and_a_changed_cell_move_and_are_told(home):
    moving(home)
    reports = {report.name: str(report) for report in bring_over(home)}
    assert sources(home, "03_layer.ipynb") == MOVED and len(sources(home)) == 4
    assert "1 answer (energy), which were in 02_rank" in reports["03_layer.ipynb"]
    assert bring_over(home) == []


@pytest.mark.parametrize("stop", range(12))
def test_a_stop_anywhere_loses_and_doubles_nothing(home, monkeypatch, stop):
    moving(home)
    real, count = workspace._write_text, 0

    def write(path, words):
        nonlocal count
        count += 1
        if count > stop:
            raise OSError("full")
        real(path, words)

    monkeypatch.setattr(workspace, "_write_text", write)
    try:
        bring_over(home)
    except OSError:
        both = sources(home) + sources(home, "03_layer.ipynb")
        assert "def energy(W): return 1" in both and "print(energy(1))" in both
    monkeypatch.setattr(workspace, "_write_text", real)
    bring_over(home)
    assert sources(home, "03_layer.ipynb") == MOVED and len(sources(home)) == 4


def test_a_newer_answer_in_the_new_place_stays(home):
    moving(home)
    old = mine(home)
    bring_over(home)
    edit(home, {"e2": "def energy(W): return 'newer'"}, "03_layer.ipynb")
    put(home, "02_rank.ipynb", old, "work")
    told = " ".join(map(str, bring_over(home)))
    assert "def energy(W): return 'newer'" in sources(home, "03_layer.ipynb")
    assert "def energy(W): return 1" not in sources(home, "03_layer.ipynb") and "yours here stays" in told
    assert bring_over(home) == []


def test_a_reset_in_a_clone_brings_moved_answers_over_first(home):
    moving(home)
    (home / ".git").mkdir()
    reset(home, "02")
    assert sources(home, "03_layer.ipynb") == MOVED
