"""The set-up: what it installs and when, and what stands in its way."""

from __future__ import annotations

import importlib.util
import io
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.start import set_up, venv
from utils.start.commands import main
from utils.start.torch_build import GIGABYTES, TORCH, torch_choice, torch_index
from utils.start.venv import STAMP, UNFINISHED, python_of, read_stamp, state_of, works
from utils.start.words import Count, Doing, Trouble, time_taken

ROOT = Path(__file__).resolve().parents[2]
POSIX = os.name == "posix"


def one_sentence(said: str) -> str:
    """The last paragraph of an output, which must be a single line without a traceback."""
    assert "Traceback" not in said
    return said.strip().rsplit("\n", 1)[-1]


def test_the_first_run_installs_pins_then_torch_then_the_course(start, pip, home, capsys):
    assert start("setup") == 0
    pins, torch, course = pip.calls
    assert pins == f"install --no-deps -r {home / 'requirements.lock'}"
    assert torch == f"install {TORCH} --index-url https://download.pytorch.org/whl/cpu"
    assert course == f"install --no-deps --no-build-isolation -e {home}"
    said = capsys.readouterr().out
    for step in ("[1/4]", "[2/4]", "[3/4]", "[4/4]", "2.13.0+cpu without a GPU"):
        assert step in said
    assert not (home / ".venv" / UNFINISHED).exists()


