"""A solved notebook as a page: what goes, what is folded, what stays, and where a figure comes in."""

from __future__ import annotations

import json

import pytest

from tools.site import collect, figures
from tools.site.chapter import Chapter, sections
from tools.site.links import Links
from utils.course.colab import origin

LINKS = Links("OWNER/NAME", "v1", {"solutions/03_next.ipynb": "chapters/03_next.ipynb"})
PNG = "iVBORw0KGgo="


def prose(text: str, name: str = "p") -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def code(text: str, name: str = "c", outputs: list | None = None, **metadata) -> dict:
    return {"cell_type": "code", "id": name, "metadata": metadata, "source": text, "outputs": outputs or []}


def shown(data: dict, metadata: dict | None = None) -> dict:
    return {"output_type": "display_data", "data": data, "metadata": metadata or {}}


def page(*cells: dict, figures: list | None = None, drawings: dict | None = None) -> list[dict]:
    notebook = {
        "cells": [prose("# Chapter 2: Rank", "title"), *cells],
        "metadata": {"kernelspec": {}, "language_info": {}},
    }
    return Chapter(notebook, "02_rank", LINKS, drawings, figures or []).rendered()["cells"]


def test_badge_set_up_cell_and_list_of_chapters_go():
    cells = page(
        prose("badge", "colab-badge"), code("setup", "course-setup"), code("x = 1"), prose("ways", "course-chapters")
    )
    assert [cell["id"] for cell in cells] == ["title", "c"]


def test_the_title_is_followed_by_the_ways_to_run_have_and_mend_the_chapter():
    (title,) = page()
    assert title["source"].startswith("# Chapter 2: Rank\n\n<p ")
    for way in (
        'href="https://colab.research.google.com/github/OWNER/NAME/blob/v1/notebooks/02_rank.ipynb"',
        'href="https://kaggle.com/kernels/welcome?src=https://github.com/OWNER/NAME/blob/v1/notebooks/02_rank.ipynb"',
        'href="../downloads/02_rank.ipynb" download',
        'href="https://github.com/OWNER/NAME/edit/v1/lessons/02_rank.md"',
    ):
        assert way in title["source"]


def test_a_solution_is_folded_without_its_markers_and_nothing_else_is():
    answer = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"
    solution, check = page(
        code(answer, "s", nbgrader={"solution": True}), code('f = check("f", f)', "k", nbgrader={"solution": False})
    )[1:]
    assert solution["source"] == "def f(x):\n    return x" and solution["metadata"]["tags"] == ["hide-input"]
    assert solution["metadata"]["mystnb"]["code_prompt_show"] == "Show the solution"
    assert check["metadata"] == {} and check["source"] == 'f = check("f", f)'


def test_a_figure_keeps_its_alt_text_and_width():
    output = shown({"image/png": PNG, "text/plain": "Figure"}, {"image/png": {"alt": "A line falls.", "width": 700}})
    (cell,) = page(code("plot()", outputs=[output]))[1:]
    assert cell["metadata"]["mystnb"] == {"image": {"alt": "A line falls.", "width": "700px"}}
    assert cell["outputs"] == [output]
    with pytest.raises(ValueError, match="several pictures"):
        page(code("plot()", outputs=[output, output]))


def test_widgets_and_progress_bars_go_and_what_was_printed_stays():
    printed = {"output_type": "stream", "name": "stdout", "text": "12\n"}
    result = {"output_type": "execute_result", "data": {"text/plain": "3"}, "metadata": {}, "execution_count": 1}
    bar, widget = shown({"text/plain": "training: 0%"}), shown({"text/plain": "VBox(children=())"})
    (cell,) = page(code("run()", outputs=[bar, printed, widget, result]))[1:]
    assert cell["outputs"] == [printed, result]


def test_links_lead_on_in_prose_and_in_what_a_cell_shows():
    table = shown({"text/markdown": ["see [3](03_next.ipynb)\n", "or [x](03_next.ipynb#recap)"], "text/plain": ""})
    text, cell = page(prose("[next](03_next.ipynb), [file](../utils/a.py)"), code("t", outputs=[table]))[1:]
    assert text["source"] == "[next](03_next.ipynb), [file](https://github.com/OWNER/NAME/blob/v1/utils/a.py)"
    assert cell["outputs"][0]["data"]["text/markdown"] == "see [3](03_next.html)\nor [x](03_next.html#recap)"


def test_the_line_to_the_neighbours_goes_and_drawings_are_the_lessons_svgs():
    line = "[← Chapter 1: A](01_a.ipynb) · [Chapter 3: C →](03_next.ipynb)"
    text = page(
        prose(f"{line}\n\nSee ![W and B A](data:image/png;base64,{PNG})"), drawings={"W and B A": "images/lora.svg"}
    )
    assert text[1]["source"].strip() == "See ![W and B A](images/lora.svg)"


# ------------------------------------------------------------------------------------ figures


