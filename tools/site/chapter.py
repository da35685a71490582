"""A solved notebook as a page of the site: what it shows stays, what only a notebook needs goes.

The set-up cell, the badge and the list of chapters go; solutions are folded; figures keep their alt texts; what a
notebook's front end draws (widgets, progress bars) goes, and the interactive figures come in. Nothing is run.

Attributes:
    GONE: The ids of cells that a page has no use for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tools.site.figures import element
from tools.site.links import Links

GONE = frozenset({"colab-badge", "course-setup", "course-chapters"})

# The line under a notebook's opening that leads to its neighbours; the theme has its own.
_NEIGHBOURS = re.compile(r"^\[(?:← )?Chapter \d+: .*\]\(\d\d_\w+\.ipynb\)(?: · \[.*)?\n?", re.M)
_MARKERS = re.compile(r"^ *### (?:BEGIN|END) SOLUTION\n?", re.M)
_DRAWING = re.compile(r"!\[([^\]]*)\]\(data:image/png;base64,[^)]*\)")
_SOURCE = re.compile(r"(?<=\w)\.(?:ipynb|md)(?=(?:#[\w-]*)?\))")
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.M)
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)

_FOLD = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def is_solution(cell: Mapping[str, Any]) -> bool:
    """Whether a cell holds an exercise's solution: the build marks it as nbgrader does."""
    return bool(cell["metadata"].get("nbgrader", {}).get("solution"))


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def drawn_outputs(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A cell's outputs without those that only a notebook's front end draws: shown, with nothing but a text form."""
    return [
        copy.deepcopy(dict(output))
        for output in outputs
        if not (output["output_type"] == "display_data" and set(output["data"]) <= {"text/plain"})
    ]


def _picture(outputs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """How MyST-NB renders the picture among a cell's outputs; empty without one. Raises ValueError for several."""
    pictures = [output["metadata"].get("image/png", {}) for output in outputs if "image/png" in output.get("data", {})]
    if len(pictures) > 1:
        raise ValueError("a cell with several pictures: each would get the first one's alt text")
    if not pictures:
        return {}
    kept = {key: str(pictures[0][key]) for key in ("alt", "width") if key in pictures[0]}
    return kept | ({"width": f"{kept['width']}px"} if "width" in kept else {})


def sections(markdown: str) -> list[tuple[str, str]]:
    """Markdown cut before each heading: the heading's text and the piece; "" for what stands before the first.

    A comment in a fence is no heading.
    """
    fences = [found.span() for found in _FENCE.finditer(markdown)]
    found = [h for h in _HEADING.finditer(markdown) if not any(start <= h.start() < end for start, end in fences)]
    cuts = [0, *(heading.start() for heading in found), len(markdown)]
    names = ["", *(heading[2] for heading in found)]
    pieces = [(name, markdown[at:to].strip("\n")) for name, at, to in zip(names, cuts, cuts[1:], strict=False)]
    return [(name, piece) for name, piece in pieces if piece]


class Chapter:
    """A chapter's notebook on its way to a page.

    Args:
        notebook: solutions/NN_topic.ipynb as JSON.
        stem: "02_rank_decomposition".
        links: where its links lead.
        drawings: the lesson's drawings, their addresses from the page by their alt texts.
        figures: the headings that an interactive figure stands under, with the figure's name.
    """

    def __init__(
        self,
        notebook: Mapping[str, Any],
        stem: str,
        links: Links,
        drawings: Mapping[str, str] | None = None,
        figures: Iterable[tuple[str, str]] = (),
    ):
        self.notebook, self.stem, self.links = notebook, stem, links
        self.drawings, self.figures = dict(drawings or {}), list(figures)
        self.file, self.page = f"solutions/{stem}.ipynb", f"chapters/{stem}.ipynb"

    def ways(self) -> str:
        """The line of links under the title: to run it, to have it, to mend it."""
        notebook = f"{self.links.repository}/blob/{self.links.ref}/notebooks/{self.stem}.ipynb"
        ways = [
            (f"https://colab.research.google.com/github/{notebook}", "Open in Colab"),
            (f"https://kaggle.com/kernels/welcome?src=https://github.com/{notebook}", "Open in Kaggle"),
            (f"../downloads/{self.stem}.ipynb", "Download the notebook"),
            (self.links.github(f"lessons/{self.stem}.md", "edit"), "Edit this lesson"),
        ]
        shown = [f'<a href="{to}"{" download" if to.startswith("..") else ""}>{name}</a>' for to, name in ways]
        return '<p class="course-ways">' + "".join(shown) + "</p>"

    def prose(self, cell: Mapping[str, Any], first: bool) -> dict[str, Any]:
        """A cell of Markdown: its links lead on, drawings are the lesson's SVGs."""
        text = self.links.rewritten(_NEIGHBOURS.sub("", source(cell)), self.file, self.page)
        text = _DRAWING.sub(lambda found: f"![{found[1]}]({self.drawings[found[1]]})", text)
        if first:
            title, _, rest = text.partition("\n")
            text = f"{title}\n\n{self.ways()}\n{rest}"
        return {"cell_type": "markdown", "id": cell["id"], "metadata": {}, "source": text}

    def code(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """A cell of code: a solution is folded, a figure keeps its alt text."""
        outputs = drawn_outputs(cell.get("outputs", []))
        for output in outputs:
            if "text/markdown" in output.get("data", {}):
                shown = _joined(output["data"]["text/markdown"])
                shown = self.links.rewritten(shown, self.file, self.page)
                output["data"]["text/markdown"] = _SOURCE.sub(".html", shown)  # Sphinx follows no link of an output
        rendering: dict[str, Any] = {"image": _picture(outputs)} if _picture(outputs) else {}
        tags, text = [], source(cell)
        if is_solution(cell):
            tags, text = ["hide-input"], _MARKERS.sub("", text).rstrip("\n")
            rendering |= _FOLD
        metadata: dict[str, Any] = {"tags": tags} if tags else {}
        metadata |= {"mystnb": rendering} if rendering else {}
        return {
            "cell_type": "code",
            "id": cell["id"],
            "metadata": metadata,
            "source": text,
            "outputs": outputs,
            "execution_count": None,
        }

    def cells(self) -> list[dict[str, Any]]:
        """The page's cells. Raises ValueError when a figure's heading isn't in the chapter."""
        places: dict[str, list[str]] = {}
        for heading, name in self.figures:
            places.setdefault(heading, []).append(name)
        wanted, cells, waiting = set(places), [], []
        for cell in self.notebook["cells"]:
            if cell["id"] in GONE:
                continue
            if cell["cell_type"] == "code":
                cells.append(self.code(cell))
                continue
            # A cell may hold the end of one section and the begin of the next: a figure closes its own.
            pieces = sections(source(cell)) if wanted else [("", source(cell))]
            for at, (heading, piece) in enumerate(pieces):
                if heading:
                    cells += map(self._figure, waiting)
                    waiting = places.pop(heading, [])
                name = cell["id"] if at == 0 else f"{cell['id']}-{at}"
                cells.append(self.prose({**cell, "id": name, "source": piece}, not cells))
        cells += map(self._figure, waiting)
        if places:
            raise ValueError(f"{self.stem} has no heading {', '.join(map(repr, places))}: see tools/site/figures.py")
        return cells

    def _figure(self, name: str) -> dict[str, Any]:
        return {"cell_type": "markdown", "id": f"figure-{name}", "metadata": {}, "source": element(name, "../")}

    def rendered(self) -> dict[str, Any]:
        """The page's notebook, as JSON."""
        kept = {key: self.notebook["metadata"][key] for key in ("kernelspec", "language_info")}
        return {"cells": self.cells(), "metadata": kept, "nbformat": 4, "nbformat_minor": 5}
