"""utils/course/colab.py and the setup cell run for real: a stand-in google.colab, a bare environment, a local clone.

Packages come from a folder of wheels, a few hundred bytes each, that this file writes: nothing is downloaded.
Each stands in for the package of that name, and pip sees names, versions and requirements as on a real index.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from utils.course import colab

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
NAMES = [Requirement(line).name for line in PROJECT["dependencies"]]
PREINSTALLED = {"torch": "2.11.0+cu128", "numpy": "2.1.3"}

# Runs the cell as a notebook would, and reports on stderr what is different afterwards.
PROBE = """\
import json, os, sys
from importlib.metadata import distributions
exec({stand_in!r})
folder, path, names = os.getcwd(), list(sys.path), None
names = set(globals())
exec(compile({cell!r}, "setup cell", "exec"))
new = sorted(set(globals()) - names)
versions = {{found.metadata["Name"]: found.version for found in distributions()}}
report = {{"cwd": os.getcwd(), "path": sys.path, "new": new, "versions": versions}}
report |= {{"same_cwd": os.getcwd() == folder, "same_path": sys.path == path}}
print(json.dumps(report), file=sys.stderr)
"""


def write_wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = ()) -> Path:
    """Writes a wheel with an empty module and the metadata that pip reads."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", f"__version__ = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{module}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def git(*arguments: str, cwd: Path) -> None:
    """Runs git with an author and without anybody's own settings."""
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *author, *arguments], cwd=cwd, env={**os.environ, **alone}, check=True, capture_output=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment with pip and nothing else, to be copied."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--symlinks", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The course as a git repository: what the setup cell imports, and pyproject.toml, on the branch "trial"."""
    folder = tmp_path_factory.mktemp("origin") / "course"
    (folder / "utils" / "course").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "here").touch()
    modules = [f"utils/{name}.py" for name in ("__init__", "course/__init__", "course/colab", "quiet")]
    for file in (*modules, "pyproject.toml"):
        shutil.copy(ROOT / file, folder / file)
    git("init", "-q", "-b", "trial", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "-q", "-m", "course", cwd=folder)
    return folder


class Machine:
    """A machine with its own Python, its own package index and, if asked for, a Colab around it."""

    def __init__(self, folder: Path, bare: Path, repository: Path):
        self.folder, self.repository = folder, repository
        self.env, self.wheels, self.home = folder / "env", folder / "wheels", folder / "content" / "course"
        shutil.copytree(bare, self.env, symlinks=True)
        self.wheels.mkdir()
        self.packages = next(self.env.glob("lib/*/site-packages"))
        (self.packages / "google" / "colab").mkdir(parents=True)
        (self.packages / "google" / "colab" / "__init__.py").touch()

    def install(self, name: str, version: str) -> None:
        """Puts a package into the environment, as the runtime's makers did."""
        with zipfile.ZipFile(write_wheel(self.folder, name, version)) as wheel:
            wheel.extractall(self.packages)

    def offer(self, name: str, version: str, *needs: str) -> None:
        """Puts a package into the index."""
        write_wheel(self.wheels, name, version, needs)

    def run(self, *, on_colab: bool = True, stand_in: str = "import google.colab", **variables: str):
        """Runs the setup cell; returns (what it printed, what the probe saw)."""
        cell = colab.setup_cell("nobody/nowhere", "nothing")
        code = PROBE.format(stand_in=stand_in if on_colab else "", cell=cell)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "COURSE_", "PYTHON"))}
        kept |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        kept |= {
            "COURSE_HOME": str(self.home),
            "COURSE_REF": "trial",
            "COURSE_REPO": f"file://{self.repository}",
        }
        if not on_colab:  # there the course is installed
            kept["PYTHONPATH"] = str(self.repository)
        done = subprocess.run(
            [self.env / "bin" / "python", "-c", code],
            cwd=self.folder,
            env={**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = done.stderr.strip().splitlines()
        return done, json.loads(lines[-1]) if done.returncode == 0 else None


@pytest.fixture
def machine(tmp_path, bare, repository):
    """A runtime like Colab's: torch and numpy its own, bitsandbytes and jaxtyping missing, trl too old.

    Its index has what the lock has, and newer releases of torch and numpy, which must not be taken.
    """
    if os.name != "posix":
        pytest.skip("Colab is Linux")
    runtime = Machine(tmp_path, bare, repository)
    for name in NAMES:
        if name not in PREINSTALLED:
            runtime.offer(name, LOCK[name], *(["torch", "numpy"] if name in ("peft", "trl") else []))
    for name, version in {**PREINSTALLED, "trl": "0.9.6"}.items():
        runtime.install(name, version)
    for name in set(NAMES) - {"torch", "numpy", "trl", "bitsandbytes", "jaxtyping"}:
        runtime.install(name, LOCK[name])
    runtime.offer("torch", "2.99.0")
    runtime.offer("numpy", "2.99.0")
    return runtime


# -------------------------------------------------------------------------------- the setup cell


def test_the_cell_is_short_and_names_the_repository():
    cell = colab.setup_cell("owner/name", "v1.2")
    assert len(cell.splitlines()) <= 18 and max(map(len, cell.splitlines())) <= 110
    assert '"https://github.com/owner/name"' in cell
    assert '"COURSE_REF", "v1.2"' in cell
    assert '"file:///somewhere"' in colab.setup_cell("file:///somewhere", "v1.2")
    assert re.findall(r"COURSE_\w+", cell) == ["COURSE_HOME", "COURSE_REPO", "COURSE_REF"]
    compile(cell, "cell", "exec")


def test_the_courses_origin_is_what_pyproject_says(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/owner/name.git"\n[tool.course]\nref = "v1.2"\n'
    )
    found = colab.origin(tmp_path)
    assert found == ("owner/name", "v1.2")
    page = "https://colab.research.google.com/github/owner/name/blob/v1.2/notebooks/00_a.ipynb"
    assert colab.notebook_page(found, "notebooks/00_a.ipynb") == page
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/owner/name"\n')
    with pytest.raises(KeyError):
        colab.origin(tmp_path)


def test_elsewhere_the_cell_prints_nothing_and_changes_no_package(machine):
    before = sorted(path.name for path in machine.folder.iterdir())
    done, saw = machine.run(on_colab=False)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1  # the probe's own line
    assert saw["same_path"] and saw["same_cwd"] and saw["new"] == ["quiet_upstream", "subprocess"]  # os, sys: there
    assert sorted(path.name for path in machine.folder.iterdir()) == before
    assert saw["versions"]["trl"] == "0.9.6" and "bitsandbytes" not in saw["versions"]


def test_on_colab_it_fetches_the_course_and_installs_what_is_missing_or_too_old(machine):
    done, saw = machine.run()
    assert done.returncode == 0, done.stderr
    assert saw["cwd"] == str(machine.home / "notebooks") and saw["path"][0] == str(machine.home)
    assert (machine.home / "notebooks" / "here").exists()
    for name in ("bitsandbytes", "jaxtyping", "trl"):
        assert saw["versions"][name] == LOCK[name]
    assert {name: saw["versions"][name] for name in PREINSTALLED} == PREINSTALLED
    (line,) = done.stdout.splitlines()
    installed = [f"{name} {LOCK[name]}" for name in ("bitsandbytes", "jaxtyping", "trl")]
    kept = "left torch 2.11.0+cu128 and numpy 2.1.3 as they were."
    assert line == f"The course is ready; installed {', '.join(installed)}; {kept}"


def test_a_second_run_clones_nothing_and_installs_nothing(machine):
    machine.run()
    done, saw = machine.run(COURSE_REPO="file:///nowhere", PIP_FIND_LINKS="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The course is ready; nothing had to be installed.\n"
    assert saw["cwd"] == str(machine.home / "notebooks")


def test_a_release_that_would_replace_numpy_is_not_taken(machine):
    """The newest bitsandbytes asks for a newer numpy than the runtime's; an older one has to do."""
    machine.offer("bitsandbytes", "0.99.0", "numpy>=2.5", "torch")
    done, saw = machine.run()
    assert done.returncode == 0, done.stderr
    assert saw["versions"]["bitsandbytes"] == LOCK["bitsandbytes"]
    assert {name: saw["versions"][name] for name in PREINSTALLED} == PREINSTALLED


def test_the_control_without_holding_numpy_it_would_be_replaced(machine):
    machine.offer("bitsandbytes", "0.99.0", "numpy>=2.5", "torch")
    command = [machine.env / "bin" / "python", "-m", "pip", "install", "-q", "bitsandbytes"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(machine.wheels), "PIP_CONFIG_FILE": os.devnull}
    subprocess.run(command, env={**kept, **index}, check=True)
    metadata = {path.name for path in machine.packages.glob("numpy-*.dist-info")}
    assert metadata == {"numpy-2.99.0.dist-info"}


def test_a_torch_that_is_too_old_is_named_and_left(machine):
    shutil.rmtree(next(machine.packages.glob("torch-*.dist-info")))
    machine.install("torch", "2.4.0")
    done, saw = machine.run()
    assert saw["versions"]["torch"] == "2.4.0"
    torch = next(line for line in PROJECT["dependencies"] if line.startswith("torch>"))
    assert f"asks for {torch} and finds 2.4.0; it is left alone" in done.stdout
    assert "Change runtime type" in done.stdout


def test_an_old_package_that_is_in_use_asks_for_a_restart(machine):
    done, _ = machine.run(stand_in="import google.colab, trl")
    assert "An older trl is in use already: choose Runtime > Restart session" in done.stdout


def test_a_pip_that_fails_says_what_to_do(machine):
    for wheel in machine.wheels.glob("bitsandbytes-*"):
        wheel.unlink()
    done, _ = machine.run()
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: pip could not install bitsandbytes") and "run this cell again" in last
    assert "No matching distribution found for bitsandbytes" in last


def test_a_branch_that_is_not_there_stops_the_cell_and_leaves_no_folder(machine):
    done, _ = machine.run(COURSE_REF="no-such-branch")
    assert done.returncode != 0 and "no-such-branch" in done.stderr
    assert not machine.home.exists()


# -------------------------------------------------------------------------------- finding what is unmet


@pytest.fixture
def installed(monkeypatch):
    """Sets what counts as installed: a dictionary of versions."""
    versions: dict[str, str] = {}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(colab, "version", version)
    return versions


def test_unmet_names_the_missing_the_old_and_the_too_new_in_order(installed):
    installed |= {"old": "1.9", "new": "3.0", "good": "2.1.dev3", "local": "2.5.0+cu126"}
    lines = ["missing>=1", "old>=2,<3", "new>=2,<3", "good>=2,<3", "local>=2.5,<3"]
    assert colab.unmet(lines) == [
        colab.Need("missing", "missing>=1", None),
        colab.Need("old", "old>=2,<3", "1.9"),
        colab.Need("new", "new>=2,<3", "3.0"),
    ]


def test_unmet_reads_markers(installed):
    assert colab.unmet(["a; python_version < '3'"]) == []
    assert [need.name for need in colab.unmet(["a; python_version >= '3'"])] == ["a"]


def test_without_packaging_pips_copy_compares_and_without_both_only_presence_counts(installed, monkeypatch):
    installed |= {"old": "1.9"}
    really, hidden = colab.importlib.import_module, {"packaging.requirements"}

    def import_module(name):
        if name in hidden:
            raise ImportError(name)
        return really(name)

    monkeypatch.setattr(colab.importlib, "import_module", import_module)
    assert [need.name for need in colab.unmet(["old>=2", "missing>=1"])] == ["old", "missing"]
    hidden.add("pip._vendor.packaging.requirements")
    assert [need.name for need in colab.unmet(["old>=2", "missing>=1"])] == ["missing"]


def test_the_courses_own_environment_meets_everything():
    assert colab.unmet(PROJECT["dependencies"]) == []


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
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", stderr))
    with pytest.raises(RuntimeError, match=re.escape(f"could not install trl on this runtime ({said}).")):
        colab._pip_install(["trl"])
