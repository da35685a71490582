"""The course as a reader has it open: JupyterLab on a copy of it, with the settings that start.py gives it.

Attributes:
    ROOT: The course's folder.
    SECONDS_TO_START: After which a JupyterLab that doesn't answer counts as broken.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.build.lesson import KERNELSPEC
from utils.inference.loopback import free_port
from utils.start.lab import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_START = 60

_NOT_COPIED = (".git", ".venv*", "work", ".ipynb_checkpoints", "__pycache__", ".*_cache", "*.egg-info")


def copy_of_the_course(folder: Path) -> Path:
    """Copy the course to `folder` as it is when it was just fetched, because readers save what they open."""
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def write_notebook(path: Path, *sources: str) -> None:
    """Write a notebook of code cells that were never run."""
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for n, source in enumerate(sources)
    ]
    spec = KERNELSPEC
    notebook = {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")


@contextmanager
def jupyterlab(root: Path, scratch: Path) -> Iterator[str]:
    """JupyterLab on the course in `root`; yields its address. All that it writes besides goes to `scratch`.

    Raises RuntimeError with JupyterLab's last words when it doesn't start.
    """
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", "--allow-root"]
    command += [f"--LabApp.app_settings_dir={root / SETTINGS}", "--no-browser"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token="]
    command += ["--expose-app-in-browser"]  # gives window.jupyterapp, as in JupyterLab's own tests
    log = scratch / "lab.log"
    with log.open("w") as out:
        lab = subprocess.Popen(command, env=_environment(root, scratch), stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(SECONDS_TO_START * 2):
            if lab.poll() is not None or _answers(address):
                break
            time.sleep(0.5)
        if not _answers(address):
            raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
        yield address
    finally:
        lab.terminate()
        lab.wait(30)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api", timeout=2).close()
    except OSError:
        return False
    return True


def _environment(root: Path, scratch: Path) -> dict[str, str]:
    """JupyterLab's environment: this Python as the course's kernel, nothing of the user's own settings, no course
    setting, so that progress is kept in the copy's ``work/`` as a reader's is."""
    kernel = scratch / "share" / "kernels" / KERNELSPEC["name"]
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNELSPEC["display_name"], "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COURSE_", "JUPYTER"))}
    return kept | {
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_DATA_DIR": str(scratch / "data"),
        "JUPYTER_PATH": str(scratch / "share"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
    }
