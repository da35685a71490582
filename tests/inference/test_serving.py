"""A real server, started, called by the real client and ended; what lies in its folder; and requests that share a base.

What it refuses and how it streams is tested in `test_gateway.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from openai import InternalServerError, NotFoundError, OpenAI
from safetensors.torch import load_file, save_file

from utils.evaluate.metrics import complete
from utils.inference import serving
from utils.inference.streaming import TextStream
from utils.lora import inject, save_adapter
from utils.models import ROOT, TINY_DIR, load_base
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

ADAPTERS = {"style": adapter_dir("style"), "sentiment": adapter_dir("sentiment")}


# ------------------------------------------------------------------------------------- several requests, one base

PROMPT = "Change the style to pirate: The cat sleeps."


@pytest.fixture
def peft_model():
    from peft import PeftModel

    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, ADAPTERS["style"], adapter_name="style", is_trainable=True)
    model.load_adapter(ADAPTERS["sentiment"], adapter_name="sentiment", is_trainable=True)
    return model.eval(), tokenizer


def test_two_streams_side_by_side_each_keep_their_adapter(peft_model):
    """Whatever happens to the model meanwhile, each ends as it would have ended alone."""
    model, tokenizer = peft_model
    long = {"max_new_tokens": 16, "eos_token_id": -1}
    alone = {}
    for name in ADAPTERS:
        model.set_adapter(name)
        with TextStream(model, tokenizer, PROMPT, **long) as stream:
            alone[name] = "".join(stream)
    assert alone["style"] != alone["sentiment"]
    streams, pieces = {}, {name: [] for name in ADAPTERS}
    for name in ADAPTERS:
        model.set_adapter(name)
        streams[name] = TextStream(model, tokenizer, PROMPT, **long)
        pieces[name].append(next(streams[name]))
    model.delete_adapter("style")
    model.train()
    with model.disable_adapter():
        while any(stream.running for stream in streams.values()):
            for name, stream in streams.items():
                pieces[name] += [piece for piece in [next(stream, "")] if piece]
        for name, stream in streams.items():
            assert "".join([*pieces[name], *stream]) == alone[name]


def test_streams_in_threads_of_their_own_each_keep_their_adapter(peft_model):
    """Twelve at once, while another thread goes on switching the adapter of the model that they came from."""
    model, tokenizer = peft_model
    long = {"max_new_tokens": 24, "eos_token_id": -1}
    alone, ended = {}, threading.Event()
    for name in ("base", *ADAPTERS):
        with TextStream(serving.for_request(model, name), tokenizer, PROMPT, **long) as stream:
            alone[name] = "".join(stream)
    assert len(set(alone.values())) == 3

    def switch():
        while not ended.is_set():
            for name in ADAPTERS:
                model.set_adapter(name)

    def answer(name):
        with TextStream(serving.for_request(model, name), tokenizer, PROMPT, **long) as stream:
            return "".join(stream)

    names = ["base", *ADAPTERS] * 4
    with ThreadPoolExecutor(len(names) + 1) as pool:
        switching = pool.submit(switch)
        try:
            assert list(pool.map(answer, names)) == [alone[name] for name in names]
        finally:
            ended.set()
        switching.result()


def test_a_request_has_the_models_tensors_and_leaves_the_model_as_it_was(peft_model):
    model, tokenizer = peft_model
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = {}
        for name in ADAPTERS:
            model.set_adapter(name)
            expected[name] = model(ids).logits
        with model.disable_adapter():
            expected["base"] = model(ids).logits
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        for name, logits in expected.items():
            own = serving.for_request(model, name)
            assert torch.equal(own(ids).logits, logits)
            assert {p.data_ptr() for p in own.parameters()} == {p.data_ptr() for p in model.parameters()}
            assert {b.data_ptr() for b in own.buffers()} == {b.data_ptr() for b in model.buffers()}
            assert not any(p.requires_grad for p in own.parameters())
        assert torch.equal(model(ids).logits, expected["sentiment"]) and model.active_adapter == "sentiment"
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable and trainable
        assert torch.equal(serving.for_request(model)(ids).logits, expected["sentiment"])
    with pytest.raises(ValueError, match="no adapter 'pirate': choose among base, style, sentiment"):
        serving.for_request(model, "pirate")
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into the weights, which all requests share"):
        serving.for_request(model, "base")


def test_a_request_has_the_codes_of_a_4_bit_base_too():
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    from utils.models import load_4bit

    model = PeftModel.from_pretrained(load_4bit()[0], ADAPTERS["style"]).eval()
    ids = torch.arange(5, 25)[None]
    own = serving.for_request(model)
    assert torch.equal(own(ids).logits, model(ids).logits)
    name = next(name for name, p in model.named_parameters() if hasattr(p, "quant_state"))
    assert own.get_parameter(name) is model.get_parameter(name)


def test_a_request_keeps_its_route(fresh_base, tokenizer):
    from utils.lora.combine import read_adapter
    from utils.lora.multi_adapter import route, stack_adapters

    model, ids = fresh_base(), tokenizer(PROMPT, return_tensors="pt").input_ids
    stack_adapters(model, {name: read_adapter(folder) for name, folder in ADAPTERS.items()})
    with route(model, ["style"]):
        own, expected = serving.for_request(model), model(ids).logits
    with route(model, ["sentiment"]):
        assert torch.equal(own(ids).logits, expected) and not torch.equal(model(ids).logits, expected)


# ---------------------------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    assert serving.stage(folder, str(TINY_DIR), ADAPTERS) == ["base", "style", "sentiment"]
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving.serve(folder) as server:
        yield server
    assert not server.running


def ask(server, model, prompt, **settings):
    settings = {"max_tokens": 30, "temperature": 0} | settings
    messages = [{"role": "user", "content": prompt}]
    client = server if isinstance(server, OpenAI) else server.client()
    return client.chat.completions.create(model=model, messages=messages, **settings)


@pytest.fixture
def direct(server):
    """A client of transformers' server, past the gateway."""
    with server.client(base_url=f"http://{serving.HOST}:{server.upstream.port}/v1", max_retries=1) as client:
        yield client


