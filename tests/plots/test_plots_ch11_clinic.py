"""The clinic's figure."""

import pytest

from utils.plots import ward


def test_a_panel_for_each_run_and_no_zeros_on_a_log_axis():
    figure = ward({name: ([8.0, 4.0], [0.0, 2.0]) for name in "ABCD"}, title="Runs")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list("ABCD")
    norm, loss = shown[0].get_lines()
    assert norm.get_ydata()[0] != norm.get_ydata()[0] and list(loss.get_ydata()) == [8.0, 4.0]
    assert norm.get_linestyle() != loss.get_linestyle()


@pytest.mark.parametrize("charts", [{}, {"A": ([], [])}])
def test_nothing_to_plot(charts):
    with pytest.raises(ValueError, match="nothing to plot"):
        ward(charts, title="Runs")
