"""The Jupyter servers that run on this machine, from the files that each of them writes about itself."""

from __future__ import annotations

import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from utils.start.programs import run_quietly
from utils.start.words import last_line

_EVERYWHERE = ("", "0.0.0.0", "::")  # listens on all of the machine's addresses


@dataclass(frozen=True)
class Server:
    """A running server. url: its address. port: its port. root: the folder that it serves. token: what lets one in,
    or an empty text where a password does."""

    url: str
    port: int
    root: Path
    token: str

    def address(self, notebook: str) -> str:
        """The address that opens a notebook, named from the server's folder, in JupyterLab."""
        token = f"?token={self.token}" if self.token else ""
        return f"{self.url}lab/tree/{quote(notebook)}{token}"


def runtime_folder(python: Path) -> Path:
    """Where the servers of this environment's Jupyter write about themselves."""
    code = "from jupyter_core.paths import jupyter_runtime_dir as where; print(where())"
    failed, said = run_quietly([str(python), "-c", code])
    return Path("" if failed else last_line(said))


def running(folder: Path) -> dict[Path, Server]:
    """The servers that answer on their port, by the file that tells of each."""
    found = {}
    for path in folder.glob("jpserver-*.json"):
        server = _read(path)
        if server is not None and _answers(server):
            found[path] = server
    return found


def listens(port: int) -> bool:
    """Whether some program of this machine has the port."""
    try:
        with socket.create_connection(("localhost", port), timeout=0.5):
            return True
    except OSError:
        return False


def _answers(server: Server) -> bool:
    """Whether it is this very server that answers: a file may be left of one that was killed."""
    everyone = ssl.create_default_context()
    everyone.check_hostname, everyone.verify_mode = False, ssl.CERT_NONE  # it is this machine's own
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=everyone))
    try:
        ask.open(f"{server.url}api/status?token={quote(server.token)}", timeout=2).close()
    except urllib.error.HTTPError:
        return not server.token  # one with a password refuses, and is there
    except (OSError, ValueError):
        return False
    return True


def _read(path: Path) -> Server | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        url, port = told["url"], int(told["port"])
        if told.get("hostname") in _EVERYWHERE:  # the file then has the machine's name, which others may not know
            url = f"{urlsplit(url).scheme}://localhost:{port}{told['base_url']}"
        return Server(url, port, Path(os.path.realpath(told["root_dir"])), told.get("token") or "")
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or is another program's
        return None