def text_of(answer):
    return answer.choices[0].message.content.strip()


def test_each_adapter_answers_as_in_peft(server):
    from peft import PeftModel

    torch.set_num_threads(1)
    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, adapter_dir("style"), adapter_name="style")
    model.load_adapter(adapter_dir("sentiment"), adapter_name="sentiment")
    for name in ("style", "sentiment", "base"):
        for example in task_examples("sentiment" if name == "sentiment" else "style", "test", 3):
            if name == "base":
                with model.disable_adapter():
                    expected = complete(model, tokenizer, [example.prompt], max_new_tokens=30)
            else:
                model.set_adapter(name)
                expected = complete(model, tokenizer, [example.prompt], max_new_tokens=30)
            assert text_of(ask(server, name, example.prompt)) == expected[0]


def test_a_stream_comes_in_pieces_and_is_the_same_answer(server):
    prompt = task_examples("style", "test", 1)[0].prompt
    chunks = [chunk.choices[0] for chunk in ask(server, "style", prompt, stream=True)]
    pieces = [chunk.delta.content for chunk in chunks if chunk.delta.content]
    assert "".join(pieces).strip() == text_of(ask(server, "style", prompt)) and len(pieces) > 3
    assert chunks[-1].finish_reason == "stop"


def test_the_finish_reason_says_why_it_ended(server):
    answer = ask(server, "base", "Tell me a story.", max_tokens=5)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5


def test_temperature_and_seed_work(server):
    def draw(seed):
        return text_of(ask(server, "base", "Tell me a story.", temperature=1.5, seed=seed))

    assert draw(1) == draw(1) != draw(2)


def test_without_do_sample_the_temperature_is_ignored(direct, folder):
    """The trap that stage() avoids, shown on the same server."""
    serving.stage(folder / "as-saved", str(TINY_DIR), {}, do_sample=False)
    answers = {text_of(ask(direct, "as-saved/base", "Tell me a story.", temperature=1.5, seed=s)) for s in range(3)}
    assert len(answers) == 1


def test_a_peft_folder_alone_can_not_be_served(direct, folder):
    """What the module's docstring says: without config.json, and with it but without the weights."""
    bare = folder / "bare"
    bare.mkdir()
    for file in adapter_dir("style").iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    for step in ("", "config.json"):
        if step:
            (bare / step).write_bytes((TINY_DIR / step).read_bytes())
        with pytest.raises(InternalServerError):
            direct.chat.completions.create(model="bare", messages=[])


def test_a_server_says_in_its_log_what_was_asked(server):
    with pytest.raises(NotFoundError):
        ask(server, "nobody", "Hi")
    ask(server, "style", "Say it like a pirate: My friend found the toy.", max_tokens=1)
    assert server.running and re.search(r"404 POST /v1/chat/completions: The model 'nobody' does not exist", server.log)
    assert re.search(r"^200 style: 1 tokens, length, \d+\.\d\d s$", server.log, re.MULTILINE)