def test_sections_are_cut_at_headings_and_not_at_comments():
    text = "end\n\n## One\n\n```python\n# no heading\n```\n\n### Two\nlast"
    assert [name for name, _ in sections(text)] == ["", "One", "Two"]
    assert "\n\n".join(piece for _, piece in sections(text)) == text


def test_a_figure_closes_the_section_that_it_belongs_to():
    cells = page(
        prose("## One\n\ntext"), code("x"), prose("the end of one\n\n## Two\n\ntwo", "q"), figures=[("One", "rank")]
    )
    assert [cell["id"] for cell in cells] == ["title", "p", "c", "q", "figure-rank", "q-1"]
    last = page(prose("## One\n\ntext"), code("x"), figures=[("One", "rank")])
    assert [cell["id"] for cell in last] == ["title", "p", "c", "figure-rank"]
    within = page(prose("## One\n\na\n\n## Two\n\nb"), figures=[("One", "rank"), ("Two", "mixing")])
    assert [cell["id"] for cell in within] == ["title", "p", "figure-rank", "p-1", "figure-mixing"]


def test_a_figure_whose_heading_was_renamed_fails_the_build():
    with pytest.raises(ValueError, match="02_rank has no heading 'Gone'"):
        page(prose("## One"), figures=[("Gone", "rank")])


def test_every_place_in_the_table_is_a_heading_of_its_chapter():
    """Also of figures that aren't there yet."""
    for name, figure in figures.FIGURES.items():
        for place in figure.places:
            (lesson,) = (collect.ROOT / "lessons").glob(f"{place.chapter}_*.md")
            names = [heading for heading, _ in sections(lesson.read_text(encoding="utf-8"))]
            assert names.count(place.heading) == 1, (name, place)


def test_a_figures_element_names_it_and_its_options():
    html = figures.element("rank", "../", {"prompt": 'say "x"'})
    assert (
        'data-figure="rank"' in html
        and 'data-options="{&quot;prompt&quot;: &quot;say \\&quot;x\\&quot;&quot;}"' in html
    )
    assert (
        'src="../_static/site/figures/load.js"' in html and 'href="../figures/rank.html"' in html and "\n" not in html
    )
    assert "figures/rank.html" not in figures.element("rank", "../", link=False)


# ------------------------------------------------------------------------------------ the whole tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What the site is built of, from the course as it is. npm's part is made up: it may not be installed."""
    out = tmp_path_factory.mktemp("site")
    site = collect.Site(collect.ROOT, out)
    original, collect._MATHJAX = collect._MATHJAX, {}
    try:
        site.collect()
    finally:
        collect._MATHJAX = original
    return out


def test_every_chapters_cells_are_on_its_page_once(tree):
    for path in (collect.ROOT / "solutions").glob("*.ipynb"):
        before = json.loads(path.read_text(encoding="utf-8"))["cells"]
        after = json.loads((tree / "src" / "chapters" / path.name).read_text(encoding="utf-8"))["cells"]
        kept = [cell["id"] for cell in before if cell["id"] not in ("colab-badge", "course-setup", "course-chapters")]
        ids = [cell["id"] for cell in after]
        assert [name for name in ids if name in kept] == kept and len(set(ids)) == len(ids)
        assert not any("COURSE_REPO" in cell["source"] for cell in after)
        pictures = [c for c in after for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        assert all(len(cell["metadata"]["mystnb"]["image"]["alt"]) > 20 for cell in pictures)


def test_the_tree_has_ledger_measurements_architecture_and_what_is_served(tree):
    records = {path.stem for path in (collect.ROOT / "assets" / "measurements").iterdir()}
    pages = {path.stem for path in (tree / "src" / "measurements").glob("*.md")}
    assert records | {"index"} <= pages and len(records) > 25
    for page in ("claims.md", "architecture.md", "index.md"):
        assert (tree / "src" / page).stat().st_size > 500
    assert (tree / "static/site/figures/load.js").is_file() and (tree / "extra/downloads/00_start_here.ipynb").is_file()
    assert (tree / "static/site/assets/tiny-llama/model.safetensors").is_file()
    told = json.loads((tree / "site.json").read_text(encoding="utf-8"))
    where = origin(collect.ROOT)
    assert (told["repository"], told["ref"]) == tuple(where)
    described = [text for page, text in told["descriptions"].items() if page.startswith("chapters/")]
    assert len(described) == len(set(described)) and all(40 < len(text) < 210 and "[" not in text for text in described)


def test_the_front_page_lists_every_chapter_with_its_minutes(tree):
    front = (tree / "src" / "index.md").read_text(encoding="utf-8")
    assert "{{" not in front and "| 2 | [Rank decomposition](chapters/02_rank_decomposition.ipynb) | 60 |" in front
    for path in (collect.ROOT / "lessons").glob("[0-9][0-9]_*.md"):
        assert front.count(f"chapters/{path.stem}\n") == 1 and front.count(f"(chapters/{path.stem}.ipynb)") == 1
