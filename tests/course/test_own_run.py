"""utils.course.own_run: the options of capstone.py, and a line instead of a traceback."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest
import torch

from utils.course.own_run import command_line, loading, one_line, settings_of, to_export, what_now
from utils.models import ModelUnavailable
from utils.train.settings import Settings

ASKED = ["--data", "my.csv", "--out", "o"]


def parsed(*more: str) -> Settings:
    return settings_of(command_line("LoRA").parse_args([*ASKED, *more]))


def test_without_options_the_settings_are_the_defaults():
    assert parsed() == Settings()


def test_every_setting_has_an_option():
    got = parsed(*(
        "--r 16 --alpha 8 --rslora --targets q_proj v_proj --lr 1e-3 --epochs 2 --batch-size 2 --accumulation 4 "
        "--seed 7 --max-length 100 --checkpointing --four-bit --held-out 0.2 --general mine.txt --exclude vision_tower "
        "--weight-decay 3 "
        "--target-parameters experts.up_proj experts.down_proj"
    ).split())  # fmt: skip
    assert got == Settings(
        r=16, alpha=8, rslora=True, targets=["q_proj", "v_proj"], lr=1e-3, epochs=2, batch_size=2, accumulation=4,
        max_length=100, checkpointing=True, four_bit=True, held_out=0.2, seed=7, general="mine.txt", weight_decay=3,
        exclude=["vision_tower"], target_parameters=["experts.up_proj", "experts.down_proj"],
    )  # fmt: skip
    assert parsed("--held-out", "test.jsonl").held_out == "test.jsonl" and parsed("--steps", "9").steps == 9
    assert parsed("--targets", "all-linear").targets == "all-linear"


def test_the_help_says_each_default():
    options = command_line("LoRA").format_help().split("options:")[1]
    assert options.count("(default:") == 18


def test_a_home_in_quotes_or_behind_an_equals_sign_is_read(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    asked = ["--data=~/my.csv", "--out", "~/o", "--general=~/g.txt", "--held-out=~/h.csv"]
    given = command_line("LoRA").parse_args(asked)
    assert given.out == str(tmp_path / "o") and given.data == str(tmp_path / "my.csv")
    assert given.general == str(tmp_path / "g.txt") and given.held_out == str(tmp_path / "h.csv")
    assert command_line("LoRA").parse_args(["--data", "./a/../b.csv", "--out", "o/"]).data == "./a/../b.csv"


def test_an_export_is_asked_for_by_name_and_alone_where_the_run_is_finished(tmp_path):
    asked = ["--data", "my.csv", "--out", str(tmp_path / "o")]
    parse = command_line("LoRA").parse_args
    assert not to_export(parse(asked)) and not to_export(parse(asked), finished=True)
    given = parse([*asked, "--export", "gguf", "vllm"])
    assert given.export == ["gguf", "vllm"] and to_export(given) and not to_export(given, finished=True)
    assert settings_of(given) == Settings(), "it is no setting of the run"
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "adapter_config.json").write_text("{}")
    assert to_export(given, finished=True)
    with pytest.raises(SystemExit):
        parse([*asked, "--export", "onnx"])


def test_which_model_it_is_is_said_and_the_tiny_one_is_called_tiny(tokenizer):
    """Without COURSE_PROFILE a newcomer's file once trained a model that knows picture-book stories, unsaid."""
    assert "COURSE_PROFILE=small" in command_line("LoRA").format_help().split("options:")[1]
    assert loading("tiny", tokenizer).startswith("This is the course's tiny model")
    assert loading("small", tokenizer) == f"Loading {tokenizer.name_or_path} ..."


def test_the_last_lines_say_where_things_are_and_the_next_command():
    said = what_now(command_line("LoRA").parse_args(["--data", "my file.jsonl", "--out", "runs/one"]))
    assert (
        said.startswith("runs/one holds the adapter, README.md") and 'under "How to use" in runs/one/README.md' in said
    )
    command = said.splitlines()[-1].partition(": ")[2]
    assert command == "python capstone.py --data 'my file.jsonl' --out runs/one-seed-1 --seed 1"


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (ValueError("line 3 is bad."), 1, "error: line 3 is bad\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (ModelUnavailable("no GPU"), 1, "error: no GPU\n"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmany lines"), 1, "error: the memory isn't enough: try a smaller"),
        (MemoryError(), 1, "error: the memory isn't enough"),
    ],
)
def test_what_stops_a_run_is_a_line(tmp_path, capsys, error, code, said):
    with pytest.raises(SystemExit) as left, one_line(command_line("LoRA"), tmp_path / "out"):
        raise error
    shown = capsys.readouterr().err
    assert left.value.code == code and shown.startswith(said) and shown.strip().count("\n") == 0


def test_a_full_disk_is_named_whatever_the_writer_raised(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
    with pytest.raises(SystemExit), one_line(command_line("LoRA"), tmp_path / "out"):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    assert "out is on is full" in capsys.readouterr().err


def test_a_folder_of_the_system_is_not_called_a_full_disk(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))
    with pytest.raises(SystemExit), one_line(command_line("LoRA"), tmp_path / "out"):
        (tmp_path / "none" / "out").mkdir()
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none' / 'out'}: No such file or directory")


def test_what_is_left_is_said_also_above_a_traceback(tmp_path, capsys):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "trained.json").write_text(json.dumps(dict.fromkeys(
        ("records", "tokens", "learned", "dev", "steps", "epochs", "kept", "planned"), 1
    )))  # fmt: skip
    with pytest.raises(SystemExit), one_line(command_line("LoRA"), tmp_path / "out"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "or --four-bit. The adapter is trained and saved in" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a fault of ours"), one_line(command_line("LoRA"), tmp_path / "out"):
        raise RuntimeError("a fault of ours")
    assert "The adapter is trained and saved in" in capsys.readouterr().err