def test_what_is_laid_out_later_is_not_served(server, folder):
    serving.stage(folder / "later", str(TINY_DIR), {})
    assert "later" not in {model.id for model in server.client().models.list()}
    with pytest.raises(NotFoundError):
        ask(server, "later/base", "Hi")


def test_a_client_leaves_a_proxy_aside(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert {model.id for model in server.client().models.list()} == {"base", *ADAPTERS}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *[({"api_key": key}, "an api_key is a text") for key in ("", " ", "a ", " a", "schlüssel", "a\nb", "a\x7f", 5)],
        *[
            ({name: seconds}, f"^{name} is a number of seconds above")
            for name in ("request_timeout", "timeout")
            for seconds in (0, -1, None, "5", True, float("nan"), float("inf"), 1e300)
        ],
    ],
)
def test_a_key_or_a_time_out_that_would_mean_nothing_is_refused(folder, settings, words):
    with pytest.raises(ValueError, match=words), serving.serve(folder, **settings):
        pass


def test_a_folder_without_a_model_is_not_served(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model: lay it out with stage"), serving.serve(tmp_path):
        pass


def test_a_taken_port_is_named(folder):
    with socket.socket() as other:
        other.bind((serving.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(serving.ServingUnavailable, match=f"port {port} is taken"), serving.serve(folder, port=port):
            pass


def test_a_port_can_be_bound_once(folder):
    """Of two processes that start at once, the second hears of it before its server has started."""
    with serving._bound(None) as first:
        with pytest.raises(serving.ServingUnavailable, match="is taken"):
            serving._bound(first.getsockname()[1])


@pytest.mark.parametrize("port", [0, -1, 65_536, "8000", True])
def test_what_is_no_port_is_refused(folder, port):
    with (
        pytest.raises(serving.ServingUnavailable, match="whole number from 1 to 65535"),
        serving.serve(folder, port=port),
    ):
        pass


def test_missing_packages_are_named(folder, monkeypatch):
    find = serving.importlib.util.find_spec
    monkeypatch.setattr(
        serving.importlib.util, "find_spec", lambda name: None if name in ("fastapi", "openai") else find(name)
    )
    with pytest.raises(serving.ServingUnavailable, match="pip install fastapi openai"), serving.serve(folder):
        pass


def test_a_server_that_dies_says_its_last_words(folder, monkeypatch):
    monkeypatch.setattr(serving, "_PROGRAM", "import sys; sys.exit('no such luck')")
    with (
        pytest.raises(serving.ServingUnavailable, match="(?s)ended before it was ready.*no such luck"),
        serving.serve(folder),
    ):
        pass


def test_a_server_that_never_gets_ready_is_stopped(folder, monkeypatch):
    started = []
    launch = serving._launch
    monkeypatch.setattr(serving, "_launch", lambda *a: started.append(launch(*a)) or started[-1])
    monkeypatch.setattr(serving, "_PROGRAM", "import time; time.sleep(60)")
    with (
        pytest.raises(serving.ServingUnavailable, match="wasn't ready after 0.3 seconds"),
        serving.serve(folder, timeout=0.3),
    ):
        pass
    assert not started[0].running


def test_a_port_lost_in_the_race_is_replaced_and_then_given_up(folder, monkeypatch):
    tried = []
    launch = serving._launch
    monkeypatch.setattr(serving, "_launch", lambda *a: tried.append(a[1]) or launch(*a))
    monkeypatch.setattr(serving, "_PROGRAM", "import sys; sys.exit('[Errno 98] Address already in use')")
    with pytest.raises(serving.ServingUnavailable, match="is taken"), serving.serve(folder):
        pass
    assert len(tried) == 3


def starter(folder, scratch, then):
    """A process that starts a server, whose program is replaced by one that starts fast, and does `then`."""
    script = (
        "import sys, time; from utils.inference import serving\n"
        "serving._PROGRAM = serving._PROGRAM.split('from transformers')[0] + 'import time; time.sleep(60)'\n"
        f"server = serving._launch({str(folder)!r}, 1, 'cpu', __import__('pathlib').Path({str(scratch)!r}))\n"
        "print(server.process.pid, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script + then], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.skipif(os.name == "nt", reason="interrupts a process by a signal")
def test_an_interrupt_leaves_the_server_running(folder, tmp_path):
    """A terminal's Ctrl-C and a notebook's interrupt go to the whole group of processes."""
    parent = starter(
        folder, tmp_path,
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none\n"
        "try: print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: time.sleep(1); print(server.running); server.stop(); print(server.running)",
    )  # fmt: skip
    parent.stdout.readline(), parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.communicate(timeout=60)[0].split() == ["True", "False"]


@pytest.mark.skipif(os.name == "nt", reason="kills a process by a signal")
def test_the_server_ends_with_the_process_that_started_it(folder, tmp_path):
    """A notebook's kernel that is killed runs no clean-up."""
    scratch = tmp_path / "serving"
    scratch.mkdir()
    parent = starter(folder, scratch, "time.sleep(60)")
    child = int(parent.stdout.readline())
    assert scratch.exists()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            assert not scratch.exists(), "nor is its log left behind"
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the server outlived its parent")


def test_stopping_is_clean_even_after_an_error(folder):
    with pytest.raises(KeyError), serving.serve(folder) as server:
        with urllib.request.urlopen(server.url.replace("/v1", "/health")) as answer:
            assert json.load(answer) == {"status": "ok"}
        raise KeyError
    server.stop()
    assert not server.running
    assert "/health" in server.log, "what happened can be read when the block has ended"
    with socket.socket() as probe:
        assert probe.connect_ex((serving.HOST, server.port)) != 0


# ------------------------------------------------------------------------------------------------------- staging


@pytest.mark.parametrize("name", ["", "a b", "../x", "x/y", "base", "a@b", "a.gguf", "x" * 300, 5, None])
def test_names_that_no_request_can_carry_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="can't name an adapter"):
        serving.stage(tmp_path, str(TINY_DIR), {name: adapter_dir("style")})


def test_folders_without_a_model_or_an_adapter_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="the adapter 'x' has no adapter_config.json"):
        serving.stage(tmp_path / "out", str(TINY_DIR), {"x": tmp_path})
    with pytest.raises(FileNotFoundError, match="holds no model"):
        serving.stage(tmp_path / "out", str(tmp_path), {})
    with pytest.raises(FileNotFoundError, match="no model of that name is in the Hub's cache"):
        serving.stage(tmp_path / "out", "nobody/nothing", {})
    with pytest.raises(FileNotFoundError, match=r"stage\(folder, base, adapters\)"), serving.serve(tmp_path / "none"):
        pass
    assert not (tmp_path / "out").exists()


def damaged(folder, **settings):
    """A copy of an adapter without metadata of ours, as PEFT writes it, and with other settings."""
    shutil.copytree(adapter_dir("style"), folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_that_is_damaged_or_of_another_base_is_refused_before_anything_is_laid_out(tmp_path, fresh_base):
    stranger = fresh_base()
    stranger.get_input_embeddings().weight.data = stranger.get_input_embeddings().weight.data.flip(0)
    inject(stranger, ["q_proj"], 2, 4)
    save_adapter(stranger, tmp_path / "stranger")
    wide = damaged(tmp_path / "wide")
    matrices = load_file(wide / "adapter_model.safetensors")
    matrices |= {name: torch.ones(8, 40) for name in matrices if "layers.0.mlp.up_proj.lora_A" in name}
    save_file(matrices, wide / "adapter_model.safetensors")
    part = damaged(tmp_path / "part", target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "mlp", "up_proj"])
    matrices = load_file(part / "adapter_model.safetensors")
    matrices = {name: matrix for name, matrix in matrices.items() if ".q_proj." in name}
    save_file(matrices, part / "adapter_model.safetensors")
    cut = damaged(tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes(b"half")
    empty = damaged(tmp_path / "empty")
    (empty / "adapter_config.json").write_text("{}")
    for folder, words in (
        (damaged(tmp_path / "alpha", lora_alpha="16"), "lora_alpha must be positive"),
        (damaged(tmp_path / "fewer", target_modules=["q_proj"]), "doesn't name that layer"),
        (part, "names 'k_proj', and there are no matrices for it"),
        (cut, "truncated or damaged"),
        (empty, "names no kind of adapter that PEFT knows, but None"),
        (wide, r"another base than .*tiny-llama: it corrects .*up_proj.weight of \(\d+, 40\), which is"),
        (tmp_path / "stranger", r"another base than .*tiny-llama: of the embedding .* blocks of rows differ"),
    ):
        with pytest.raises(ValueError, match=words):
            serving.stage(tmp_path / "out", str(TINY_DIR), {"good": adapter_dir("style"), "bad": folder})
    assert not (tmp_path / "out").exists()
    inject(mine := fresh_base(), ["q_proj"], 2, 4)
    save_adapter(mine, tmp_path / "mine", dtype=torch.bfloat16)
    serving.stage(tmp_path / "out", str(TINY_DIR), {"mine": tmp_path / "mine"})


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "{", "The model .* can't be loaded"),
        ("tokenizer.json", None, "The model .* can't be loaded"),
        ("generation_config.json", "{", r"generation_config\.json is damaged"),
        ("generation_config.json", "[]", r"generation_config\.json is damaged"),
        ("adapter_config.json", "{}", "is an adapter's folder, and no base"),
    ],
)
def test_a_base_that_could_not_be_served_is_refused_before_anything_is_laid_out(tmp_path, file, content, words):
    shutil.copytree(TINY_DIR, tmp_path / "model")
    if content is None:
        (tmp_path / "model" / file).unlink()
    else:
        (tmp_path / "model" / file).write_text(content)
    with pytest.raises(ValueError, match=words):
        serving.stage(tmp_path / "out", str(tmp_path / "model"), {"style": adapter_dir("style")})
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_base_is_no_file_of_it(tmp_path):
    shutil.copytree(TINY_DIR, tmp_path / "model")
    (tmp_path / "model" / "sub.json").mkdir()
    serving.stage(tmp_path / "out", str(tmp_path / "model"), {})
    assert not (tmp_path / "out" / "base" / "sub.json").exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_laid_out_over_its_own_source(tmp_path):
    """An adapter or a base where it would be laid out, two that would change places, and a link to one of them."""
    own, base = tmp_path / "own", str(TINY_DIR)
    shutil.copytree(ADAPTERS["style"], own / "style")
    shutil.copytree(ADAPTERS["sentiment"], own / "sentiment")
    shutil.copytree(TINY_DIR, tmp_path / "whole" / "base")
    serving.stage(tmp_path / "linked", str(tmp_path / "whole" / "base"), {})
    for folder, given, adapters in (
        (own, base, {"style": own / "style"}),
        (own, base, {"style": own / "sentiment", "sentiment": own / "style"}),
        (tmp_path / "whole", str(tmp_path / "whole" / "base"), ADAPTERS),
        (tmp_path / "whole", str(tmp_path / "linked" / "base"), {}),
    ):
        before = contents(folder)
        with pytest.raises(ValueError, match="would be overwritten: take another folder"):
            serving.stage(folder, given, adapters)
        assert contents(folder) == before


