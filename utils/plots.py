"""Every figure of the course, in one style.

Each function takes plain data and returns a :class:`matplotlib.figure.Figure` with a title, axis labels with units and,
where there is more than one series, a legend. Series differ by marker, line style or hatch as well as by colour, so
that a figure still reads when it is printed in grey. Nothing here knows about models; :func:`show` is the only
function that touches the notebook.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

SIZE = (7.0, 3.6)
"""Width and height of a figure in inches."""

COLORS = ("#1b5e9c", "#e08214", "#4d9221", "#8e4585", "#555555", "#b2182b")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")

_RC = {
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


def new_figure(columns: int = 1, size: tuple[float, float] = SIZE):
    """A figure in the course's style and its axes: one Axes, or a list of `columns` of them side by side.

    The figure is made without pyplot, so no global list keeps it alive and no window opens.
    """
    if columns < 1:
        raise ValueError(f"a figure needs at least one column, not {columns}")
    with rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, (axes[0] if columns == 1 else list(axes))


def show(figure: Figure) -> None:
    """Show a figure in the notebook and return nothing. Its text form, which nbval compares, is the figure's titles."""
    from IPython.display import display

    png = io.BytesIO()
    figure.savefig(png, format="png")
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    text = "Figure: " + "; ".join(title for title in titles if title)
    display({"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": text}, raw=True)


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
                    label_format.format(total), (x, total), (0, 3), textcoords="offset points", ha="center", fontsize=8
                )
        ax.set_xticks(range(len(groups)), groups)
        ax.grid(visible=False, axis="x")
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if count > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the bars, never on them
    return figure


# ------------------------------------------------------------------------------ chapter 1: the fine-tuning problem


def memory_bars(
    ways: Sequence[str], parts: Mapping[str, Sequence[float]], *, title: str, cards: Mapping[str, float]
) -> Figure:
    """Stacked bars of memory in GB, one for each way to train, with the sizes of `cards` as horizontal lines.

    Raises what :func:`bars` raises.
    """
    figure = bars(ways, parts, title=title, xlabel="way to train", ylabel="GB", stacked=True, label_format="{:.0f} GB")
    ax = figure.axes[0]
    with rc_context(_RC):
        for name, gb in cards.items():
            ax.axhline(gb, color="#333333", linewidth=1, linestyle=(0, (6, 3)), zorder=3)
            ax.annotate(
                name, (1, gb), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
            )
    return figure


# ------------------------------------------------------------------------------ chapter 2: rank decomposition


