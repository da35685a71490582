"""The figures: what is drawn is what was given, with titles, labels and series that differ without colour."""

import pytest
from matplotlib.colors import to_hex

from utils import plots

SERIES = {"one": ([1, 2, 3], [3.0, 2.0, 1.0]), "two": ([1, 2], [0.5, 0.25])}
WORDS = {"title": "A title", "xlabel": "x (units)", "ylabel": "y (units)"}


def words_of(ax):
    return {"title": ax.get_title(loc="left") or ax.get_title(), "xlabel": ax.get_xlabel(), "ylabel": ax.get_ylabel()}


def test_lines_draws_each_series_as_given():
    ax = plots.lines(SERIES, **WORDS, log_y=True).axes[0]
    assert words_of(ax) == WORDS
    assert [line.get_label() for line in ax.lines] == list(SERIES)
    for line, (x, y) in zip(ax.lines, SERIES.values(), strict=True):
        assert list(line.get_xdata()) == x
        assert list(line.get_ydata()) == y
    assert ax.get_yscale() == "log"
    assert ax.get_xscale() == "linear"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(SERIES)


def test_six_series_differ_without_colour():
    series = {str(i): ([1, 2], [i, i]) for i in range(6)}
    ax = plots.lines(series, **WORDS).axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 6
    drawn = plots.bars(["a"], {str(i): [i] for i in range(6)}, **WORDS).axes[0].patches
    assert len({patch.get_hatch() for patch in drawn}) == 6
    assert len({to_hex(patch.get_facecolor()) for patch in drawn}) == 6


def test_one_series_needs_no_legend():
    assert plots.lines({"one": ([1], [1])}, **WORDS).axes[0].get_legend() is None
    assert plots.bars(["a"], {"one": [1]}, **WORDS).axes[0].get_legend() is None


def test_bars_stand_side_by_side_with_their_values():
    ax = plots.bars(["a", "b"], {"one": [1, 2], "two": [3, 4]}, **WORDS, label_format="{:.1f} GB").axes[0]
    assert words_of(ax) == WORDS
    assert [patch.get_height() for patch in ax.patches] == [1, 2, 3, 4]
    assert [patch.get_y() for patch in ax.patches] == [0, 0, 0, 0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.texts] == ["1.0 GB", "2.0 GB", "3.0 GB", "4.0 GB"]


def test_stacked_bars_stand_upon_each_other_and_say_their_total():
    ax = plots.bars(["a", "b"], {"one": [1, 2], "two": [3, 4]}, **WORDS, stacked=True, label_format="{:.0f}").axes[0]
    assert [(p.get_y(), p.get_height()) for p in ax.patches] == [(0, 1), (0, 2), (1, 3), (2, 4)]
    assert [text.get_text() for text in ax.texts] == ["4", "6"]


def test_memory_bars_show_the_cards():
    figure = plots.memory_bars(["full", "LoRA"], {"weights": [4, 2], "gradients": [4, 0]}, title="T", cards={"card": 5})
    ax = figure.axes[0]
    assert ax.get_ylabel() == "GB"
    assert [list(line.get_ydata()) for line in ax.lines] == [[5, 5]]
    assert [text.get_text() for text in ax.texts] == ["8 GB", "2 GB", "card"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.lines({}, **WORDS), "no series"),
        (lambda: plots.lines({"one": ([1, 2], [1])}, **WORDS), "2 x values and 1 y"),
        (lambda: plots.bars(["a"], {}, **WORDS), "no series"),
        (lambda: plots.bars(["a"], {"one": [1, 2]}, **WORDS), "2 values for 1 groups"),
        (lambda: plots.new_figure(0), "at least one column, not 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_show_displays_one_picture_whose_text_is_the_title(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append((data, raw)))
    assert plots.show(plots.bars(["a"], {"one": [1]}, **WORDS)) is None
    ((data, raw),) = shown
    assert raw
    assert data["text/plain"] == "Figure: A title"
    assert data["image/png"].startswith("iVBORw0KGgo")
