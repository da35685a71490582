"""`start.py`: JupyterLab with the learner's first notebook open, its address, and its log in a file.

Attributes:
    FIRST_NOTEBOOK: What is opened, from the course's folder.
    LOG: JupyterLab's log, from the course's folder.
    SETTINGS: The folder with JupyterLab's settings for this course, from its folder: no question about news, and code
        that wraps. What a reader sets in JupyterLab wins over them.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.start.programs import finish
from utils.start.servers import Server, listens, running, runtime_folder
from utils.start.testing import UTF8
from utils.start.words import say

FIRST_NOTEBOOK = "work/00_start_here.ipynb"
LOG = ".venv/jupyterlab.log"
SETTINGS = "assets/lab"

_PORT = 8888  # JupyterLab's own choice
_PATIENCE = 120  # seconds


def open_lab(home: Path, python: Path, options: Sequence[str]) -> int:
    """Open JupyterLab and stay until it ends; the exit code. What JupyterLab says goes to its log.

    A JupyterLab of this folder that is open already is shown instead of a second one, as two would save over one
    another; with options for JupyterLab a second one is started all the same.
    """
    folder = runtime_folder(python)
    before = running(folder)
    ours = next((server for server in before.values() if server.root == Path(os.path.realpath(home))), None)
    if ours and not set(options) - {"--no-browser"}:
        address = ours.address(FIRST_NOTEBOOK)
        say(f"JupyterLab is open for this folder already, at\n\n    {address}\n")
        if "--no-browser" not in options:
            webbrowser.open(address)
        return 0
    where = place(os.environ)
    command = [str(python), "-m", "jupyterlab", f"--ServerApp.root_dir={home}"]
    command += [f"--LabApp.app_settings_dir={home / SETTINGS}", *options]
    if (home / FIRST_NOTEBOOK).exists():
        command.append(FIRST_NOTEBOOK)
    if where in ("ssh", "container") and "--no-browser" not in options:
        command.append("--no-browser")  # there is none to see, and a browser for terminals would take this one
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in options:
        command.append("--allow-root")  # as in containers; it listens on this machine only and asks for a token
    say("Opening JupyterLab. Leave this window open while you work; Ctrl-C in it ends JupyterLab.")
    with open(home / LOG, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=str(home),
            env={**os.environ, **UTF8, "JUPYTER_PREFER_ENV_PATH": "1"},  # .venv's kernel before one of the user's
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())  # it goes when we are told to
    try:
        server = wait_for(process, folder, before)
        if server:
            say(told(server, list(before.values()), options, where, os.environ))
        elif process.poll() is None:
            say(f"JupyterLab takes long to start. What it says is in {home / LOG}.")
        code = process.wait()
    except KeyboardInterrupt:  # JupyterLab got it too
        finish(process)
        say("\nJupyterLab has ended.")
        return 0
    except BaseException:
        finish(process)
        raise
    if code or not server:
        last = (home / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        say("\n".join(["", f"JupyterLab ended with exit code {code}. The last lines of {home / LOG}:", "", *last]))
    return code


def wait_for(process: subprocess.Popen[bytes], folder: Path, before: Mapping[Path, Server]) -> Server | None:
    """The server that a process has become, once it answers; None when the process ended first, or is too slow."""
    until = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < until:
        for path, server in running(folder).items():
            if before.get(path) != server:
                return server
        time.sleep(0.2)
    return None


def told(
    server: Server, others: Sequence[Server], options: Sequence[str], where: str, environment: Mapping[str, str]
) -> str:
    """What a newcomer needs to know of a server that has started: its address, and how to get there from elsewhere."""
    lines = [f"JupyterLab is at\n\n    {server.address(FIRST_NOTEBOOK)}\n"]
    wanted = asked_port(options)
    if server.port != wanted and listens(wanted):
        other = next((other for other in others if other.port == wanted), None)
        whose = f"JupyterLab at {other.url} for {other.root}" if other else "another program"
        lines.append(f"Port {wanted} is taken by {whose}; this course is at port {server.port}.")
    if where == "ssh":
        login = f"{environment.get('USER', 'you')}@{environment['SSH_CONNECTION'].split()[2]}"
        tunnel = f"ssh -N -L {server.port}:localhost:{server.port} {login}"
        lines.append(f"On your own machine run this, then open the address there:\n\n    {tunnel}\n")
    elif where == "wsl":
        lines.append("If no browser opened, paste the address into one of Windows'.")
    elif where == "container":
        ways = f"-p {server.port}:{server.port}, and this with --ip=0.0.0.0"
        lines.append(f"From outside the container: start the container with {ways}; then the address works there.")
    lines.append(f"Its log is {LOG}.")
    return "\n".join(lines)


def asked_port(options: Sequence[str]) -> int:
    """The port that JupyterLab tries first with these options."""
    found = re.search(r"--(?:ServerApp\.)?port[= ](\d+)", " ".join(options))
    return int(found[1]) if found else _PORT


def place(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """From where the reader looks at this machine: "ssh", "wsl", "container", or "here" for its own screen."""
    if environment.get("SSH_CONNECTION") and not environment.get("DISPLAY"):
        return "ssh"
    if "microsoft" in platform.release().lower():
        return "wsl"
    if any((root / name).exists() for name in (".dockerenv", "run/.containerenv")):
        return "container"
    return "here"
