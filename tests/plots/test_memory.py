"""The figures of memory and of the roofline: bars, cards and levels where the numbers put them."""

from __future__ import annotations

import pytest

from utils import plots


def test_memory_bars_show_the_cards():
    figure = plots.memory_bars(["full", "LoRA"], {"weights": [4, 2], "gradients": [4, 0]}, title="T", cards={"card": 5})
    ax = figure.axes[0]
    assert ax.get_ylabel() == "GB" and ax.get_xlabel() == "way to train"
    named = plots.memory_bars(["full"], {"weights": [4]}, title="T", cards={}, xlabel="phase")
    assert named.axes[0].get_xlabel() == "phase"
    assert [list(line.get_ydata()) for line in ax.lines] == [[5, 5]]
    assert [text.get_text() for text in ax.texts] == ["8 GB", "2 GB", "card"]


def test_the_roof_bends_where_the_two_rates_meet():
    figure = plots.roofline(800.0, 4.0, {"thin": [(10.0, 30.0)], "large": [(1000.0, 700.0)]}, title="Roof")
    (ax,) = figure.axes
    roof, thin, large = ax.lines
    assert (200.0, 800.0) in list(zip(*roof.get_data(), strict=True))
    points = [next(zip(*line.get_data(), strict=True)) for line in (thin, large)]
    assert points == [(10.0, 30.0), (1000.0, 700.0)]
    assert ax.get_title(loc="left") == "Roof" and "byte" in ax.get_xlabel() and "second" in ax.get_ylabel()
    assert thin.get_marker() != large.get_marker()


@pytest.mark.parametrize("arguments", [(0, 1.0, {"a": [(1, 1)]}), (1.0, -1, {"a": [(1, 1)]}), (1.0, 1.0, {})])
def test_a_roof_needs_rates_and_points(arguments):
    with pytest.raises(ValueError, match="two positive rates"):
        plots.roofline(*arguments, title="x")
