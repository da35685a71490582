"""Sphinx over what was collected, with every warning an error; and a plain static server."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools.site.collect import Site
from tools.site.environment import SetUpError, python_of


def built(root: Path, out: Path) -> Path:
    """Build the site in `out`, from nothing; gives the folder of its pages.

    Raises SetUpError with Sphinx's own words when it warns.
    """
    out.mkdir(parents=True, exist_ok=True)
    Site(root, out).collect()
    pages = out / "html"
    shutil.rmtree(pages, ignore_errors=True)
    command = [python_of(root), "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2"]
    command += ["-c", root / "site", "-d", out / "doctrees", "-E", out / "src", pages]
    environment = os.environ | {"COURSE_SITE_BUILD": str(out), "PYTHONPATH": str(root), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise SetUpError(f"Sphinx says\n{done.stderr}{done.stdout}")
    return pages


class _Quiet(SimpleHTTPRequestHandler):
    """A folder's files, at "/" and under `path` too; 404.html, where the folder has one, for what isn't there."""

    def __init__(self, *args: Any, path: str = "/", **options: Any):
        self.under = path
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        """The file that an address means."""
        return super().translate_path("/" + path.removeprefix(self.under) if path.startswith(self.under) else path)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error; the folder's own page for 404, as GitHub Pages has it."""
        own = Path(self.directory) / "404.html"
        if code != 404 or not own.is_file():
            return super().send_error(code, message, explain)
        body = own.read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of each request."""


@contextmanager
def served(folder: Path, port: int = 0, path: str = "/") -> Iterator[str]:
    """A folder at an address of this machine, while the block lasts.

    Args:
        folder: what is served.
        port: 0 for one that is free.
        path: another path that the folder stands at, such as "/lora-zero-to-hero/"; "/" is one anyhow.
    """
    handler = functools.partial(_Quiet, directory=str(folder), path=path)
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
