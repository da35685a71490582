"""Runs the tests with the oldest, or with the newest, versions that pyproject.toml admits.

    python -m tools.drift oldest     in .venv-oldest: each package that pyproject.toml names at its lower bound
    python -m tools.drift newest     in .venv-newest: all as new as it gets, without requirements.lock

The environment is made anew each time (minutes; 2 GB with the CPU build of torch, 6 GB with CUDA), and the tests are
those of `python3 start.py test` without the notebooks, whose stored outputs belong to the locked versions, and without
the tests marked `locked`. What came out is written to assets/measurements/drift.json, also when tests failed, but not
when the run was cut off. The table of lessons/using_the_course.md is printed; tests/test_dependencies.py holds that
page and pyproject.toml to the record.

torch comes from where `python3 start.py` takes it from. Where an index has no CPU build that old or that new,
``--torch 2.13.0`` takes another version; the record and the table say which.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import pins_to_keep, requirements, resolve
from utils.start.failures import explain
from utils.start.pip import pip
from utils.start.set_up import install_course
from utils.start.testing import environment_of_tests, stages
from utils.start.torch_build import torch_choice, torch_index
from utils.start.venv import make_environment, python_of, read_stamp
from utils.start.words import Trouble, say

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "assets" / "measurements" / "drift.json"

# What uv aims at. The packages below the declared ones are new in both: their floors are not ours to choose.
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}

# The columns of the table in lessons/using_the_course.md; the record has every declared package.
SHOWN = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "numpy")


@dataclass(frozen=True)
class Counts:
    """How many tests passed, failed (errors included) and were skipped."""

    passed: int
    failed: int
    skipped: int


def declared(pyproject: Mapping) -> list[str]:
    """Lists the names of the packages that the course needs to run, normalized, in pyproject.toml's order."""
    return [canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]]


def pinned_torch(pins: list[str]) -> str:
    """Finds torch's version among uv's pins, e.g. ``"2.15.0"``.

    Raises :class:`ValueError` when it is not there.
    """
    for pin in pins:
        name, _, version = pin.partition("==")
        if name == "torch":
            return version.split(";")[0].strip()
    raise ValueError("uv resolved no torch, which pyproject.toml declares: look at what it printed above")


def counts(report: str) -> Counts:
    """Reads the counts off a JUnit report, as pytest's ``--junitxml`` writes it."""
    suites = ElementTree.fromstring(report).iter("testsuite")
    ran, failed, skipped = 0, 0, 0
    for suite in suites:
        ran += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return Counts(passed=ran - failed - skipped, failed=failed, skipped=skipped)


def day(iso: str) -> str:
    """Writes a date as prose does: ``"2026-11-27"`` is ``"27 November 2026"``."""
    when = date.fromisoformat(iso)
    return f"{when.day} {when:%B %Y}"


def table(record: Mapping[str, Mapping]) -> str:
    """Makes the page's table of the record: a row for each of "oldest" and "newest" that it has."""
    lines = [
        f"| versions | {' | '.join(SHOWN)} | tests passed | failed | on |",
        "|---|" + "---|" * (len(SHOWN) + 3),
    ]
    for kind in RESOLUTIONS:
        if kind in record:
            run = record[kind]
            cells = [kind, *(run["versions"][name] for name in SHOWN)]
            cells += [f"{run['passed']:,}", str(run["failed"]), day(run["date"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def make(folder: Path, pins: list[str], torch: str) -> Path:
    """Makes the environment `folder` with these pins, torch at the version `torch`, and the course itself.

    Returns its Python. Raises Trouble, in a sentence, when something can't be installed.
    """
    choice = torch_choice(None, os.environ, read_stamp(ROOT / ".venv").get("torch"))
    index = torch_index(choice, platform.system())
    make_environment(folder)
    source = ["--index-url", index] if index else []
    say(f"torch {torch}, from {index or 'the index that pip is set to'}")
    code, said = pip(folder, "install", f"torch=={torch}", *source)
    if code:
        raise Trouble(explain(said, f"torch {torch}", folder))
    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(scratch) / "pins.txt"
        chosen.write_text("\n".join(pins_to_keep(pins)) + "\n", encoding="utf-8")
        say(f"{len(pins_to_keep(pins))} packages beside it")
        code, said = pip(folder, "install", "--no-deps", "-r", str(chosen))
    if code:
        raise Trouble(explain(said, "the packages", folder))
    install_course(ROOT, folder)
    return python_of(folder)


def run_tests(python: Path, workers: int) -> tuple[int, Counts]:
    """Runs the tests with this Python; returns pytest's exit code and the counts, zeros where it refused to start."""
    arguments = next(arguments for name, arguments in stages() if name == "tests")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [str(python), "-m", "pytest", *arguments, "-n", str(workers), "-m", "not locked"]
        environment = environment_of_tests(os.environ)
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=environment)
        found = counts(report.read_text(encoding="utf-8")) if report.exists() else Counts(0, 0, 0)
        return done.returncode, found


def installed(python: Path, names: list[str]) -> dict[str, str]:
    """Asks an environment which versions of these packages it has, a local part such as +cpu included."""
    ask = "import json, sys\nfrom importlib.metadata import version\n"
    ask += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", ask, *names], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> int:
    """Makes the environment, runs the tests, writes the record; returns pytest's exit code, or 1 for other trouble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=RESOLUTIONS)
    parser.add_argument("--torch", metavar="VERSION", help="this torch instead of the oldest or newest")
    parser.add_argument("--workers", type=int, default=2, help="processes for the tests (default: 2)")
    options = parser.parse_args()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = requirements(pyproject, options.torch)
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        how = ("--resolution", RESOLUTIONS[options.kind], "--python-version", python_version)
        pins = resolve(wanted, how=how)
        python = make(ROOT / f".venv-{options.kind}", pins, pinned_torch(pins))
    except subprocess.CalledProcessError:
        print("nothing was run: see above what uv said")
        return 1
    except Trouble as trouble:
        print(trouble)
        return 1
    began = time.time()
    code, found = run_tests(python, options.workers)
    if code not in (0, 1):  # pytest's codes for tests that ran to the end; others are a run cut off or not begun
        print(f"nothing is recorded: pytest ended with the exit code {code}, before all tests had run")
        return code
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    record[options.kind] = {
        "tool": f"python -m tools.drift {options.kind}",
        "seeds": [],
        **asdict(found),
        "seconds": round(time.time() - began),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": installed(python, declared(pyproject)),
    }
    temporary = RECORD.with_suffix(".json.new")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(RECORD)
    print(f"{RECORD.relative_to(ROOT)} is written. The table of lessons/using_the_course.md:\n\n{table(record)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
