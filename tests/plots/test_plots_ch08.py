"""Chapter 8's figure."""

import pytest

from utils import plots


def test_each_row_has_its_values_and_each_name_its_marker():
    rows = {"fp32": {"style": 1e-6, "sentiment": 2e-6}, "bf16": {"style": 1e-3}}
    figure = plots.log_dots(rows, title="Drift", xlabel="relative difference")
    (ax,) = figure.axes
    style, sentiment = ax.lines
    assert list(style.get_xdata()) == [1e-6, 1e-3] and list(style.get_ydata()) == [0, -1]
    assert list(sentiment.get_xdata()) == [2e-6] and list(sentiment.get_ydata()) == [0]
    assert style.get_marker() != sentiment.get_marker()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fp32", "bf16"]
    assert ax.get_xscale() == "log"
    assert (ax.get_title(loc="left"), ax.get_xlabel()) == ("Drift", "relative difference")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["style", "sentiment"]


@pytest.mark.parametrize("rows", [{}, {"a": {}}])
def test_nothing_to_plot_is_refused(rows):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.log_dots(rows, title="", xlabel="")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_what_a_logarithm_does_not_have_is_refused(value):
    with pytest.raises(ValueError, match=r"'b' of 'a' is .*positive"):
        plots.log_dots({"a": {"b": value}}, title="", xlabel="")
