"""Figures of runs on more and more GPUs: what was measured, and what a model says of more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from utils.plots.core import _RC, COLORS, LINES, MARKERS, SIZE, new_figure


def scaling_curve(
    model: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    measured: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    title: str,
    ylabel: str,
    ideal: str | None = None,
    log_y: bool = True,
) -> Figure:
    """Curves of a model over the number of GPUs, and measured points on them in the same colour.

    model, measured: for each way GPUs and values, such as tokens a second; repeats are several points at one number of
    GPUs. A way may be in one of the two only. ideal: words for a grey line through the first way's first value that
    grows with the GPUs; None draws none. The x axis doubles, the y axis is logarithmic unless `log_y` is False. Raises
    ValueError when there is nothing to plot, a pair differs in length, or a number of GPUs is below 1.
    """
    names = list(dict.fromkeys([*model, *measured]))
    if not names:
        raise ValueError("nothing to plot: pass at least one name: (gpus, values)")
    for what, series in (("the model's", model), ("the measured", measured)):
        for name, (gpus, values) in series.items():
            if len(gpus) != len(values) or not len(gpus):
                raise ValueError(f"{what} {name!r} has {len(gpus)} numbers of GPUs and {len(values)} values")
            if min(gpus) < 1:
                raise ValueError(f"{what} {name!r} has {min(gpus)} GPUs, and this axis begins at 1")
    figure, ax = new_figure(size=(SIZE[0], 4.0))
    with rc_context(_RC):
        everywhere = [n for series in (model, measured) for gpus, _ in series.values() for n in gpus]
        if ideal:
            gpus, values = (model if model else measured)[next(iter(model or measured))]
            ends = [min(everywhere), max(everywhere)]
            ax.plot(ends, [values[0] / gpus[0] * n for n in ends], color="#999999", linewidth=1, label=ideal, zorder=1)
        for i, name in enumerate(names):
            color = COLORS[i % len(COLORS)]
            if name in model:
                ax.plot(*model[name], color=color, linestyle=LINES[i % len(LINES)], label=f"{name}, model")
            if name in measured:
                ax.plot(
                    *measured[name], color=color, linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=7,
                    markeredgecolor="white", markeredgewidth=0.6, label=f"{name}, measured", zorder=3,
                )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks([2**i for i in range(max(everywhere).bit_length()) if 2**i >= min(everywhere)])
        ax.xaxis.set_major_formatter("{x:.0f}")
        if log_y:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        ax.minorticks_off()
        ax.set(title=title, xlabel="GPUs", ylabel=ylabel)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
