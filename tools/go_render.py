"""Ollama's rendering of a TEMPLATE, by Go itself: tests/export/render.go, built once and asked.

Attributes:
    SOURCE: The program; its first lines say what of Ollama it does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from utils.data.records import Message
from utils.models import ROOT

SOURCE = ROOT / "tests" / "export" / "render.go"


def go_version() -> str | None:
    """What ``go version`` says, such as "go1.19.8"; None where Go isn't installed."""
    go = shutil.which("go")
    if go is None:
        return None
    return subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout.split()[2]


@cache
def _program() -> Path:
    go = shutil.which("go")
    if go is None:
        raise RuntimeError("Go isn't installed, and nothing else renders as Ollama does: apt-get install golang-go")
    folder = Path(tempfile.mkdtemp(prefix="course-go-"))
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GO111MODULE": "off", "GOFLAGS": ""}
    command = [go, "build", "-o", str(folder / "render"), str(SOURCE)]
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=folder)
    return folder / "render"


def go_render(template: str, conversations: Sequence[Sequence[Message]]) -> list[str | None]:
    """The conversations as Ollama hands them to the model with this TEMPLATE; None for one that ends in an error.

    Raises RuntimeError where Go isn't installed, and CalledProcessError when the program can't be built.
    """
    asked = json.dumps({"template": template, "conversations": conversations})
    done = subprocess.run([_program()], input=asked, capture_output=True, text=True, check=True, encoding="utf-8")
    return [result.get("text") if not result.get("error") else None for result in json.loads(done.stdout)]
