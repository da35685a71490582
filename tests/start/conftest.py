"""A small course to set up, and a pip that downloads nothing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from utils.start import commands, programs, set_up, venv

ROOT = Path(__file__).resolve().parents[2]
POSIX = os.name == "posix"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """None of the settings of the test run."""
    for name in [name for name in os.environ if name.startswith("COURSE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path):
    """A folder with the files that a set-up reads."""
    folder = tmp_path / "course with a space"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.11,<3.15"\n')
    (folder / "requirements.lock").write_text("# written by hand\nattrs==26.1.0\ntqdm==4.70.1\n")
    return folder


@pytest.fixture
def whole(home):
    """The same, with start.py and what it runs."""
    shutil.copy(ROOT / "start.py", home)
    for name in ("__init__.py", "front_door.py", "start", "course"):
        source, target = ROOT / "utils" / name, home / "utils" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "checks"))
        else:
            shutil.copy(source, target)
    return home


@pytest.fixture
def start(home):
    """start.py's command line, as a function of its words."""
    return lambda *words: commands.main(words, home, "the usage")


def packages_of(folder: Path) -> Path:
    """The folder in which an environment's packages are installed."""
    return next(folder.glob("lib/*/site-packages" if POSIX else "Lib/site-packages"))


class Pip:
    """Stands in for pip: writes down what is asked for; fails, or is interrupted, where told to."""

    def __init__(self):
        self.calls, self.fail, self.said = [], None, ""

    def __call__(self, folder, *arguments, on_line=None):
        self.calls.append(" ".join(arguments))
        (packages_of(folder) / "pip.py").touch()  # so that it looks usable, as an interrupted one does
        if self.fail and self.fail in self.calls[-1]:
            if self.said == "Ctrl-C":
                raise KeyboardInterrupt
            return 1, self.said
        return 0, ""


@pytest.fixture
def pip(monkeypatch):
    """A set-up in which nothing is downloaded: pip, the kernel and the import of torch are stand-ins."""
    stand_in, really = Pip(), programs.run_quietly

    def run_quietly(command):
        if "venv" in command:
            return really([*command[:3], "--without-pip", *command[3:]])
        return 0, "2.13.0+cpu without a GPU"

    monkeypatch.setattr(set_up, "pip", stand_in)
    monkeypatch.setattr(set_up, "run_quietly", run_quietly)
    monkeypatch.setattr(venv, "run_quietly", run_quietly)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(set_up.platform, "system", lambda: "Linux")
    return stand_in


@pytest.fixture
def environment(home):
    """A bare environment in .venv that start.py didn't make."""
    folder = home / ".venv"
    programs.run_quietly([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    (packages_of(folder) / "pip.py").touch()
    return folder
