"""utils/course/colab.py and the setup cell run for real: a stand-in google.colab, a bare environment, a local clone.

Packages come from a folder of wheels, a few hundred bytes each, that this file writes: nothing is downloaded.
Each stands in for the package of that name, and pip sees names, versions and requirements as on a real index.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from utils.course import colab, packages, progress
from utils.course.colab import Origin

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


OLD, NOW, SAME = "# Chapter 0: before\n", "# Chapter 0: now\n", "lessons/00_trial.md"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The course as a git repository: what the setup cell imports, and pyproject.toml, on the branch "trial".

    Its lesson was another one in two earlier commits; the file `age` counts the commits.
    """
    folder = tmp_path_factory.mktemp("origin") / "course"
    (folder / "utils" / "course").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "here").touch()
    (folder / "lessons").mkdir()
    modules = [f"utils/{name}.py" for name in ("__init__", "quiet", "course/__init__")]
    modules += [f"utils/course/{name}.py" for name in ("colab", "packages", "progress")]
    for file in (*modules, "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / file, folder / file)
    git("init", "-q", "-b", "trial", cwd=folder)
    for age, lesson in enumerate([OLD, OLD, NOW, NOW]):
        (folder / "age").write_text(str(age))
        (folder / SAME).write_text(lesson)
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
        (folder / "lessons").mkdir()

    def install(self, name: str, version: str) -> None:
        """Puts a package into the environment, as the runtime's makers did."""
        with zipfile.ZipFile(write_wheel(self.folder, name, version)) as wheel:
            wheel.extractall(self.packages)

    def offer(self, name: str, version: str, *needs: str) -> None:
        """Puts a package into the index."""
        write_wheel(self.wheels, name, version, needs)

    def run(self, *, on_colab: bool = True, stand_in: str = "import google.colab", lesson: str = NOW, **variables: str):
        """Runs the setup cell of a notebook of `lesson`; returns (what it printed, what the probe saw)."""
        (self.folder / SAME).write_text(lesson)
        cell = colab.setup_cell(Origin("nobody/nowhere", "nothing"), self.folder / SAME)
        code = PROBE.format(stand_in=stand_in if on_colab else "", cell=cell)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "COURSE_", "PYTHON"))}
        kept |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        kept |= {
            "COURSE_HOME": str(self.home),
            "COURSE_REF": "trial",
            "COURSE_REPO": f"file://{self.repository}",
            "COURSE_PROGRESS": "off",
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


@pytest.fixture
def ready(machine):
    """The runtime with nothing left to install: no pip is started."""
    for name in ("trl", "bitsandbytes", "jaxtyping"):
        shutil.rmtree(machine.packages / f"{name}-0.9.6.dist-info", ignore_errors=True)
        machine.install(name, LOCK[name])
    return machine


# -------------------------------------------------------------------------------- the setup cell


def test_the_cell_is_short_and_names_the_repository_and_its_lesson(tmp_path):
    lesson = tmp_path / "lessons" / "03_layer.md"
    lesson.parent.mkdir()
    lesson.write_bytes(b"a\r\nb\n")  # as Git for Windows may write it
    cell = colab.setup_cell(Origin("owner/name", "v1.2"), lesson)
    assert len(cell.splitlines()) <= 40 and max(map(len, cell.splitlines())) < 100
    assert '"https://github.com/owner/name"' in cell
    assert '"COURSE_REF", "v1.2"' in cell
    unix = colab.git_hash(b"a\nb\n")
    assert f'lesson, version = "lessons/03_layer.md", "{unix}"' in cell
    assert '"file:///somewhere"' in colab.setup_cell(Origin("file:///somewhere", "v1.2"), lesson)
    assert re.findall(r"COURSE_\w+", cell) == ["COURSE_REPO", "COURSE_REF", "COURSE_HOME"]
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
    assert saw["same_path"] and saw["same_cwd"]
    assert saw["new"] == ["quiet_upstream", "shutil", "subprocess"]  # os, sys: there
    assert sorted(path.name for path in machine.folder.iterdir()) == before
    assert saw["versions"]["trl"] == "0.9.6" and "bitsandbytes" not in saw["versions"]


def test_on_colab_it_fetches_the_course_and_installs_what_is_missing_or_too_old(machine):
    machine.offer("bitsandbytes", "0.99.0")
    done, saw = machine.run()
    assert done.returncode == 0, done.stderr
    assert saw["cwd"] == str(machine.home / "notebooks") and saw["path"][0] == str(machine.home)
    assert (machine.home / "notebooks" / "here").exists() and (machine.home / "age").read_text() == "3"
    for name in ("bitsandbytes", "jaxtyping", "trl"):
        assert saw["versions"][name] == LOCK[name]
    assert {name: saw["versions"][name] for name in PREINSTALLED} == PREINSTALLED
    assert done.stdout.splitlines() == [
        f"Installed: bitsandbytes {LOCK['bitsandbytes']}, jaxtyping {LOCK['jaxtyping']}.",
        f"Replaced: trl 0.9.6 -> {LOCK['trl']}.",
        "Left as they were: torch 2.11.0+cu128, numpy 2.1.3.",
        "The course is ready.",
    ]


def test_a_second_run_clones_nothing_and_installs_nothing(machine):
    machine.run()
    done, saw = machine.run(COURSE_REPO="file:///nowhere", PIP_FIND_LINKS="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The course is ready; nothing had to be installed.\n"
    assert saw["cwd"] == str(machine.home / "notebooks")


def test_what_has_to_change_along_is_listed_and_is_the_locks(machine):
    """Here the locked trl asks for a newer pandas than the runtime's, which nobody else asks for."""
    shutil.rmtree(next(machine.packages.glob("pandas-*.dist-info")))
    machine.install("pandas", "2.2.3")
    machine.offer("trl", LOCK["trl"], "torch", "numpy", "pandas>=2.2.4")
    machine.offer("pandas", "3.99.0")
    done, saw = machine.run()
    assert done.returncode == 0, done.stderr
    assert f"Replaced: pandas 2.2.3 -> {LOCK['pandas']}, trl 0.9.6 -> {LOCK['trl']}." in done.stdout.splitlines()


def test_where_the_lock_cannot_be_met_the_newest_that_fits_is_taken_and_that_is_said(machine):
    """The locked bitsandbytes asks for a newer numpy than the runtime's; an older one has to do."""
    machine.offer("bitsandbytes", LOCK["bitsandbytes"], "numpy>=2.5", "torch")
    machine.offer("bitsandbytes", "0.50.0", "numpy", "torch")
    done, saw = machine.run()
    assert done.returncode == 0, done.stderr
    assert saw["versions"]["bitsandbytes"] == "0.50.0" != LOCK["bitsandbytes"]
    assert {name: saw["versions"][name] for name in PREINSTALLED} == PREINSTALLED
    assert "The locked versions don't go with this Python" in done.stdout


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


def test_a_replaced_package_that_is_in_use_stops_the_cell_with_what_to_click(machine):
    done, _ = machine.run(stand_in="import google.colab, trl")
    assert done.returncode != 0 and f"Replaced: trl 0.9.6 -> {LOCK['trl']}." in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "SetupProblem: Restart the session before you go on: Runtime > Restart session. Then run" in last
    assert "had loaded trl before" in last
    done, _ = machine.run(stand_in="import google.colab, trl")  # restarted
    assert done.returncode == 0 and done.stdout == "The course is ready; nothing had to be installed.\n"


def test_an_old_notebook_meets_the_course_that_it_was_made_with(ready):
    done, saw = ready.run(lesson=OLD)
    assert done.returncode == 0, done.stderr
    assert (ready.home / "age").read_text() == "1" and (ready.home / SAME).read_text() == OLD
    done, saw = ready.run(lesson=OLD)  # after a restart
    assert done.returncode == 0 and (ready.home / "age").read_text() == "1"


def test_a_notebook_of_a_version_that_is_gone_says_so_and_goes_on(ready):
    done, saw = ready.run(lesson="# Chapter 0: rewritten\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"file://{ready.repository} has this version of the chapter no more: today's course")
    assert (ready.home / "age").read_text() == "3"


def test_on_kaggle_without_internet_it_says_where_to_switch_it_on(ready):
    kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "COURSE_REPO": "file:///nowhere"}
    done, _ = ready.run(stand_in="", **kaggle)
    assert done.returncode == 1 and not ready.home.exists()
    assert done.stderr.startswith("No way to file:///nowhere. On Kaggle: Settings > Turn on internet.\nfatal: ")


def test_a_fetch_that_was_killed_half_way_is_begun_anew(ready):
    (ready.home.parent / f"{ready.home.name}.part" / ".git").mkdir(parents=True)
    done, _ = ready.run()
    assert done.returncode == 0, done.stderr
    assert [path.name for path in ready.home.parent.iterdir()] == [ready.home.name]


def test_a_pip_that_fails_says_what_to_do(machine):
    for wheel in machine.wheels.glob("bitsandbytes-*"):
        wheel.unlink()
    done, _ = machine.run()
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "SetupProblem: pip could not install bitsandbytes" in last and "run this cell again" in last
    assert "No matching distribution found for bitsandbytes" in last


def test_a_branch_that_is_not_there_stops_the_cell_and_leaves_no_folder(ready):
    done, _ = ready.run(COURSE_REF="no-such-branch")
    assert done.returncode == 1 and not ready.home.exists()
    where = f"file://{ready.repository}"
    assert done.stderr == f"no-such-branch is gone from {where}: open the chapter afresh from there.\n"


# -------------------------------------------------------------------------------- where work is kept


@pytest.fixture
def on_colab(monkeypatch, tmp_path):
    """A stand-in for google.colab in this process; gives its drive module. Nothing stays in the environment."""
    drive = types.ModuleType("google.colab.drive")
    drive.mount = lambda path: Path(path, "MyDrive").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive" / "MyDrive" / "lora-zero-to-hero")
    return drive


@pytest.fixture
def own_record(monkeypatch, tmp_path):
    """This process keeps its record in a file of the test, and gets its environment back."""
    monkeypatch.delenv(progress.STRICT_VARIABLE, raising=False)
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "progress.json"))
    monkeypatch.setenv("COURSE_CACHE", "")
    progress.record("before", progress.PASSED)


