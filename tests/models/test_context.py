"""One place knows a model's positions: an answer never runs past them, and a prompt that fills them is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config

from utils.evaluate.metrics import answer, complete
from utils.inference.playground import Playground
from utils.inference.streaming import TextStream
from utils.lora import tiny_random
from utils.models import load_base
from utils.models.context import positions, room_for_answer

STORY = "Tell me a story."
LONG = "Tom ran to the shop. " * 120
FULL = r"a prompt has 1,084 tokens and the model 512 positions, so there is no room for an answer: shorten"


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return load_base()


def test_a_config_tells_the_positions(loaded):
    assert positions(loaded[0]) == 512
    assert positions(SimpleNamespace(config=GPT2Config(n_positions=40))) == 40
    assert positions(tiny_random("Llava")) == 64, "of the language model in it"
    assert positions(object()) is None and positions(SimpleNamespace(config=SimpleNamespace())) is None


def test_the_room_is_what_the_prompt_leaves():
    assert [room_for_answer(n, 64, 512) for n in (1, 448, 449, 511)] == [64, 64, 63, 1]
    assert room_for_answer(5000, 64, None) == 64
    with pytest.raises(ValueError, match="a prompt has 512 tokens and the model 512 positions"):
        room_for_answer(512, 64, 512)


def test_a_prompt_that_is_too_long_is_refused_by_whatever_asks_the_model(loaded, capsys):
    for ask in (lambda: complete(*loaded, [STORY, LONG]), lambda: TextStream(*loaded, LONG)):
        with pytest.raises(ValueError, match=FULL):
            ask()
    with pytest.raises(ValueError, match=FULL):
        Playground(*loaded).answer(LONG)
    Playground(*loaded).ask(LONG)
    assert capsys.readouterr().out.startswith("Can't answer: a prompt has 1,084 tokens")


def test_an_answer_ends_where_the_positions_end(loaded):
    prompt = "Tom ran to the shop. " * 53
    endless = {"max_new_tokens": 400, "eos_token_id": -1}
    tokens = len(loaded[1].apply_chat_template([{"role": "user", "content": prompt}])["input_ids"])
    assert 450 < tokens < 512
    assert answer(*loaded, [prompt], **endless)[0].tokens <= 512 - tokens
    with TextStream(*loaded, prompt, **endless) as stream:
        written = "".join(stream)
    assert 0 < len(loaded[1](written).input_ids) <= 512 - tokens + 1
    short = complete(*loaded, [STORY, prompt], max_new_tokens=64)[0]
    assert short == complete(*loaded, [STORY], max_new_tokens=64)[0], "not cut because of another prompt's length"
