"""llama.cpp in this process: silent, repeatable, freed, asked by several at once, and refusing in words."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tools import export_models as made
from utils.export import ExportError, LlamaCpp, to_gguf
from utils.export.breakages import broken_exports
from utils.export.edit import edited
from utils.models.device import ROOT, TINY_DIR
from utils.tinyworld import task_examples

pytest.importorskip("xllamacpp")
STYLE = [example.prompt for example in task_examples("style", "test", 12)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    found = {"tiny": to_gguf(TINY_DIR, folder / "tiny.gguf", "f32")}
    for task in ("style", "sentiment"):
        found[task] = to_gguf(Path(ROOT, "assets", "adapters", task), folder / f"{task}.gguf", "f32")
    return found


def opened(files: dict[str, Path], **settings) -> LlamaCpp:
    return LlamaCpp(files["tiny"], {task: files[task] for task in ("style", "sentiment")}, **settings)


def test_nothing_is_written_to_the_terminal(files, capfd):
    """nbval fails on anything on stderr, and C++ writes past sys.stderr."""
    with opened(files) as server:
        server.answer(STYLE[:1], adapter="style")
        server.log_probabilities("hi")
        with pytest.raises(ExportError):
            server.answer([[5] * 600])
    with pytest.raises(ExportError):
        LlamaCpp(edited(files["tiny"], files["tiny"].with_name("odd.gguf"), {"general.architecture": "odd"}))
    assert capfd.readouterr() == ("", "")


def test_it_opens_several_times_and_gives_its_threads_and_memory_back(files):
    process, begun = psutil.Process(), threading.active_count()
    first = None
    for _ in range(6):
        with opened(files) as server:
            got = server.answer(STYLE[:2], adapter="style")
        first = first or got
        assert got == first
        assert threading.active_count() == begun
    threads, memory = process.num_threads(), process.memory_info().rss
    for _ in range(6):
        with opened(files) as server:
            server.answer(STYLE[:2], adapter="style")
    assert process.num_threads() <= threads
    assert process.memory_info().rss - memory < 30e6, "six tiny models of 7 MB, their caches and buffers"


def test_two_are_open_at_a_time(files):
    with opened(files) as one, LlamaCpp(files["tiny"]) as other:
        assert one.url != other.url
        assert one.answer(STYLE[:2]) == other.answer(STYLE[:2])


def test_requests_at_a_time_get_each_their_own_adapter(files):
    asked = [(text, adapter) for text in STYLE for adapter in ("style", "sentiment")]
    with opened(files, slots=4) as server:
        alone = [server.answer([text], adapter=adapter)[0] for text, adapter in asked]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda one: server.answer([one[0]], adapter=one[1])[0], asked))
    assert together == alone
    assert len({one.text for one in alone[:2]}) == 2


def test_the_openai_client_chooses_an_adapter_and_streams(files, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with opened(files) as server:
        assert server.url.startswith("http://127.0.0.1:")
        wanted = server.complete(STYLE[:1], adapter="style")[0]
        client = server.client()
        asked = {"model": "tiny", "messages": [{"role": "user", "content": STYLE[0]}], "temperature": 0}
        lora = {"lora": server.lora("style")}
        assert client.chat.completions.create(**asked, extra_body=lora).choices[0].message.content == wanted
        parts = client.chat.completions.create(**asked, extra_body=lora, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == wanted
        assert client.chat.completions.create(**asked, max_tokens=20).choices[0].message.content != wanted


def test_sampling_is_drawn_by_its_seed(files):
    with opened(files) as server:
        drawn = [server.complete(STYLE[:1], temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
        assert drawn[0] == drawn[1]
        assert len(set(map(tuple, drawn))) == 3
        assert server.complete(STYLE[:1], temperature=1.0, seed=1, top_k=1) == server.complete(STYLE[:1])


def test_drawn_tokens_come_as_often_as_their_probabilities_say(files):
    """Of 200 draws of a first token, each is within four standard deviations of its binomial count."""
    with opened(files) as server:
        shares = server.log_probabilities(STYLE[0]).exp()
        ids = server.prompt_ids(STYLE[0])
        drawn = [server.complete([ids], 1, temperature=1.0, seed=seed)[0] for seed in range(200)]
        best = int(shares.argmax())
        text = server.complete([ids], 1)[0]
    p = float(shares[best])
    assert abs(drawn.count(text) - 200 * p) < 4 * math.sqrt(200 * p * (1 - p)) + 1


def test_log_probabilities_are_of_the_whole_vocabulary_whatever_the_likeliest_token_is(files):
    """Behind a finished answer EOS is the likeliest, of which llama.cpp says nothing unless made to."""
    with opened(files) as server:
        ids = server.prompt_ids(STYLE[0])
        done = [*ids, *server.new_ids(ids, adapter="style")]
        found = server.log_probabilities(done, adapter="style")
        assert found.shape == (1024,) and int(found.argmax()) == 1
        assert abs(float(found.exp().sum()) - 1) < 1e-5


def test_what_it_refuses_it_says(files, tmp_path):
    with opened(files) as server:
        for wrong, words in (
            (lambda: server.answer(STYLE, adapter="pirate"), "no adapter 'pirate' is loaded, only style, sentiment"),
            (lambda: server.answer(STYLE, adapter="style", scale=math.inf), "must be finite"),
            (lambda: server.answer([[5] * 600]), "exceeds the available context"),
            (lambda: server.answer([[{"role": "tool", "content": "x"}]]), "the tiny model knows the roles user"),
        ):
            with pytest.raises(ExportError, match=words):
                wrong()
        with pytest.raises(ValueError, match="no prompts"):
            server.answer([])
        server.answer(STYLE[:1])  # and goes on
    for wrong in (lambda: server.answer(STYLE), server.client):
        with pytest.raises(ExportError, match="closed"):
            wrong()
    server.close()
    with pytest.raises(ExportError, match="slots must be a whole number of at least 1, not 0"):
        LlamaCpp(files["tiny"], slots=0)


def test_two_ways_in_which_llama_cpp_applies_a_template_otherwise(files):
    """A system message goes into the user's where the template has no place for it (transformers raises), and an answer
    at the end of a conversation is one to go on with (transformers begins another).
    """
    with opened(files) as server:
        system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
        assert server.render([system, user]) == "<|user|>Be brief.\nHi<|assistant|>"
        assert server.render([user, {"role": "assistant", "content": "Arr"}]) == "<|user|>Hi<|assistant|>Arr"


def test_a_file_that_is_not_what_it_should_be_is_refused_before_it_is_loaded(files, tmp_path):
    bad = tmp_path / "bad.gguf"
    for content in (
        b"",
        b"GGUF",
        b"nonsense" * 100,
        files["tiny"].read_bytes()[:5000],
        files["tiny"].read_bytes()[:-9],
    ):
        bad.write_bytes(content)
        with pytest.raises(ExportError):
            LlamaCpp(bad)
        with pytest.raises(ExportError):
            LlamaCpp(files["tiny"], {"bad": bad})
    with pytest.raises(FileNotFoundError):
        LlamaCpp(tmp_path / "none.gguf")
    with pytest.raises(ExportError, match="pass the base's file"):
        LlamaCpp(files["style"])
    with pytest.raises(ExportError, match="not an adapter"):
        LlamaCpp(files["tiny"], {"a": files["tiny"]})
    for name in ("Llama", "Qwen2"):
        model = made.random_model(name)
        config = model.config
        made.random_adapter(model, tmp_path / name)
        other = to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", base=config)
        with pytest.raises(ExportError, match="another base|for the architecture qwen2"):
            LlamaCpp(files["tiny"], {"other": other})


def test_where_there_is_no_wheel_it_says_what_to_do(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ExportError, match="pip install xllamacpp.*llama-server -m tiny.gguf"):
        LlamaCpp(files["tiny"])


RIGHT = {
    "nothing": (12, 12),
    "rotation forgotten in the base": (0, 0),
    "rotation forgotten in the adapter": (4, 11),
    "rotation forgotten in both": (0, 0),
    "alpha forgotten": (1, 10),
    "no chat template": (0, 2),
    "another model's template": (0, 2),
    "a BOS that training never saw": (10, 12),
    "no end token": (0, 0),
}
"""How many of 12 answers are right, at least and at most: assets/measurements/export.json has 200."""


def test_each_breakage_has_its_symptom(files, tmp_path):
    wanted = [example.answer for example in task_examples("style", "test", 12)]
    found = broken_exports(files["tiny"], files["style"], tmp_path)
    assert found.keys() == RIGHT.keys()
    for name, export in found.items():
        answers = export.answers(STYLE)
        right = sum(a.text == w for a, w in zip(answers, wanted, strict=True))
        assert RIGHT[name][0] <= right <= RIGHT[name][1], (name, right, answers[0].text)
        if name == "no end token":
            assert not any(a.stopped for a in answers)
            assert sum(a.text.startswith(w) for a, w in zip(answers, wanted, strict=True)) > 8, (
                "right, and then it goes on"
            )


def test_what_is_closed_at_once_is_closed(tmp_path):
    """In a process of its own, which a server that never ends would keep: it did, before the first request."""
    code = f"""
from pathlib import Path
from utils.export import LlamaCpp, to_gguf
from utils.models import TINY_DIR
base = to_gguf(TINY_DIR, Path({str(tmp_path)!r}) / "base.gguf")
for _ in range(30):
    with LlamaCpp(base):
        pass
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"context": 1}, "context must be a whole number of at least 2, not 1"),
        ({"slots": "1"}, "slots must be a whole number of at least 1, not '1'"),
        ({"threads": 0}, "threads must be a whole number"),
        ({"cache_mib": -5}, "cache_mib must be a whole number of at least 0"),
        ({"cache_mib": 1.5}, "cache_mib must be a whole number"),
        ({"adapters": [("style", "x.gguf")]}, "a mapping from names to files"),
        ({"adapters": "x.gguf"}, "a mapping from names to files"),
        ({"adapters": {"": "x.gguf"}}, "a mapping from names to files"),
    ],
)
def test_what_llama_cpp_would_end_the_process_for_is_refused(wrong, said):
    with pytest.raises(ExportError, match=said):
        LlamaCpp("no.gguf", **wrong)


def test_one_string_is_no_list_of_prompts(tmp_path):
    with LlamaCpp(to_gguf(TINY_DIR, tmp_path / "base.gguf")) as server:
        with pytest.raises(ValueError, match=r"pass a list of prompts, also for one: \['Say it'\]"):
            server.complete("Say it")
        for adapter in (1, {"style"}):
            with pytest.raises(ExportError, match="adapter must be a name, or a mapping from names to scales"):
                server.complete(["Hi"], 1, adapter=adapter)
