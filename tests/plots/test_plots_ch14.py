"""Chapter 14's figure: the roof is where the two rates put it, and bad input is refused."""

import pytest

from utils import plots


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
