"""The loopback address: a port that is free, and an opener and a client that reach it past a proxy, and try once."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
import pytest

from utils.inference.loopback import HOST, free_port, local_client, local_opener


class Models(BaseHTTPRequestHandler):
    """Answers every request with a list of one model, or with the status that the address ends in."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.headers.get("Authorization", ""))
        status = 503 if "503" in self.path else 200
        body = json.dumps({"object": "list", "data": [{"id": "base", "object": "model"}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    Models.asked.clear()
    server = HTTPServer((HOST, free_port()), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_free_port_can_be_listened_at():
    port = free_port()
    with socket.socket() as taken:
        taken.bind((HOST, port))
        taken.listen()
        assert port >= 1024 and free_port() != port


def test_both_reach_it_past_a_proxy(address):
    with local_opener().open(address, timeout=5) as answer:
        assert json.load(answer)["data"][0]["id"] == "base"
    with local_client(f"{address}/v1", timeout=5, api_key="mine") as client:
        assert [model.id for model in client.models.list()] == ["base"]
    assert Models.asked == ["", "Bearer mine"]


def test_the_client_tries_once_unless_it_is_told_otherwise(address):
    for retries, requests in ((None, 1), (1, 2)):
        Models.asked.clear()
        more = {} if retries is None else {"max_retries": retries}
        with local_client(f"{address}/503", timeout=5, **more) as client, pytest.raises(openai.InternalServerError):
            client.models.list()
        assert len(Models.asked) == requests
