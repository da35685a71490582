"""The interactive figures: their titles, the chapters they stand in, and their pages.

A figure is a folder of site/figures with an index.js. One that isn't there yet is left out, of chapters too.

Attributes:
    FIGURES: What is said of a figure, by its folder's name.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """A place in a chapter, "02": the figure stands at the end of the section under `heading`."""

    chapter: str
    heading: str


@dataclass(frozen=True)
class Figure:
    """What is said of a figure: its page's title, a sentence or two under that, and where in chapters it stands."""

    title: str
    summary: str
    places: tuple[Place, ...] = ()


FIGURES: Mapping[str, Figure] = {
    "train": Figure(
        "Train it here",
        "Train an adapter in this page: 150 steps of LoRA on a task that the base can't do, with the loss as it falls. "
        "Then ask base and adapter the same.",
        (Place("00", "Chapter 0: Start here"),),
    ),
    "layer": Figure(
        "A LoRA layer, drawn to scale",
        "A frozen weight with A and B beside it, for a rank and sizes of your own: parameters, bytes, FLOPs, and the "
        "formula with the numbers put in.",
        (
            Place("00", "Your count against the file"),
            Place("03", "Train with B(Ax), merge afterwards"),
        ),
    ),
    "rank": Figure(
        "The rank that talks",
        "Cut a trained update to its first singular directions and read what the model still says. The model runs in "
        "this page: write a prompt, drag the rank.",
        (
            Place("02", "Cut to rank 8, it loses most of the skill"),
            Place("04", "From 0% to 100% in 180 steps"),
        ),
    ),
    "mixing": Figure(
        "The mixing board",
        "Four adapters on one base, each with a weight from -1 to 2. Pull the faders and read what the mixture "
        "answers, and what is left of each task.",
        (Place("11", "Even the exact sum seldom keeps both tasks"),),
    ),
    "next": Figure(
        "The next token",
        "What may come next, with its probability: turn temperature and top-p, then draw token after token, beside the "
        "greedy answer.",
        (Place("12", "A playground"),),
    ),
    "mask": Figure(
        "The loss mask",
        "A conversation of your own under a chat template, token by token: which of them have a label, and "
        "whether EOS is one.",
        (Place("05", "A mask, token by token"),),
    ),
    "fit": Figure(
        "Will it fit?",
        "What a training step takes of a GPU's memory, part by part, for a model, a method and a batch of your "
        "choice, beside what was measured.",
        (
            Place("01", "What each way holds, and on which card"),
            Place("06", "Ask before you load"),
        ),
    ),
    "ruler": Figure(
        "A ruler of 16 values",
        "Where a weight of your own lands in NF4, MXFP4 and NVFP4, and how far off the rest of its block would be.",
        (Place("07", "NVFP4: a finer scale does more than a smaller block"),),
    ),
}


def available(root: Path) -> list[str]:
    """The figures that are there: first those of the table in its order, then the others by name."""
    there = {path.parent.name for path in (root / "site" / "figures").glob("*/index.js")} - {"common"}
    return [*(name for name in FIGURES if name in there), *sorted(there - set(FIGURES))]


def about(name: str) -> Figure:
    """What is said of a figure; of one that isn't in the table, its name."""
    return FIGURES.get(name, Figure(name.replace("_", " ").capitalize(), ""))


def element(name: str, up: str, options: Mapping[str, Any] | None = None, link: bool = True) -> str:
    """The HTML that a figure is mounted in, as one line.

    Args:
        name: the figure.
        up: the way from the page to the site's root, such as "../".
        options: what its ``mount`` gets.
        link: whether a link to the figure's own page stands under it.
    """
    told = html.escape(json.dumps(dict(options or {})), quote=True)
    title = html.escape(about(name).title)
    script = f'<script type="module" src="{up}_static/site/figures/load.js"></script>'
    own = f'<p class="course-figure-link"><a href="{up}figures/{name}.html">{title}, on a page of its own</a></p>'
    without = f'<noscript><p class="course-figure-note">{title}: this figure needs JavaScript.</p></noscript>'
    figure = f'<div class="course-figure" data-figure="{name}" data-options="{told}">{without}</div>'
    return "".join([figure, own if link else "", script])


def in_chapter(chapter: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """The headings of a chapter that a figure stands under, with the figure's name."""
    return [(place.heading, name) for name in names for place in about(name).places if place.chapter == chapter]


def page(name: str) -> str:
    """A figure's own page, in Markdown."""
    figure = about(name)
    return "\n\n".join([
        "---\nhtml_theme.sidebar_secondary.remove: true\n---",
        f"# {figure.title}",
        *([figure.summary] if figure.summary else []),
        element(name, "../", link=False),
        "",
    ])  # fmt: skip


def listed(names: Iterable[str]) -> str:
    """The sentence of the front page that leads to the figures; empty without any."""
    links = [f"[{about(name).title}](figures/{name}.md)" for name in names]
    return f"[Figures that compute](figures/index.md) in the page: {', '.join(links)}." if links else ""


def index(names: Iterable[str]) -> str:
    """The page that lists the figures."""
    names = list(names)
    rows = [f"- [{about(name).title}]({name}.md). {about(name).summary}" for name in names]
    contents = ["```{toctree}\n:hidden:\n", *names, "```"]
    intro = (
        "Each computes in the page, with the course's own model where a model speaks. What you set is in the address, "
        "so a link shows it to others."
    )
    return "\n".join(["# Figures that compute", "", intro, "", *rows, "", *contents, ""])
