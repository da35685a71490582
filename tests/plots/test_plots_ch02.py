"""Chapter 2's own figures: what is drawn, and what is refused."""

from __future__ import annotations

import pytest
import torch

from utils import plots


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
