"""The README says what is there: its chapters are the lessons, its table of tasks is the recorded one."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.tools.test_run_course import AWAITED
from tools.real_model.page import summarized, summarized_tiny
from utils.course.colab import notebook_page, origin

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_chapters_row_ends_with_its_link_to_colab():
    """And they are the lessons, in order; a row's title and minutes are a house rule of the build."""
    rows = re.findall(r"^\| (\d\d) \| \[.*?\]\((.*?)\) \| .* \| (.*) \|$", README, re.MULTILINE)
    assert [number for number, _, _ in rows] == [path.name[:2] for path in sorted((ROOT / "lessons").glob("[0-9]*.md"))]
    assert [cell for *_, cell in rows] == [f"[Colab][{number}]" for number, *_ in rows]
    wanted = [f"[{number}]: {notebook_page(origin(ROOT), notebook)}" for number, notebook, _ in rows]
    found = re.findall(r"^\[\d\d\]: .*$", README, re.MULTILINE)
    assert found == wanted, "put these lines below the README's table of chapters:\n" + "\n".join(wanted)


def test_the_badges_say_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badges = re.findall(r"^\[!\[(.*?)\]\((.*?)\)\]\((.*?)\)$", README, re.MULTILINE)[:4]
    assert [name for name, _, _ in badges] == [
        "tests", "Python 3.11 to 3.14", "code: Apache 2.0", "prose: CC BY 4.0",
    ]  # fmt: skip
    workflow = f"{project['urls']['Repository']}/actions/workflows/tests.yml"
    assert badges[0][1:] == (f"{workflow}/badge.svg", workflow)
    assert (ROOT / ".github" / "workflows" / "tests.yml").is_file()
    assert project["requires-python"] == ">=3.11,<3.15" and "3.11%20to%203.14" in badges[1][1]
    assert project["license"] == "Apache-2.0 AND CC-BY-4.0"


def test_the_table_of_tasks_is_the_recorded_one():
    recorded = json.loads((ROOT / "assets" / "measurements" / "tasks.json").read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\| (sentiment|translation|summarization|style)\b.*? \| (.*?)% \| (.*?)%(.*) \|$", README, re.MULTILINE
    )
    assert [task for task, *_ in rows] == ["sentiment", "translation", "summarization", "style"]
    for task, base, adapter, rest in rows:
        assert float(base) == 100 * recorded[task]["base"]
        assert float(adapter) == 100 * recorded[task]["adapter"]
        if task == "sentiment":
            assert f"({100 * recorded[task]['unseen_words']}% with words that it was never trained on)" in rest


def test_every_link_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "lessons" / "using_the_course.md"):
        links = [link for link in re.findall(r"\]\((.*?)\)", page.read_text(encoding="utf-8")) if "://" not in link]
        assert len(links) > 5 or page.parent != ROOT
        for link in links:
            assert (page.parent / link).exists(), link


def _flat(page):
    return " ".join(page.read_text(encoding="utf-8").split())


def _listed(words):
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def test_what_the_tiny_model_can_show_is_the_records_summary():
    record = json.loads((ROOT / "assets" / "measurements" / "real_model.json").read_text(encoding="utf-8"))
    assert f"{summarized(record)} The tiny model itself" in _flat(ROOT / "README.md")
    assert summarized_tiny(record) in _flat(ROOT / "README.md")


def test_so_many_cells_are_not_compared_as_the_readme_says():
    cells = [cell for path in (ROOT / "solutions").glob("*.ipynb")
             for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]  # fmt: skip
    free = sum("nbval-ignore-output" in cell["metadata"].get("tags", ()) for cell in cells)
    assert f"but for {free} cells" in _flat(ROOT / "README.md")


def test_so_many_runs_on_a_gpu_as_the_readme_says():
    rows = json.loads((ROOT / "assets" / "measurements" / "course.json").read_text(encoding="utf-8"))["rows"]
    assert f"On an H200 all {len(rows)} runs of them ended without an error" in _flat(ROOT / "README.md")
    assert not any(row["errors"] for row in rows)


@pytest.mark.parametrize("page", ["README.md", "lessons/using_the_course.md"])
def test_the_chapters_that_no_gpu_has_run_are_named(page):
    """Where every chapter has run, neither page says that one awaits its run."""
    said, awaited = _flat(ROOT / page), sorted({key.split("/")[1][:2] for key in AWAITED})
    assert ("are awaited." in said) == bool(awaited)
    assert not awaited or f"runs of chapters {_listed(awaited)} are awaited." in said


def test_it_is_a_front_door_and_not_a_manual():
    assert len(README.splitlines()) < 120
    minutes = [int(found) for found in re.findall(r"^\| \d\d \|.*\| (\d+) \| \[Colab", README, re.MULTILINE)]
    assert f"## The chapters, some {sum(minutes) // 60} hours\n" in README
    pictures = re.findall(r"^!\[(.*?)\]\((.*?)\)$", README, re.MULTILINE)
    assert [path for _, path in pictures] == ["assets/readme/rank.png"] and all(len(alt) > 40 for alt, _ in pictures)
    assert (ROOT / "assets" / "readme" / "mixing.webp").stat().st_size < 2_000_000


def test_the_finding_is_the_chapters_figure():
    """As pictures: PNG's compression isn't the same everywhere."""
    from PIL import Image, ImageChops

    from tools.site.readme_figure import ALT, NOTEBOOK, OUT, smaller, stored_figure

    ours, stored = (image.convert("RGB") for image in (Image.open(OUT), smaller(stored_figure(NOTEBOOK, ALT))))
    assert ours.size == stored.size and max(high for _, high in ImageChops.difference(ours, stored).getextrema()) < 32
