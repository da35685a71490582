"""start.py itself: any Python can read it, and one that doesn't fit is told so before anything is done."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "start.py").read_text(encoding="utf-8")


@pytest.fixture
def entry():
    """start.py as a module."""
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def too_new(tree: ast.AST) -> list[str]:
    """What in a file Python 2.7 can't read; its own parser, where there is one, is asked below."""
    names = ("JoinedStr", "AnnAssign", "NamedExpr", "AsyncFunctionDef", "Nonlocal", "YieldFrom", "Starred")
    found = [type(node).__name__ for node in ast.walk(tree) if type(node).__name__ in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            written = [node.returns, *(argument.annotation for argument in node.args.args)]
            found += ["annotation"] * any(written) + ["keyword-only"] * bool(node.args.kwonlyargs)
        if isinstance(node, ast.Raise) and node.cause:
            found.append("raise from")
    return found


def test_an_old_python_can_read_the_whole_file():
    assert too_new(ast.parse(SOURCE)) == [] and SOURCE.isascii()
    for newer in ("f'{x}'", "x: int = 1", "def f(x: int): ...", "def f(*, x): ...", "print(*x)"):
        assert too_new(ast.parse(newer)), newer


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.10"])
def test_an_old_python_is_told_for_real(name, tmp_path):
    there = [found for found in (shutil.which(name), *Path.home().glob(f".pyenv/versions/*/bin/{name}")) if found]
    python = next((p for p in there if not subprocess.run([p, "-c", ""], capture_output=True).returncode), None)
    if python is None:
        pytest.skip(f"there is no {name} here")
    done = subprocess.run([python, str(ROOT / "start.py"), "tset"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert re.match(
        r"The course needs Python 3\.11 to 3\.14 .* and this is [23]\.\d+\.\d+, so (run|get) .*\n$", done.stderr
    )


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 10, 9), (3, 15, 2)])
@pytest.mark.parametrize(
    ("there", "advice"),
    [
        ([], "get one, with `uv python install 3.13`, from your system's packages or from https://www.python.org/"),
        (["3.12", "3.11"], "so run this instead: python3.12 start.py"),
    ],
)
def test_a_python_that_does_not_fit_is_told_in_one_sentence(entry, monkeypatch, version, there, advice):
    monkeypatch.setattr(entry.os, "name", "posix")
    monkeypatch.setattr(entry, "starts", lambda command: command[0].removeprefix("python") in there)
    told = entry.refusal(str(ROOT), version)
    assert told.startswith("The course needs Python 3.11 to 3.14 (its packages exist for these) and this is ")
    assert ".".join(map(str, version)) in told and advice in told and "\n" not in told


def test_windows_has_a_launcher(entry, monkeypatch):
    monkeypatch.setattr(entry.os, "name", "nt")
    monkeypatch.setattr(entry, "starts", lambda command: command == ["py", "-3.13"])
    assert entry.refusal(str(ROOT), (3, 15, 0)).endswith("so run this instead: py -3.13 start.py")


def test_a_python_that_does_not_start_is_not_recommended(entry):
    assert entry.starts([sys.executable])
    assert not entry.starts([sys.executable, "-no-such-option"])  # a pyenv shim without a Python behind it
    assert not entry.starts(["no-such-python"])


def test_the_bounds_stand_in_one_place(entry):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    oldest, end = entry.fitting(str(ROOT))
    assert wanted == f">={oldest[0]}.{oldest[1]},<{end[0]}.{end[1]}"
    assert entry.refusal(str(ROOT), (*oldest, 0)) is None and entry.refusal(str(ROOT), (3, end[1] - 1, 7)) is None
    last = f"3.{end[1] - 1}"
    assert f"Needs Python 3.{oldest[1]} to {last} and" in SOURCE
    assert f"Python 3.{oldest[1]} to {last}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_folders_name_that_a_log_cannot_hold_is_no_traceback(whole):
    """As on Windows with its output sent to a file, whose encoding has few letters."""
    folder = whole.rename(whole.with_name("Łukasz"))
    (folder / ".venv").mkdir()
    (folder / ".venv" / "treasure").touch()
    environment = dict(os.environ, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    command = [sys.executable, "start.py", "setup"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == ""
    assert "\\u0141ukasz" in done.stdout and "is no Python environment" in done.stdout


def test_it_needs_nothing_installed(home):
    """In a Python without packages, in isolation, from another folder, as before the first set-up."""
    ask = "import runpy, sys; sys.argv = ['start.py', 'progress']; runpy.run_path({!r}, run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "COURSE_STRICT"}
    environment["COURSE_PROGRESS"] = str(home / "none.json")
    command = [sys.executable, "-I", "-S", "-c", ask.format(str(ROOT / "start.py"))]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No exercise has been checked yet.")
