"""Every figure of the course, in one style.

Each function takes plain data and returns a :class:`matplotlib.figure.Figure` with a title, axis labels with units and,
where there is more than one series, a legend. Series differ by marker, line style or hatch as well as by colour, so
that a figure still reads when it is printed in grey. Nothing here knows about models; :func:`show` is the only
function that touches the notebook.

Attributes:
    SIZE: Width and height of a figure in inches.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

SIZE = (7.0, 3.6)

COLORS = ("#1b5e9c", "#e08214", "#4d9221", "#8e4585", "#555555", "#b2182b")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")

_RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


def new_panels(columns: int, size: tuple[float, float] = SIZE) -> tuple[Figure, list[Axes]]:
    """A figure in the course's style and `columns` axes side by side. Raises ValueError when there is to be none.

    The figure is made without pyplot, so no global list keeps it alive and no window opens.
    """
    if columns < 1:
        raise ValueError(f"a figure needs at least one column, not {columns}")
    with rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def new_figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure in the course's style and its one axes, as :func:`new_panels` makes them."""
    figure, (ax,) = new_panels(1, size)
    return figure, ax


def show(figure: Figure, alt: str = "") -> None:
    """Show a figure in the notebook and return nothing.

    alt: what is seen and what follows from it, for who doesn't see the picture. The figure's text form, which nbval
    compares, is its titles and this text. The picture has twice the pixels that it is shown with, for fine screens.
    """
    from IPython.display import display

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=2 * figure.dpi)
    width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    text = ". ".join(filter(None, ["Figure: " + "; ".join(title for title in titles if title), alt]))
    about = {"width": width, "height": height} | ({"alt": alt} if alt else {})
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": text}
    display(data, metadata={"image/png": about}, raw=True)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    log_x: bool = False,
    markers: bool = True,
) -> Figure:
    """Curves over each other: `series` maps a legend entry to its x and y values.

    Raises ValueError when `series` is empty or a pair of x and y differs in length.
    """
    if not series:
        raise ValueError("no series to plot: pass at least one name: (x, y)")
    figure, ax = new_figure()
    with rc_context(_RC):
        for i, (name, (x, y)) in enumerate(series.items()):
            if len(x) != len(y):
                raise ValueError(f"series {name!r} has {len(x)} x values and {len(y)} y values")
            ax.plot(
                x, y,
                color=COLORS[i % len(COLORS)],
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)] if markers else None,
                markersize=4,
                label=name,
            )  # fmt: skip
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if log_y:
            ax.set_yscale("log")
        if log_x:
            ax.set_xscale("log")
        if len(series) > 1:
            ax.legend()
    return figure


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    stacked: bool = False,
    label_format: str | None = None,
) -> Figure:
    """Bars for each of `groups`: side by side for each of `series`, or stacked upon each other.

    `label_format`, such as ``"{:.0f} GB"``, writes the value on each bar (the total on a stack). Raises ValueError when
    `series` is empty or a series' length is not the number of groups.
    """
    if not series:
        raise ValueError("no series to plot: pass at least one name: values")
    for name, values in series.items():
        if len(values) != len(groups):
            raise ValueError(f"series {name!r} has {len(values)} values for {len(groups)} groups")
    figure, ax = new_figure()
    count = len(series)
    width = 0.6 if stacked else 0.8 / count
    bottom = [0.0] * len(groups)
    with rc_context(_RC):
        for i, (name, values) in enumerate(series.items()):
            at = range(len(groups)) if stacked else [g + (i - (count - 1) / 2) * width for g in range(len(groups))]
            drawn = ax.bar(
                at, values, width,
                bottom=bottom if stacked else None,
                color=COLORS[i % len(COLORS)], hatch=HATCHES[i % len(HATCHES)], edgecolor="white", label=name,
            )  # fmt: skip
            if stacked:
                bottom = [b + v for b, v in zip(bottom, values, strict=True)]
            elif label_format:
                ax.bar_label(drawn, [label_format.format(v) for v in values], fontsize=8, padding=2)
        if stacked and label_format:
            for x, total in enumerate(bottom):
                ax.annotate(
                    label_format.format(total), (x, total), (0, 3), textcoords="offset points", ha="center", fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=4,
                )  # fmt: skip
        ax.set_xticks(range(len(groups)), groups)
        ax.grid(visible=False, axis="x")
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if count > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the bars, never on them
    return figure


