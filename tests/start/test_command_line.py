"""The words after start.py: commands, ours and JupyterLab's options, and what is refused before anything is made."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from utils.start import notebooks
from utils.start.command_line import COMMANDS, Line, parse
from utils.start.words import Trouble

ROOT = Path(__file__).resolve().parents[2]
USAGE = ast.get_docstring(ast.parse((ROOT / "start.py").read_text(encoding="utf-8")))

LESSON = """\
# Chapter 3: A layer

```python tags=["x"]
LoRALayer = check("lora_layer", LoRALayer)
```
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Line("lab")),
        ("--cpu", Line("lab", "cpu")),
        ("--no-browser --cuda --port=9000", Line("lab", "cuda", ("--no-browser", "--port=9000"))),
        ("--ip test", Line("lab", None, ("--ip", "test"))),  # what follows an option of JupyterLab's is its value
        ("--cpu -- --help", Line("lab", "cpu", ("--help",))),
        ("-- my.ipynb --cpu", Line("lab", None, ("my.ipynb", "--cpu"))),
        ("test --cpu", Line("test", "cpu")),
        ("--cpu test", Line("test", "cpu")),
        ("setup", Line("setup")),
        ("progress 03", Line("progress", None, ("03",))),
        ("progress --forget", Line("progress", None, ("--forget",))),
        ("update", Line("update")),
        ("update ../new.zip", Line("update", None, ("../new.zip",))),
        ("reset 3", Line("reset", None, ("3",))),
        ("tset --help", Line("help")),
    ],
)
def test_the_command_line(words, expected):
    assert parse(words.split()) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tset", "There is no command 'tset'; did you mean test? `--help` lists"),
        ("Test", "did you mean test?"),
        ("setpu", "did you mean setup?"),
        ("updat new.zip", "did you mean update?"),
        ("status", "did you mean progress?"),
        ("help", "did you mean --help?"),
        ("lab", "did you mean python3 start.py, without a word after it, which opens JupyterLab?"),
        (
            "notebooks/00_start_here.ipynb",
            "There is no command 'notebooks/00_start_here.ipynb'; `python3 start.py --help`",
        ),
        ("--cpu --cuda", "exclude each other"),
        ("test --no-browser", "takes no option but --cpu or --cuda, and got --no-browser; for single tests run"),
        ("setup x", "`start.py setup` takes no option"),
        ("progress --cpu", "installs nothing, so it takes no --cpu"),
        ("update a b", "takes a folder or a zip file of the course, or nothing, and got b"),
        ("update --cuda", "installs nothing"),
        ("update --ff", "and got --ff"),
        ("reset", "takes the chapter's number, as in: python3 start.py reset 03"),
        ("reset 03 04", "takes the chapter's number"),
    ],
)
def test_a_wrong_command_line_stops_before_anything_is_made(start, home, capsys, words, said):
    with pytest.raises(Trouble):
        parse(words.split())
    assert start(*words.split()) == 1
    out = capsys.readouterr().out
    assert said in out and out.count("\n") == 2
    assert not (home / ".venv").exists() and not (home / "work").exists()


def test_help_names_every_command_option_and_variable(start, capsys):
    assert start("--help") == 0 and capsys.readouterr().out == "the usage\n"
    for word in (
        *COMMANDS,
        "--forget",
        "--cpu",
        "--cuda",
        "COURSE_TORCH_INDEX",
        "COURSE_PROGRESS",
        "--no-browser",
        "--",
    ):
        assert f" {word}" in USAGE or f"\n{word}" in USAGE
    assert [line.split()[2] for line in USAGE.splitlines() if line.startswith("python3 start.py ")][1:] == list(
        COMMANDS
    )


def test_progress_is_shown_and_forgotten_without_a_set_up(start, home, capsys):
    record = home / "work" / "progress.json"
    record.parent.mkdir()
    entry = {"state": "passed", "tries": 2, "passed": True}
    record.write_text(json.dumps({"version": 1, "exercises": {"lora_layer": entry}}))
    (home / "lessons").mkdir()
    (home / "lessons" / "03_layer.md").write_text(LESSON)
    assert start("progress") == 0
    assert "The course: 1 of 1 exercises passed." in capsys.readouterr().out
    assert start("progress", "3") == 0
    assert "Chapter 3: A layer. 1 of 1 exercises passed." in capsys.readouterr().out
    assert start("progress", "x") == 1
    assert capsys.readouterr().out.strip().endswith("and got x; for the whole course leave it out.")
    assert start("progress", "--forget") == 0
    assert "Deleted work/progress.json" in capsys.readouterr().out and not record.exists()
    assert not (home / ".venv").exists()


def test_a_place_that_one_may_not_write_to_is_called_that(start, home, capsys, monkeypatch):
    def refuse(home, chapter):
        raise PermissionError(13, "Permission denied", str(home / "work" / ".new"))

    monkeypatch.setattr(notebooks, "reset", refuse)
    assert start("reset", "03") == 1
    said = capsys.readouterr().out
    assert said.startswith(f"\nYou have no permission to write to {home / 'work'}; make it yours, or copy the course's")
