"""Figures of what is inside: tensors as pictures, code books, tokens and what is trained of them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from utils.plots.core import (
    _RC,
    COLORS,
    LINES,
    MARKERS,
    SIZE,
    new_figure,
    new_panels,
)


def pictures(panels: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> Figure:
    """Matrices side by side as pictures, 0 black and 1 white; `panels` maps a name to each matrix.

    Raises ValueError when `panels` is empty.
    """
    if not panels:
        raise ValueError("no panels to show: pass at least one name: matrix")
    figure, axes = new_panels(len(panels), size=(7.0, 1.9))
    with rc_context(_RC):
        for ax, (name, matrix) in zip(axes, panels.items(), strict=True):
            ax.imshow([[float(v) for v in row] for row in matrix], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(name, loc="left", fontsize=10, fontweight="normal")
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def show_tokens(tokens: Sequence[str], trained: Sequence[bool]) -> None:
    """Show a text token by token in the notebook; the tokens that are trained on are bold, underlined and shaded.

    The text form, which nbval compares, puts those in brackets: "Hi· there[Arr][!]". Raises ValueError when the two
    differ in length.
    """
    from IPython.display import display

    if len(tokens) != len(trained):
        raise ValueError(f"there are {len(tokens)} tokens and {len(trained)} marks: each token needs its mark")
    shown = [token.replace("\n", "\u23ce") for token in tokens]
    box = "display:inline-block;white-space:pre;margin:1px;padding:0 2px;border:1px solid #999;border-radius:3px"
    cells = [
        f'<b style="{box};background:#f6c667;color:#000"><u>{html.escape(token)}</u></b>'
        if learnt
        else f'<span style="{box}">{html.escape(token)}</span>'
        for token, learnt in zip(shown, trained, strict=True)
    ]
    text, after_plain = "", False
    for token, learnt in zip(shown, trained, strict=True):
        text += f"[{token}]" if learnt else ("\u00b7" if after_plain else "") + token
        after_plain = not learnt
    page = f'<div style="font-family:monospace;line-height:1.9">{"".join(cells)}</div>'
    display({"text/html": page, "text/plain": text}, raw=True)


def code_books(values: Sequence[float], books: Mapping[str, Sequence[float]], *, title: str, xlabel: str) -> Figure:
    """A histogram of scaled weights, with the entries of each code book as a row of marks below it.

    Raises ValueError when there are no values or no books.
    """
    if not len(values) or not books:
        raise ValueError("nothing to plot: pass values and at least one name: entries")
    figure, ax = new_figure()
    with rc_context(_RC):
        heights, _, _ = ax.hist(values, bins=81, range=(-1.02, 1.02), density=True, color="#c4d3e0")
        highest = float(np.max(heights))
        step = 0.13 * highest
        for i, (name, entries) in enumerate(books.items()):
            row = -step * (i + 1)
            ax.plot(
                list(entries), [row] * len(entries),
                color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=5, linewidth=0.6,
                label=name,
            )  # fmt: skip
        ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= highest])
        ax.set_ylim(-step * (len(books) + 0.7), 1.05 * highest)
        ax.set(title=title, xlabel=xlabel, ylabel="density")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def bits_and_errors(
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Panels of curves, each with its own y axis; a point is (block, bits, error), and its block is written beside it.

    Raises ValueError when there is no panel, or a panel or a curve without points.
    """
    if not panels or not all(panels.values()) or not all(c for curves in panels.values() for c in curves.values()):
        raise ValueError("nothing to plot: every panel needs at least one name: [(block, bits, error), ...]")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    beside = ((0, 8), (0, -9), (0, 8), (12, 3))  # so that curves which nearly coincide don't write over each other
    figure, axes = new_panels(len(panels), size=(SIZE[0], 1.25 * SIZE[1]))
    with rc_context(_RC):
        for ax, (panel, curves) in zip(axes, panels.items(), strict=True):
            for name, points in curves.items():
                i = names.index(name)
                blocks, bits, errors = zip(*points, strict=True)
                ax.plot(
                    bits, errors, color=COLORS[i % len(COLORS)], linestyle=LINES[i % len(LINES)],
                    marker=MARKERS[i % len(MARKERS)], markersize=4, label=name,
                )  # fmt: skip
                for block, x, y in zip(blocks, bits, errors, strict=True):
                    ax.annotate(
                        str(block), (x, y), xytext=beside[i % len(beside)], textcoords="offset points", ha="center",
                        va="center", fontsize=7, color=COLORS[i % len(COLORS)],
                    )  # fmt: skip
            ax.set_title(panel, loc="left", fontsize=10, fontweight="normal")
            ax.set(xlabel=xlabel, ylabel=ylabel)
            ax.margins(y=0.12)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure
