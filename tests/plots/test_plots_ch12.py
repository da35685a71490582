"""Chapter 12's figures of the race."""

import pytest

from utils import plots


def test_seed_panels_show_every_seed_and_the_mean_in_the_rows_order():
    figure = plots.seed_panels(
        {"one": {"a": [10, 30], "b": [50]}, "two": {"b": [1, 3], "a": [7]}}, title="T", xlabel="x (%)"
    )
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b"]
    rings = [line for line in right.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in rings] == [[7], [1, 3]], "rows in the order of the first panel"
    means = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "|"]
    assert means == [20, 50]
    assert left.get_xlim() == right.get_xlim(), "one axis for both"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["one seed", "mean"]


@pytest.mark.parametrize(("panels", "words"), [({}, "nothing"), ({"a": {"x": []}}, "nothing"),
                                               ({"a": {"x": [1]}, "b": {"y": [1]}}, "different rows")])  # fmt: skip
def test_seed_panels_refuse_what_they_can_not_show(panels, words):
    with pytest.raises(ValueError, match=words):
        plots.seed_panels(panels, title="T", xlabel="x")


def test_over_rates_has_a_logarithmic_axis_with_few_plain_numbers():
    rates = [0.001 * 2**i for i in range(11)]
    figure = plots.over_rates({"a": (rates, range(11)), "b": (rates[:3], [1, 2, 3])}, title="T", xlabel="x", ylabel="y")
    (ax,) = figure.axes
    figure.draw_without_rendering()
    assert ax.get_xscale() == "log"
    assert 3 <= len(ax.get_xticks()) <= 6 and ax.get_xticklabels()[0].get_text() == "0.001"
    with pytest.raises(ValueError, match="no series"):
        plots.over_rates({}, title="T", xlabel="x", ylabel="y")


def test_over_rates_writes_plain_numbers_on_a_logarithmic_y_axis_too():
    figure = plots.over_rates(
        {"a": ([0.001, 0.002, 0.004], [1.6, 4, 80])}, title="T", xlabel="x", ylabel="y", log_y=True
    )
    (ax,) = figure.axes
    figure.draw_without_rendering()
    written = [t.get_text() for t in ax.get_yticklabels()]
    assert ax.get_yscale() == "log" and {"2", "5", "10", "20", "50"} <= set(written)


CURVES = {"LoRA": ([0, 4, 8], [9, 6, 3]), "same": ([0, 4, 8], [9, 5, 2.5]), "slow": ([0, 4, 8], [9, 8.5, 8])}


def test_sprint_shows_losses_and_what_each_run_is_ahead_of_the_first():
    figure = plots.sprint(CURVES, title="T", xlabel="steps", ylabel="loss", apart=["slow"])
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [y for _, y in CURVES.values()]
    assert [list(line.get_ydata()) for line in right.lines] == [[0, 0, 0], [0, 1, 0.5]], "below the first is ahead"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(CURVES)
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in left.lines]
    assert [look[1:] for look in looks[:2]] == [(line.get_linestyle(), line.get_marker()) for line in right.lines]


def test_seven_runs_of_a_sprint_look_different_in_grey():
    curves = {str(i): ([0, 1], [2, i]) for i in range(7)}
    figure = plots.sprint(curves, title="T", xlabel="x", ylabel="y")
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 7


@pytest.mark.parametrize(("curves", "apart", "words"), [
    ({"LoRA": ([0], [1])}, (), "at least two"),
    (CURVES | {"odd": ([0, 5, 8], [1, 2, 3])}, (), "'odd' was not measured"),
    (CURVES | {"short": ([0, 4, 8], [1, 2])}, (), "'short' was not measured"),
    (CURVES, ["slwo"], "slwo"), (CURVES, ["LoRA"], "not the first"),
])  # fmt: skip
def test_sprint_refuses_what_it_can_not_compare(curves, apart, words):
    with pytest.raises(ValueError, match=words):
        plots.sprint(curves, title="T", xlabel="x", ylabel="y", apart=apart)
