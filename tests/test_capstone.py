"""capstone.py, which chapter 13 makes: it runs by itself, refuses what it should, and leaves no half."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import capstone
from utils.models import ROOT, TINY_DIR, loading, profile
from utils.profiling.activations import is_checkpointing
from utils.tinyworld import task_examples
from utils.train.own_data import usual_settings

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
    settings = usual_settings(profile())._replace(steps=25)
    before, after = capstone.fine_tune(data, tmp_path / "q", settings, four_bit=True)
    assert after.loss < 0.8 * before.loss and len(after.replies) == 6
    assert "| base in 4 bits | True |" in (tmp_path / "q" / "README.md").read_text(encoding="utf-8")
    tensors = load_file(tmp_path / "q" / "adapter_model.safetensors")
    assert len(tensors) == 56 and any(bool(t.any()) for name, t in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "change, said",
    [
        (["--data", "none.jsonl"], "No such file"),
        (["--data", "short.csv"], "1 different prompts"),
        (["--out", "."], "exists already"),
        (["--out", "short.csv"], "exists already"),
        (["--lr", "0"], "the learning rate is a number above 0, such as 2e-4, not 0.0"),
        (["--lr", "nan"], "the learning rate is a number above 0"),
        (["--steps", "0"], "steps is a number of 1 or more, not 0"),
        (["--r", "-8"], "r is a number of 1 or more, not -8"),
    ],
)
def test_what_is_refused_is_refused_before_a_model_is_loaded(tmp_path, data, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(capstone, "load", lambda four_bit: pytest.fail("a model was loaded"))
    Path("short.csv").write_text("instruction,output\nSay hello.,Hello!\n")
    given = {"--data": str(data), "--out": "new", "--steps": "1"} | {change[0]: change[1]}
    with pytest.raises(SystemExit) as left:
        capstone.main([part for pair in given.items() for part in pair])
    assert left.value.code == 1 and said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["short.csv"]


def test_answers_that_would_all_be_cut_away_are_refused_before_a_step(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(capstone, "train", lambda *arguments: pytest.fail("it trained"))
    with pytest.raises(SystemExit):
        capstone.main(["--data", str(data), "--out", str(tmp_path / "new"), "--max-length", "5"])
    assert "max_length=5 cuts away the completion of every one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["train", "reload", "write_card"])
def test_an_interruption_leaves_no_folder(tmp_path, data, monkeypatch, where):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(capstone, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        capstone.fine_tune(data, tmp_path / "out", usual_settings(profile())._replace(steps=1))
    assert list(tmp_path.iterdir()) == []


def test_the_file_may_change_while_it_trains_and_the_card_names_what_was_read(tmp_path, data, monkeypatch):
    mine, train = tmp_path / "mine.jsonl", capstone.train
    mine.write_bytes(data.read_bytes())
    digest = capstone.prepare(mine)[1].sha256
    monkeypatch.setattr(capstone, "train", lambda *given: (mine.unlink(), train(*given))[1])
    capstone.fine_tune(mine, tmp_path / "my adapter", usual_settings(profile())._replace(steps=1))
    card = (tmp_path / "my adapter" / "README.md").read_text(encoding="utf-8")
    assert digest in card and "# my-adapter" in card, "a folder's name may have spaces, an adapter's has none"


def test_the_cards_own_lines_use_the_adapter(tmp_path, data):
    before, after = capstone.fine_tune(data, tmp_path / "a", usual_settings(profile())._replace(steps=25))
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    reply = after.replies[0]
    code = code.replace('"this folder"', repr(str(tmp_path / "a"))).replace('"..."', repr(reply.prompt))
    code = code.replace('dtype="auto"', 'dtype="float32"')  # "auto" is how it is stored; here it was used in float32
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(reply.answer) and reply.answer[:9] != before.replies[0].answer[:9]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A Qwen2, the architecture of the profile 7b, small and random, with the course's tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(TINY_DIR)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen") / "little-qwen"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name, in_4_bits", [("small", False), ("7b", True)])
def test_another_model_takes_the_same_path(tmp_path, data, qwen, monkeypatch, name, in_4_bits):
    """The profile 7b loads in 4 bits and checkpoints by itself; here its model is small and its GPU is the CPU."""
    seen = []
    train = capstone.train
    monkeypatch.setenv("COURSE_PROFILE", name)
    monkeypatch.setenv("COURSE_MODEL", str(qwen))
    monkeypatch.setattr(loading, "_check_gpu", lambda dtype: None)
    monkeypatch.setattr(capstone, "train", lambda *given: seen.append(train(*given)) or seen[0])
    before, after = capstone.fine_tune(data, tmp_path / "out", usual_settings(profile())._replace(steps=30, lr=2e-2))
    assert after.loss < before.loss - 0.2, "a random model's frozen head leaves little room"
    assert is_checkpointing(seen[0]) == in_4_bits and seen[0].config.model_type == "qwen2"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| base in 4 bits | {in_4_bits} |" in card and "for `little-qwen`. It is no model of the Hub" in card


def test_the_profile_7b_without_a_gpu_is_refused(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "7b")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        capstone.main(["--data", str(data), "--out", str(tmp_path / "new")])
    assert "torch sees no CUDA GPU here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checkpointing_changes_memory_and_not_the_adapter(tmp_path, data):
    trained = []
    for on in (False, True):
        model, tokenizer = capstone.load(four_bit=False)
        torch.manual_seed(0)
        records = capstone.prepare(data)[0].train
        model = capstone.train(model, tokenizer, records, usual_settings(profile())._replace(steps=3, checkpointing=on))
        assert is_checkpointing(model) == on
        trained.append({name: p.detach() for name, p in model.named_parameters() if "lora_B" in name})
    assert all(bool(p.any()) for p in trained[0].values())
    for name, p in trained[0].items():
        assert torch.allclose(p, trained[1][name], atol=1e-5), name


def test_what_was_saved_is_what_is_evaluated(tmp_path, data):
    """The adapter that is reloaded answers as the one that was trained."""
    model, tokenizer = capstone.load(four_bit=False)
    split, _ = capstone.prepare(data)
    trained = capstone.train(model, tokenizer, split.train, usual_settings(profile())._replace(steps=10)).eval()
    trained.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    ids = tokenizer("Say it like a pirate: Zoe was shy.", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.allclose(capstone.reload(tmp_path / "a", False)[0](ids).logits, trained(ids).logits, atol=1e-5)


def test_it_is_short():
    lines = (ROOT / "capstone.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 120
