"""How the website's tests run JavaScript: with node, where it is there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
HERE = Path(__file__).resolve().parent
needs_node = pytest.mark.skipif(NODE is None, reason="left out: there is no node; apt-get install nodejs")


def run(script: str, *arguments: str | Path, seconds: float = 300) -> Any:
    """What a script of this folder prints as JSON."""
    command = [str(NODE), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout)
