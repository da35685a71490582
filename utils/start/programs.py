"""Other programs: run without a word while all is well, and ended when we are."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finish(process: subprocess.Popen[Any]) -> None:
    """Wait for a program that has got the same Ctrl-C as we have; end it if it doesn't stop by itself."""
    try:
        process.wait(timeout=10)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def run_quietly(command: Sequence[str], cwd: Path | None = None) -> tuple[int, str]:
    """Run a program that has nothing to tell while all is well: its exit code, and all that it said."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", cwd=cwd
    )
    try:
        said = process.communicate()[0]
    except BaseException:
        finish(process)
        raise
    return process.returncode, said
