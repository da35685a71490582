"""A server on this machine's loopback address, and whoever asks it: a free port, an opener and an `openai` client.

Nothing here reaches further than this machine. A proxy that the environment names is left aside, since it wouldn't find
the loopback address.

Attributes:
    HOST: The loopback address.
"""

from __future__ import annotations

import socket
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens at now; another program can take it before it is used."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def local_opener() -> urllib.request.OpenerDirector:
    """What opens an address of this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def local_client(url: str, *, timeout: float, api_key: str = "none", **settings: Any) -> OpenAI:
    """The real client of the `openai` package for the server at `url`, such as ``http://127.0.0.1:8000/v1``.

    It waits `timeout` seconds for an answer and tries once; `settings` go to it, and replace these. Raises ImportError
    without the package.
    """
    from openai import DefaultHttpxClient, OpenAI

    given = {"base_url": url, "timeout": timeout, "api_key": api_key, "max_retries": 0} | settings
    if "http_client" not in given:
        given["http_client"] = DefaultHttpxClient(trust_env=False)
    return OpenAI(**given)