def seed_bars(groups: Mapping[str, Sequence[float]], *, title: str, xlabel: str, stacked: bool = False) -> Figure:
    """A horizontal bar for each group at the mean of its values, the first group on top, and a dot for each value.

    Where values lie on both sides of it, 0 has a line. `stacked`: equal values of a group lie above each other, in rows
    high enough to count them. Raises ValueError when there are no groups or one of them is empty.
    """
    if not groups or not all(len(values) for values in groups.values()):
        raise ValueError("nothing to plot: pass at least one name: values, each with a value")
    groups = {name: list(values) for name, values in groups.items()}
    figure, ax = new_figure(size=(SIZE[0], 0.8 + (0.65 if stacked else 0.32) * len(groups)))
    with rc_context(_RC):
        at = list(range(len(groups)))[::-1]
        most = max(max(Counter(values).values()) for values in groups.values()) if stacked else 1
        means = [sum(values) / len(values) for values in groups.values()]
        ax.barh(at, means, 0.6, color=COLORS[0], alpha=0.35, edgecolor="white", label="mean")
        dots = []
        for y, values in zip(at, groups.values(), strict=True):
            for i, value in enumerate(values):
                same, before = values.count(value), values[:i].count(value)
                dots.append((value, y + 0.8 / most * (before - (same - 1) / 2) if stacked else y))
        ax.plot(*zip(*dots, strict=True), linestyle="none", marker="o", markersize=4, color="#222222", label="one seed")
        if min(value for value, _ in dots) < 0 < max(value for value, _ in dots):
            ax.axvline(0, color="#222222", linewidth=1.0)
        ax.set_yticks(at, list(groups))
        ax.grid(visible=False, axis="y")
        ax.set(title=title, xlabel=xlabel)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def panels(
    series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Curves in panels side by side with one y axis: `series` maps a panel's name to its curves, as in :func:`lines`.

    A curve has the same look in every panel, so the legend stands once. Raises ValueError when there is no panel, a
    panel has no curve or a pair of x and y differs in length.
    """
    if not series or not all(series.values()):
        raise ValueError("nothing to plot: every panel needs at least one name: (x, y)")
    names = list(dict.fromkeys(name for curves in series.values() for name in curves))
    figure, axes = new_panels(len(series))
    with rc_context(_RC):
        for ax, (panel, curves) in zip(axes, series.items(), strict=True):
            for name, (x, y) in curves.items():
                if len(x) != len(y):
                    raise ValueError(f"series {name!r} of {panel!r} has {len(x)} x values and {len(y)} y values")
                i = names.index(name)
                ax.plot(
                    x, y, color=COLORS[i % len(COLORS)], linestyle=LINES[i % len(LINES)],
                    marker=MARKERS[i % len(MARKERS)], markersize=4, label=name,
                )  # fmt: skip
            ax.set_title(panel, loc="left", fontsize=10, fontweight="normal")
            ax.set(xlabel=xlabel)
            ax.sharey(axes[0])
        axes[0].set_ylabel(ylabel)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def plain_log_ticks(axis) -> None:
    """Give a logarithmic axis ticks at 1, 2 and 5 times the powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def seed_panels(panels: Mapping[str, Mapping[str, Sequence[float]]], *, title: str, xlabel: str) -> Figure:
    """Panels side by side with the same rows: a ring for each seed's value, and a thick black mark at the mean.

    Rows stand in the order of the first panel, the first on top. Raises ValueError when there are no panels, a row has
    no value, or the panels' rows differ.
    """
    if not panels or not all(rows and all(len(v) for v in rows.values()) for rows in panels.values()):
        raise ValueError("nothing to plot: every panel needs at least one name: values, each with a value")
    names = list(next(iter(panels.values())))
    if any(set(rows) != set(names) for rows in panels.values()):
        raise ValueError("the panels have different rows: give each the same names")
    figure, axes = new_panels(len(panels), size=(SIZE[0], 1.2 + 0.28 * len(names)))
    with rc_context(_RC):
        for ax, (panel, rows) in zip(axes, panels.items(), strict=True):
            for y, name in enumerate(names):
                values = list(rows[name])
                mean = sum(values) / len(values)
                ax.plot([min(values), max(values)], [-y, -y], color="#999999", linewidth=1, zorder=1)
                ax.plot(
                    values, [-y] * len(values), linestyle="none", marker="o", markersize=5, markerfacecolor="white",
                    color=COLORS[0], markeredgewidth=1.3, label="one seed" if not y else None,
                )  # fmt: skip
                ax.plot(
                    [mean], [-y], linestyle="none", marker="|", markersize=14, markeredgewidth=2.5, color="black",
                    label="mean" if not y else None,
                )  # fmt: skip
            ax.set_ylim(-len(names) + 0.4, 0.6)
            ax.set_yticks([-y for y in range(len(names))], names if ax is axes[0] else [""] * len(names))
            ax.set_title(panel, loc="left", fontsize=10, fontweight="normal")
            ax.set(xlabel=xlabel)
            ax.sharex(axes[0])
        axes[0].autoscale(axis="x")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