def pictures(panels: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> Figure:
    """Matrices side by side as pictures, 0 black and 1 white; `panels` maps a name to each matrix.

    Raises ValueError when `panels` is empty.
    """
    if not panels:
        raise ValueError("no panels to show: pass at least one name: matrix")
    figure, axes = new_figure(len(panels), size=(7.0, 1.9))
    with rc_context(_RC):
        for ax, (name, matrix) in zip(axes if len(panels) > 1 else [axes], panels.items(), strict=True):
            ax.imshow([[float(v) for v in row] for row in matrix], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(name, loc="left", fontsize=10, fontweight="normal")
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def by_rank(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    title: str,
    ylabel: str,
    level: tuple[float, str] | None = None,
    log_y: bool = False,
) -> Figure:
    """Curves over the rank, each doubling taking the same room; a series of one point is a lone marker.

    `level` draws a grey horizontal line at a value, with words at its left end. Raises ValueError when
    `series` is empty, a pair of x and y differs in length or a rank is below 1.
    """
    for name, (ranks, _) in series.items():
        if any(rank < 1 for rank in ranks):
            raise ValueError(f"series {name!r} has a rank below 1, which this axis can't show")
    figure = lines(series, title=title, xlabel="rank r", ylabel=ylabel, log_y=log_y)
    ax = figure.axes[0]
    with rc_context(_RC):
        for line, (ranks, _) in zip(ax.lines, series.values(), strict=True):
            if len(ranks) == 1:
                line.set(markersize=11, linestyle="none")
        ranks = [rank for x, _ in series.values() for rank in x]
        ax.set_xscale("log", base=2)
        ax.set_xticks([2**i for i in range(max(ranks).bit_length()) if 2**i >= min(ranks)])
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.minorticks_off()
        if level:
            value, words = level
            ax.axhline(value, color="#555555", linewidth=1, linestyle=(0, (6, 3)), zorder=1)
            at = dict(xycoords=("axes fraction", "data"), textcoords="offset points")
            ax.annotate(words, (0, value), (4, 3), **at)
        if len(series) > 1:
            ax.legend()
    return figure


# ------------------------------------------------------------------------------ chapter 4: data


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


def histogram(
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "records",
    bins: int = 30,
    cut: tuple[float, str] | None = None,
) -> Figure:
    """How often each size occurs: one outline for each series, over the same bins.

    `cut` draws a vertical line at a value, with words beside it. Raises ValueError when there are no series or one is
    empty.
    """
    if not values:
        raise ValueError("no series to plot: pass at least one name: values")
    for name, series in values.items():
        if not len(series):
            raise ValueError(f"series {name!r} is empty: there is nothing to count")
    everything = [v for series in values.values() for v in series] + ([cut[0]] if cut else [])
    figure, ax = new_figure()
    with rc_context(_RC):
        span = (min(everything), max(everything) + 1)
        for i, (name, series) in enumerate(values.items()):
            color, style = COLORS[i % len(COLORS)], LINES[i % len(LINES)]
            ax.hist(
                series, bins, range=span, histtype="stepfilled", facecolor=(color, 0.25), edgecolor=color,
                linestyle=style, linewidth=1.5, hatch=HATCHES[i % len(HATCHES)], label=name,
            )  # fmt: skip
        if cut:
            value, words = cut
            ax.axvline(value, color="#333333", linewidth=1.2, linestyle=(0, (6, 3)))
            at = dict(xycoords=("data", "axes fraction"), textcoords="offset points")
            ax.annotate(words, (value, 0.92), (-4, 0), ha="right", **at)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if len(values) > 1:
            ax.legend()
    return figure


# ------------------------------------------------------------------------------ chapter 7: training with SFTTrainer


def seed_bars(groups: Mapping[str, Sequence[float]], *, title: str, xlabel: str) -> Figure:
    """A horizontal bar for each group at the mean of its values, the first group on top, and a dot for each value.

    Raises ValueError when there are no groups or one of them is empty.
    """
    if not groups or not all(len(values) for values in groups.values()):
        raise ValueError("nothing to plot: pass at least one name: values, each with a value")
    figure, ax = new_figure(size=(SIZE[0], 0.8 + 0.32 * len(groups)))
    with rc_context(_RC):
        at = list(range(len(groups)))[::-1]
        means = [sum(values) / len(values) for values in groups.values()]
        ax.barh(at, means, 0.6, color=COLORS[0], alpha=0.35, edgecolor="white", label="mean")
        dots = [(value, y) for y, values in zip(at, groups.values(), strict=True) for value in values]
        ax.plot(*zip(*dots, strict=True), linestyle="none", marker="o", markersize=4, color="#222222", label="one seed")
        ax.set_yticks(at, list(groups))
        ax.grid(visible=False, axis="y")
        ax.set(title=title, xlabel=xlabel)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ------------------------------------------------------------------------------ chapter 5: loading models


def code_books(values: Sequence[float], books: Mapping[str, Sequence[float]], *, title: str, xlabel: str) -> Figure:
    """A histogram of scaled weights, with the entries of each code book as a row of marks below it.

    Raises ValueError when there are no values or no books.
    """
    if not len(values) or not books:
        raise ValueError("nothing to plot: pass values and at least one name: entries")
    figure, ax = new_figure()
    with rc_context(_RC):
        heights, _, _ = ax.hist(values, bins=81, range=(-1.02, 1.02), density=True, color="#c4d3e0")
        step = 0.13 * max(heights)
        for i, (name, entries) in enumerate(books.items()):
            row = -step * (i + 1)
            ax.plot(
                list(entries), [row] * len(entries),
                color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=5, linewidth=0.6,
                label=name,
            )  # fmt: skip
        ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= max(heights)])
        ax.set_ylim(-step * (len(books) + 0.7), 1.05 * max(heights))
        ax.set(title=title, xlabel=xlabel, ylabel="density")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ------------------------------------------------------------------------------ chapter 8: save, load, merge