def test_the_drive_gets_progress_and_adapters_and_what_was_passed_comes_along(on_colab, own_record, capsys):
    from utils.models.smollm2 import cache_dir

    colab.keep_in_drive()
    assert str(colab.DRIVE) in capsys.readouterr().out
    assert cache_dir() == colab.DRIVE / "cache"
    progress.record("after", progress.NOT_RIGHT)
    kept = progress.load(colab.DRIVE / "progress.json")
    assert kept == {"before": progress.Entry("passed", 1, True), "after": progress.Entry("not right yet", 1)}


def test_what_the_drive_has_already_is_joined_and_not_overwritten(on_colab, own_record):
    colab.DRIVE.mkdir(parents=True)
    there = {"before": {"state": "not right yet", "tries": 3, "passed": False}}
    there["other"] = {"state": "passed", "tries": 1, "passed": True}
    (colab.DRIVE / "progress.json").write_text(json.dumps({"version": 1, "exercises": there}))
    on_colab.mount = lambda path: None
    colab.keep_in_drive()
    assert progress.recorded() == {
        "before": progress.Entry("passed", 3, True),
        "other": progress.Entry("passed", 1, True),
    }


def test_a_drive_that_is_refused_changes_nothing(on_colab, own_record):
    def refuse(path):
        raise ValueError("mount failed")

    on_colab.mount, before = refuse, dict(os.environ)
    with pytest.raises(packages.SetupProblem, match=r"not opened \(mount failed\), and nothing was.*allow Colab"):
        colab.keep_in_drive()
    assert dict(os.environ) == before


