"""A notebook's functions as bytes: with what they name, and refused in words where that can't travel."""

from __future__ import annotations

import json
import os
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


ASKS = """
import contextlib, io, json, sys

def says(line):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(line, globals())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return printed.getvalue().strip()

print(json.dumps({line: says(line) for line in json.load(sys.stdin)}))
"""


SAID = dict(
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
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a script with NOTEBOOK's functions, run as __main__, says to each of the lines."""
    path = tmp_path_factory.mktemp("page") / "page.py"
    path.write_text(NOTEBOOK + ASKS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, path], cwd=ROOT, input=json.dumps(list(SAID)), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", SAID)
def test_a_pages_function(said, line):
    assert said[line] == SAID[line]


def of_this_module():
    """Travels as its name."""


def test_a_modules_function_goes_by_name():
    assert unpack(pack(of_this_module)) is of_this_module or unpack(pack(of_this_module)).__name__ == "of_this_module"
    assert len(pack(textwrap.dedent)) < 100


def test_a_function_made_in_a_modules_function_is_refused():
    with pytest.raises(ValueError, match="define it with def, in no function"):
        pack(lambda: 1)