def log_dots(rows: Mapping[str, Mapping[str, float]], *, title: str, xlabel: str) -> Figure:
    """A row for each of `rows`, the first on top, with a marker for each of its named values on a logarithmic axis.

    The same name has the same marker in every row. Raises ValueError when there are no rows, a row is empty, or a value
    isn't positive.
    """
    if not rows or not all(rows.values()):
        raise ValueError("nothing to plot: pass at least one row: {name: value}")
    for row, values in rows.items():
        for name, value in values.items():
            if not value > 0:
                raise ValueError(f"{name!r} of {row!r} is {value}: a logarithmic axis shows positive values only")
    figure, ax = new_figure(size=(SIZE[0], 1.2 + 0.4 * len(rows)))
    with rc_context(_RC):
        names = list(dict.fromkeys(name for values in rows.values() for name in values))
        for i, name in enumerate(names):
            at = [(values[name], -y) for y, values in enumerate(rows.values()) if name in values]
            ax.plot(
                *zip(*at, strict=True), linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=6,
                color=COLORS[i % len(COLORS)], markerfacecolor="none", markeredgewidth=1.5, label=name,
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_yticks([-y for y in range(len(rows))], list(rows))
        ax.set_ylim(-len(rows) + 0.5, 0.5)
        ax.set(title=title, xlabel=xlabel)
        if len(names) > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ------------------------------------------------------------------------------ chapter 9: many adapters


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    unit: str,
    limits: tuple[float, float] = (0, 100),
) -> Figure:
    """A table as shaded squares with the number in each, the first row on top; `unit` names the shades' scale.

    Raises ValueError when there is nothing to show or the values are not one row for each of `rows` with one number for
    each of `columns`.
    """
    if not rows or not columns:
        raise ValueError("nothing to show: pass at least one row and one column")
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(f"the values are not {len(rows)} rows of {len(columns)} numbers")
    figure, ax = new_figure(size=(SIZE[0], 1.4 + 0.45 * len(rows)))
    low, high = limits
    with rc_context(_RC):
        picture = ax.imshow([list(row) for row in values], cmap="Blues", vmin=low, vmax=high, aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                dark = value > low + 0.6 * (high - low)
                ax.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
        ax.grid(visible=False)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        figure.colorbar(picture, ax=ax, label=unit)
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
    figure, axes = new_figure(len(series))
    axes = axes if len(series) > 1 else [axes]
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


# ------------------------------------------------------------------------------ chapter 10: generation


def token_panels(tokens: Sequence[str], panels: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """Next-token probabilities side by side: a panel for each way to change them, a bar for each token, the first on
    top. A token that can't be drawn, its probability exactly 0, has a cross instead of a bar.

    Raises ValueError when there are no panels, or one has another number of probabilities than there are tokens.
    """
    if not panels:
        raise ValueError("no panels to show: pass at least one name: probabilities")
    for name, values in panels.items():
        if len(values) != len(tokens):
            raise ValueError(f"panel {name!r} has {len(values)} probabilities for {len(tokens)} tokens")
    figure, axes = new_figure(len(panels), size=(1.0 + 1.6 * len(panels), 0.9 + 0.22 * len(tokens)))
    axes = axes if len(panels) > 1 else [axes]
    rows = list(range(len(tokens)))[::-1]
    most = max(max(values) for values in panels.values())
    with rc_context(_RC):
        for i, (ax, (name, values)) in enumerate(zip(axes, panels.items(), strict=True)):
            color, hatch = COLORS[i % len(COLORS)], HATCHES[i % len(HATCHES)]
            ax.barh(rows, values, 0.7, color=color, hatch=hatch, edgecolor="white")
            gone = [row for row, value in zip(rows, values, strict=True) if value == 0]
            ax.plot([0.03 * most] * len(gone), gone, linestyle="none", marker="x", markersize=4, color="#777777")
            ax.set_title(name, loc="left", fontsize=10, fontweight="normal")
            ax.set(xlabel="probability", xlim=(0, 1.05 * most), ylim=(-0.6, len(tokens) - 0.4))
            ax.set_yticks(rows, [token.replace("$", r"\$") for token in tokens] if i == 0 else [""] * len(tokens))
            ax.grid(visible=False, axis="y")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


# ------------------------------------------------------------------------------ chapter 13: the capstone


def before_after(measures: Mapping[str, tuple[float, float]], *, title: str, names: tuple[str, str]) -> Figure:
    """A panel for each measure, written "measure (unit)", with two bars: before and after, named by `names`.

    Each panel has its own scale, from zero, and the values stand on the bars. Raises ValueError when there is nothing
    to show or a value is negative or no number.
    """
    if not measures:
        raise ValueError("nothing to plot: pass at least one measure: (before, after)")
    for name, pair in measures.items():
        if not all(value >= 0 for value in pair):
            raise ValueError(f"{name!r} has the values {pair}: bars from zero need numbers of 0 or more")
    figure, axes = new_figure(len(measures), size=(1.0 + 1.6 * len(measures), 2.8))
    axes = axes if len(measures) > 1 else [axes]
    with rc_context(_RC):
        for ax, (name, pair) in zip(axes, measures.items(), strict=True):
            for i, value in enumerate(pair):
                drawn = ax.bar([i], [value], 0.6, color=COLORS[i], hatch=HATCHES[i], edgecolor="white")
                ax.bar_label(drawn, labels=[f"{value:.3g}"], fontsize=9)
            measure, _, unit = name.rstrip(")").partition(" (")
            ax.set_title(measure, loc="left", fontsize=9, fontweight="normal")
            ax.set_xticks([0, 1], names)
            ax.set(ylabel=unit or measure, xlabel="model", ylim=(0, 1.15 * max(*pair, 1e-9)))
            ax.grid(visible=False, axis="x")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def sizes_and_cards(
    ways: Mapping[str, float], sizes: Sequence[float], cards: Mapping[str, float], *, title: str, usable: float = 1.0
) -> Figure:
    """What training takes by the model's size: a line for each way, which `ways` maps to bytes a parameter, and a level
    for each card, which `cards` maps to GB. Model sizes are in billions of parameters; both axes are logarithmic.

    A card's level is drawn at the share `usable` of its memory. Raises ValueError for a size, a card or a number of
    bytes that isn't positive, or when one of the three is empty.
    """
    if not ways or not len(sizes) or not cards:
        raise ValueError("nothing to plot: pass ways, sizes and cards")
    for value in [*ways.values(), *sizes, *cards.values(), usable]:
        if not value > 0:
            raise ValueError(f"sizes, cards and bytes are more than 0, not {value}: both axes are logarithmic")
    figure, ax = new_figure()
    with rc_context(_RC):
        for i, (name, bytes_each) in enumerate(ways.items()):
            ax.plot(
                sizes, [size * bytes_each for size in sizes], color=COLORS[i % len(COLORS)],
                linestyle=LINES[i % len(LINES)], marker=MARKERS[i % len(MARKERS)], markersize=4, label=name,
            )  # fmt: skip
        for name, gb in cards.items():
            ax.axhline(usable * gb, color="#777777", linewidth=0.8)
            ax.annotate(
                name, (1, usable * gb), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="model (billions of parameters)", ylabel="memory (GB)")
        ticks = [size for size in (0.1, 0.3, 1, 3, 7, 13, 34, 70) if min(sizes) <= size <= max(sizes)]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_title(title)
        ax.legend()
    return figure


def count_bars(counts: Mapping[str, int], *, title: str, xlabel: str) -> Figure:
    """Horizontal bars of counts, the first on top, each with its number. Raises ValueError when there are none."""
    if not counts:
        raise ValueError("nothing to plot: pass at least one name: count")
    figure, ax = new_figure(size=(SIZE[0], 0.9 + 0.26 * len(counts)))
    rows = list(range(len(counts)))[::-1]
    with rc_context(_RC):
        drawn = ax.barh(rows, list(counts.values()), 0.7, color=COLORS[0], edgecolor="white")
        ax.bar_label(drawn, padding=3, fontsize=9)
        ax.set_yticks(rows, list(counts))
        ax.set(xlabel=xlabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(visible=False, axis="y")
        ax.set_title(title)
    return figure


# ------------------------------------------------------------------------------ chapter 5: what fits on which card


def batches_and_cards(
    ways: Mapping[str, Mapping[int, float]], cards: Sequence[float], *, title: str, xlabel: str = "sequences in a batch"
) -> Figure:
    """The GB that each way to train needs for each batch, as curves, and the sizes of `cards` in GB as levels.

    Both axes are logarithmic. Raises ValueError when there is no way or no card.
    """
    if not cards:
        raise ValueError("no card to compare with: pass at least one size in GB")
    series = {way: (list(needs), list(needs.values())) for way, needs in ways.items()}
    figure = lines(series, title=title, xlabel=xlabel, ylabel="memory needed (GB)", log_x=True, log_y=True)
    ax = figure.axes[0]
    batches = sorted({batch for needs in ways.values() for batch in needs})
    levels = sorted(cards)
    highest = max([*cards, *(size for needs in ways.values() for size in needs.values())])
    with rc_context(_RC):
        ax.set_xticks(batches, [str(batch) for batch in batches])
        ax.set_yticks(levels, [f"{level:g}" for level in levels])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
        ax.set_ylim(top=4 * highest)  # the legend lies above the curves
        ax.legend(loc="upper left", ncols=2)
        for card in cards:
            ax.axhline(card, color="#777777", linewidth=0.8)
            ax.annotate(
                f"{card:g} GB card", (1, card), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
    return figure


# ---------------------------------------------------------------------------- chapter 14: what a LoRA step costs


def roofline(flops: float, memory: float, points: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Figure:
    """What a device can reach, and what was reached: operations a second over operations for each byte moved.

    `flops` and `memory` are the device's operations and bytes a second; `points` maps a legend entry to pairs of
    operations for each byte and operations a second. Raises ValueError when there are no points, or a rate isn't
    positive.
    """
    if not points or flops <= 0 or memory <= 0:
        raise ValueError("a roofline needs two positive rates and at least one group of points")
    figure, ax = new_figure()
    ridge = flops / memory
    across = [x for group in points.values() for x, _ in group]
    left, right = min(*across, ridge / 4) / 2, max(*across, ridge * 4) * 2
    with rc_context(_RC):
        ax.plot([left, ridge, right], [memory * left, flops, flops], color="black", label="roof")
        for i, (name, group) in enumerate(points.items()):
            xs, ys = zip(*group, strict=True)
            ax.plot(xs, ys, MARKERS[i % len(MARKERS)], color=COLORS[i % len(COLORS)], label=name)
        beside = {"textcoords": "offset points", "fontsize": 9}
        ax.annotate("limited by memory", (left * 1.5, memory * left * 1.5), xytext=(-10, 20), rotation=33, **beside)
        ax.annotate("limited by arithmetic", (right, flops), xytext=(0, -16), ha="right", **beside)
        ax.set(
            title=title,
            xlabel="operations for each byte moved",
            ylabel="operations a second",
            xscale="log",
            yscale="log",
        )
        ax.legend(loc="lower right")
    return figure


# ------------------------------------------------------------------------------ chapter 11: a study


def plain_log_ticks(axis) -> None:
    """Give a logarithmic axis ticks at 1, 2 and 5 times the powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def trial_curves(
    trials: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Many curves of a few kinds, on a logarithmic y axis: `trials` maps a kind to its curves, each x and y values.

    A kind shares one look and one entry of the legend; a dot marks where each curve ends. Raises ValueError when there
    is no curve, or a pair of x and y is empty or differs in length.
    """
    if not any(trials.values()):
        raise ValueError("no curves to plot: pass at least one kind: [(x, y)]")
    figure, ax = new_figure()
    with rc_context(_RC):
        for i, (kind, curves) in enumerate(trials.items()):
            for n, (x, y) in enumerate(curves):
                if len(x) != len(y) or not len(x):
                    raise ValueError(f"a curve of {kind!r} has {len(x)} x values and {len(y)} y values")
                look = dict(color=COLORS[i % len(COLORS)], linestyle=LINES[i % len(LINES)], linewidth=1.1, alpha=0.8)
                ax.plot(x, y, label=kind if n == 0 else None, **look)
                ax.plot(x[-1:], y[-1:], marker=MARKERS[i % len(MARKERS)], markersize=4, color=look["color"])
        ax.set_yscale("log")
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def budget_race(
    arms: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """The best value so far over what was spent, a panel for each arm and a step line for each of its repetitions.

    Values that aren't finite are not drawn; the y axis is logarithmic and shared. Raises ValueError when there is no
    arm or one has no repetition.
    """
    if not arms or not all(arms.values()):
        raise ValueError("nothing to plot: pass at least one arm: [(spent, best)]")
    figure, axes = new_figure(len(arms), size=(1.0 + 2.2 * len(arms), 3.2))
    axes = axes if len(arms) > 1 else [axes]
    with rc_context(_RC):
        for ax, (name, runs) in zip(axes, arms.items(), strict=True):
            for i, (spent, best) in enumerate(runs):
                ax.step(
                    spent, best, where="post", color=COLORS[i % len(COLORS)], linestyle=LINES[i % len(LINES)],
                    label=f"seed {i}",
                )  # fmt: skip
            ax.set_title(name, loc="left", fontsize=10, fontweight="normal")
            ax.set(xlabel=xlabel, yscale="log")
        shown = [value for runs in arms.values() for _, best in runs for value in best if value < float("inf")]
        for ax in axes:
            ax.set_ylim(0.8 * min(shown), 1.25 * max(shown))
            ax.tick_params(labelleft=ax is axes[0])
            ax.locator_params(axis="x", nbins=3)
        axes[0].set_ylabel(ylabel)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def contour(
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[float],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    unit: str,
    width: float = 0.12,
) -> Figure:
    """How a positive value depends on two positive others: smoothed shades, a dot for each point, a star on the lowest.

    All three scales are logarithmic. A shade is the mean of the points' logarithms, weighted by a Gaussian in their
    distance whose width is the share `width` of each axis. Raises ValueError for fewer than three points, lengths that
    differ and values that aren't positive.
    """
    import numpy as np

    if len(x) < 3 or not len(x) == len(y) == len(values):
        raise ValueError(
            f"a contour needs three points or more of x, y and value, not {len(x)}, {len(y)}, {len(values)}"
        )
    points = [np.asarray(v, dtype=float) for v in (x, y, values)]
    if not all((v > 0).all() for v in points):
        raise ValueError("a contour on logarithmic scales needs positive numbers only")
    log_x, log_y, log_v = (np.log(v) for v in points)
    edge = [0.04 * np.ptp(v) for v in (log_x, log_y)]
    grid = [np.linspace(v.min() - e, v.max() + e, 80) for v, e in zip((log_x, log_y), edge, strict=True)]
    away_x, away_y = (
        (g[:, None] - v[None]) / (width * max(np.ptp(v), 1e-9)) for g, v in zip(grid, (log_x, log_y), strict=True)
    )
    weight = np.exp(-0.5 * (away_y[:, None] ** 2 + away_x[None] ** 2))
    shades = np.exp((weight * log_v).sum(-1) / weight.sum(-1))
    figure, ax = new_figure(size=(SIZE[0], 4.0))
    with rc_context(_RC):
        levels = np.geomspace(shades.min(), shades.max(), 9)
        filled = ax.contourf(np.exp(grid[0]), np.exp(grid[1]), shades, levels=levels, cmap="Blues_r", extend="both")
        ax.plot(points[0], points[1], linestyle="none", marker="o", markersize=3.5, color="#222222", label="a trial")
        best = int(np.argmin(points[2]))
        ax.plot(
            points[0][best], points[1][best], linestyle="none", marker="*", markersize=15, color="#e08214",
            markeredgecolor="#222222", label="the best",
        )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        plain_log_ticks(ax.xaxis)
        plain_log_ticks(ax.yaxis)
        ax.grid(visible=False)
        ax.set_title(title)
        bar = figure.colorbar(filled, ax=ax, label=unit)
        bar.set_ticks(levels[::2], labels=[f"{level:.2g}" for level in levels[::2]])
        bar.ax.minorticks_off()
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def shrinkage(rows: Mapping[str, tuple[float, Sequence[float]]], *, title: str, xlabel: str) -> Figure:
    """Promise and outcome: for each row a cross at the first number, rings at the others, a bar at their mean.

    The first row is on top and the x axis is logarithmic. Raises ValueError when there is nothing to plot or a number
    isn't positive.
    """
    if not rows or not all(len(again) for _, again in rows.values()):
        raise ValueError("nothing to plot: pass at least one row: (promised, [later, ...])")
    if not all(value > 0 for promised, again in rows.values() for value in (promised, *again)):
        raise ValueError("a logarithmic axis needs positive numbers only")
    figure, ax = new_figure(size=(SIZE[0], 1.2 + 0.26 * len(rows)))
    with rc_context(_RC):
        for at, (promised, again) in enumerate(rows.values()):
            first, mean = at == 0, sum(again) / len(again)
            ax.plot([promised, mean], [-at, -at], color="#999999", linewidth=1, zorder=1)
            ax.plot(
                again, [-at] * len(again), linestyle="none", marker="o", markersize=3.5, color=COLORS[0],
                markerfacecolor="none", label="a new seed" if first else None,
            )  # fmt: skip
            ax.plot(
                mean, -at, linestyle="none", marker="|", markersize=13, markeredgewidth=2.5, color=COLORS[0],
                label="their mean" if first else None,
            )  # fmt: skip
            ax.plot(
                promised, -at, linestyle="none", marker="X", markersize=7, color=COLORS[1],
                label="in the study" if first else None,
            )  # fmt: skip
        ax.set_yticks([-at for at in range(len(rows))], list(rows))
        ax.set_xscale("log")
        plain_log_ticks(ax.xaxis)
        ax.grid(visible=False, axis="y")
        ax.set(title=title, xlabel=xlabel)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ------------------------------------------------------------------------------ chapter 11: the clinic


def ward(charts: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str) -> Figure:
    """A panel for each run, by name: its loss (thick) and its gradient norm (thin, dashed), both on one log axis.

    A norm of zero can't be drawn on it and is left out. Raises ValueError when there is no run or one without a step.
    """
    if not charts or not all(len(losses) for losses, _ in charts.values()):
        raise ValueError("nothing to plot: every run needs at least one step")
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    with rc_context(_RC):
        figure = Figure(figsize=(SIZE[0], 0.5 + 1.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for at, ax in enumerate(axes.flat):
            if at >= len(charts):
                ax.set_visible(False)
                continue
            name, (losses, norms) = list(charts.items())[at]
            drawn = [norm if norm > 0 else float("nan") for norm in norms]
            ax.plot(drawn, color=COLORS[1], linestyle="--", linewidth=0.9, label="gradient norm")
            ax.plot(losses, color=COLORS[0], linewidth=2, label="loss (nats per label)")
            ax.set_title(name, loc="left", fontsize=10)
            ax.set_yscale("log")
            ax.minorticks_off()  # six panels of them take a second to draw
            if at // columns == rows - 1:
                ax.set_xlabel("step")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)
    return figure


# --- chapter 12: the variants


def over_rates(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
) -> Figure:
    """Curves over learning rates on a logarithmic axis, with plain numbers on the axes and the legend beside them.

    Raises what :func:`lines` raises.
    """
    figure = lines(series, title=title, xlabel=xlabel, ylabel=ylabel, log_x=True, log_y=log_y)
    ax = figure.axes[0]
    with rc_context(_RC):
        if log_y:
            plain_log_ticks(ax.yaxis)
        rates = sorted({x for xs, _ in series.values() for x in xs})
        ax.set_xticks(rates[:: -(-len(rates) // 6)])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


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
    figure, axes = new_figure(len(panels), size=(SIZE[0], 1.2 + 0.28 * len(names)))
    axes = axes if len(panels) > 1 else [axes]
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


def sprint(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    apart: Sequence[str] = (),
) -> Figure:
    """Two panels of the same runs: left their losses, right by how much each lies below the first run's.

    All runs have the same x values; the first is drawn in black. Runs named in `apart` are left out on the right, where
    their distance would press the others together. Raises ValueError when there are fewer than two runs, their x values
    differ, or `apart` names a run that isn't there or the first one.
    """
    if len(curves) < 2:
        raise ValueError("a sprint needs at least two runs: the first is what the others are compared with")
    first, (steps, base) = next(iter(curves.items()))
    for name, (x, y) in curves.items():
        if list(x) != list(steps) or len(y) != len(steps):
            raise ValueError(f"run {name!r} was not measured at the same steps as {first!r}")
    if wrong := [name for name in apart if name not in curves or name == first]:
        raise ValueError(f"can't set apart {wrong}: name runs that were passed, and not the first of them")
    figure, (left, right) = new_figure(2, size=(SIZE[0], 4.2))
    with rc_context(_RC):
        for i, (name, (x, y)) in enumerate(curves.items()):
            look = dict(
                color=("black", *COLORS)[i % (len(COLORS) + 1)], linestyle=LINES[i % len(LINES)],
                marker=(*MARKERS, "X")[i % (len(MARKERS) + 1)], markersize=5, markerfacecolor="white",
            )  # fmt: skip
            left.plot(x, y, label=name, **look)
            if name not in apart:
                right.plot(x, [b - v for b, v in zip(base, y, strict=True)], **look)
        left.set(xlabel=xlabel, ylabel=ylabel)
        right.set(xlabel=xlabel)
        for ax, part in ((left, "the loss"), (right, f"ahead of {first} by, same unit")):
            ax.set_title(part, loc="left", fontsize=10, fontweight="normal")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3.5)
    return figure
