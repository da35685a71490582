"""The predictor by hand: what its controls answer."""

import pytest

from utils.models.configs import llama_config
from utils.profiling import memory_widget

SMALL = llama_config(hidden=64, layers=3, heads=4, kv_heads=2, intermediate=96, vocabulary=300)


def test_the_widget_answers_and_says_what_is_wrong(capsys):
    said = memory_widget.answer(model=SMALL, method="lora", batch=1, length=16)
    assert said.startswith("peak ") and said.endswith("fits on a card of 8 GB")
    assert memory_widget.answer(batch=0).startswith("Can't predict: batch must be at least 1, not 0")
    memory_widget.explore(live=False)
    assert "No widgets here" in capsys.readouterr().out


def test_the_widget_has_a_control_for_each_field_and_predicts_on_a_click(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(memory_widget, "answer", lambda **fields: f"asked {sorted(fields)}")
    *_, button, text = memory_widget.widgets().children
    button.click()
    assert text.value == "asked ['batch', 'checkpointing', 'length', 'method', 'model', 'r']" and not button.disabled
