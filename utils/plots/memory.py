"""Figures of memory: what takes it, which card a run fits on, and the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from utils.plots.core import (
    _RC,
    COLORS,
    MARKERS,
    bars,
    new_figure,
    plain_log_ticks,
)


def memory_bars(
    ways: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    *,
    title: str,
    cards: Mapping[str, float],
    xlabel: str = "way to train",
) -> Figure:
    """Stacked bars of memory in GB, one for each way to train, with the sizes of `cards` as horizontal lines.

    Raises what :func:`bars` raises.
    """
    figure = bars(ways, parts, title=title, xlabel=xlabel, ylabel="GB", stacked=True, label_format="{:.0f} GB")
    ax = figure.axes[0]
    with rc_context(_RC):
        for name, gb in cards.items():
            ax.axhline(gb, color="#333333", linewidth=1, linestyle=(0, (6, 3)), zorder=3)
            ax.annotate(
                name, (1, gb), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
                fontsize=8,
            )  # fmt: skip
    return figure


def roofline(flops: float, memory: float, points: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Figure:
    """What a device can reach, and what was reached: operations per second over arithmetic intensity.

    `flops` and `memory` are the device's operations and bytes per second, in trillions; `points` maps a legend entry to
    pairs of operations per byte moved and trillion operations per second. Raises ValueError when there are no points,
    or a rate isn't positive.
    """
    if not points or flops <= 0 or memory <= 0:
        raise ValueError("a roofline needs two positive rates and at least one group of points")
    figure, ax = new_figure()
    ridge = flops / memory
    across = [x for group in points.values() for x, _ in group]
    left, right = min(*across, ridge / 4) / 2, max(*across, ridge * 4) * 2
    with rc_context(_RC):
        ax.plot([left, ridge, right], [memory * left, flops, flops], color="black", label="roofline")
        for i, (name, group) in enumerate(points.items()):
            xs, ys = zip(*group, strict=True)
            hollow = {
                "markerfacecolor": "none",
                "markersize": 9,
                "markeredgewidth": 1.8,
            }  # points may lie on each other
            ax.plot(xs, ys, MARKERS[i % len(MARKERS)], color=COLORS[i % len(COLORS)], label=name, **hollow)
        beside = {"textcoords": "offset points", "fontsize": 9}
        ax.annotate("memory-bound", (left * 1.5, memory * left * 1.5), xytext=(-10, 20), rotation=33, **beside)
        ax.annotate("compute-bound", (right, flops), xytext=(0, -16), ha="right", **beside)
        ax.set(
            title=title,
            xlabel="arithmetic intensity (operations per byte moved)",
            ylabel="trillion operations per second",
            xscale="log",
            yscale="log",
        )
        for axis in (ax.xaxis, ax.yaxis):
            plain_log_ticks(axis)
        ax.legend(loc="lower right")
    return figure
