"""Figures of training runs: trials, sweeps over rates and ranks, seeds, races, vital signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.plots.core import (
    _RC,
    COLORS,
    LINES,
    MARKERS,
    SIZE,
    lines,
    new_figure,
    plain_log_ticks,
)


def by_rank(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    title: str,
    ylabel: str,
    level: tuple[float, str] | None = None,
    log_y: bool = False,
    seeds: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Figure:
    """Curves over the rank, each doubling taking the same room; a series of one point is a lone marker.

    `level` draws a grey horizontal line at a value, with words at its left end. `seeds` has, for each series
    and rank, the values that the curve is the mean of: the curve's marker, small and in its colour, the series side by
    side. Raises ValueError when `series` is empty, a pair of x and y differs in length, a rank is below 1, or `seeds`
    doesn't fit.
    """
    for name, (ranks, _) in series.items():
        if any(rank < 1 for rank in ranks):
            raise ValueError(f"series {name!r} has a rank below 1, which this axis can't show")
    if seeds is not None and [(n, len(v)) for n, v in seeds.items()] != [(n, len(x)) for n, (x, _) in series.items()]:
        raise ValueError("seeds need, for each of the series, the values at each of its ranks")
    figure = lines(series, title=title, xlabel="rank r", ylabel=ylabel, log_y=log_y)
    ax = figure.axes[0]
    with rc_context(_RC):
        for line, (ranks, _) in zip(ax.lines, series.values(), strict=True):
            if len(ranks) == 1:
                line.set(markersize=11, linestyle="none")
        for i, (name, values) in enumerate((seeds or {}).items()):
            line, aside = ax.lines[i], 2 ** (0.09 * (i - (len(series) - 1) / 2))
            line.set_markersize(max(7, line.get_markersize()))
            points = [(aside * rank, y) for rank, at in zip(series[name][0], values, strict=True) for y in at]
            small: dict[str, Any] = dict(markersize=4, markeredgecolor="white", markeredgewidth=0.4, linestyle="none")
            ax.plot(*zip(*points, strict=True), color=line.get_color(), marker=line.get_marker(), alpha=0.75, **small)
        ranks = [rank for x, _ in series.values() for rank in x]
        ax.set_xscale("log", base=2)
        ax.set_xticks([2**i for i in range(max(ranks).bit_length()) if 2**i >= min(ranks)])
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.minorticks_off()
        if level:
            value, words = level
            ax.axhline(value, color="#555555", linewidth=1, linestyle=(0, (6, 3)), zorder=1)
            ax.annotate(words, (0, value), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
        if len(series) > 1:
            ax.legend()
    return figure


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
                look: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i % len(LINES)]}
                ax.plot(x, y, label=kind if n == 0 else None, linewidth=1.1, alpha=0.8, **look)
                ax.plot(x[-1:], y[-1:], marker=MARKERS[i % len(MARKERS)], markersize=4, color=look["color"])
        ax.set_yscale("log")
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
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


def ward(charts: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str) -> Figure:
    """A column for each run, by name: its loss above, its gradient norm below, both on log axes that all share.

    A norm of zero can't be drawn on one: where all are, the panel says so. Raises ValueError when there is no run or
    one without a step.
    """
    if not charts or not all(len(losses) for losses, _ in charts.values()):
        raise ValueError("nothing to plot: every run needs at least one step")
    with rc_context(_RC):
        figure = Figure(figsize=(SIZE[0] + 0.4, 3.6), layout="constrained")
        axes = figure.subplots(2, len(charts), squeeze=False, sharex=True, sharey="row")
        for column, (name, (losses, norms)) in enumerate(charts.items()):
            above, below = axes[:, column]
            above.plot(losses, color=COLORS[0], linewidth=1.8)
            below.plot([norm if norm > 0 else float("nan") for norm in norms], color=COLORS[1], linewidth=1.2)
            if not any(norms):
                below.text(0.5, 0.5, "zero", transform=below.transAxes, ha="center", va="center")
            above.set_title(name, loc="left", fontsize=10)
            below.set_xlabel("step")
            for ax in (above, below):
                ax.set_yscale("log")
                ax.minorticks_off()  # so many panels of them take a second to draw
        axes[0, 0].set_ylabel("loss (nats per label)")
        axes[1, 0].set_ylabel("gradient norm")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def run_log(history: Sequence[Mapping[str, float]], *, title: str, max_norm: float | None = None) -> Figure:
    """What a trainer logged, a panel for each quantity: `history` is transformers' ``trainer.state.log_history``.

    The panels are loss, gradient norm (both logarithmic), learning rate, entropy and token accuracy, over the step. A
    panel has the training's values as a line and the held-out data's (`eval_...`) as markers; `max_norm` draws the line
    at which gradients are clipped. Raises ValueError when no entry has a loss.
    """
    trained = [entry for entry in history if "loss" in entry]
    held_out = [entry for entry in history if "eval_loss" in entry]
    if not trained:
        raise ValueError("nothing to plot: no entry of the history has a loss")
    names = {
        "loss": "loss (nats per label)", "grad_norm": "gradient norm", "learning_rate": "learning rate",
        "entropy": "entropy (nats per label)", "mean_token_accuracy": "token accuracy (share)",
    }  # fmt: skip
    with rc_context(_RC):
        figure = Figure(figsize=(SIZE[0], 4.6), layout="constrained")
        axes = figure.subplots(2, 3, squeeze=True, sharex=True).flat
        for ax, (name, words) in zip(axes, names.items(), strict=False):
            for entries, key, look in (
                (trained, name, {"color": COLORS[0], "label": "training, each logged step"}),
                (held_out, f"eval_{name}", {"color": COLORS[1], "linestyle": "none", "marker": "D", "markersize": 6}),
            ):
                points = [(entry["step"], entry[key]) for entry in entries if key in entry]
                if points:
                    label = {} if "label" in look else {"label": "held-out data"}
                    ax.plot(*zip(*points, strict=True), linewidth=1.3, **look, **label)
            ax.set_title(words, loc="left", fontsize=10, fontweight="normal")
            if name in ("loss", "grad_norm"):
                ax.set_yscale("log")
                ax.minorticks_off()
                ax.yaxis.set_major_formatter("{x:g}")
            if name == "grad_norm" and max_norm:
                ax.axhline(max_norm, color="#555555", linewidth=1, linestyle=(0, (6, 3)), label="max_grad_norm")
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            ax.tick_params(labelbottom=True)
        last = figure.axes[-1]
        last.set_axis_off()
        found = {text: h for ax in figure.axes for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        last.legend(found.values(), found.keys(), loc="center", frameon=False)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure
