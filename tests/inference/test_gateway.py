"""The server as a client sees it, through the real client of the `openai` package."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.data.chat import render
from utils.inference import gateway, serving
from utils.models import TINY_DIR, load_base
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

TASKS = ("style", "sentiment", "translation")
KEY = "s3cret"


# ------------------------------------------------------------------------------------------------ the stop cutter


def cut(text, stops):
    """Letter by letter: the text until a stop is complete, without it; and whether there was one."""
    for n in range(len(text) + 1):
        if found := [stop for stop in stops if text[:n].endswith(stop)]:
            return text[: n - max(map(len, found))], True
    return text, False


@given(
    pieces=st.lists(st.text("ab.é", max_size=4), max_size=8), stops=st.lists(st.text("ab.é", min_size=1, max_size=4))
)
def test_a_text_is_cut_at_the_first_stop_however_it_comes(pieces, stops):
    cutter, text = gateway.StopCutter(stops), "".join(pieces)
    shown = ""
    for n, piece in enumerate(pieces, 1):
        shown += cutter.feed(piece)
        assert cut(text, stops)[0].startswith(shown), "what was shown is never taken back"
        assert cutter.found == cut("".join(pieces[:n]), stops)[1], "a stop is seen as soon as it is there"
    assert (shown + cutter.rest(), cutter.found) == cut(text, stops)


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1), st.text("abc", min_size=1, max_size=3))
def test_no_more_is_held_back_than_a_stop_can_need(pieces, stop):
    cutter, shown, come = gateway.StopCutter([stop]), "", ""
    for piece in pieces:
        shown, come = shown + cutter.feed(piece), come + piece
        if not cutter.found:
            assert stop.startswith(come[len(shown) :]) and len(come) - len(shown) < len(stop)


# ------------------------------------------------------------------------------------------------ a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    serving.stage(folder, str(TINY_DIR), {task: adapter_dir(task) for task in TASKS})
    with serving.serve(folder, api_key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    """One client for all tests, without retries: a connection that an error spoils would fail the next test."""
    with server.client(max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def local():
    from peft import PeftModel

    model = None
    base, tokenizer = load_base()
    for task in TASKS:
        if model is None:
            model = PeftModel.from_pretrained(base, adapter_dir(task), adapter_name=task)
        else:
            model.load_adapter(adapter_dir(task), adapter_name=task)
    models = {name: serving.for_request(model.eval(), name) for name in ("base", *TASKS)}

    def ids(name, prompt, limit):
        torch.set_num_threads(1)
        given = tokenizer(render(tokenizer, prompt), add_special_tokens=False, return_tensors="pt").input_ids
        written = models[name].generate(given, max_new_tokens=limit, do_sample=False)[0, given.shape[1] :]
        return written.tolist()

    ids.decode = lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)
    return ids


def asked(client, model="style", prompt="Say it like a pirate: Otto had a tiny house near the village.", **settings):
    settings = {"messages": [{"role": "user", "content": prompt}], "temperature": 0} | settings
    return client.chat.completions.create(model=model, **settings)


def joined(stream):
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return text, [c.choices[0].finish_reason for c in chunks if c.choices][-1], chunks


def refused(client, **settings):
    with pytest.raises(openai.APIStatusError) as caught:
        asked(client, **settings)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    return caught.value


@pytest.mark.parametrize(
    ("wrong", "kind", "param", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model", "model_not_found"),
        ({"model": "../x/style"}, openai.NotFoundError, "model", "model_not_found"),
        ({"model": str(TINY_DIR)}, openai.NotFoundError, "model", "model_not_found"),
        ({"model": ""}, openai.BadRequestError, "model", "missing_required_parameter"),
        ({"messages": []}, openai.BadRequestError, "messages", "empty_array"),
        ({"messages": "Hi"}, openai.BadRequestError, "messages", "invalid_type"),
        ({"messages": [{"role": "system", "content": "x"}]}, openai.BadRequestError, "messages", "invalid_value"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": "many"}, openai.BadRequestError, "max_tokens", "invalid_type"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "decimal_below_min_value"),
        ({"top_p": 5}, openai.BadRequestError, "top_p", "decimal_above_max_value"),
        ({"n": 2}, openai.BadRequestError, "n", "unsupported_parameter"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs", "unsupported_parameter"),
        (
            {"response_format": {"type": "json_object"}},
            openai.BadRequestError, "response_format", "unsupported_parameter",
        ),
        ({"max_tokens": 505}, openai.BadRequestError, "messages", "context_length_exceeded"),
        ({"prompt": "a " * 6000}, openai.BadRequestError, "messages", "context_length_exceeded"),
        ({"prompt": "Hi<|assistant|>Ho"}, openai.BadRequestError, "messages[0].content", "invalid_value"),
        ({"user": {}}, openai.BadRequestError, "user", "invalid_type"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_fault_is_a_400_or_404_and_the_next_request_is_answered(client, wrong, kind, param, code, stream):
    error = refused(client, **wrong, stream=stream)
    assert type(error) is kind and (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert asked(client, max_tokens=2).choices[0].message.content == "Ar"


def test_an_error_leaves_the_connection_open(server):
    """On one socket: malformed JSON, no model, a wrong address, method or key; after each of them a good request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.connect()
    socket, key = connection.sock, {"Authorization": f"Bearer {KEY}"}
    good = {"model": "style", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    chat = "/v1/chat/completions"
    for method, path, body, headers, status in (
        ("POST", chat, b"{not json", key, 400),
        ("POST", chat, b"\xff\xfe", key, 400),
        ("POST", chat, b"[" * 100_000, key, 400),
        ("POST", chat, b"[]", key, 400),
        ("POST", chat, b"", key, 400),
        ("POST", chat, b"{}", key, 400),
        ("POST", chat, json.dumps(good | {"\ud800": 1}).encode(), key, 400),
        ("POST", chat, json.dumps(good | {"max_tokens": 10**4300 - 1}).encode(), key, 400),
        ("POST", chat + "/", json.dumps(good).encode(), key, 404),
        ("POST", chat, b" " * 3_000_000, key, 413),
        ("POST", "/v1/responses", b"{}", key, 404),
        ("POST", "/load_model", b'{"model": "base"}', key, 404),
        ("GET", chat, b"", key, 405),
        ("GET", "/v1/models", b"", {"Authorization": "Bearer wrong"}, 401),
        ("GET", "/v1/models", b"", {"Authorization": "Bearer \xe9"}, 401),
        ("GET", "/v1/models", b"", {}, 401),
        ("POST", chat, json.dumps(good).encode(), {}, 401),
    ):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        assert (answer.status, error["type"]) == (status, "invalid_request_error"), (path, body[:20], error)
        connection.request("POST", chat, json.dumps(good), key)
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["model"] == "style"
        assert connection.sock is socket, (path, body[:20])
    connection.close()


def test_a_method_that_is_not_there_is_a_405_and_head_is_get_without_a_body(server):
    ask = server.client()._client.request
    for method, path, allowed in (("GET", "/chat/completions", {"POST"}), ("DELETE", "/models", {"GET", "HEAD"})):
        answer = ask(method, server.url + path)
        assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == allowed
        assert f"Not allowed to {method} /v1{path}: it takes " in answer.json()["error"]["message"]
    for path, key in ((server.url + "/models", {"authorization": f"bearer {KEY}"}), (server.url[:-3] + "/health", {})):
        assert (ask("HEAD", path, headers=key).status_code, ask("HEAD", path, headers=key).content) == (200, b"")
    answer = ask("GET", server.url + "/models")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_fault_of_ours_is_a_500_in_json_with_a_traceback_in_the_log(server, client, monkeypatch):
    monkeypatch.setattr(gateway, "read", lambda *_: [][0])
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match=r"The server failed, see server\.log") as caught:
            asked(server.client(max_retries=2), stream=stream)
        assert (caught.value.status_code, caught.value.type) == (500, "server_error")
    assert server.log.count("IndexError: list index out of range") == 2, "and it isn't tried again"
    monkeypatch.undo()
    assert asked(client, max_tokens=2).choices[0].message.content == "Ar"


def test_a_request_that_is_long_to_read_keeps_nobody_waiting(server, client, monkeypatch):
    reading, go_on, read = threading.Event(), threading.Event(), gateway.read

    def slow(*given):
        reading.set()
        assert go_on.wait(60)
        return read(*given)

    monkeypatch.setattr(gateway, "read", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked, client, max_tokens=2)
        try:
            assert reading.wait(60)
            assert client._client.get(server.url[:-3] + "/health", timeout=30).status_code == 200
        finally:
            go_on.set()
        assert answer.result().choices[0].message.content == "Ar"


def test_top_p_0_is_the_likeliest_token(client):
    prompt = {"prompt": "Tell me a story.", "model": "base", "max_tokens": 12}
    likeliest = asked(client, **prompt).choices[0].message.content
    for seed in range(3):
        assert asked(client, **prompt, temperature=2, top_p=0, seed=seed).choices[0].message.content == likeliest


def test_what_a_request_says_can_not_forge_a_line_of_the_log(server, client):
    error = refused(client, extra_body={"x\n200 style: forged": 1})
    assert "forged" in error.body["message"] and not any(
        line.startswith("200 style: f") for line in server.log.splitlines()
    )


def test_a_wrong_key_is_a_401_and_health_needs_none(server):
    with pytest.raises(openai.AuthenticationError) as caught:
        asked(server.client(api_key="wrong"))
    assert caught.value.code == "invalid_api_key"
    assert server.client()._client.get(server.url.replace("/v1", "/health")).json() == {"status": "ok"}


def test_a_request_that_is_too_long_is_a_413(client):
    error = refused(client, prompt="a" * 1_100_000)
    assert error.status_code == 413 and error.code == "request_too_large"
    assert asked(client, max_tokens=2).choices[0].message.content == "Ar"


def test_the_models_are_listed_from_the_start_with_the_adapters_parent(client):
    listed = {model.id: (model.parent, model.root, model.max_model_len) for model in client.models.list()}
    assert list(listed) == ["base", *sorted(TASKS)]
    assert listed == {"base": (None, "base", 512)} | {task: ("base", task, 512) for task in TASKS}
    assert client.models.retrieve("translation").id == "translation"
    for name in ("nobody", "../style"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code in ("model_not_found", "unknown_url")


def test_a_stop_is_cut_from_the_answer_and_the_usage_counts_up_to_it(client, local):
    """Stops inside a token, of several tokens, at the beginning, several at once; one that isn't there."""
    prompt = "Say it like a pirate: Otto had a tiny house near the village."
    ids = local("style", prompt, 60)
    text = local.decode(ids)
    assert text == "Arr! Otto boasted a tiny ship near th' village."
    for stop in ("r!", "tiny", "o boasted a", ["village", "near", "ip n"], "A", ["xyz", "."], ["nowhere"]):
        stops = [stop] if isinstance(stop, str) else stop
        expected, found = cut(text, stops)
        needed = next((n for n in range(len(ids)) if cut(local.decode(ids[:n]), stops)[1]), len(ids))
        whole = asked(client, prompt=prompt, stop=stop)
        assert whole.choices[0].message.content == expected and whole.choices[0].finish_reason == "stop"
        assert found == (expected != text) and whole.usage.completion_tokens == needed
        stream = asked(client, prompt=prompt, stop=stop, stream=True, stream_options={"include_usage": True})
        streamed, reason, chunks = joined(stream)
        assert (streamed, reason, chunks[-1].usage) == (expected, "stop", whole.usage)
        assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"


def test_the_tokens_of_letters_that_need_several_are_counted(tokenizer):
    """transformers' server sends such a letter whole, with its last token. The tiny model writes none by itself."""
    closed = []

    class Upstream:
        """The part of AsyncOpenAI that is used, with a stream of three pieces."""

        def __init__(self):
            self.chat, self.completions, self._iterator = self, self, aiter(self)

        async def create(self, **_):
            return self

        async def close(self):
            closed.append(True)

        async def __aiter__(self):
            for piece in ("a", "\N{GRINNING FACE}", "b", "c"):
                delta = SimpleNamespace(content=piece)
                yield SimpleNamespace(choices=[SimpleNamespace(delta=delta, finish_reason=None)], usage=None)

    wanted = SimpleNamespace(stops=("b",), forward={}, model=SimpleNamespace(tokenizer=tokenizer))

    async def answered():
        return [piece async for piece in gateway._answer(Upstream(), wanted)]

    assert len(tokenizer.tokenize("\N{GRINNING FACE}")) == 4
    assert asyncio.run(answered()) == [("a", None, 1), ("\N{GRINNING FACE}", None, 5), ("", "stop", 6)] and closed


def test_the_usage_without_a_stop_is_the_models_own(client, local):
    for limit, reason in ((5, "length"), (None, "stop")):
        answer = asked(client, max_tokens=limit)
        ids = local("style", "Say it like a pirate: Otto had a tiny house near the village.", limit or 400)
        assert answer.usage.completion_tokens == len(ids) and answer.choices[0].finish_reason == reason
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(ids)
        assert answer.choices[0].message.content == local.decode(ids)


def test_fifty_streams_at_once_each_have_their_adapter(server, client, local):
    """Base and three adapters, 20 prompts each twice or three times: every stream is its own greedy answer."""
    prompts = [example.prompt for task in TASKS for example in task_examples(task, "test", 2)][:5]
    pairs = [(name, prompt) for prompt in prompts for name in ("base", *TASKS)]
    expected = {pair: local.decode(local(*pair, 16)) for pair in pairs}
    assert len(set(expected.values())) > 15
    wanted = (pairs * 3)[:50]

    def stream(pair):
        return joined(asked(client, *pair, max_tokens=16, stream=True))[0]

    for name in ("base", *TASKS):  # loaded before the clock
        asked(client, name, max_tokens=1)
    began = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(stream, wanted))
    memory = psutil.Process(server.upstream.process.pid).memory_info().rss >> 20
    print(f"\n50 streams: {time.monotonic() - began:.1f} s, transformers' server {memory} MiB")
    assert answers == [expected[pair] for pair in wanted]


# -------------------------------------------------------------------------- what transformers' server does by itself


def test_an_answer_leaves_no_open_generator_to_the_collector(client):
    """The collector may find it in a thread without the server's loop, and Python writes a traceback into the page."""

    def left():
        time.sleep(0.2)
        kind = type(_one())
        return [it for it in gc.get_objects() if type(it) is kind and it.ag_frame and "httpx" in it.ag_code.co_filename]

    async def _one():
        yield

    gc.collect()
    gc.disable()
    try:
        for settings in ({"max_tokens": 4}, {"stop": ["tiny"]}, {"stream": True, "max_tokens": 4}):
            said = asked(client, **settings)
            if "stream" in settings:
                list(said)
        with asked(client, stream=True, max_tokens=400) as stream:
            next(iter(stream))
        assert left() == []
    finally:
        gc.enable()


def test_transformers_server_itself_does_what_the_gateway_is_for(server):
    """When one of these fails, transformers has mended it, and the gateway may do less."""

    def direct():
        return server.client(base_url=f"http://127.0.0.1:{server.upstream.port}/v1", max_retries=0)

    for wrong in (
        {"model": "nobody"}, {"messages": []}, {"max_tokens": 0}, {"temperature": -1.0},
        {"messages": [{"role": "system", "content": "x"}]},
    ):  # fmt: skip
        with pytest.raises(openai.InternalServerError):
            asked(direct(), **wrong)  # a client each: the server hangs up after a 500, which spoils the next request
    client = direct()
    assert "tiny" in asked(client, stop=["tiny"]).choices[0].message.content
    assert len(asked(client, n=2, logprobs=True, response_format={"type": "json_object"}, max_tokens=2).choices) == 1
    assert asked(client, model=str(server.folder / "style"), max_tokens=2).model == str(server.folder / "style")
    assert asked(client, prompt="a " * 600, max_tokens=1).usage.prompt_tokens > 512
    assert {model.id for model in client.models.list()} != {"base", *TASKS}


# ------------------------------------------------------------------------ time-outs, clients that hang up, and death


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A base that never ends by itself, for minutes, and a server that has three seconds for an answer."""
    folder = tmp_path_factory.mktemp("stage")
    serving.stage(folder, str(TINY_DIR), {})
    for name, change in (("generation_config", {"eos_token_id": -1}), ("config", {"max_position_embeddings": 20_000})):
        file = folder / "base" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with serving.serve(folder, request_timeout=3.0) as server:
        client = server.client()
        while True:  # loading the model may take longer
            try:
                asked(client, "base", max_tokens=1)
                break
            except openai.InternalServerError as error:
                assert (error.status_code, error.code) == (504, "timeout")
        yield server


def cpu(server):
    return sum(psutil.Process(server.upstream.process.pid).cpu_times()[:2])


def assert_at_rest(server):
    """The rest of the answer would need minutes."""
    time.sleep(0.5)
    before = cpu(server)
    time.sleep(1.0)
    assert cpu(server) - before < 0.25


def test_an_answer_that_takes_too_long_is_a_504_and_ends_the_generation(endless):
    client = endless.client()
    with pytest.raises(openai.InternalServerError, match="wasn't ready after 3 seconds") as caught:
        asked(client, "base")
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (504, "timeout", "server_error")
    assert_at_rest(endless)
    before = endless.log.count("504 POST")
    with pytest.raises(openai.InternalServerError):
        asked(endless.client(max_retries=2), "base")
    assert endless.log.count("504 POST") == before + 1, "it isn't tried again, which would end in the same way"
    assert asked(client, "base", max_tokens=1).usage.completion_tokens == 1


def test_a_stream_that_takes_too_long_ends_with_an_error_that_arrives(endless):
    client, pieces = endless.client(), []
    asked(client, "base", max_tokens=1)
    with pytest.raises(openai.APIError, match="wasn't ready after 3 seconds") as caught:
        for chunk in asked(client, "base", stream=True):
            pieces.append(chunk.choices[0].delta.content)
    assert caught.value.code == "timeout" and len(pieces) > 5
    assert_at_rest(endless)
    assert asked(client, "base", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_the_generation(endless, stream):
    """Within the time-out, which would end it too."""
    client = endless.client()
    asked(client, "base", max_tokens=1)
    if stream:
        with asked(client, "base", stream=True) as answer:
            next(iter(answer))
    else:
        with pytest.raises(openai.APITimeoutError):
            asked(client.with_options(timeout=0.5), "base")
    assert_at_rest(endless)
    last = [line for line in endless.log.splitlines() if " base: " in line][-1]
    assert last.startswith("499 base: the client hung up, ")
    assert asked(client, "base", max_tokens=1).usage.completion_tokens == 1


def test_a_client_that_hangs_up_in_its_body_is_in_the_log(endless):
    with socket.create_connection(("127.0.0.1", endless.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.3)
    for _ in range(100):
        if "499 POST /v1/chat/completions: the client hung up" in endless.log:
            return
        time.sleep(0.05)
    pytest.fail(endless.log[-500:])


def test_a_body_that_does_not_come_is_a_408(endless):
    connection = http.client.HTTPConnection("127.0.0.1", endless.port, timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    answer = connection.getresponse()
    assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "timeout"
    connection.close()


@pytest.mark.skipif(os.name == "nt", reason="kills a process by a signal")
def test_when_transformers_server_dies_streams_end_and_requests_get_a_503(endless):
    """The last test on this server."""
    client = endless.client()
    asked(client, "base", max_tokens=1)
    with pytest.raises(openai.APIError, match="has ended. Leave the block of serve") as caught:
        for number, _ in enumerate(asked(client, "base", stream=True)):
            if number == 2:
                endless.upstream.process.kill()
    assert caught.value.code == "server_unavailable"
    for stream in (False, True):
        with pytest.raises(
            openai.InternalServerError, match=r"Leave the block of serve\(\) and enter it again"
        ) as caught:
            asked(client, "base", stream=stream)
        assert (caught.value.status_code, caught.value.code) == (503, "server_unavailable")
    assert refused(client, model="nobody").status_code == 404, "what needs no model is answered still"
    assert client._client.get(endless.url.replace("/v1", "/health")).status_code == 503
    assert not endless.running
