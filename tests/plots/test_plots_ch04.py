"""Chapter 4's own figures: what is drawn, and what is refused."""

from __future__ import annotations

import pytest

from utils import plots


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


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


def test_a_histogram_counts_every_value_and_draws_the_cut():
    figure = plots.histogram(
        {"a": [1, 2, 2, 9], "b": [5, 5]}, title="T", xlabel="tokens", bins=10, cut=(6.0, "max_length")
    )
    ax = figure.axes[0]
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("T", "tokens", "records")
    assert list(ax.lines[0].get_xdata()) == [6.0, 6.0] and [t.get_text() for t in ax.texts] == ["max_length"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    shapes = sorted(ax.patches, key=lambda p: p.get_label())
    assert len({p.get_hatch() for p in shapes}) == len({p.get_linestyle() for p in shapes}) == 2
    assert [max(y for _, y in p.get_xy()) for p in shapes] == [2, 2]
    assert sum(p.get_label() in ("a", "b") for p in shapes) == 2


def test_one_series_has_no_legend():
    assert plots.histogram({"a": [1]}, title="T", xlabel="x").axes[0].get_legend() is None


@pytest.mark.parametrize(("values", "said"), [({}, "no series"), ({"a": []}, "'a' is empty")])
def test_a_histogram_of_nothing_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        plots.histogram(values, title="T", xlabel="x")
