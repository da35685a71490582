"""The playground answers as the model does, changes nothing, and works with and without widgets."""

from __future__ import annotations

import builtins

import pytest
import torch

from utils.evaluate.metrics import complete
from utils.inference import playground as module
from utils.inference.playground import Playground, playground
from utils.models import load_base
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

PROMPT, ANSWER = task_examples("style", "test", 1)[0]


@pytest.fixture(scope="module")
def loaded():
    from peft import PeftModel

    torch.set_num_threads(1)
    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, adapter_dir("style"), adapter_name="style")
    model.load_adapter(adapter_dir("sentiment"), adapter_name="sentiment")
    return model, tokenizer


def test_each_adapter_answers_and_the_active_one_stays(loaded):
    play = Playground(*loaded)
    assert play.adapters == ("base", "style", "sentiment")
    loaded[0].set_adapter("sentiment")
    assert play.answer(PROMPT, "style") == ANSWER
    assert play.answer(PROMPT, "base") != ANSWER
    assert loaded[0].active_adapter == "sentiment"
    loaded[0].set_adapter("style")
    assert play.answer(PROMPT, "style") == complete(*loaded, [PROMPT], max_new_tokens=48)[0]
    assert any(p.requires_grad for p in loaded[0].parameters()), "the active adapter can be trained on"


def test_a_model_without_adapters_has_the_base_only():
    play = Playground(*load_base())
    assert play.adapters == ("base",) and play.answer(PROMPT)


def test_the_seed_decides_and_the_random_state_stays(loaded):
    play = Playground(*loaded)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = [play.answer(PROMPT, "base", 1.5, 0.95, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tiny_top_p_is_greedy(loaded):
    play = Playground(*loaded)
    assert play.answer(PROMPT, "style", 2.0, 1e-6) == play.answer(PROMPT, "style")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((" ",), "the prompt is empty"),
        ((PROMPT, "pirate"), "there is no adapter 'pirate': choose among base, style, sentiment"),
        ((PROMPT, "style", -0.1), "temperature is 0"),
        ((PROMPT, "style", 1.0, 0.0), "top_p is above 0"),
        ((PROMPT, "style", 1.0, 1.1), "top_p is above 0"),
    ],
)
def test_what_is_refused_is_said(loaded, capsys, arguments, said):
    play = Playground(*loaded)
    with pytest.raises(ValueError, match=said):
        play.answer(*arguments)
    play.ask(*arguments)
    assert said in capsys.readouterr().out


def controls(box):
    text, row, button, answer = box.children
    return text, *row.children, button, answer


def test_the_widgets_do_what_the_function_does(loaded):
    play = Playground(*loaded)
    text, adapter, temperature, top_p, button, answer = controls(play.widgets(PROMPT))
    assert (text.value, adapter.options, temperature.value, top_p.value) == (PROMPT, play.adapters, 0.0, 1.0)
    adapter.value = "style"
    button.click()
    assert answer.value == ANSWER and not button.disabled
    text.value = ""
    button.click()
    assert answer.value.startswith("Can't answer: the prompt is empty")


def test_without_a_kernel_it_prints_how_to_ask(loaded, capsys):
    play = playground(*loaded)
    assert capsys.readouterr().out.startswith("No widgets here.")
    play.ask(PROMPT, "style")
    assert capsys.readouterr().out == ANSWER + "\n"


def test_without_the_package_it_prints_how_to_ask(loaded, capsys, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("ipywidgets"):
            raise ImportError(name)
        return imported(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert not module.widgets_work()
    playground(*loaded)
    assert capsys.readouterr().out.startswith("No widgets here.")


def test_live_shows_the_widgets(loaded, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    playground(*loaded, PROMPT, live=True)
    assert len(shown) == 1 and controls(shown[0])[0].value == PROMPT