def test_elsewhere_there_is_no_drive_to_ask_for(capsys):
    before = dict(os.environ)
    colab.keep_in_drive()
    assert "This isn't Colab" in capsys.readouterr().out and dict(os.environ) == before
    with pytest.raises(RuntimeError, match="neither Colab nor Kaggle"):
        colab.begin(ROOT)


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """A folder to begin in; what is installed is left alone, and so is this process's folder."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.setenv("COURSE_CACHE", "")
    monkeypatch.setattr(progress, "ROOT", tmp_path)
    monkeypatch.setattr(colab, "WORKING", tmp_path / "working")
    asked = []
    monkeypatch.setattr(colab, "ensure_packages", lambda *given: asked.append(given))
    yield asked
    os.environ.pop(progress.VARIABLE, None)


def test_on_colab_it_says_first_that_a_copy_is_to_be_saved(begun, on_colab, tmp_path, capsys, monkeypatch):
    colab.begin(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("Before you write anything: File > Save a copy in Drive.")
    assert "from utils.course.colab import keep_in_drive; keep_in_drive()" in said
    assert Path.cwd() == tmp_path / "notebooks" and progress.VARIABLE not in os.environ
    assert begun == [(tmp_path, colab.host().menus)] and begun[0][1].restart == "Runtime > Restart session"
    monkeypatch.setenv(progress.VARIABLE, "drive.json")  # the Drive has been opened
    colab.begin(tmp_path)
    assert capsys.readouterr().out == ""


def test_on_kaggle_work_is_written_to_what_it_keeps(begun, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    colab.begin(tmp_path)
    progress.record("sum", progress.PASSED)
    assert (tmp_path / "working" / "progress.json").exists()
    assert "Save Version" in capsys.readouterr().out and begun[0][1].restart.startswith("Run > Restart")
