"""A stream gives the whole answer in pieces; errors, silence and leaving early all end it, and none of them hangs."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from utils.evaluate.metrics import complete
from utils.inference.streaming import StreamFailed, StreamTimeout, TextStream
from utils.models import load_base
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

PROMPT = task_examples("style", "test", 1)[0].prompt
STORY = "Tell me a story about a brave fox."
LONG = {"max_new_tokens": 400, "eos_token_id": -1}


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return load_base()


class Stub:
    """A model whose generate is `work`."""

    device = torch.device("cpu")

    def __init__(self, work):
        self.work = work

    def generate(self, **arguments):
        return self.work(**arguments)


def test_the_pieces_are_the_whole_answer(loaded):
    with TextStream(*loaded, STORY, max_new_tokens=40) as stream:
        pieces = list(stream)
    assert "".join(pieces).strip() == complete(*loaded, [STORY], max_new_tokens=40)[0]
    assert len(pieces) > 5 and all(pieces) and not stream.running


def test_it_works_with_an_adapter(loaded):
    from peft import PeftModel

    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, adapter_dir("style"))
    with TextStream(model, tokenizer, PROMPT) as stream:
        assert "".join(stream).strip() == complete(model, tokenizer, [PROMPT])[0]


def test_the_first_piece_comes_before_the_last_is_written(loaded):
    with TextStream(*loaded, STORY, **LONG) as stream:
        next(stream)
        assert stream.running


def test_sampling_settings_reach_generate(loaded):
    torch.manual_seed(0)
    with TextStream(*loaded, STORY, max_new_tokens=20, do_sample=True, temperature=5.0) as stream:
        wild = "".join(stream)
    assert wild.strip() != complete(*loaded, [STORY], max_new_tokens=20)[0]


def test_stop_strings_end_a_stream(loaded):
    whole = complete(*loaded, [STORY], max_new_tokens=30)[0]
    stop = whole[20:24]
    with TextStream(*loaded, STORY, max_new_tokens=30, stop_strings=[stop]) as stream:
        text = "".join(stream)
    assert stop in text and len(text) < len(whole) and whole.startswith(text.strip())


def test_an_error_in_generate_reaches_the_reader(loaded):
    """At once: one that waited for the time-out would raise StreamTimeout, and not before ten minutes are over."""
    with TextStream(*loaded, STORY, do_sample=True, temperature=0.0, timeout=600) as stream:
        with pytest.raises(StreamFailed, match="generate failed: ValueError: .*temperature") as caught:
            list(stream)
    assert isinstance(caught.value.__cause__, ValueError) and not stream.running
    assert list(stream) == [], "after an error the stream is over"


def test_what_was_written_before_the_error_is_read_first(loaded):
    """A stopping criterion that fails at the eighth token."""
    count = iter(range(100))

    def fails(ids, scores, **_):
        if next(count) == 8:
            raise RuntimeError("the eighth token")
        return torch.zeros(len(ids), dtype=torch.bool)

    read = []
    with pytest.raises(StreamFailed, match="RuntimeError: the eighth token"):
        for piece in TextStream(*loaded, STORY, stopping_criteria=[fails], timeout=20):
            read.append(piece)
    assert read


def test_an_error_after_the_last_piece_is_not_lost(loaded):
    """generate says that no more text will come, and fails only when the reader, who heard it, waits for the thread."""
    waited_for = threading.Event()

    def fails_late(streamer, **_):
        streamer.end()
        waited_for.wait(20)
        raise RuntimeError("after the end")

    stream = TextStream(Stub(fails_late), loaded[1], STORY, timeout=60)
    join = stream._thread.join

    def join_and_tell(timeout=None):
        waited_for.set()
        join(timeout)

    stream._thread.join = join_and_tell
    with pytest.raises(StreamFailed, match="RuntimeError: after the end"):
        list(stream)


def test_silence_ends_in_a_time_out(loaded):
    released = threading.Event()
    stream = TextStream(Stub(lambda **_: released.wait(20)), loaded[1], STORY, timeout=0.2)
    with pytest.raises(StreamTimeout, match=r"nothing for 0\.2 seconds"):
        next(stream)
    assert list(stream) == []
    released.set()
    stream.cancel()
    assert not stream.running


def test_cancelling_stops_the_model(loaded):
    stream = TextStream(*loaded, STORY, **LONG)
    next(stream)
    stream.cancel()
    assert not stream.running and stream.error is None
    rest = loaded[1]("".join(stream), add_special_tokens=False).input_ids
    assert len(rest) < 400


def test_leaving_the_block_stops_the_model(loaded):
    with pytest.raises(KeyError), TextStream(*loaded, STORY, **LONG) as stream:
        next(stream)
        raise KeyError
    assert not stream.running


def test_the_plain_recipe_waits_for_ever(loaded, monkeypatch):
    """The common recipe, made to fail: why this module exists (claim C38)."""
    from transformers import TextIteratorStreamer

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    model, tokenizer = loaded
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    inputs = tokenizer("Once", return_tensors="pt", return_token_type_ids=False)
    settings = dict(inputs, do_sample=True, temperature=0.0, max_new_tokens=5, streamer=streamer)
    writer = threading.Thread(target=model.generate, kwargs=settings)
    reader = threading.Thread(target=lambda: list(streamer), daemon=True)
    writer.start()
    reader.start()
    writer.join(20)
    reader.join(0.5)
    assert not writer.is_alive() and reader.is_alive()
    streamer.text_queue.put(streamer.stop_signal)
    reader.join(5)
    assert not reader.is_alive()


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        ("", {}, "nothing to answer"),
        (" ", {}, "nothing to answer"),
        ("Hi", {"timeout": 0}, "above 0"),
        ("Hi", {"timeout": None}, "can hang"),
        ("Hi", {"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_what_is_refused(loaded, prompt, settings, said):
    with pytest.raises(ValueError, match=said):
        TextStream(SimpleNamespace(device="cpu"), loaded[1], prompt, **settings)
