"""A notebook's functions as bytes: with what they name, and refused in words where that can't travel."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from utils.distributed.portable import pack, unpack

ROOT = Path(__file__).resolve().parents[2]

NOTEBOOK = """
import torch
from torch import nn
from utils.distributed.portable import pack, unpack

SCALE = 3
data = [open]  # named as an attribute alone, so it stays

def helper(x: nn.Module = None, *, by=SCALE):
    return 7 * by

def outer():
    class Holder:
        data = 1
    inner = lambda value: helper() + value * Holder.data
    return inner(torch.ones(1)).item()

def recursive(n):
    return 1 if n == 0 else n * recursive(n - 1)

def made():
    kept = 3
    def inside():
        return kept
    return inside

handle = open(__file__)

def reads():
    return handle.read()

class Own:
    pass

def uses_own():
    return Own()

def missing():
    return not_there
"""


def ask(tmp_path, line: str) -> str:
    """What a script with NOTEBOOK's functions prints for `line`, run as __main__."""
    path = tmp_path / "page.py"
    path.write_text(textwrap.dedent(NOTEBOOK) + line)
    done = subprocess.run([sys.executable, path], cwd=ROOT, capture_output=True, text=True, env=_environment())
    return done.stdout.strip() + done.stderr.strip().rpartition("\n")[2]


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("print(unpack(pack(outer))())", "22.0"),
        ("print(unpack(pack(recursive))(4))", "24"),
        ("pack(made())", "ValueError: inside uses kept of the function that it was made in: pass kept as an argument"),
        ("pack(lambda: 1)", "ValueError: <lambda> can't be sent to another process: a function defined with def can"),
        ("pack(reads)", "ValueError: reads uses handle, a TextIOWrapper that can't be sent to another process: make it "
         "inside the function"),
        ("pack(uses_own)", "ValueError: uses_own uses Own, whose class is the notebook's own: put the class into "
         "a module"),
        ("from utils.distributed.portable import *\n"
         "print(unpack_arguments(pack_arguments([outer, 3]))[0]())", "22.0"),
        ("from utils.distributed.portable import *\npack_arguments([3, handle])",
         "ValueError: argument 2, a TextIOWrapper, can't be sent to another process: make it inside the function"),
        ("unpack(pack(missing))()", "NameError: name 'not_there' is not defined"),
    ],
)  # fmt: skip
def test_a_pages_function(tmp_path, line, said):
    assert ask(tmp_path, line) == said


def test_a_modules_function_goes_by_name():
    assert unpack(pack(ask)) is ask or unpack(pack(ask)).__name__ == "ask"
    assert len(pack(textwrap.dedent)) < 100


def test_a_function_made_in_a_modules_function_is_refused():
    with pytest.raises(ValueError, match="define it with def, in no function"):
        pack(lambda: 1)
