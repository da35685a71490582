"""pip in the course's environment, with a log."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from utils.start.failures import LOG
from utils.start.programs import finish
from utils.start.venv import python_of
from utils.start.wheels import where_from

_SETTINGS = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}


def pip(venv: Path, *arguments: str, on_line: Callable[[str], None] | None = None) -> tuple[int, str]:
    """Run pip in the environment and keep a log: its exit code, and all that it said.

    on_line: called with each line, and with an empty one twice a second in between.
    """
    command = [str(python_of(venv)), "-m", "pip", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **where_from(venv.parent), **_SETTINGS},
        cwd=str(venv.parent),
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout
    stream, lines, said = process.stdout, queue.Queue[str | None](), []

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        with open(venv / LOG, "a", encoding="utf-8") as log:
            log.write("$ " + " ".join(command) + "\n")
            while True:
                try:
                    line = lines.get(timeout=0.5)
                except queue.Empty:
                    line = ""
                if line is None:
                    return process.wait(), "".join(said)
                said.append(line)
                log.write(line)
                if on_line:
                    on_line(line.rstrip())
    except BaseException:
        finish(process)
        raise
