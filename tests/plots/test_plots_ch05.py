"""Chapter 5's figure."""

import pytest

from utils import plots


def test_each_code_book_has_its_own_row_below_the_histogram():
    figure = plots.code_books([-0.5, 0.0, 0.1, 0.5], {"a": [-1, 0, 1], "b": [0.5]}, title="Books", xlabel="weight")
    (ax,) = figure.axes
    first, second = ax.lines
    assert list(first.get_xdata()) == [-1, 0, 1] and list(second.get_xdata()) == [0.5]
    assert first.get_ydata()[0] > second.get_ydata()[0] > ax.get_ylim()[0] and first.get_ydata()[0] < 0
    assert first.get_marker() != second.get_marker()
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("Books", "weight", "density")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert min(ax.get_yticks()) >= 0


@pytest.mark.parametrize(("values", "books"), [([], {"a": [1]}), ([1.0], {})])
def test_nothing_to_plot_is_refused(values, books):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.code_books(values, books, title="", xlabel="")
