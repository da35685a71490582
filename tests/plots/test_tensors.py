"""The figures of matrices, code books and tokens: every number in its place."""

from __future__ import annotations

import pytest
import torch

from utils import plots

LABELS = {"title": "T", "xlabel": "x", "ylabel": "y"}


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_pictures_show_each_matrix_in_grey_on_one_scale():
    panels = {"a": torch.zeros(2, 3), "b": torch.tensor([[0.0, 0.5], [0.25, 1.0]])}
    figure = plots.pictures(panels, title="Two")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b"]
    assert figure.get_suptitle() == "Two"
    for ax, matrix in zip(figure.axes, panels.values(), strict=True):
        image = ax.get_images()[0]
        assert image.get_cmap().name == "gray" and image.get_clim() == (0, 1)
        assert torch.equal(torch.tensor(image.get_array().data), matrix)


def test_one_picture_is_enough_and_none_is_not():
    assert len(plots.pictures({"a": torch.zeros(2, 2)}, title="One").axes) == 1
    with pytest.raises(ValueError, match="no panels"):
        plots.pictures({}, title="None")


def test_tokens_that_are_trained_on_are_marked_without_colour_too(shown):
    plots.show_tokens(["<|user|>", "a b", "\n", "c", "d"], [False, False, True, True, False])
    (bundle,) = shown
    assert bundle["text/plain"] == "<|user|>·a b[⏎][c]d"
    assert bundle["text/html"].count("<b ") == bundle["text/html"].count("<u>") == 2
    assert "&lt;|user|&gt;" in bundle["text/html"] and "<|user|>" not in bundle["text/html"]


def test_each_token_needs_its_mark(shown):
    with pytest.raises(ValueError, match="2 tokens and 1 marks"):
        plots.show_tokens(["a", "b"], [True])
    assert not shown


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
def test_code_books_of_nothing_are_refused(values, books):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.code_books(values, books, title="", xlabel="")


def test_every_point_of_bits_and_errors_has_its_block_written_beside_it():
    panels = {"one": {"a": [(64, 4.5, 9.0), (32, 5.0, 8.0)], "b": [(16, 4.5, 9.5)]}, "two": {"b": [(16, 4.5, 30.0)]}}
    figure = plots.bits_and_errors(panels, **LABELS)
    for ax, (name, curves) in zip(figure.axes, panels.items(), strict=True):
        assert ax.get_title(loc="left") == name
        wanted = [(str(block), (bits, error)) for points in curves.values() for block, bits, error in points]
        assert [(note.get_text(), note.xy) for note in ax.texts] == wanted
        assert [line.get_label() for line in ax.lines] == list(curves)
    first, second = figure.axes
    assert first.lines[1].get_marker() == second.lines[0].get_marker() != first.lines[0].get_marker()
    assert second.get_ylim()[0] > first.get_ylim()[1], "each panel has a y axis of its own"


@pytest.mark.parametrize("panels", [{}, {"one": {}}, {"one": {"a": []}}])
def test_bits_and_errors_of_nothing_are_refused(panels):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.bits_and_errors(panels, **LABELS)