def test_files_of_another_model_are_not_mixed_in(tmp_path):
    """Of model.safetensors and an index of several files beside it the loader takes one."""
    serving.stage(tmp_path, str(TINY_DIR), {})
    (tmp_path / "base" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"base holds model\.safetensors\.index\.json, which is of another model"):
        serving.stage(tmp_path, str(TINY_DIR), {})


def test_what_is_more_than_plain_lora_is_served_too(tmp_path):
    """PEFT, which loads it in the server, computes DoRA."""
    serving.stage(tmp_path / "out", str(TINY_DIR), {"x": damaged(tmp_path / "dora", use_dora=True)})


def test_a_model_of_the_hub_is_found_in_its_cache_and_another_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.utils.cached_file", lambda *_, **__: str(TINY_DIR / "config.json"))
    same, other = (damaged(tmp_path / name, base_model_name_or_path=f"org/{name}") for name in ("tiny", "other"))
    serving.stage(tmp_path / "out", "org/tiny", {"x": same})
    with pytest.raises(ValueError, match="trained on org/other, and the base here is org/tiny"):
        serving.stage(tmp_path / "out", "org/tiny", {"x": other})


def test_staging_twice_changes_nothing_and_links_the_weights(tmp_path):
    for _ in range(2):
        serving.stage(tmp_path, str(TINY_DIR), ADAPTERS)
    assert (tmp_path / "style" / "model.safetensors").samefile(TINY_DIR / "model.safetensors") or os.name == "nt"
    assert json.loads((tmp_path / "style" / "generation_config.json").read_text())["do_sample"] is True


def test_an_adapter_of_an_earlier_stage_is_not_served_along(tmp_path):
    serving.stage(tmp_path, str(TINY_DIR), ADAPTERS)
    with pytest.raises(ValueError, match="holds sentiment already, which could be asked for too"):
        serving.stage(tmp_path, str(TINY_DIR), {"style": ADAPTERS["style"]})
