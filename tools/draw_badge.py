"""Draw the badges, assets/open-in-colab.png and open-in-kaggle.png: our own, so that they show without a network.

It takes a second. The first opens every notebook, which carries the picture: after a change, `make notebooks`. Both are
in the README.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from tools.build.lesson import BADGE

WIDTH, HEIGHT = 118, 22  # pixels, as a notebook shows them
INK, PAPER, MARK = "#24292f", "#ffffff", "#f9ab00"


KAGGLE = BADGE.with_name("open-in-kaggle.png")


def draw(path: Path, says: str = "Open in Colab") -> None:
    """Write the badge to `path`: a pill with a triangle, for running, and what a click does."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    pill = FancyBboxPatch((4, 4), WIDTH - 8, HEIGHT - 8, "round,pad=3", facecolor=INK, edgecolor=INK)
    axes.add_patch(pill)
    axes.add_patch(Polygon([(9, 6), (9, 16), (18, 11)], color=MARK))
    axes.text(24, 11, says, color=PAPER, fontsize=7.5, va="center_baseline")
    figure.savefig(path, dpi=100, transparent=True, metadata={"Software": None}, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    draw(BADGE)
    draw(KAGGLE, "Open in Kaggle")
