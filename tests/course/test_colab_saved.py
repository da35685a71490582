"""A notebook that Colab has saved, opened here again: valid, and its answers come along to a new version."""

from __future__ import annotations

import copy
import json
import uuid
from pathlib import Path

import nbformat
import pytest

from utils.course import workspace

ROOT = Path(__file__).resolve().parents[2]
NAME = "00_start_here.ipynb"
ANSWER = "def linear_parameters(layer):\n    return sum(p.numel() for p in layer.parameters())  # mine"
MINE = {"cell_type": "code", "id": "x1y2z3", "metadata": {}, "source": "1 + 1", "outputs": [], "execution_count": 2}


def as_colab_saves(notebook: dict) -> dict:
    """The notebook as Colab writes it: ids in the metadata, format 4.0, sources in lines, keys of its own."""
    saved = copy.deepcopy(notebook)
    for cell in saved["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["metadata"] |= {"outputId": str(uuid.uuid4()), "colab": {"base_uri": "https://localhost:8080/"}}
    saved |= {"nbformat": 4, "nbformat_minor": 0}
    saved["metadata"] = {
        "colab": {"provenance": [], "gpuType": "T4"},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
        "accelerator": "GPU",
    }
    return saved


@pytest.fixture
def given() -> dict:
    return json.loads((ROOT / "notebooks" / NAME).read_text(encoding="utf-8"))


@pytest.fixture
def saved(given) -> dict:
    """The chapter with one answer and a cell of the learner's own, as it comes back from Colab."""
    worked = copy.deepcopy(given)
    (at,) = [n for n, cell in enumerate(worked["cells"]) if grade_id(cell) == "linear_parameters"]
    worked["cells"][at] |= {"source": ANSWER}
    worked["cells"].insert(at + 1, copy.deepcopy(MINE))
    return as_colab_saves(worked)


def grade_id(cell: dict) -> str | None:
    return cell["metadata"].get("nbgrader", {}).get("grade_id")


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_it_is_a_valid_notebook_and_asks_for_a_kernel_that_is_here(saved, given):
    nbformat.validate(nbformat.from_dict(saved))
    ours = given["metadata"]["kernelspec"]
    assert saved["metadata"]["kernelspec"]["name"] == ours["name"] == "python3"


def test_its_answers_come_along_to_a_new_version_and_nothing_is_doubled(saved, given, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / NAME).write_text(json.dumps(given), encoding="utf-8")
    workspace.make_copies(tmp_path)
    (tmp_path / "work" / NAME).write_text(json.dumps(saved), encoding="utf-8")
    given["cells"][3]["source"] = "The new version says it better."
    (tmp_path / "notebooks" / NAME).write_text(json.dumps(given), encoding="utf-8")
    (report,) = workspace.bring_over(tmp_path)
    came = json.loads((tmp_path / "work" / NAME).read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(came))
    assert report.answers == ["linear_parameters"]
    wanted = [ANSWER if grade_id(cell) == "linear_parameters" else source(cell) for cell in given["cells"]]
    (at,) = [n for n, text in enumerate(wanted) if text == ANSWER]
    wanted.insert(at + 1, MINE["source"])
    assert [source(cell) for cell in came["cells"]] == wanted
    assert [cell["id"] for cell in came["cells"] if source(cell) != MINE["source"]] == [c["id"] for c in given["cells"]]


def test_what_colab_gets_from_us_has_nothing_that_it_does_not_know():
    """It knows its own kernel alone, shows no attachment, and reads format 4."""
    for path in ROOT.glob("notebooks/*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3"), path.name
        assert not any("attachments" in cell for cell in notebook["cells"]), path.name
