"""The house in order: lint, the maintainers' commands, CI, the repository's address, licences."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.locked
def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@pytest.mark.slow
@pytest.mark.locked  # other versions of the libraries have other annotations
def test_the_type_checker_finds_nothing():
    command = [sys.executable, "-m", "basedpyright", "--project", "pyproject.toml", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert re.search(r"^0 errors", done.stdout, re.MULTILINE)


def test_ci_calls_the_readmes_test_command_and_may_get_a_browser_before():
    script = ROOT / ".ci" / "run"
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        ".ci/browser || true  # without a browser its tests are left out, and say so",
        "COURSE_TORCH_INDEX=pip exec python3 start.py test",
    ]
    assert os.name == "nt" or all(os.access(script.with_name(name), os.X_OK) for name in ("run", "browser"))


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_ci_runs_from_any_folder_and_hands_back_the_exit_code(tmp_path):
    (tmp_path / "a b" / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / "a b" / ".ci" / "run")
    (tmp_path / "a b" / ".ci" / "browser").write_text("exit 1\n")  # no browser to be had
    (tmp_path / "a b" / ".ci" / "browser").chmod(0o755)
    report = "import os, sys; print(os.getcwd(), sys.argv[1:], os.environ['COURSE_TORCH_INDEX']); sys.exit(7)"
    (tmp_path / "a b" / "start.py").write_text(report)
    done = subprocess.run(["bash", tmp_path / "a b" / ".ci" / "run"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 7 and done.stdout == f"{tmp_path}/a b ['test'] pip\n"


def test_every_make_target_is_explained_and_its_script_is_there():
    targets = re.findall(r"^([a-z-]+):(.*)$", MAKEFILE, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert [name for name, _ in targets] == phony
    assert [name for name, rest in targets if "##" not in rest] == []
    for script in re.findall(r"\S+\.py\b", MAKEFILE):
        assert (ROOT / script).is_file(), script
    for module in set(re.findall(r"\btools(?:\.\w+)+", MAKEFILE)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_make_runs_inside_the_environment():
    recipes = [line.strip() for line in MAKEFILE.splitlines() if line.startswith("\t")]
    outside = [
        line
        for line in recipes
        if not line.startswith(("$(VENV)", "$(TESTS)", "$(NBVAL)", "$(BROWSER)", "OMP_NUM_THREADS=2 $(VENV)"))
    ]
    # the site has an environment of its own, which needs none of the course's
    others = ("@$(PYTHON) start.py", "@$(PYTHON) -m tools.site", "@grep", "rm ", "find ")
    assert [line for line in outside if not line.startswith(others)] == []


def test_the_repositorys_address_is_written_in_pyproject_only():
    """Notebooks have it from the build; the README and what GitHub reads may say it, if it is true."""
    owner, name = ADDRESS.removeprefix("https://github.com/").split("/")
    mention = re.compile(r"github(?:\.com|usercontent\.com)?[/:][\w.-]+/" + re.escape(name) + r"\b")
    for pattern in ("*.py", "utils/**/*.py", "tools/*.py", "lessons/*.md", "Makefile", "environment.yml"):
        for path in ROOT.glob(pattern):
            assert not mention.search(path.read_text(encoding="utf-8")), f"{path.name} names the repository's address"
    for pattern in ("*.md", "*.cff", ".github/**/*.yml", "notebooks/*.ipynb", "solutions/*.ipynb"):
        for path in ROOT.glob(pattern):
            for found in mention.findall(path.read_text(encoding="utf-8")):
                assert found.endswith(f"/{owner}/{name}"), f"{path.name}: {found}"


def test_the_licences_are_whole_and_say_what_they_cover():
    code, prose, notice = ((ROOT / name).read_text(encoding="utf-8") for name in ("LICENSE", "LICENSE-prose", "NOTICE"))
    assert "Apache License" in code and "END OF TERMS AND CONDITIONS" in code
    assert "https://creativecommons.org/licenses/by/4.0/" in prose and "Section 8 -- Interpretation." in prose
    for folder in ("lessons/", "notebooks/", "solutions/", "assets/"):
        assert folder in prose and folder in notice
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-4.0"
    assert all((ROOT / file).is_file() for file in PROJECT["license-files"])
