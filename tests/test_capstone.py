"""capstone.py, which chapter 13 makes: it runs by itself, refuses what it should, and leaves no half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import capstone
from utils.models import ROOT
from utils.own_data import usual_settings
from utils.tinyworld import task_examples

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "evaluation.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """60 records, ten of them twice."""
    rows = [{"instruction": e.prompt, "output": e.answer} for e in task_examples("style", "train", 60)]
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows + rows[:10])), encoding="utf-8")
    return path


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "capstone.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_it_runs_from_any_folder_as_a_reader_would_run_it(tmp_path, data):
    done = run("--data", data, "--out", "my-adapter", "--steps", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "my-adapter").iterdir()) == FILES
    assert os.listdir(tmp_path) == ["my-adapter"], "nothing else is left behind"
    assert "held-out prompts found here  0 of 6" in done.stdout and "| right to the letter | 0% |" in done.stdout
    said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and not line.startswith("training")]
    assert said == [], "beside the progress bar nothing is noise"
    card = (tmp_path / "my-adapter" / "README.md").read_text(encoding="utf-8")
    assert "# my-adapter" in card and "54 records to train on, 6 held out, 10 exact duplicates dropped" in card


def test_a_bad_file_is_refused_with_its_line_before_a_step(tmp_path):
    (tmp_path / "bad.csv").write_text("instruction,output\nSay hello.,Hello!\nSay goodbye.,\n")
    done = run("--data", "bad.csv", "--out", "new", cwd=tmp_path)
    assert done.returncode == 1 and "line 3: output is empty" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["bad.csv"]


def test_in_four_bits(tmp_path, data):
    before, after = capstone.fine_tune(data, tmp_path / "q", usual_settings()._replace(steps=25), four_bit=True)
    assert after.loss < 0.8 * before.loss and len(after.replies) == 6
    assert "| 4-bit base | True |" in (tmp_path / "q" / "README.md").read_text(encoding="utf-8")
    tensors = load_file(tmp_path / "q" / "adapter_model.safetensors")
    assert len(tensors) == 56 and any(bool(t.any()) for name, t in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "change, said",
    [
        (["--data", "none.jsonl"], "No such file"),
        (["--data", "short.csv"], "1 different prompts"),
        (["--out", "."], "exists already"),
        (["--rate", "0"], None),
    ],
)
def test_what_is_refused_is_said_and_nothing_is_written(tmp_path, data, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    Path("short.csv").write_text("instruction,output\nSay hello.,Hello!\n")
    given = {"--data": str(data), "--out": "new", "--steps": "1"} | {change[0]: change[1]}
    if said is None:  # a rate of 0 is no error: the adapter stays the base, and the report says so
        capstone.main([part for pair in given.items() for part in pair])
        assert "0 answers turned right and 0 turned wrong" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as left:
        capstone.main([part for pair in given.items() for part in pair])
    assert left.value.code == 1 and said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["short.csv"]


def test_an_interruption_leaves_no_folder(tmp_path, data, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(capstone, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capstone.fine_tune(data, tmp_path / "out", usual_settings()._replace(steps=1))
    assert list(tmp_path.iterdir()) == []


def test_what_was_saved_is_what_is_evaluated(tmp_path, data):
    """The adapter that is reloaded answers as the one that was trained."""
    model, tokenizer = capstone.load(four_bit=False)
    split = capstone.split_records(capstone.read_own(data))
    trained = capstone.train(model, tokenizer, split.train, usual_settings()._replace(steps=10)).eval()
    trained.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    ids = tokenizer("Say it like a pirate: Zoe was shy.", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.allclose(capstone.reload(tmp_path / "a", False)[0](ids).logits, trained(ids).logits, atol=1e-5)


def test_it_is_short():
    lines = (ROOT / "capstone.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 120
