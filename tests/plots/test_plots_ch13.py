"""Chapter 13's figures."""

import pytest

from utils import plots


def test_before_and_after_have_a_panel_for_each_measure_from_zero():
    measures = {"right (%)": (0.0, 98.0), "loss (nats)": (4.2, 0.1)}
    figure = plots.before_after(measures, title="My adapter", names=("base", "adapter"))
    assert figure.get_suptitle() == "My adapter" and len(figure.axes) == 2
    for ax, (name, pair) in zip(figure.axes, measures.items(), strict=True):
        assert [bar.get_height() for bar in ax.patches] == list(pair)
        assert f"{ax.get_title(loc='left')} ({ax.get_ylabel()})" == name and ax.get_ylim()[0] == 0
        assert [label.get_text() for label in ax.get_xticklabels()] == ["base", "adapter"]
        assert ax.patches[0].get_hatch() != ax.patches[1].get_hatch()


@pytest.mark.parametrize("measures", [{}, {"a": (-1, 2)}, {"a": (float("nan"), 2)}])
def test_what_bars_cant_show_is_refused(measures):
    with pytest.raises(ValueError, match="nothing to plot|0 or more"):
        plots.before_after(measures, title="", names=("a", "b"))
    assert len(plots.before_after({"a": (0, 0)}, title="", names=("a", "b")).axes) == 1


def test_counts_are_bars_with_their_numbers():
    figure = plots.count_bars({"wrong": 12, "right": 4}, title="Verdicts", xlabel="claims")
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [12, 4] and [t.get_text() for t in ax.texts] == ["12", "4"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["wrong", "right"]
    assert ax.patches[0].get_y() > ax.patches[1].get_y()
    assert (ax.get_title(loc="left"), ax.get_xlabel()) == ("Verdicts", "claims")
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.count_bars({}, title="", xlabel="")
