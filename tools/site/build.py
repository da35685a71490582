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
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of each request."""


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    """A folder at an address of this machine, while the block lasts. port: 0 for one that is free."""
    server = ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
