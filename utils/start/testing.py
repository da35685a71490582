"""`start.py test`: every test and every notebook, on the CPU and without a network; in a browser too, if there is one,
and the website, if there is Node.js besides.

Attributes:
    LEFT_OUT: The exit code of a stage that needs what isn't on this machine, and has said so.
    VERDICTS: What pytest's exit codes mean; all others are a failure.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from utils.start.programs import finish
from utils.start.words import say

# Else a Python on Windows reads the course's files in the code page of the country.
UTF8 = {"PYTHONUTF8": "1"}

LEFT_OUT = 77
VERDICTS = {0: "passed", 5: "FAILED: found nothing to run", LEFT_OUT: "left out, for the reason above"}


def stages() -> list[tuple[str, list[str]]]:
    """What `test` runs: a name, pytest's arguments. A notebook stays on one worker; tests go to who is free."""
    workers = ["-n", "2", "--dist"]
    return [
        ("tests", [*workers, "worksteal", "tests"]),
        ("notebooks", ["-p", "tools.pytest_notebooks", *workers, "loadfile", "--no-loadscope-reorder", "solutions"]),
        ("browser", ["tests/browser"]),
        ("website", ["tests/site/built"]),
    ]


def environment_of_tests(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for tests: CPU, offline, UTF-8, one thread a worker, no COURSE_ setting, no record."""
    kept = {name: value for name, value in environment.items() if not name.startswith("COURSE_")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    fixed = {"CUDA_VISIBLE_DEVICES": "-1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **threads, **fixed, **UTF8, "COURSE_PROGRESS": "off"}


def run_tests(home: Path, python: Path, set_up_seconds: float) -> int:
    """Run every stage, also after one has failed, and print the times: 0 if all passed, else 1."""
    rows, failed = [("set-up", set_up_seconds, "done")], False
    for name, arguments in stages():
        say(f"\n{name}: pytest {' '.join(arguments)}")
        started = time.time()
        command = [str(python), "-m", "pytest", *arguments]
        process = subprocess.Popen(command, cwd=str(home), env=environment_of_tests(os.environ))
        try:
            code = process.wait()
        except BaseException:
            finish(process)
            raise
        verdict = VERDICTS.get(code, f"FAILED (pytest's exit code {code})")
        rows.append((name, time.time() - started, verdict))
        failed = failed or code not in (0, LEFT_OUT)
    say()
    for name, seconds, verdict in rows:
        say(f"{name:<10} {seconds:7.1f} s   {verdict}")
    return int(failed)
