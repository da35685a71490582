"""The active adapter is global: a long request under plain PEFT changes its adapter in mid-sentence, and one that runs
on modules of its own (`for_request`, TextStream) doesn't."""

from __future__ import annotations

import pytest
from peft import PeftModel

from utils.data.chat import render
from utils.inference.serving import for_request
from utils.inference.streaming import TextStream
from utils.models import load_base
from utils.tinyworld import TASKS, task_examples
from utils.train.adapter_cache import adapter_dir


@pytest.fixture(scope="module")
def loaded():
    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, adapter_dir(TASKS[0]), adapter_name=TASKS[0])
    for task in TASKS[1:]:
        model.load_adapter(adapter_dir(task), adapter_name=task)
    return model.eval(), tokenizer


def _answer(model, tokenizer, prompt, streamer=None):
    ids = tokenizer(render(tokenizer, prompt), add_special_tokens=False, return_tensors="pt").input_ids
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    out = model.generate(input_ids=ids, streamer=streamer, **settings)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


class _Somebody:
    """A streamer that does something at its fifth call: behind the fourth token."""

    def __init__(self, do):
        self.calls, self.do = 0, do

    def put(self, _):
        self.calls += 1
        if self.calls == 5:
            self.do()

    def end(self):
        pass


def test_a_plain_request_goes_on_under_whatever_is_set_and_one_of_its_own_does_not(loaded):
    model, tokenizer = loaded
    prompt = task_examples("style", "test", 5)[3].prompt
    model.set_adapter("style")
    wanted = _answer(model, tokenizer, prompt)
    assert wanted.startswith("Arr!")
    for meddle in (lambda: model.set_adapter("translation"), lambda: model.base_model.disable_adapter_layers()):
        model.base_model.enable_adapter_layers()
        model.set_adapter("style")
        assert _answer(model, tokenizer, prompt, _Somebody(meddle)) != wanted
        model.base_model.enable_adapter_layers()
        assert _answer(for_request(model, "style"), tokenizer, prompt, _Somebody(meddle)) == wanted
    model.base_model.enable_adapter_layers()


def test_eight_streams_over_one_set_of_tensors_say_what_their_adapters_say_alone(loaded):
    model, tokenizer = loaded
    asked = [(task, task_examples(task, "test", 2)[i].prompt) for i in range(2) for task in TASKS]
    expected = [_answer(for_request(model, task), tokenizer, prompt).strip() for task, prompt in asked]
    own = [for_request(model, task) for task, _ in asked]
    streams = [TextStream(mine, tokenizer, prompt) for mine, (_, prompt) in zip(own, asked, strict=True)]
    for i in range(60):
        model.set_adapter(TASKS[i % 4])
    assert ["".join(stream).strip() for stream in streams] == expected
    shared = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for mine in own for p in mine.parameters()} <= shared
