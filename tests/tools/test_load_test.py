"""The load test: it sees a wrong answer and a failed request, asks this machine only, and its adapters all differ."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from tools import load_test as tool
from utils.export import LlamaCpp, to_gguf
from utils.models import TINY_DIR


class Client:
    """The part of an `openai` client that is used; `answer` is called with the name and whether it is asked alone."""

    base_url = "http://127.0.0.1:9/v1"

    def __init__(self, answer):
        self.chat = SimpleNamespace(completions=self)
        self._answer, self._main = answer, threading.main_thread()

    def create(self, *, model, **_):
        text = self._answer(model, threading.current_thread() is self._main)
        delta = [SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=part))]) for part in text]
        return iter([*delta, SimpleNamespace(choices=[])])


ASKED = [("a", "x"), ("b", "x"), ("a", "y")] * 4


def test_answers_that_differ_under_load_are_wrong():
    found = tool.load(Client(lambda name, alone: "right" if alone or name == "a" else "wrong"), ASKED, of_name)
    assert (found.requests, found.adapters, found.failed, found.wrong) == (12, 2, 0, 4)
    assert 0 < found.first_token_p50 <= found.p50 <= found.p95 or found.p50 == 0


def of_name(name):
    return {"model": name}


def test_a_request_that_fails_is_counted():
    def answer(name, alone):
        if name == "b" and not alone:
            raise RuntimeError("gone")
        return "right"

    found = tool.load(Client(answer), ASKED, of_name)
    assert (found.failed, found.wrong) == (4, 0)


def test_what_is_not_begun_in_time_has_failed():
    assert tool.load(Client(lambda name, alone: "right"), ASKED, of_name, seconds=0).failed == len(ASKED)


@pytest.mark.parametrize("url", ["http://example.org/v1", "http://10.0.0.1:80", "http://192.168.1.5/v1", "nothing"])
def test_another_machine_is_never_asked(url):
    client = Client(lambda name, alone: pytest.fail("asked"))
    client.base_url = url
    with pytest.raises(ValueError, match="isn't this machine"):
        tool.load(client, ASKED, of_name)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:80/v1"])
def test_this_machine_is(url):
    assert tool.loopback(url) == url


@pytest.mark.parametrize("count", [0, tool.MOST_REQUESTS + 1])
def test_the_number_of_requests_is_bounded(count):
    with pytest.raises(ValueError, match="ask 1 to 2,000"):
        tool.load(Client(lambda name, alone: ""), [("a", "x")] * count, of_name)


def test_no_two_adapters_are_equal_and_the_questions_are_of_their_tasks(tmp_path):
    made = tool.many_adapters(tmp_path, 9)
    first = [load_file(path / "adapter_model.safetensors") for path in made.values()]
    seen = {tuple(tensors[next(k for k in sorted(tensors) if "lora_B" in k)].flatten().tolist()) for tensors in first}
    assert len(seen) == 9
    assert [name for name, _ in tool.questions(list(made), 18)] == [*made, *made]


@pytest.mark.slow
def test_llama_cpp_under_load_answers_all_as_alone(tmp_path):
    adapters = tool.many_adapters(tmp_path / "adapters", 4)
    found = tool.of_llama_cpp(tmp_path, adapters, 12)
    assert (found.requests, found.adapters, found.failed, found.wrong) == (12, 4, 0, 0)


def test_the_record_holds_three_servers_and_no_wrong_answer():
    import json

    record = json.loads(tool.OUT.read_text(encoding="utf-8"))
    assert record["servers"].keys() == {"chapter 12", "llama.cpp", "vLLM"}
    for rows in record["servers"].values():
        assert [row["adapters"] for row in rows] == list(tool.COUNTS)
        assert sum(row["failed"] + row["wrong"] for row in rows) == 0


def test_llama_cpp_is_asked_by_name_of_its_adapter(tmp_path):
    """What `of_llama_cpp` sends beside the prompt: one of two adapters, by its number."""
    made = tool.many_adapters(tmp_path / "adapters", 2)
    base = to_gguf(TINY_DIR, tmp_path / "base.gguf")
    with LlamaCpp(base, {n: to_gguf(p, tmp_path / f"{n}.gguf") for n, p in made.items()}) as server:
        assert server.lora("sentiment-00") == [{"id": 1, "scale": 1.0}]
