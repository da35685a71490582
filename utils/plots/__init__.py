"""Every figure of the course, in one style."""

from utils.plots.core import (
    COLORS,
    HATCHES,
    LINES,
    MARKERS,
    SIZE,
    bars,
    before_after,
    count_bars,
    lines,
    log_dots,
    new_figure,
    new_panels,
    panels,
    plain_log_ticks,
    seed_bars,
    seed_panels,
    show,
)
<<<<<<< HEAD
from utils.plots.memory import memory_bars, roofline
from utils.plots.tensors import bits_and_errors, code_books, heat_map, pictures, show_tokens, token_panels
from utils.plots.training import budget_race, by_rank, contour, over_rates, shrinkage, sprint, trial_curves, ward
=======
from utils.plots.memory import batches_and_cards, memory_bars, roofline
from utils.plots.tensors import code_books, heat_map, pictures, show_tokens, token_panels
from utils.plots.training import (
    budget_race,
    by_rank,
    contour,
    over_rates,
    run_log,
    shrinkage,
    sprint,
    trial_curves,
    ward,
)
>>>>>>> c09

__all__ = [
    "COLORS",
    "HATCHES",
    "LINES",
    "MARKERS",
    "SIZE",
    "bars",
    "before_after",
    "bits_and_errors",
    "budget_race",
    "by_rank",
    "code_books",
    "contour",
    "count_bars",
    "heat_map",
    "lines",
    "log_dots",
    "memory_bars",
    "new_figure",
    "new_panels",
    "over_rates",
    "panels",
    "pictures",
    "plain_log_ticks",
    "roofline",
    "run_log",
    "seed_bars",
    "seed_panels",
    "show",
    "show_tokens",
    "shrinkage",
    "sprint",
    "token_panels",
    "trial_curves",
    "ward",
]
