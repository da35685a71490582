"""vLLM's tool: what it starts, that nothing of it stays, and its record. `make vllm` runs the real server."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools import serve_vllm as tool

RECORD = json.loads(tool.OUT.read_text(encoding="utf-8"))


def test_the_options_are_vllms_and_name_each_adapter():
    given = tool.options({"style": Path("/a/style"), "x": Path("/b")}, max_rank=32)
    assert given[given.index("--max-lora-rank") + 1] == "32"
    assert given[given.index("--lora-modules") + 1 :] == ["style=/a/style", "x=/b"]
    assert "--lora-modules" not in tool.options({})


STUB = """
import http.server, sys, subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A module that listens like vLLM and starts a process of its own, as vLLM does."""
    (tmp_path / "stand_in_for_vllm.py").write_text(STUB)
    monkeypatch.setattr(tool, "MODULE", "stand_in_for_vllm")
    monkeypatch.setattr(tool, "_clean", lambda: dict(os.environ) | {"PYTHONPATH": str(tmp_path)})
    return tmp_path


def started_here():
    """The stand-in and the process that it has started."""
    named = {child: child.cmdline() for child in psutil.Process().children(recursive=True)}
    return [
        child for child, line in named.items() if "stand_in_for_vllm" in line or "import time; time.sleep(600)" in line
    ]


def test_the_server_and_what_it_started_are_gone_whatever_happens(stub):
    with pytest.raises(RuntimeError, match="of ours"):
        with tool.serving(Path(sys.executable), [], stub / "log") as client:
            assert str(client.base_url).startswith("http://127.0.0.1:")
            time.sleep(0.5)
            mine = started_here()
            raise RuntimeError("of ours")
    assert len(mine) == 2
    assert psutil.wait_procs(mine, timeout=10)[1] == []


def test_a_server_that_dies_says_why(tmp_path, monkeypatch):
    (tmp_path / "dies_at_once.py").write_text("raise SystemExit('no memory left')")
    monkeypatch.setattr(tool, "MODULE", "dies_at_once")
    monkeypatch.setattr(tool, "_clean", lambda: dict(os.environ) | {"PYTHONPATH": str(tmp_path)})
    with pytest.raises(RuntimeError, match="(?s)didn't start.*no memory left"):
        with tool.serving(Path(sys.executable), [], tmp_path / "log"):
            pass


def test_the_record_is_of_the_real_server():
    equal = RECORD["equal to transformers and PEFT"]
    assert equal.keys() == {"base", *tool.SERVED} and all(a == b == tool.PROMPTS for a, b in equal.values())
    assert RECORD["one batch of three adapters"] == [24, 24]
    assert {card["id"]: card["parent"] for card in RECORD["models"]} == {"base": None} | dict.fromkeys(
        tool.SERVED, "base"
    )
    assert RECORD["loaded at run time"][0] == 200 and RECORD["loaded at run time"][2] is True
    assert RECORD["unloaded"][0] == 200 and RECORD["unloaded"][2] == 404


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rank 32", "greater than max_lora_rank 16"),
        ("DoRA", "does not yet support DoRA"),
        ("modules_to_save", "lm_head"),
    ],
)
def test_what_vllm_refused_is_what_the_preflight_says(kind, said, tmp_path):
    from utils.export import preflight

    status, words = RECORD["refused"][kind]
    assert status >= 400 and said in words
    assert preflight(tool.refused_kinds(tmp_path)[kind], "vllm").refused
