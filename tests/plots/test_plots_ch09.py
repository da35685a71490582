"""Chapter 9's own figures: what is drawn, and what is refused."""

from __future__ import annotations

import io

import pytest

from utils import plots

LABELS = {"title": "T", "xlabel": "x", "ylabel": "y"}


def test_a_heat_map_shows_every_number_in_its_place():
    figure = plots.heat_map(["a", "b"], ["u", "v", "w"], [[0, 100, 50], [7, 8, 99]], unit="%", **LABELS)
    ax, scale = figure.axes
    texts = {t.get_position(): (t.get_text(), t.get_color()) for t in ax.texts}
    assert texts[1, 0] == ("100", "white") and texts[0, 1] == ("7", "black") and len(texts) == 6
    assert [t.get_text() for t in ax.get_xticklabels()] == ["u", "v", "w"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.images[0].get_clim() == (0, 100) and scale.get_ylabel() == "%"
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("T", "x", "y")


@pytest.mark.parametrize(
    ("rows", "columns", "values", "words"),
    [
        ([], ["u"], [], "nothing to show"),
        (["a"], [], [[]], "nothing to show"),
        (["a"], ["u"], [[1], [2]], "not 1 rows of 1"),
        (["a", "b"], ["u", "v"], [[1, 2], [3]], "not 2 rows of 2"),
    ],
)
def test_a_heat_map_that_has_no_table_is_refused(rows, columns, values, words):
    with pytest.raises(ValueError, match=words):
        plots.heat_map(rows, columns, values, unit="%", **LABELS)


def test_panels_share_the_axis_and_each_curves_look():
    curves = {"one": {"p": ([0, 1], [0, 5]), "q": ([0, 1], [9, 3])}, "two": {"q": ([0, 1], [100, 2])}}
    figure = plots.panels(curves, **LABELS)
    left, right = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two"]
    assert list(left.lines[0].get_ydata()) == [0, 5] and list(right.lines[0].get_ydata()) == [100, 2]
    assert right.lines[0].get_marker() == left.lines[1].get_marker() != left.lines[0].get_marker()
    assert left.get_ylim() == right.get_ylim()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["p", "q"]
    assert figure.get_suptitle() == "T"
    figure.savefig(io.BytesIO())


def test_one_panel_works_too():
    assert len(plots.panels({"one": {"p": ([0], [1])}}, **LABELS).axes) == 1


@pytest.mark.parametrize("series", [{}, {"one": {}}, {"one": {"p": ([0, 1], [0])}}])
def test_panels_without_curves_are_refused(series):
    with pytest.raises(ValueError, match="nothing to plot|x values"):
        plots.panels(series, **LABELS)
