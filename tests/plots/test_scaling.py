"""The scaling curve: the model as lines, what was measured as points of the same colour."""

import pytest

from utils import plots

MODEL = {"DDP": ([1, 2, 4, 512], [10.0, 19.0, 35.0, 3000.0]), "FSDP2": ([1, 512], [8.0, 900.0])}
MEASURED = {"DDP": ([1, 2, 2], [10.0, 18.0, 19.0]), "FSDP2, full": ([2, 4], [9.0, 16.0])}


def test_a_way_has_one_colour_a_line_for_the_model_and_points_without_one():
    figure = plots.scaling_curve(MODEL, MEASURED, title="T", ylabel="tokens/s", ideal="perfect")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    perfect, ddp, points, fsdp, full = ax.lines
    assert list(perfect.get_xdata()) == [1, 512] and list(perfect.get_ydata()) == [10.0, 5120.0]
    assert ddp.get_color() == points.get_color() != fsdp.get_color() != full.get_color()
    assert points.get_linestyle() == full.get_linestyle() == "None" and ddp.get_linestyle() != fsdp.get_linestyle()
    assert list(points.get_ydata()) == [10.0, 18.0, 19.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(2**n) for n in range(10)]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("GPUs", "tokens/s", "log")
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["perfect", "DDP, model", "DDP, measured", "FSDP2, model", "FSDP2, full, measured"]


def test_a_share_begins_at_zero():
    figure = plots.scaling_curve({}, {"DDP": ([1, 2], [1.0, 0.9])}, title="T", ylabel="efficiency", log_y=False)
    assert figure.axes[0].get_ylim()[0] == 0 and len(figure.axes[0].lines) == 1


@pytest.mark.parametrize(
    ("model", "measured", "said"),
    [
        ({}, {}, "nothing to plot"),
        ({"a": ([1, 2], [1.0])}, {}, "the model's 'a' has 2 numbers of GPUs and 1 values"),
        ({}, {"b": ([0], [1.0])}, "the measured 'b' has 0 GPUs"),
    ],
)
def test_what_it_cannot_draw_is_refused(model, measured, said):
    with pytest.raises(ValueError, match=said):
        plots.scaling_curve(model, measured, title="T", ylabel="y")
