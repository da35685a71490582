"""The figures of memory and of the roofline: bars, cards and levels where the numbers put them."""

from __future__ import annotations

import pytest

from utils import plots


def test_memory_bars_show_the_cards():
    figure = plots.memory_bars(["full", "LoRA"], {"weights": [4, 2], "gradients": [4, 0]}, title="T", cards={"card": 5})
    ax = figure.axes[0]
    assert ax.get_ylabel() == "GB"
    assert [list(line.get_ydata()) for line in ax.lines] == [[5, 5]]
    assert [text.get_text() for text in ax.texts] == ["8 GB", "2 GB", "card"]


def test_each_way_is_a_line_and_each_card_a_level():
    figure = plots.sizes_and_cards({"full": 16, "LoRA": 2}, [1, 7], {"16 GB": 16}, title="What fits", usable=0.9)
    (ax,) = figure.axes
    full, lora, card = ax.lines
    assert list(full.get_ydata()) == [16, 112] and list(lora.get_ydata()) == [2, 14]
    assert list(card.get_ydata()) == [pytest.approx(14.4)] * 2
    assert full.get_linestyle() != lora.get_linestyle() and full.get_marker() != lora.get_marker()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("model (billions of parameters)", "memory (GB)")
    assert [t.get_text() for t in ax.texts] == ["16 GB"] and ax.get_title(loc="left") == "What fits"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3", "7"]


@pytest.mark.parametrize(
    "ways, sizes, cards",
    [
        ({}, [1], {"a": 1}),
        ({"a": 1}, [], {"a": 1}),
        ({"a": 1}, [1], {}),
        ({"a": 0}, [1], {"a": 1}),
        ({"a": 1}, [-1], {"a": 1}),
    ],
)
def test_what_has_no_logarithm_is_refused(ways, sizes, cards):
    with pytest.raises(ValueError, match="nothing to plot|more than 0"):
        plots.sizes_and_cards(ways, sizes, cards, title="")


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
