"""start.py: what it installs and when, what it says when something is in the way, what it hands on."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = (ROOT / "start.py").read_text(encoding="utf-8")
POSIX = os.name == "posix"


@pytest.fixture
def start(monkeypatch):
    """start.py as a module of its own, without the settings of the test run."""
    for name in [name for name in os.environ if name.startswith("COURSE_")]:
        monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path):
    """A folder with the three files that a set-up reads."""
    folder = tmp_path / "course with a space"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "requirements.lock").write_text("# written by hand\nattrs==26.1.0\ntqdm==4.70.1\n")
    return folder


def packages_of(venv: Path) -> Path:
    """The folder in which an environment's packages are installed."""
    return next(venv.glob("lib/*/site-packages" if POSIX else "Lib/site-packages"))


class Pip:
    """Stands in for start.pip: writes down what is asked for; fails, or is interrupted, where told to."""

    def __init__(self):
        self.calls, self.fail, self.said = [], None, ""

    def __call__(self, venv, *arguments, on_line=None, own_bar=False):
        self.calls.append(" ".join(arguments))
        (packages_of(venv) / "pip.py").touch()  # so that it looks usable, as an interrupted one does
        if self.fail and self.fail in self.calls[-1]:
            if self.said == "Ctrl-C":
                raise KeyboardInterrupt
            return 1, self.said
        return 0, ""


@pytest.fixture
def pip(start, monkeypatch):
    """A set-up in which nothing is downloaded: pip, the kernel and the import of torch are stand-ins."""
    stand_in, really = Pip(), start.run_quietly

    def run_quietly(command):
        if "venv" in command:
            return really([*command[:3], "--without-pip", *command[3:]])
        return 0, "2.13.0+cpu without a GPU"

    monkeypatch.setattr(start, "pip", stand_in)
    monkeypatch.setattr(start, "run_quietly", run_quietly)
    monkeypatch.setattr(start.shutil, "which", lambda name: None)
    monkeypatch.setattr(start.platform, "system", lambda: "Linux")
    return stand_in


# -------------------------------------------------------------------------------- an old Python


def test_an_old_python_can_read_the_whole_file():
    ast.parse(SOURCE, feature_version=(3, 6))
    with pytest.raises(SyntaxError):  # the control: this parser does refuse what is newer
        ast.parse("(newer := 1)", feature_version=(3, 6))


@pytest.mark.parametrize(
    ("newer", "advice"),
    [([], "https://www.python.org/downloads/"), (["python3.12"], "python3.12 start.py")],
)
def test_an_old_python_is_told_in_one_sentence(newer, advice, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 6, 9, "final", 0))
    monkeypatch.setattr(shutil, "which", lambda name: name if name in newer else None)
    monkeypatch.setattr(subprocess, "call", lambda *args, **kwargs: 0)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "start.py"), run_name="__main__")
    message = stopped.value.code
    assert message.startswith("Python 3.11 or newer is needed; this is 3.6.9, so")
    assert advice in message and "\n" not in message


def test_a_newer_python_that_does_not_start_is_not_recommended(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1, "final", 0))
    monkeypatch.setattr(shutil, "which", lambda name: name)  # a pyenv shim without a Python behind it
    monkeypatch.setattr(subprocess, "call", lambda *args, **kwargs: 127)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "start.py"), run_name="__main__")
    assert "https://www.python.org/downloads/" in stopped.value.code


# -------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ("lab", None, [])),
        ("--cpu", ("lab", "cpu", [])),
        ("--no-browser --cuda --port=9000", ("lab", "cuda", ["--no-browser", "--port=9000"])),
        ("test --cpu", ("test", "cpu", [])),
        ("setup", ("setup", None, [])),
        ("progress 03", ("progress", None, ["03"])),
        ("--ip test", ("lab", None, ["--ip", "test"])),  # only the first word is a command
    ],
)
def test_the_command_line(start, line, expected):
    assert start.parse(line.split()) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--cpu --cuda", "exclude each other"),
        (
            "test --no-browser",
            "takes no option but --cpu or --cuda, and got --no-browser; for single tests run",
        ),
        ("setup x", "`start.py setup` takes no option"),
    ],
)
def test_a_wrong_command_line_stops_before_anything_is_made(start, home, capsys, line, words):
    assert start.main(line.split(), home) == 1
    assert words in capsys.readouterr().out
    assert not (home / ".venv").exists()


