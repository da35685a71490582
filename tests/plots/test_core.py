"""The figures that any chapter draws: titles, labels and values are those that were given, and series differ without
colour."""

from __future__ import annotations

import base64
import io
import struct

import pytest
from matplotlib.colors import to_hex

from utils import plots

SERIES = {"one": ([1, 2, 3], [3.0, 2.0, 1.0]), "two": ([1, 2], [0.5, 0.25])}
WORDS = {"title": "A title", "xlabel": "x (units)", "ylabel": "y (units)"}
LABELS = {"title": "T", "xlabel": "x", "ylabel": "y"}


def words_of(ax):
    return {"title": ax.get_title(loc="left") or ax.get_title(), "xlabel": ax.get_xlabel(), "ylabel": ax.get_ylabel()}


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


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


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.lines({}, **WORDS), "no series"),
        (lambda: plots.lines({"one": ([1, 2], [1])}, **WORDS), "2 x values and 1 y"),
        (lambda: plots.bars(["a"], {}, **WORDS), "no series"),
        (lambda: plots.bars(["a"], {"one": [1, 2]}, **WORDS), "2 values for 1 groups"),
        (lambda: plots.new_panels(0), "at least one column, not 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize(
    ("alt", "text"), [("", "Figure: A title"), ("One bar, of 1.", "Figure: A title. One bar, of 1.")]
)
def test_show_displays_one_fine_picture_whose_text_is_the_title_and_what_is_seen(alt, text, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append((data, how)))
    assert plots.show(plots.bars(["a"], {"one": [1]}, **WORDS), alt=alt) is None
    ((data, how),) = shown
    assert how["raw"]
    assert data["text/plain"] == text
    about = how["metadata"]["image/png"]
    assert about.get("alt", "") == alt
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG")
    pixels = struct.unpack(">II", png[16:24])
    assert pixels == (2 * about["width"], 2 * about["height"])


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


def test_equal_seeds_are_stacked_and_zero_has_a_line():
    groups = {"first": [0, 0, 0, -1], "second": [2, 2, 1, 0]}
    (ax,) = plots.seed_bars(groups, title="T", xlabel="x", stacked=True).axes
    dots, zero = ax.lines
    places = list(zip(*dots.get_data(), strict=True))
    assert [x for x, _ in places] == [*groups["first"], *groups["second"]] and len(set(places)) == 8
    assert sum(y for _, y in places[:3]) / 3 == pytest.approx(1) and max(abs(y - 1) for _, y in places[:4]) < 0.5
    assert list(zero.get_xdata()) == [0, 0]


@pytest.mark.parametrize("groups", [{}, {"a": [1.0], "b": []}])
def test_seed_bars_of_nothing_are_refused(groups):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.seed_bars(groups, title="T", xlabel="x")


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


def test_seed_panels_show_every_seed_and_the_mean_in_the_rows_order():
    figure = plots.seed_panels(
        {"one": {"a": [10, 30], "b": [50]}, "two": {"b": [1, 3], "a": [7]}}, title="T", xlabel="x (%)"
    )
    three = plots.seed_panels({"one": {"a": [1], "b": [2], "c": [3]}}, title="T", xlabel="x")
    assert [t.get_text() for t in three.legends[0].get_texts()] == ["one seed", "mean"], "each once"
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
