"""Chapter 10's figure: a panel for each setting, a bar or a cross for each token."""

import pytest

from utils import plots


def test_each_panel_has_a_bar_for_each_token_and_a_cross_for_what_is_ruled_out():
    panels = {"as it is": [0.6, 0.3, 0.1], "top-k 2": [0.67, 0.33, 0.0]}
    figure = plots.token_panels([" was", " had", " lived"], panels, title="Next")
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [0.6, 0.3, 0.1]
    assert [bar.get_width() for bar in second.patches] == [0.67, 0.33, 0.0]
    assert first.patches[0].get_y() > first.patches[2].get_y(), "the first token is not on top"
    assert [t.get_text() for t in first.get_yticklabels()] == [" was", " had", " lived"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["", "", ""]
    assert len(first.lines[0].get_xdata()) == 0 and list(second.lines[0].get_ydata()) == [0]
    assert first.get_xlim() == second.get_xlim(), "panels with scales of their own can't be compared"
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(panels)
    assert {ax.get_xlabel() for ax in figure.axes} == {"probability"} and figure.get_suptitle() == "Next"


def test_one_panel_alone():
    assert len(plots.token_panels(["a"], {"x": [1.0]}, title="T").axes) == 1


@pytest.mark.parametrize(("panels", "said"), [({}, "no panels"), ({"a": [1.0]}, "1 probabilities for 2 tokens")])
def test_what_does_not_fit_is_refused(panels, said):
    with pytest.raises(ValueError, match=said):
        plots.token_panels(["a", "b"], panels, title="T")
