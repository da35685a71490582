"""Importing utils silences nothing; the setup cell of a notebook silences three warnings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import importlib, json, logging, pkgutil, warnings
import utils
def silenced():
    texts = ("is_gradient_checkpointing", "no current CUDA context")
    found = [text for text in texts if any(text in str(f[1]) for f in warnings.filters)]
    return found + [logging.getLogger("bitsandbytes.backends.cpu.ops").level]
for module in pkgutil.walk_packages(utils.__path__, "utils."):
    importlib.import_module(module.name)
before = silenced()
from utils.quiet import quiet_upstream
quiet_upstream()
print(json.dumps([before, silenced()]))
"""


@pytest.mark.slow
def test_importing_everything_silences_nothing_and_the_setup_cell_three_things():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == [0]
    assert after == ["is_gradient_checkpointing", "no current CUDA context", 40]
