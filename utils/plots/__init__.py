"""Every figure of the course, in one style."""

from utils.plots.core import (
    COLORS,
    HATCHES,
    LINES,
    MARKERS,
    SIZE,
    bars,
    lines,
    new_figure,
    new_panels,
    panels,
    plain_log_ticks,
    seed_bars,
    seed_panels,
    show,
)
from utils.plots.memory import memory_bars, roofline
from utils.plots.scaling import scaling_curve
from utils.plots.tensors import bits_and_errors, code_books, pictures, show_tokens
from utils.plots.training import (
    by_rank,
    contour,
    run_log,
    shrinkage,
    trial_curves,
    ward,
)

__all__ = [
    "COLORS",
    "HATCHES",
    "LINES",
    "MARKERS",
    "SIZE",
    "bars",
    "bits_and_errors",
    "by_rank",
    "code_books",
    "contour",
    "lines",
    "memory_bars",
    "new_figure",
    "new_panels",
    "panels",
    "pictures",
    "plain_log_ticks",
    "roofline",
    "run_log",
    "scaling_curve",
    "seed_bars",
    "seed_panels",
    "show",
    "show_tokens",
    "shrinkage",
    "trial_curves",
    "ward",
]
