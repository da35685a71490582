"""Chapter 11's figures of a study."""

import math

import pytest

from utils import plots


def test_a_kind_of_trial_has_one_look_and_one_entry_in_the_legend():
    kinds = {"done": [([1, 2], [3.0, 2.0]), ([1, 2], [4.0, 1.0])], "pruned": [([1], [5.0])]}
    figure = plots.trial_curves(kinds, title="Trials", xlabel="steps", ylabel="loss")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["done", "pruned"]
    curves, ends = ax.lines[::2], ax.lines[1::2]
    assert [list(line.get_ydata()) for line in curves] == [[3, 2], [4, 1], [5]]
    assert [list(line.get_ydata()) for line in ends] == [[2], [1], [5]]
    assert curves[0].get_linestyle() == curves[1].get_linestyle() != curves[2].get_linestyle()
    assert ends[0].get_marker() != ends[2].get_marker()
    assert ax.get_yscale() == "log" and (ax.get_xlabel(), ax.get_ylabel()) == ("steps", "loss")
    assert ax.get_title(loc="left") == "Trials"


def test_every_panel_of_a_race_has_the_same_scale_and_holds_all_that_is_finite():
    arms = {"a": [([1, 2], [math.inf, 5.0])], "b": [([1, 2], [3.0, 0.1]), ([1], [2.0])]}
    figure = plots.budget_race(arms, title="Race", xlabel="spent", ylabel="best")
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    low, high = first.get_ylim()
    assert low < 0.1 and high > 5
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b"]
    assert len(second.lines) == 2 and second.lines[0].get_linestyle() != second.lines[1].get_linestyle()
    assert figure.get_suptitle() == "Race"


def test_a_contour_is_dark_where_the_value_is_low_and_stars_the_best_point():
    x = [10**i for i in range(-3, 1) for _ in range(4)]
    y = [2**j for _ in range(4) for j in range(4)]
    values = [1 + abs(math.log10(a) + 2) + abs(math.log2(b) - 1) for a, b in zip(x, y, strict=True)]
    figure = plots.contour(x, y, values, title="Map", xlabel="x", ylabel="y", unit="loss")
    ax = figure.axes[0]
    points, star = ax.lines
    assert len(points.get_xdata()) == 16
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (10**-2, 2)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlim()[0] < 1e-3 and ax.get_ylim()[1] > 8, "no point lies on the edge"
    assert figure.axes[1].get_ylabel() == "loss"


def test_promise_and_outcome_are_marked_apart():
    rows = {"a": (0.1, [0.2, 0.4]), "b": (0.5, [0.5])}
    figure = plots.shrinkage(rows, title="Winners", xlabel="loss")
    (ax,) = figure.axes
    link, rings, mean, cross = ax.lines[:4]
    assert list(link.get_xdata()) == pytest.approx([0.1, 0.3])
    assert list(rings.get_xdata()) == [0.2, 0.4]
    assert mean.get_xdata()[0] == pytest.approx(0.3) and cross.get_xdata()[0] == 0.1
    assert len({line.get_marker() for line in (rings, mean, cross)}) == 3
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a new seed", "their mean", "in the study"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.trial_curves({"done": []}, title="", xlabel="", ylabel=""),
        lambda: plots.trial_curves({"done": [([1], [1, 2])]}, title="", xlabel="", ylabel=""),
        lambda: plots.budget_race({"a": []}, title="", xlabel="", ylabel=""),
        lambda: plots.contour([1, 2], [1, 2], [1, 2], title="", xlabel="", ylabel="", unit=""),
        lambda: plots.contour([1, 2, 0], [1, 2, 3], [1, 2, 3], title="", xlabel="", ylabel="", unit=""),
        lambda: plots.shrinkage({"a": (1, [])}, title="", xlabel=""),
        lambda: plots.shrinkage({"a": (0, [1])}, title="", xlabel=""),
    ],
)
def test_what_cant_be_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="no curves|x values|nothing to plot|three|3 points|positive"):
        draw()
