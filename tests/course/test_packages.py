"""utils/course/packages.py: what is missing, what pip is told, what is in use. test_colab.py runs it for real."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from utils.course import packages

ROOT = Path(__file__).resolve().parents[2]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
MENUS = packages.Menus("Restart session", "Change runtime", "Delete runtime")


# -------------------------------------------------------------------------------- finding what is unmet


@pytest.fixture
def installed(monkeypatch):
    """Sets what counts as installed: a dictionary of versions."""
    versions: dict[str, str] = {}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "version", version)
    return versions


def test_unmet_names_the_missing_the_old_and_the_too_new_in_order(installed):
    installed |= {"old": "1.9", "new": "3.0", "good": "2.1.dev3", "local": "2.5.0+cu126"}
    lines = ["missing>=1", "old>=2,<3", "new>=2,<3", "good>=2,<3", "local>=2.5,<3"]
    assert packages.unmet(lines) == [
        packages.Need("missing", "missing>=1", None),
        packages.Need("old", "old>=2,<3", "1.9"),
        packages.Need("new", "new>=2,<3", "3.0"),
    ]


def test_unmet_reads_markers(installed):
    assert packages.unmet(["a; python_version < '3'"]) == []
    assert [need.name for need in packages.unmet(["a; python_version >= '3'"])] == ["a"]


def test_without_packaging_pips_copy_compares_and_without_both_only_presence_counts(installed, monkeypatch):
    installed |= {"old": "1.9"}
    really, hidden = packages.importlib.import_module, {"packaging.requirements"}

    def import_module(name):
        if name in hidden:
            raise ImportError(name)
        return really(name)

    monkeypatch.setattr(packages.importlib, "import_module", import_module)
    assert [need.name for need in packages.unmet(["old>=2", "missing>=1"])] == ["old", "missing"]
    hidden.add("pip._vendor.packaging.requirements")
    assert [need.name for need in packages.unmet(["old>=2", "missing>=1"])] == ["missing"]


def test_the_courses_own_environment_meets_everything():
    assert packages.unmet(DEPENDENCIES) == []


def test_importing_utils_colab_needs_the_standard_library_only(tmp_path):
    code = "import sys; import utils.course.colab; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(re.findall(r"'(\w+)'", done.stdout))
    assert "utils" in loaded and loaded - sys.stdlib_module_names - {"utils", "__main__"} == set()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("note: a\nERROR: no such wheel\nERROR: ResolutionImpossible\nnote: b\n", "ERROR: ResolutionImpossible"),
        ("Traceback\nKilled\n", "Killed"),
        ("", "it did not say why"),
    ],
)
def test_why_pip_failed_is_said(monkeypatch, stderr, said):
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", stderr))
    with pytest.raises(RuntimeError, match=re.escape(f"could not install trl on this runtime ({said}).")):
        packages._install([packages.Need("trl", "trl", None)], {}, {}, MENUS)


@pytest.mark.parametrize(
    ("stderr", "runs"),
    [
        ("ERROR: No matching distribution found for trl", 2),
        ("ERROR: ResolutionImpossible", 2),
        ("WARNING: Retrying (Retry(total=0))\nERROR: No matching distribution found for trl", 1),
        ("ERROR: no space left on device", 1),
    ],
)
def test_it_is_tried_without_the_lock_when_versions_are_the_trouble_and_only_then(monkeypatch, stderr, runs):
    told = []

    def run(command, **_):
        told.append(Path(command[command.index("-c") + 1]).read_text().split())
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(packages.SetupProblem):
        packages._install([packages.Need("trl", "trl>=1", "0.9")], {"numpy": "2.1.3"}, {"trl": "1.16.0"}, MENUS)
    assert told == [["numpy==2.1.3", "trl==1.16.0"], ["numpy==2.1.3"]][:runs]


# -------------------------------------------------------------------------------- what pip is told


def test_the_lock_is_read_without_markers_and_with_canonical_names():
    text = "# torch 2.13.0 is left out\nA_b==1.0\nc==2.0+x ; sys_platform == 'linux'\n"
    assert packages.locked(text) == {"a-b": "1.0", "c": "2.0+x"}


def test_the_locked_version_comes_and_what_is_there_can_stay():
    lock = {"new": "1.0", "old": "3.0", "stays": "2.0", "ahead": "1.9.1", "numpy": "2.4"}
    there = {"old": "2.5", "stays": "1.5", "ahead": "1.10", "numpy": "2.1.3", "torch": "2.11+cu128", "foreign": "7"}
    lines = packages.as_locked([packages.Need("old", "old>=3", "2.5")], there, lock)
    assert lines == ["new==1.0", "old==3.0", "stays<=2.0", "ahead<=1.10"]
    assert packages.held(there) == ["torch==2.11+cu128", "numpy==2.1.3"]


# -------------------------------------------------------------------------------- what is in use


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A folder on the path for made-up distributions; gives a function that makes one."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, *files: str, requires: str = "") -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + f"Requires-Dist: {requires}\n" * bool(requires)
        )
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))

    def load(file: str) -> None:
        module = types.ModuleType(file)
        module.__file__ = str(tmp_path / file)
        monkeypatch.setitem(sys.modules, f"made_up_{file}", module)

    return types.SimpleNamespace(make=make, load=load)


def test_a_replaced_distribution_is_in_use_when_one_of_its_files_is_loaded(site):
    site.make("made-up", "made_up/__init__.py")
    site.make("made-idle", "made_idle/__init__.py")
    site.load("made_up/__init__.py")
    assert packages.in_use({"made-up", "made-idle"}) == ["made-up"]


@pytest.mark.parametrize(("file", "found"), [("made_core/core.so", ["made-frame"]), ("made_core/core.py", [])])
def test_so_is_one_that_is_built_on_compiled_code_that_was_replaced(site, file, found):
    site.make("made-core", file)
    site.make("made-frame", "made_frame/__init__.py", requires='Made_Core>=1; extra == "fast"')
    site.load("made_frame/__init__.py")
    assert packages.in_use({"made-core"}) == found


def test_what_python_itself_loads_of_setuptools_is_no_reason_to_restart(site):
    site.make("made-tools", "_distutils_hack/__init__.py", "made_tools/__init__.py")
    site.load("_distutils_hack/__init__.py")
    assert packages.in_use({"made-tools"}) == []
    site.load("made_tools/__init__.py")
    assert packages.in_use({"made-tools"}) == ["made-tools"]


def test_a_stand_in_that_answers_any_question_does_no_harm(site, monkeypatch):
    class Anything:
        __slots__ = ()

        def __getattr__(self, name):
            return lambda: name

    monkeypatch.setitem(sys.modules, "made_up_anything", Anything())
    assert packages.in_use(set()) == []


def test_the_advice_to_restart_is_repeated_until_it_is_followed(monkeypatch, capsys):
    """Nothing is left to install then, and what is in memory is still the old one."""
    monkeypatch.setattr(packages, "_stale", {"pyarrow": "25.0"})
    with pytest.raises(packages.SetupProblem, match="^Restart the session .*: Restart session[.].* loaded pyarrow "):
        packages.ensure_packages(ROOT, MENUS)
    assert capsys.readouterr().out == ""


def test_a_notebook_shows_the_sentence_and_no_traceback():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    shell.run_cell("from utils.course.packages import SetupProblem\nraise SetupProblem('Restart first.')")
    assert shown == ["Restart first."]