def test_the_second_run_installs_nothing_and_is_quick(start, pip, home, capsys, monkeypatch):
    """All that it starts is a bare Python, to see that there is one: importing torch would take seconds."""
    start("setup")
    pip.calls.clear()
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, command, *arguments, **options):
            started.append(command)
            super().__init__(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(set_up, "run_quietly", started.append)
    assert start("setup") == 0
    assert pip.calls == [] and "nothing to install" in capsys.readouterr().out
    assert len(started) == 1 and "torch" not in str(started)


@pytest.mark.parametrize("file", ["requirements.lock", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(start, pip, home, file):
    start("setup")
    keepsake = home / ".venv" / "keepsake"
    keepsake.touch()
    with open(home / file, "a") as text:
        text.write("# changed\n")
    pip.calls.clear()
    assert start("setup") == 0
    assert len(pip.calls) == 3 and keepsake.exists()


def test_another_build_of_torch_replaces_the_first_and_is_remembered(start, pip, home):
    start("setup", "--cpu")
    pip.calls.clear()
    start("setup", "--cuda")
    assert "uninstall -y torch" in pip.calls and f"install {TORCH}" in pip.calls
    pip.calls.clear()
    start("setup")  # neither option: what is there stays, though no GPU is found
    assert pip.calls == []


@pytest.mark.parametrize("how", ["Ctrl-C", "ERROR: something else"])
@pytest.mark.parametrize("at", ["requirements.lock", "torch==", "-e "])
def test_a_set_up_that_did_not_finish_is_begun_afresh(start, pip, home, capsys, how, at):
    pip.fail, pip.said = at, how
    assert start("setup") == (130 if how == "Ctrl-C" else 1)
    said = capsys.readouterr().out
    assert ("Stopped." if how == "Ctrl-C" else "something else") in said and "Traceback" not in said
    leftover = home / ".venv" / "leftover"
    leftover.touch()
    pip.fail = None
    pip.calls.clear()
    assert start("setup") == 0
    assert len(pip.calls) == 3 and not leftover.exists()


def test_an_update_that_did_not_finish_is_begun_afresh(start, pip, home):
    start("setup")
    (home / "requirements.lock").write_text("attrs==26.1.0\n")
    pip.fail, pip.said = "requirements.lock", "Ctrl-C"
    assert start("setup") == 130
    (home / "requirements.lock").write_text("# written by hand\nattrs==26.1.0\ntqdm==4.70.1\n")  # as it was
    pip.fail = None
    pip.calls.clear()
    assert start("setup") == 0
    assert len(pip.calls) == 3


def test_an_environment_whose_python_is_gone_is_made_anew(start, pip, home, capsys):
    start("setup")
    python_of(home / ".venv").unlink()
    pip.calls.clear()
    assert start("setup") == 0
    assert len(pip.calls) == 3 and works(home / ".venv")
    assert "making it anew" in capsys.readouterr().out


def test_a_folder_that_was_moved_gets_a_new_environment(start, pip, home):
    start("setup")
    (home / ".venv" / "leftover").touch()
    moved = home.rename(home.with_name("moved"))
    pip.calls.clear()
    assert main(["setup"], moved, "") == 0
    assert len(pip.calls) == 3 and not (moved / ".venv" / "leftover").exists()
    assert read_stamp(moved / ".venv")["home"] == str(moved)


def test_an_unreadable_stamp_counts_as_none(home):
    folder = home / ".venv"
    folder.mkdir()
    for text in ("", "{", "[1]", "null"):
        (folder / STAMP).write_text(text)
        assert read_stamp(folder) == {}


def test_what_is_no_environment_is_not_deleted(start, pip, home, capsys):
    treasure = home / ".venv" / "treasure"
    treasure.parent.mkdir()
    treasure.touch()
    assert start("setup") == 1
    assert treasure.exists() and "is no Python environment; move it elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "need"), [("--cpu", 4), ("--cuda", 12)])
def test_a_disk_that_is_too_full_is_told_before_anything_is_made(start, pip, home, capsys, monkeypatch, option, need):
    free = (need - 0.1) * 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    assert start("setup", option) == 1
    said = one_sentence(capsys.readouterr().out)
    assert f"About {need} GB are needed and {need - 0.1:.1f} GB are free on the disk of {home}" in said
    assert not (home / ".venv").exists()


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_without_venv_is_told_how_to_get_it(start, pip, home, capsys, monkeypatch, missing):
    really = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else really(name))
    assert start("setup") == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"apt install python{version}-venv" in one_sentence(capsys.readouterr().out)


def test_a_32_bit_python_and_an_intel_mac_are_told(home, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(Trouble, match="Intel build"):
        set_up.check_machine(home, "cpu")
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(Trouble, match="32-bit"):
        set_up.check_machine(home, "cpu")


@pytest.mark.parametrize(("version", "refused"), [("13.6.1", True), ("14.0", False), ("26.1", False), ("10.16", False)])
def test_a_macos_that_torch_has_no_wheel_for_is_told(home, monkeypatch, version, refused):
    """10.16 is what an old build of Python, conda's for example, takes every newer macOS for."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
    if refused:
        with pytest.raises(Trouble, match="needs macOS 14 or newer and this is macOS 13; update it"):
            set_up.check_machine(home, "cpu")
    else:
        set_up.check_machine(home, "cpu")
    page = (ROOT / "lessons" / "using_the_course.md").read_text(encoding="utf-8")
    assert "macOS needs version 14 on Apple silicon" in page


def test_an_environment_that_cannot_be_made_is_told(start, pip, home, capsys, monkeypatch):
    monkeypatch.setattr(venv, "run_quietly", lambda command: (1, "first\nError: no links on this disk\n"))
    assert start("setup") == 1
    assert "(Error: no links on this disk)" in one_sentence(capsys.readouterr().out)


def test_torch_that_does_not_import_is_told(start, pip, home, capsys, monkeypatch):
    really = set_up.run_quietly
    monkeypatch.setattr(
        set_up, "run_quietly", lambda command: (1, "OSError: c10.dll") if "-W" in command else really(command)
    )
    assert start("setup") == 1
    assert "can't be imported (OSError: c10.dll)" in one_sentence(capsys.readouterr().out)
    assert state_of(home / ".venv") == "broken"  # so the next run doesn't take it for finished


def test_pip_counts_what_it_prints(home, monkeypatch, capsys):
    printed = [
        "Ignoring colorama: markers 'sys_platform == \"win32\"' don't match your environment",
        "Collecting attrs==26.1.0 (from -r /x/requirements.lock (line 2))",
        "  Downloading attrs-26.1.0-py3-none-any.whl (60 kB)",
        "Processing /wheels/tqdm-4.70.1-py3-none-any.whl (from -r /x/requirements.lock (line 3))",
        "Requirement already satisfied: six==1.17.0 in ./lib (from -r /x/requirements.lock (line 4))",
        "Collecting six (not from the lock)",
        "Installing collected packages: tqdm, attrs",
        "",
    ]
    packages = home / ".venv" / ("lib/python3.12/site-packages" if POSIX else "Lib/site-packages")
    (packages / "pip-26.0.dist-info").mkdir(parents=True)
    shown = []
    monkeypatch.setattr(Count, "show", lambda self, done, what: shown.append((done, what)))

    def pip(folder, *arguments, on_line):
        for line in printed:
            on_line(line)
        (packages / "tqdm-4.70.1.dist-info").mkdir()
        on_line("")
        return 0, ""

    monkeypatch.setattr(set_up, "pip", pip)
    set_up.install_pins(home, home / ".venv")
    names = [(1, "colorama"), (2, "attrs"), (2, "attrs (60 kB)"), (3, "tqdm"), (4, "six")]
    assert shown == [*names, (0, "unpacking tqdm"), (1, "unpacking attrs")]


def test_torchs_step_names_what_it_loads_and_leaves_pips_other_words_to_the_log(monkeypatch, tmp_path, capsys):
    address = "https://download.pytorch.org/whl/cpu/torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl"
    printed = [
        "Looking in indexes: https://download.pytorch.org/whl/cpu",
        "Collecting torch==2.13.0",
        f"  Downloading {address}.metadata (29 kB)",
        f"  Downloading {address} (192.3 MB)",
        "",
        "Requirement already satisfied: sympy in ./lib",
        "WARNING: Retrying (Retry(total=4)) after connection broken",
        "Installing collected packages: nvidia_cublas, torch",
        "Successfully installed torch-2.13.0+cpu",
    ]
    monkeypatch.setattr(set_up, "pip", lambda folder, *a, on_line: ([on_line(line) for line in printed], (0, ""))[1])
    set_up.install_torch(tmp_path, None, replace=False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "downloading torch (192.3 MB)",
        "no answer from the package index, trying again",
        "unpacking torch and 1 more",
    ]


def test_what_takes_long_shows_its_seconds_on_a_terminal():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    doing = Doing(terminal)
    doing.show()
    assert terminal.getvalue() == ""
    doing.show("downloading torch (192.3 MB)")
    doing.began -= 12
    doing.show()
    assert terminal.getvalue().rstrip().endswith("downloading torch (192.3 MB), 12 s")
    assert [time_taken(seconds) for seconds in (47.6, 192)] == ["48 s", "3 min 12 s"]


# -------------------------------------------------------------------------------- what is somebody else's


@pytest.fixture
def asked(monkeypatch):
    """A terminal at which somebody answers what the test says; the questions are kept."""

    class Terminal:
        questions, answer = [], ""

        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda text: (terminal.questions.append(text), terminal.answer)[1])
    return terminal


@pytest.mark.parametrize(("answer", "kept"), [("i", True), ("D", False)])
def test_somebody_elses_environment_is_asked_about(start, pip, home, environment, asked, answer, kept):
    (environment / "keepsake").touch()
    asked.answer = answer
    assert start("setup") == 0
    assert len(pip.calls) == 3 and (environment / "keepsake").exists() == kept
    assert "is an environment that start.py did not make" in asked.questions[0] and len(asked.questions) == 1
    assert start("setup") == 0 and len(asked.questions) == 1, "it is the course's own now"


@pytest.mark.parametrize("answer", ["", "n", "yes"])
def test_without_a_clear_answer_it_is_left(start, pip, home, environment, asked, capsys, answer):
    asked.answer = answer
    assert start("setup") == 1
    assert pip.calls == [] and "is left as it is and nothing was installed" in one_sentence(capsys.readouterr().out)


def test_without_a_terminal_it_is_left(start, pip, home, environment, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert start("setup") == 1
    assert pip.calls == [] and "there is no terminal to ask" in one_sentence(capsys.readouterr().out)


def test_one_that_has_no_pip_can_only_be_replaced(start, pip, home, environment, asked):
    """As uv makes them."""
    next(environment.rglob("pip.py")).unlink()
    asked.answer = "i"
    assert start("setup") == 1
    assert "[i]nstall" not in asked.questions[0] and pip.calls == []


# -------------------------------------------------------------------------------- what one may not


@pytest.mark.skipif(not POSIX, reason="the message of Windows is another")
def test_a_folder_that_one_may_not_write_to_is_told(start, pip, home, capsys, monkeypatch):
    def mkdir(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert start("setup") == 1
    said = one_sentence(capsys.readouterr().out)
    assert f"you have no permission to write to {home}" in said and "JupyterLab" not in said


def test_other_places_that_one_may_not_write_to_are_told_too(start, pip, home, capsys):
    pip.fail, pip.said = "-e ", "ERROR: [Errno 13] Permission denied: '/x'"
    assert start("setup") == 1
    assert "The course itself could not be installed: you have no permission" in one_sentence(capsys.readouterr().out)


def test_the_readme_says_how_much_disk_is_looked_for():
    said = f"{GIGABYTES['cpu']} GB of free disk, or {GIGABYTES['cuda']} GB with CUDA"
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_torch_is_chosen_by_option_then_variable_then_memory_then_machine(monkeypatch):
    variable = {"COURSE_TORCH_INDEX": "pip"}
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert torch_choice("cpu", variable, "cuda") == "cpu"
    assert torch_choice(None, variable, "cuda") == "pip"
    assert torch_choice(None, {}, "cpu") == "cpu"
    assert torch_choice(None, {"COURSE_TORCH_INDEX": ""}, None) == "cuda"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert torch_choice(None, {}, None) == "cpu"


def test_each_build_of_torch_comes_from_where_it_is():
    index = torch_index
    assert index("cpu", "Linux") == "https://download.pytorch.org/whl/cpu"
    assert index("cuda", "Linux") is None  # PyPI's build for Linux is the CUDA one
    assert index("cpu", "Windows") is None  # and for Windows the CPU one
    assert index("cuda", "Windows") == "https://download.pytorch.org/whl/cu130"
    assert index("cpu", "Darwin") is None
    assert index("pip", "Linux") is None
    assert index("https://mirror.example/whl", "Windows") == "https://mirror.example/whl"
    with pytest.raises(Trouble, match="macOS"):
        index("cuda", "Darwin")
    with pytest.raises(Trouble, match="'cu130'"):
        index("cu130", "Linux")


def test_the_count_is_short_in_a_log_and_one_line_on_a_terminal():
    log = io.StringIO()
    count = Count(156, log)
    for done in range(1, 157):
        count.show(done, f"package {done}")
    lines = log.getvalue().splitlines()
    assert len(lines) == 11 and lines[-1].split() == ["156", "of", "156", "package", "156"]

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    count = Count(3, terminal)
    count.show(1, "x" * 500)
    count.show(9, "more than were expected")
    count.end()
    assert "\n" not in terminal.getvalue() and "3 of 3" in terminal.getvalue()
    assert max(len(part) for part in terminal.getvalue().split("\r")) < 500
