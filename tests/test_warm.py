"""A warm process is like one that Python starts: its words, folder, variables, output, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm import warm_python

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="elsewhere a warm Python is Python itself")

SHOWS = """
import os, sys
print(sys.argv, __name__, os.getcwd(), os.environ["OF_THE_CALLER"], "OF_ANOTHER" in os.environ, "this" in sys.modules)
print(sys.path[0], [name for name in sys.modules if name.split(".")[0] in ("utils", "tools")], sys.stdin.read())
print("to stderr", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def warm():
    with warm_python("import sys; sys.modules['this'] = sys") as python:  # quicker to have than TRL
        yield python


def outcome(python, *words, **more):
    done = subprocess.run([python, *words], capture_output=True, text=True, timeout=60, **more)
    return done.returncode, done.stdout, done.stderr


def test_words_folder_variables_and_streams_are_the_callers(warm, tmp_path):
    (tmp_path / "shows.py").write_text(SHOWS)
    for words in (["shows.py", "a b", "-u"], ["-m", "shows", "'"]):
        environment = {**os.environ, "OF_THE_CALLER": "yes", "PYTHONPATH": ""}
        given = {"cwd": tmp_path, "env": environment, "input": "what comes in"}
        plain, same = outcome(sys.executable, *words, **given), outcome(warm, *words, **given)
        assert plain[1].count(" False\n") == 1 and "what comes in" in plain[1]
        assert same == (plain[0], plain[1].replace(" False\n", " True\n"), plain[2]), "but for what is imported"


@pytest.mark.parametrize(
    "ends", ["", "sys.exit(7)", "sys.exit('in words')", "1 / 0", "os._exit(3)", "os.kill(os.getpid(), 9)", "atexit()"]
)
def test_it_ends_as_python_does(warm, tmp_path, ends):
    (tmp_path / "ends.py").write_text(
        f"import atexit as at, os, sys\natexit = lambda: at.register(print, 'at the end')\n{ends}"
    )
    plain, same = (outcome(python, "ends.py", cwd=tmp_path) for python in (sys.executable, warm))
    assert same[:2] == plain[:2] and same[2].splitlines()[-1:] == plain[2].splitlines()[-1:]


def test_a_signal_to_the_caller_goes_on_to_the_process(warm, tmp_path):
    hears = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(33))\nprint('here')\ntime.sleep(60)\n"
    (tmp_path / "hears.py").write_text(hears)
    with subprocess.Popen([warm, "hears.py"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 33


def test_the_process_of_a_killed_caller_is_killed(warm, tmp_path):
    (tmp_path / "stays.py").write_text("import os, time\nprint(os.getpid())\ntime.sleep(60)\n")
    with subprocess.Popen([warm, "stays.py"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        real = Path("/proc") / process.stdout.readline().decode().strip()
        assert real.exists()
        process.kill()
    until = time.monotonic() + 30
    while real.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not real.exists()


def test_the_server_ends_with_the_block_and_one_that_cant_begin_says_so():
    with warm_python("pass") as python:
        assert outcome(python, "-m", "this")[0] == 0
    with pytest.raises(FileNotFoundError):
        outcome(python, "-m", "this")
    with pytest.raises(RuntimeError, match="ended with exit code 1"), warm_python("import not_there"):
        pass
