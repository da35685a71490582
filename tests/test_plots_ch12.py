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
