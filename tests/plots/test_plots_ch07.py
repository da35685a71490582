"""Chapter 7's own figure: what is drawn, and what is refused."""

from __future__ import annotations

import pytest

from utils import plots


def test_the_bars_are_means_and_every_seed_is_a_dot():
    figure = plots.seed_bars({"first": [90.0, 100.0], "second": [0.0, 10.0, 80.0]}, title="T", xlabel="score (%)")
    (ax,) = figure.axes
    assert (ax.get_title(loc="left"), ax.get_xlabel()) == ("T", "score (%)")
    rows = dict(zip([t.get_text() for t in ax.get_yticklabels()], ax.get_yticks(), strict=True))
    assert rows["first"] > rows["second"], "the first group is not on top"
    bars = {round(p.get_y() + p.get_height() / 2): p.get_width() for p in ax.patches}
    assert bars == {rows["first"]: 95.0, rows["second"]: 30.0}
    (dots,) = ax.lines
    expected = [(90, rows["first"]), (100, rows["first"])] + [(x, rows["second"]) for x in (0, 10, 80)]
    assert list(zip(*dots.get_data(), strict=True)) == expected
    assert sorted(t.get_text() for t in ax.get_legend().get_texts()) == ["mean", "one seed"]


@pytest.mark.parametrize("groups", [{}, {"a": [1.0], "b": []}])
def test_nothing_to_plot_is_refused(groups):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.seed_bars(groups, title="T", xlabel="x")