def test_help_names_every_option_and_variable(start, capsys):
    assert start.main(["--help"]) == 0
    said = capsys.readouterr().out
    words = "test setup progress --forget --cpu --cuda COURSE_TORCH_INDEX COURSE_PROGRESS --no-browser"
    for word in words.split():
        assert word in said


# -------------------------------------------------------------------------------- which torch


def test_torch_is_chosen_by_option_then_variable_then_memory_then_machine(start, monkeypatch):
    variable = {"COURSE_TORCH_INDEX": "pip"}
    monkeypatch.setattr(start.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert start.torch_choice("cpu", variable, "cuda") == "cpu"
    assert start.torch_choice(None, variable, "cuda") == "pip"
    assert start.torch_choice(None, {}, "cpu") == "cpu"
    assert start.torch_choice(None, {"COURSE_TORCH_INDEX": ""}, None) == "cuda"
    monkeypatch.setattr(start.shutil, "which", lambda name: None)
    assert start.torch_choice(None, {}, None) == "cpu"


def test_each_build_of_torch_comes_from_where_it_is(start):
    index = start.torch_index
    assert index("cpu", "Linux") == "https://download.pytorch.org/whl/cpu"
    assert index("cuda", "Linux") is None  # PyPI's build for Linux is the CUDA one
    assert index("cpu", "Windows") is None  # and for Windows the CPU one
    assert index("cuda", "Windows") == "https://download.pytorch.org/whl/cu130"
    assert index("cpu", "Darwin") is None
    assert index("pip", "Linux") is None
    assert index("https://mirror.example/whl", "Windows") == "https://mirror.example/whl"
    with pytest.raises(start.Trouble, match="macOS"):
        index("cuda", "Darwin")
    with pytest.raises(start.Trouble, match="'cu130'"):
        index("cu130", "Linux")


# -------------------------------------------------------------------------------- the set-up


def test_the_first_run_installs_pins_then_torch_then_the_course(start, pip, home, capsys):
    assert start.main(["setup"], home) == 0
    pins, torch, course = pip.calls
    assert pins == f"install --no-deps -r {home / 'requirements.lock'}"
    assert torch == f"install {start.TORCH} --index-url https://download.pytorch.org/whl/cpu"
    assert course == f"install --no-deps --no-build-isolation -e {home}"
    said = capsys.readouterr().out
    for step in ("[1/4]", "[2/4]", "[3/4]", "[4/4]", "2.13.0+cpu without a GPU"):
        assert step in said
    assert not (home / ".venv" / start.UNFINISHED).exists()


def test_the_second_run_installs_nothing_and_is_quick(start, pip, home, capsys, monkeypatch):
    """All that it starts is a bare Python, to see that there is one: importing torch would take seconds."""
    start.main(["setup"], home)
    pip.calls.clear()
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, command, *arguments, **options):
            started.append(command)
            super().__init__(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(start, "run_quietly", started.append)
    assert start.main(["setup"], home) == 0
    assert pip.calls == [] and "nothing to install" in capsys.readouterr().out
    assert len(started) == 1 and "torch" not in str(started)


@pytest.mark.parametrize("file", ["requirements.lock", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(start, pip, home, file):
    start.main(["setup"], home)
    keepsake = home / ".venv" / "keepsake"
    keepsake.touch()
    with open(home / file, "a") as text:
        text.write("# changed\n")
    pip.calls.clear()
    assert start.main(["setup"], home) == 0
    assert len(pip.calls) == 3 and keepsake.exists()


def test_another_build_of_torch_replaces_the_first_and_is_remembered(start, pip, home):
    start.main(["setup", "--cpu"], home)
    pip.calls.clear()
    start.main(["setup", "--cuda"], home)
    assert "uninstall -y torch" in pip.calls and f"install {start.TORCH}" in pip.calls
    pip.calls.clear()
    start.main(["setup"], home)  # neither option: what is there stays, though no GPU is found
    assert pip.calls == []


@pytest.mark.parametrize("how", ["Ctrl-C", "ERROR: something else"])
@pytest.mark.parametrize("at", ["requirements.lock", "torch==", "-e "])
def test_a_set_up_that_did_not_finish_is_begun_afresh(start, pip, home, capsys, how, at):
    pip.fail, pip.said = at, how
    assert start.main(["setup"], home) == (130 if how == "Ctrl-C" else 1)
    said = capsys.readouterr().out
    assert ("Stopped." if how == "Ctrl-C" else "something else") in said and "Traceback" not in said
    leftover = home / ".venv" / "leftover"
    leftover.touch()
    pip.fail = None
    pip.calls.clear()
    assert start.main(["setup"], home) == 0
    assert len(pip.calls) == 3 and not leftover.exists()


def test_an_update_that_did_not_finish_is_begun_afresh(start, pip, home):
    start.main(["setup"], home)
    (home / "requirements.lock").write_text("attrs==26.1.0\n")
    pip.fail, pip.said = "requirements.lock", "Ctrl-C"
    assert start.main(["setup"], home) == 130
    (home / "requirements.lock").write_text("# written by hand\nattrs==26.1.0\ntqdm==4.70.1\n")  # as it was
    pip.fail = None
    pip.calls.clear()
    assert start.main(["setup"], home) == 0
    assert len(pip.calls) == 3


def test_an_environment_whose_python_is_gone_is_made_anew(start, pip, home, capsys):
    start.main(["setup"], home)
    start.python_of(home / ".venv").unlink()
    pip.calls.clear()
    assert start.main(["setup"], home) == 0
    assert len(pip.calls) == 3 and start.works(home / ".venv")
    assert "making it anew" in capsys.readouterr().out


def test_a_folder_that_was_moved_gets_a_new_environment(start, pip, home):
    start.main(["setup"], home)
    (home / ".venv" / "leftover").touch()
    moved = home.rename(home.with_name("moved"))
    pip.calls.clear()
    assert start.main(["setup"], moved) == 0
    assert len(pip.calls) == 3 and not (moved / ".venv" / "leftover").exists()
    assert start.read_stamp(moved / ".venv")["home"] == str(moved)


def test_an_unreadable_stamp_counts_as_none(start, home):
    venv = home / ".venv"
    venv.mkdir()
    for text in ("", "{", "[1]", "null"):
        (venv / start.STAMP).write_text(text)
        assert start.read_stamp(venv) == {}


def test_somebody_elses_environment_is_used_and_kept(start, pip, home):
    venv = home / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages_of(venv) / "pip.py").touch()
    (venv / "keepsake").touch()
    assert start.state_of(venv) == "foreign"
    assert start.main(["setup"], home) == 0
    assert len(pip.calls) == 3 and (venv / "keepsake").exists() and start.state_of(venv) == "ready"


def test_what_is_no_environment_is_not_deleted(start, pip, home, capsys):
    treasure = home / ".venv" / "treasure"
    treasure.parent.mkdir()
    treasure.touch()
    assert start.main(["setup"], home) == 1
    assert treasure.exists() and "is no Python environment; move it elsewhere" in capsys.readouterr().out


@pytest.mark.skipif(not POSIX, reason="the path of the settings is POSIX's here")
def test_jupyterlab_does_not_ask_about_news(start, pip, home):
    start.main(["setup"], home)
    settings = json.loads((home / ".venv/share/jupyter/lab/settings/overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


# -------------------------------------------------------------------------------- what may go wrong


def one_sentence(said: str) -> str:
    """The last paragraph of an output, which must be a single line without a traceback."""
    assert "Traceback" not in said
    return said.strip().rsplit("\n", 1)[-1]


@pytest.mark.parametrize(("option", "need"), [("--cpu", 4), ("--cuda", 12)])
def test_a_disk_that_is_too_full_is_told_before_anything_is_made(start, pip, home, capsys, monkeypatch, option, need):
    free = (need - 0.1) * 10**9
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    assert start.main(["setup", option], home) == 1
    said = one_sentence(capsys.readouterr().out)
    assert f"About {need} GB are needed and {need - 0.1:.1f} GB are free on the disk of {home}" in said
    assert not (home / ".venv").exists()


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_without_venv_is_told_how_to_get_it(start, pip, home, capsys, monkeypatch, missing):
    really = importlib.util.find_spec
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None if name == missing else really(name))
    assert start.main(["setup"], home) == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"apt install python{version}-venv" in one_sentence(capsys.readouterr().out)


def test_a_32_bit_python_and_an_intel_mac_are_told(start, home, monkeypatch):
    monkeypatch.setattr(start.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(start.platform, "machine", lambda: "x86_64")
    with pytest.raises(start.Trouble, match="Intel build"):
        start.check_machine(home, "cpu")
    monkeypatch.setattr(start.sys, "maxsize", 2**31 - 1)
    with pytest.raises(start.Trouble, match="32-bit"):
        start.check_machine(home, "cpu")


@pytest.mark.parametrize(("version", "refused"), [("13.6.1", True), ("14.0", False), ("26.1", False), ("10.16", False)])
def test_a_macos_that_torch_has_no_wheel_for_is_told(start, home, monkeypatch, version, refused):
    """10.16 is what an old build of Python, conda's for example, takes every newer macOS for."""
    monkeypatch.setattr(start.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(start.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(start.platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
    if refused:
        with pytest.raises(start.Trouble, match="needs macOS 14 or newer and this is macOS 13; update it"):
            start.check_machine(home, "cpu")
    else:
        start.check_machine(home, "cpu")
    assert "macOS needs version 14 on Apple silicon" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_folders_name_that_a_log_cannot_hold_is_no_traceback(tmp_path):
    """As on Windows with its output sent to a file, whose encoding has few letters."""
    folder = tmp_path / "Łukasz"
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv" / "treasure").touch()
    for file in ("start.py", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / file, folder)
    done = subprocess.run(
        [sys.executable, "start.py", "setup"],
        cwd=folder,
        env=dict(os.environ, PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "\\u0141ukasz" in one_sentence(done.stdout) and "is no Python environment" in done.stdout


def test_an_environment_that_cannot_be_made_is_told(start, pip, home, capsys, monkeypatch):
    monkeypatch.setattr(start, "run_quietly", lambda command: (1, "first\nError: no links on this disk\n"))
    assert start.main(["setup"], home) == 1
    assert "(Error: no links on this disk)" in one_sentence(capsys.readouterr().out)


def test_torch_that_does_not_import_is_told(start, pip, home, capsys, monkeypatch):
    really = start.run_quietly
    monkeypatch.setattr(
        start, "run_quietly", lambda command: (1, "OSError: c10.dll") if "-W" in command else really(command)
    )
    assert start.main(["setup"], home) == 1
    assert "can't be imported (OSError: c10.dll)" in one_sentence(capsys.readouterr().out)
    assert start.state_of(home / ".venv") == "broken"  # so the next run doesn't take it for finished


REFUSED = (
    "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError('<X>: "
    "Failed to establish a new connection: [Errno 111] Connection refused')': /simple/six/\n"
    "ERROR: Could not find a version that satisfies the requirement six==1.16.0 (from versions: none)\n"
    "ERROR: No matching distribution found for six==1.16.0\n"
)
NO_NAME = REFUSED.replace("[Errno 111] Connection refused", "[Errno -3] Temporary failure in name resolution")
TIMEOUT = "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='x'): Read timed out.\n"
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
LONG = (
    "ERROR: Could not install packages due to an OSError: [Errno 2] No such file or directory: 'C:\\\\a\\\\b.js'\n"
    "HINT: This error might have occurred since this system does not have Windows Long Path support enabled.\n"
)
LOCKED = "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\a\\\\_C.pyd'\n"
NO_WHEEL = REFUSED.split("\n", 1)[1]
INVALID = "Processing ./six.whl\nERROR: Wheel 'six' located at six.whl is invalid.\n"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (REFUSED, "No package index could be reached, so torch could not be downloaded"),
        (NO_NAME, "No package index could be reached"),
        (TIMEOUT, "No package index could be reached"),
        (FULL, "The disk is full, so torch could not be installed"),
        (FULL + REFUSED, "The disk is full"),
        (LONG, "{home} is too deep in the folders for torch"),
        (LOCKED, "Windows keeps files of {home}"),
        (NO_WHEEL, "pip's package index has no six==1.16.0 for Python"),
        (INVALID, "pip could not install torch (ERROR: Wheel 'six' located at six.whl is invalid.)"),
        ("", "pip could not install torch (it did not say why)"),
    ],
)
def test_pips_words_become_one_sentence(start, home, said, words):
    message = start.explain(said, "torch", home / ".venv")
    assert message.startswith(words.replace("{home}", str(home)))
    assert "\n" not in message and message.endswith(".") and "run the same command" in message


def real_environment(index: str) -> dict[str, str]:
    """An environment in which pip finds packages at one address and nowhere else."""
    names = {name for name in os.environ if name.startswith(("PIP_", "COURSE_"))}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {
        **kept,
        "PIP_INDEX_URL": index,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "1",
        "PIP_FIND_LINKS": "",
    }


def test_no_package_index_for_real(home):
    shutil.copy(ROOT / "start.py", home)
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port, and it refuses
        closed.bind(("127.0.0.1", 0))
        index = f"https://127.0.0.1:{closed.getsockname()[1]}/simple"
        done = subprocess.run(
            [sys.executable, "start.py", "setup"],
            cwd=home,
            env=real_environment(index),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1 and done.stderr == ""
    assert one_sentence(done.stdout).startswith("No package index could be reached, so the course's packages")
    assert "Retrying" in (home / ".venv" / "lora-course.log").read_text()


@pytest.mark.skipif(not POSIX, reason="sends Ctrl-C as POSIX does")
def test_ctrl_c_for_real(home):
    shutil.copy(ROOT / "start.py", home)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = subprocess.Popen(
            [sys.executable, "start.py", "setup"],
            cwd=home,
            env=real_environment(index),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a terminal gives
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.default_int_handler
            ),  # a job in the background has none
        )
        silent.settimeout(120)
        silent.accept()[0].close()  # pip is asking: the set-up is in its second step
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, out + errors
    assert one_sentence(out).startswith("Stopped.") and "Traceback" not in errors
    assert (home / ".venv" / "lora-course.unfinished").exists()


def test_the_count_is_short_in_a_log_and_one_line_on_a_terminal(start):
    log = io.StringIO()
    count = start.Count(156, log)
    for done in range(1, 157):
        count.show(done, f"package {done}")
    lines = log.getvalue().splitlines()
    assert len(lines) == 11 and lines[-1].split() == ["156", "of", "156", "package", "156"]

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    count = start.Count(3, terminal)
    count.show(1, "x" * 500)
    count.show(9, "more than were expected")
    count.end()
    assert "\n" not in terminal.getvalue() and "3 of 3" in terminal.getvalue()
    assert max(len(part) for part in terminal.getvalue().split("\r")) < 500


def test_pip_counts_what_it_prints(start, home, monkeypatch, capsys):
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
    shown = []
    monkeypatch.setattr(start.Count, "show", lambda self, done, what: shown.append((done, what)))
    monkeypatch.setattr(start, "pip", lambda venv, *a, on_line: ([on_line(line) for line in printed], (0, ""))[1])
    start.install_pins(home, home / ".venv")
    names = [(1, "colorama"), (2, "attrs"), (2, "attrs (60 kB)"), (3, "tqdm"), (4, "six"), (0, "unpacked")]
    assert shown == names


# -------------------------------------------------------------------------------- what others write of it


def test_the_readme_says_how_much_disk_is_looked_for(start):
    said = f"{start.GIGABYTES['cpu']} GB of free disk, or {start.GIGABYTES['cuda']} GB with CUDA"
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


# -------------------------------------------------------------------------------- the commands


LESSON = """\
# Chapter 3: A layer

```python tags=["x"]
LoRALayer = check("lora_layer", LoRALayer)
```
"""


def test_progress_is_shown_and_forgotten_without_a_set_up(start, home, capsys, monkeypatch):
    record = home / "work" / "progress.json"
    record.parent.mkdir()
    entry = {"state": "passed", "tries": 2, "passed": True}
    record.write_text(json.dumps({"version": 1, "exercises": {"lora_layer": entry}}))
    (home / "lessons").mkdir()
    (home / "lessons" / "03_layer.md").write_text(LESSON)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert start.main(["progress"], home) == 0
    assert "The course: 1 of 1 exercises passed." in capsys.readouterr().out
    assert start.main(["progress", "3"], home) == 0
    assert "Chapter 3: A layer. 1 of 1 exercises passed." in capsys.readouterr().out
    assert start.main(["progress", "--cpu"], home) == 1
    assert one_sentence(capsys.readouterr().out).endswith("and got --cpu; for the whole course leave it out.")
    assert start.main(["progress", "--forget"], home) == 0
    assert "Deleted work/progress.json" in capsys.readouterr().out and not record.exists()
    assert not (home / ".venv").exists()


def test_progress_needs_nothing_installed(home):
    """In a Python without packages, in isolation, as before the first set-up."""
    ask = "import runpy, sys; sys.argv = ['start.py', 'progress']; runpy.run_path({!r}, run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "COURSE_STRICT"}
    environment["COURSE_PROGRESS"] = str(home / "none.json")
    command = [sys.executable, "-I", "-S", "-c", ask.format(str(ROOT / "start.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No exercise has been checked yet.")


@pytest.mark.skipif(not POSIX, reason="the process is replaced on POSIX only")
def test_jupyterlab_gets_the_notebook_and_the_other_options(start, pip, home, monkeypatch):
    (home / "notebooks").mkdir()
    (home / start.FIRST_NOTEBOOK).write_text("{}")
    monkeypatch.chdir(home)  # so that the folder is changed back
    monkeypatch.setenv("PYTHONUTF8", "0")  # and the variable
    monkeypatch.setattr(start.os, "geteuid", lambda: 1000)

    class Replaced(BaseException):
        """The process has become another one: nothing after execv runs."""

    def execv(file, command):
        raise Replaced(file, command)

    monkeypatch.setattr(start.os, "execv", execv)
    line = ["--no-browser", "--port=9000", "--cpu"]
    with pytest.raises(Replaced) as replaced:
        start.main(line, home)
    file, command = replaced.value.args
    assert os.environ["PYTHONUTF8"] == "1"
    assert file == command[0] == str(home / ".venv/bin/python") and Path.cwd() == home
    assert command[1:3] == ["-m", "jupyterlab"] and f"--ServerApp.root_dir={home}" in command
    assert "--no-browser" in command and "--port=9000" in command and "--cpu" not in command
    assert command[-1] == "notebooks/00_start_here.ipynb" and "--allow-root" not in command

    monkeypatch.setattr(start.os, "geteuid", lambda: 0)
    for given in ([], ["--allow-root"]):
        with pytest.raises(Replaced) as replaced:
            start.main([*line, *given], home)
        assert replaced.value.args[1].count("--allow-root") == 1


def test_tests_run_on_the_cpu_offline_with_one_thread_and_no_course_settings(start):
    before = {"PATH": "/bin", "COURSE_STRICT": "1", "COURSE_PROFILE": "7b", "OMP_NUM_THREADS": "8"}
    after = start.environment_of_tests(before)
    ours = {name: value for name, value in after.items() if name.startswith("COURSE_")}
    assert after["PATH"] == "/bin" and ours == {"COURSE_PROGRESS": "off"}  # a learner's record is left alone
    assert after["OMP_NUM_THREADS"] == "1" and after["CUDA_VISIBLE_DEVICES"] == "-1" and after["HF_HUB_OFFLINE"] == "1"
    assert after["PYTHONUTF8"] == "1"
    (tests, how), (notebooks, once) = start.stages()
    assert (tests, how) == ("tests", ["-n", "2", "--dist", "worksteal", "tests"])  # slow ones too: CI runs them here
    assert notebooks == "notebooks" and once[-1] == "solutions" and "tools.pytest_notebooks" in once
    assert once[once.index("--dist") + 1] == "loadfile", "a notebook's cells belong to one worker"


ONLY_WITH_WORKERS = {"-n", "2", "--dist", "worksteal", "loadfile", "--no-loadscope-reorder"}


def notebook(source: str, printed: str) -> str:
    """The text of a notebook with one code cell and what it is said to print."""
    output = {"output_type": "stream", "name": "stdout", "text": printed}
    cell = {
        "cell_type": "code",
        "id": "c",
        "execution_count": 1,
        "metadata": {},
        "outputs": [output],
        "source": source,
    }
    spec = {"name": "no-such-kernel", "display_name": "none", "language": "python"}
    return json.dumps({"cells": [cell], "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5})


def test_every_stage_runs_and_any_failure_counts(start, tmp_path, capfd, monkeypatch):
    """A small course for real: all passes but the learner's copy of a notebook, where something else is stored."""
    home = tmp_path
    for folder in ("tests", "notebooks", "solutions"):
        (home / folder).mkdir()
    ask = "import os\nprint(os.environ.get('COURSE_STRICT'), os.environ['OMP_NUM_THREADS'])"
    (home / "tests" / "test_one.py").write_text(
        "import os\n\ndef test_one():\n    assert 'COURSE_STRICT' not in os.environ\n"
    )
    (home / "notebooks" / "a.ipynb").write_text(notebook(ask, "not that\n"))
    (home / "solutions" / "a.ipynb").write_text(notebook(ask, "1 1\n"))
    few = [(name, [word for word in arguments if word not in ONLY_WITH_WORKERS]) for name, arguments in start.stages()]
    monkeypatch.setattr(start, "stages", lambda: few)  # without the two workers: they start slowly
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this course has no tools/ of its own
    assert start.run_tests(home, Path(sys.executable), 1.25) == 1
    out = capfd.readouterr().out
    rows = [re.fullmatch(r"(\S+) +([\d.]+) s   (.*)", line).groups() for line in out.strip().splitlines()[-3:]]
    assert [(name, verdict) for name, _, verdict in rows] == [
        ("set-up", "done"),
        ("tests", "passed"),
        ("notebooks", "FAILED (pytest's exit code 1)"),
    ]
    assert all(0 < float(seconds) < 300 for _, seconds, _ in rows)
    assert re.search(r"^a +[\d.]+ s$", out, re.M), "the seconds of each notebook"
    assert "1 failed, 1 passed" in out and "the stored output differs between the two copies" in out


def test_a_stage_without_tests_is_a_failure_and_all_passed_is_none(start, home, monkeypatch, capsys):
    codes = iter([0, 5, 0, 0])
    monkeypatch.setattr(
        start.subprocess, "Popen", lambda *a, **k: type("Done", (), {"wait": lambda self: next(codes)})()
    )
    assert start.run_tests(home, Path("python"), 0.0) == 1
    assert "notebooks" in (line := capsys.readouterr().out.splitlines()[-1]) and "found nothing to run" in line
    assert start.run_tests(home, Path("python"), 0.0) == 0
