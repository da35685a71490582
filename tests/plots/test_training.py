"""The figures of runs: losses, rates, ranks and studies, as they were measured."""

from __future__ import annotations

import math

import pytest

from utils import plots


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_by_rank_ticks_every_doubling_and_draws_the_level():
    figure = plots.by_rank(
        {"cut": ([1, 2, 4, 32], [0, 1, 2, 3]), "trained": ([8], [4.0])}, title="T", ylabel="share", level=(3.5, "full")
    )
    ax = figure.axes[0]
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8", "16", "32"]
    assert ax.get_xlabel() == "rank r" and ax.get_ylabel() == "share"
    curve, point, level = ax.lines
    assert list(curve.get_xdata()) == [1, 2, 4, 32] and list(curve.get_ydata()) == [0, 1, 2, 3]
    assert point.get_linestyle() == "None" and point.get_markersize() > curve.get_markersize()
    assert point.get_marker() != curve.get_marker()
    assert list(level.get_ydata()) == [3.5, 3.5]
    assert [text.get_text() for text in ax.texts] == ["full"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cut", "trained"]


def test_by_rank_begins_where_its_ranks_begin():
    figure = plots.by_rank({"a": ([4, 8, 16], [1, 2, 3])}, title="T", ylabel="y", log_y=True)
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["4", "8", "16"]
    assert figure.axes[0].get_yscale() == "log" and figure.axes[0].get_legend() is None


def test_by_rank_draws_each_seed_beside_its_mean_in_the_curves_colour_and_marker():
    series = {"a": ([2, 4], [1, 3]), "b": ([2, 4], [5, 6])}
    figure = plots.by_rank(series, title="T", ylabel="y", seeds={"a": [[0, 2], [2, 4]], "b": [[5], [6]]})
    a, b, seeds_a, seeds_b = figure.axes[0].lines
    assert list(seeds_a.get_ydata()) == [0, 2, 2, 4] and list(seeds_b.get_ydata()) == [5, 6]
    assert seeds_a.get_color() == a.get_color() != seeds_b.get_color() == b.get_color()
    assert seeds_a.get_linestyle() == "None"
    assert seeds_a.get_marker() == a.get_marker() != seeds_b.get_marker() == b.get_marker()
    assert seeds_a.get_markersize() < a.get_markersize()
    left, right = seeds_a.get_xdata()[0], seeds_b.get_xdata()[0]
    assert 1.8 < left < 2 < right < 2.2, "the seeds of two series don't cover each other"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("seeds", [{}, {"b": [[1], [2]]}, {"a": [[1]]}])
def test_by_rank_refuses_seeds_that_do_not_fit(seeds):
    with pytest.raises(ValueError, match="at each of its ranks"):
        plots.by_rank({"a": ([1, 2], [1, 2])}, title="T", ylabel="y", seeds=seeds)


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({}, "no series"),
        ({"a": ([0, 1], [1, 2])}, "'a' has a rank below 1"),
        ({"a": ([1, 2], [1])}, "2 x values and 1 y"),
    ],
)
def test_by_rank_refuses_what_it_cannot_draw(series, said):
    with pytest.raises(ValueError, match=said):
        plots.by_rank(series, title="T", ylabel="y")


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
        lambda: plots.contour([1, 2], [1, 2], [1, 2], title="", xlabel="", ylabel="", unit=""),
        lambda: plots.contour([1, 2, 0], [1, 2, 3], [1, 2, 3], title="", xlabel="", ylabel="", unit=""),
        lambda: plots.shrinkage({"a": (1, [])}, title="", xlabel=""),
        lambda: plots.shrinkage({"a": (0, [1])}, title="", xlabel=""),
    ],
)
def test_what_cant_be_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="no curves|x values|nothing to plot|three|3 points|positive"):
        draw()


def test_a_column_for_each_run_with_one_quantity_an_axis():
    figure = plots.ward({name: ([8.0, 4.0], [0.0, 2.0]) for name in "ABCD"}, title="Runs")
    above, below = figure.axes[:4], figure.axes[4:]
    assert [ax.get_title(loc="left") for ax in above] == list("ABCD")
    assert [ax.get_ylabel() for ax in (above[0], below[0])] == ["loss (nats per label)", "gradient norm"]
    assert [ax.get_xlabel() for ax in above + below] == [""] * 4 + ["step"] * 4
    (loss,), (norm,) = above[0].get_lines(), below[0].get_lines()
    assert list(loss.get_ydata()) == [8.0, 4.0]
    assert norm.get_ydata()[0] != norm.get_ydata()[0], "a zero can't be drawn on a log axis"


def test_a_run_without_a_gradient_says_so():
    axes = plots.ward({"B": ([1.0], [1.0]), "F": ([1.0], [0.0])}, title="Runs").axes
    assert [[text.get_text() for text in ax.texts] for ax in axes] == [[], [], [], ["zero"]]


@pytest.mark.parametrize("charts", [{}, {"A": ([], [])}])
def test_a_ward_of_nothing_is_refused(charts):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.ward(charts, title="Runs")


def history():
    steps = [{"step": n, "loss": 4 / n, "grad_norm": 2 / n, "learning_rate": 0.1, "entropy": 1.0} for n in (1, 2, 3)]
    return [*steps, {"step": 3, "eval_loss": 1.5, "eval_entropy": 0.9}, {"step": 3, "train_runtime": 1.0}]


def test_a_run_log_has_a_panel_for_each_quantity_and_held_out_values_as_markers():
    figure = plots.run_log(history(), title="A run", max_norm=1.0)
    loss, norm, rate, entropy, accuracy, legend = figure.axes
    assert [list(line.get_xdata()) for line in loss.lines] == [[1, 2, 3], [3]]
    assert list(loss.lines[1].get_ydata()) == [1.5] and loss.lines[1].get_linestyle() == "None"
    assert (len(norm.lines), len(rate.lines), len(entropy.lines), len(accuracy.lines)) == (2, 1, 2, 0)
    assert loss.get_yscale() == norm.get_yscale() == "log" and rate.get_yscale() == "linear"
    assert [t.get_text() for t in legend.get_legend().get_texts()] == [
        "training, each logged step", "held-out data", "max_grad_norm",
    ]  # fmt: skip


def test_a_run_log_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="no entry of the history has a loss"):
        plots.run_log([{"step": 1, "eval_loss": 2.0}], title="A run")
