"""capstone.py, which chapter 20 makes: it runs by itself, refuses what it should, and leaves no half."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import capstone
from utils.evaluate.report import Evaluation, Reply
from utils.lora.target_modules import tiny_random
from utils.models import ROOT, TINY_DIR, load_config, load_tokenizer, loading
from utils.profiling.activations import is_checkpointing
from utils.tinyworld import task_examples
from utils.train.run_folder import CHECKPOINTS, partial_folder
from utils.train.settings import Settings

SETTINGS = Settings().filled("tiny", load_config(TINY_DIR))
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


def prepared(data: Path, settings: Settings = SETTINGS):
    """The encoded rows to train on, and to choose by."""
    reading, split, _ = capstone.prepare(data, settings)
    return capstone.look_over(reading, split, load_tokenizer(), settings)


@pytest.fixture
def quick(monkeypatch) -> list[str]:
    """Evaluation without a model: what it was asked."""
    asked = []

    def ask(model, tokenizer, records, general=None):
        asked.append(model.__class__.__name__)
        return Evaluation(tuple(Reply(r["instruction"], r["output"], "", 0, False) for r in records), 1.0, None)

    monkeypatch.setattr(capstone, "ask", ask)
    return asked


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> tuple[Path, subprocess.CompletedProcess]:
    """A run from another folder, as a reader would start it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = run("--data", data, "--out", "my-adapter", "--steps", "25", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_it_runs_from_any_folder_as_a_reader_would_run_it(finished):
    tmp_path, done = finished
    assert sorted(file.name for file in (tmp_path / "my-adapter").iterdir()) == FILES
    assert os.listdir(tmp_path) == ["my-adapter"], "nothing else is left behind"
    said = done.stdout
    assert said.startswith("mine.jsonl read as instruction records") and "found here       0 of 6" in said
    assert "54 records to train on, 3.57 epochs, 25 steps of 8; learning rate 0.004, r=8, alpha=16" in said
    assert "| exact match | 0 of 6 | " in said and "%" not in said.split("| base |")[1], "six records make no share"
    assert "6 held-out records are too few to tell this from luck" in said
    assert "No dev set (that takes 100 records to train on): the weights of the last step are kept\n" in said
    assert said.endswith("capstone.py --data " + shlex.quote(done.args[3]) + " --out my-adapter-seed-1 --seed 1\n")
    noise = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in noise if not line.startswith(("training", "asking"))] == [], "beside bars nothing is said"
    card = (tmp_path / "my-adapter" / "README.md").read_text(encoding="utf-8")
    assert "# my-adapter" in card and "54 records were trained on, 6 held out, 10 exact duplicates dropped" in card
    assert "25 steps, 3.57 epochs: each record was seen about 3.6 times" in card and "| seed | 0 |" in card


BEFORE_TORCH = """
import sys
import capstone
try:
    capstone.main(sys.argv[1:])
finally:
    assert not {"torch", "transformers", "datasets", "peft", "trl"} & set(sys.modules), "imported too early"
"""


@pytest.mark.parametrize(
    "options, code, said",
    [
        (["--help"], 0, "--rslora"),
        (["--data", "bad.csv", "--out", "new"], 1, "line 3: output is empty"),
        (["--data", "none.csv", "--out", "new"], 1, "there is no file none.csv"),
        (["--data", "bad.csv", "--out", "new", "--r", "64", "--rslora", "--alpha", "128"], 1, "take alpha=16"),
    ],
)
def test_a_first_look_needs_no_torch(tmp_path, options, code, said):
    (tmp_path / "bad.csv").write_text("instruction,output\nSay hello.,Hello!\nSay goodbye.,\n")
    command = [sys.executable, "-c", BEFORE_TORCH, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["bad.csv"]


SYSTEM = [
    {"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"))
]


@pytest.mark.parametrize(
    "change, said",
    [
        (["--data", "short.csv"], "1 different prompt"),
        (["--data", "system.jsonl"], "the tiny model knows the roles user and assistant"),
        (["--out", "."], "exists already"),
        (["--out", "short.csv"], "exists already"),
        (["--lr", "0"], "the learning rate is a number above 0, such as 2e-4, not 0.0"),
        (["--max-length", "1300"], "max_length=1300, and the model has 512 positions"),
        (["--data", "long.jsonl"], "tokens at the earliest, and the model has 512 positions: nothing would be left"),
        (["--max-length", "5"], "max_length=5 cuts away the completion of every one"),
        (["--held-out", "1.5"], "held_out is a share between 0 and 1"),
        (["--held-out", "900"], "held_out=900 of 70 records leaves nothing to train on"),
        (["--held-out", "none.jsonl"], "there is no file none.jsonl"),
        (["--targets", "v_prj"], "'v_prj' matches no module. Did you mean 'v_proj'"),
        (["--target-parameters", "experts.down_proj"], "no weight of this LlamaForCausalLM, which has no experts"),
        (["--exclude", "vision_tower"], "--exclude vision_tower names no part of this LlamaForCausalLM"),
        (["--general", "none.txt"], "there is no file none.txt"),
        (["--general", "short.csv"], "short.csv holds 23 tokens, and a perplexity needs 256"),
    ],
)
def test_what_is_refused_is_refused_before_a_model_is_loaded(tmp_path, data, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(capstone, "load", lambda four_bit: pytest.fail("a model was loaded"))
    Path("short.csv").write_text("instruction,output\nSay hello.,Hello!\n")
    talks = [{"messages": [SYSTEM[0], {**SYSTEM[1], "content": f"{n} is {n * 7919}?"}, SYSTEM[2]]} for n in range(30)]
    Path("system.jsonl").write_text("\n".join(map(json.dumps, talks)))
    asked = [{"instruction": f"{n} " + "and so on " * 300, "output": "yes"} for n in range(0, 9000, 300)]
    Path("long.jsonl").write_text("\n".join(map(json.dumps, asked)))
    given = {"--data": str(data), "--out": "new", "--steps": "1"} | {change[0]: change[1]}
    with pytest.raises(SystemExit) as left:
        capstone.main([part for pair in given.items() for part in pair])
    assert left.value.code == 1 and said in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["long.jsonl", "short.csv", "system.jsonl"]


# ------------------------------------------------------------------------------------------------ stopped, and going on


@pytest.mark.parametrize("where", ["load", "ask", "train"])
def test_an_interruption_before_there_is_anything_leaves_no_folder(tmp_path, data, monkeypatch, where):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(capstone, where, interrupted)
    with pytest.raises(SystemExit) as left:
        capstone.main(["--data", str(data), "--out", str(tmp_path / "out"), "--steps", "1"])
    assert left.value.code == 130 and list(tmp_path.iterdir()) == []


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_an_interrupted_night_goes_on_to_the_same_adapter(tmp_path, data, quick, monkeypatch, capsys):
    """Stopped in step 8 of 10, it goes on from the checkpoint of step 7; as if nothing had been."""
    from utils.train.callbacks import LiveLoss

    options = ["--data", str(data), "--steps", "10", "--targets", "q_proj"]
    capstone.main([*options, "--out", str(tmp_path / "whole")])
    step = LiveLoss.on_step_end

    def stopped(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise KeyboardInterrupt
        step(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LiveLoss, "on_step_end", stopped)
        with pytest.raises(SystemExit) as left:
            capstone.main([*options, "--out", str(tmp_path / "out")])
    assert left.value.code == 130 and "interrupted. The run can go on from step 7" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial" / CHECKPOINTS).is_dir()

    with pytest.raises(SystemExit):
        capstone.main([*options, "--out", str(tmp_path / "out"), "--lr", "0.1"])
    assert "lr was None and is 0.1" in capsys.readouterr().err

    capstone.main([*options, "--out", str(tmp_path / "out")])
    assert "stopped. The run can go on from step 7" in capsys.readouterr().out
    whole, out = adapter(tmp_path / "whole"), adapter(tmp_path / "out")
    assert whole.keys() == out.keys() and all(torch.equal(whole[name], out[name]) for name in whole)
    assert (
        sorted(os.listdir(tmp_path)) == ["out", "whole"] and "10 steps" in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize("error, code", [(torch.OutOfMemoryError("CUDA out of memory"), 1), (KeyboardInterrupt(), 130)])
def test_an_adapter_is_safe_as_soon_as_it_is_trained(tmp_path, data, quick, monkeypatch, capsys, error, code):
    options = ["--data", str(data), "--out", str(tmp_path / "out"), "--steps", "2", "--targets", "q_proj"]
    ask = capstone.ask

    def fails(model, tokenizer, records, general=None):
        if "Peft" in type(model).__name__:
            raise error
        return ask(model, tokenizer, records)

    with monkeypatch.context() as patch:
        patch.setattr(capstone, "ask", fails)
        with pytest.raises(SystemExit) as left:
            capstone.main(options)
    assert left.value.code == code
    assert f"The adapter is trained and saved in {tmp_path / 'out.partial'}; its evalu" in capsys.readouterr().err
    saved = adapter(partial_folder(tmp_path / "out"))
    monkeypatch.setattr(capstone, "train", lambda *given: pytest.fail("it trained again"))
    capstone.main(options)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES and os.listdir(tmp_path) == ["out"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in adapter(tmp_path / "out").items())


# ------------------------------------------------------------------------------------------------------- training


def test_it_trains_on_the_rows_of_the_report_and_stops_when_the_dev_loss_rises(tmp_path):
    """At a rate that breaks it, and the checkpoint with the lowest dev loss is what is kept."""
    rows = [{"instruction": f"{n} times {n + 3}?", "output": str(n * (n + 3))} for n in range(130)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = replace(SETTINGS, steps=40, lr=1.0, r=1, targets=["q_proj"], batch_size=2)
    report, dev = prepared(tmp_path / "sums.jsonl", settings)
    model, tokenizer = capstone.load(four_bit=False)
    trainer = capstone.train(model, tokenizer, report, dev, settings, tmp_path)
    assert (len(report), len(dev)) == (105, 12) == (len(trainer.train_dataset), len(trainer.eval_dataset))
    assert all(row["labels"] == list(own["labels"]) for row, own in zip(trainer.train_dataset, report, strict=True))
    looks = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    done = capstone.keep_adapter(trainer, tmp_path)
    assert done.steps < done.planned == 40 and done.kept == 4 * (1 + looks.index(min(looks))) <= done.steps - 12
    assert (done.records, done.dev) == (105, 12) and done.learned < done.tokens
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(looks), rel=1e-4)


def test_in_a_terminal_each_dev_loss_is_a_line(tmp_path, monkeypatch, capsys, quick):
    """The chapter's first screen sends its reader to the dev loss, and a terminal once showed a bar alone."""
    rows = [{"instruction": e.prompt, "output": e.answer} for e in task_examples("style", "train", 130)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capstone.main(["--data", str(tmp_path / "mine.jsonl"), "--out", str(tmp_path / "out"), "--steps", "4"])
    said = re.findall(r"step (\d) of 4: dev loss (\d\.\d+)", capsys.readouterr().out)
    assert [step for step, _ in said] == ["1", "2", "3", "4"] and float(said[-1][1]) < float(said[0][1])


def test_the_settings_reach_the_trainer_and_the_adapter(tmp_path, data):
    given = Settings(
        r=4, rslora=True, targets=["q_proj", "v_proj"], accumulation=3, batch_size=2, seed=5, steps=1, weight_decay=3.0
    )
    settings = given.filled("tiny", load_config(TINY_DIR))
    made = capstone.sft_settings(tmp_path, settings)
    assert made.weight_decay == 3.0
    assert (made.gradient_accumulation_steps, made.per_device_train_batch_size, made.seed) == (3, 2, 5)
    model, tokenizer = capstone.load(four_bit=False)
    config = capstone.train(model, tokenizer, *prepared(data), settings, tmp_path).model.active_peft_config
    assert (config.r, config.lora_alpha, config.use_rslora, config.target_modules) == (4, 4, True, {"q_proj", "v_proj"})


def test_experts_and_what_is_left_out_reach_the_adapter():
    """Of gpt-oss "all-linear" alone is attention; of a model that reads pictures it takes in what reads them."""
    from peft import get_peft_model

    def adapted(name, **given):
        model = get_peft_model(tiny_random(name), capstone.lora_config(replace(SETTINGS, **given)))
        return {n.partition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}

    assert not any("experts" in name for name in adapted("gpt-oss"))
    given = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert sum("experts" in name for name in adapted("gpt-oss", target_parameters=given)) == 4
    everywhere, spared = adapted("Llava"), adapted("Llava", exclude=["vision_tower"])
    assert spared == {name for name in everywhere if "vision_tower" not in name} and len(spared) < len(everywhere)


def test_a_readers_own_text_shows_what_is_forgotten(tmp_path, tokenizer, base):
    other = tmp_path / "mine.txt"
    other.write_text("Once upon a time there was a fox who had a red ball. " * 40, encoding="utf-8")
    rows = [{"instruction": "Say hello.", "output": "Hello!"}]
    found = capstone.ask(base, tokenizer, rows, str(other))
    assert found.general_name == "mine.txt" and found.general != capstone.ask(base, tokenizer, rows).general


def test_the_file_may_change_while_it_trains_and_the_card_names_what_was_read(tmp_path, data, quick, monkeypatch):
    mine, train = tmp_path / "mine.jsonl", capstone.train
    mine.write_bytes(data.read_bytes())
    digest = capstone.prepare(mine, SETTINGS)[2].sha256
    monkeypatch.setattr(capstone, "train", lambda *given: (mine.unlink(), train(*given))[1])
    capstone.fine_tune(mine, tmp_path / "my adapter", Settings(steps=1))
    card = (tmp_path / "my adapter" / "README.md").read_text(encoding="utf-8")
    assert digest in card and "# my-adapter" in card, "a folder's name may have spaces, an adapter's has none"


def test_the_cards_own_lines_use_the_adapter(finished):
    folder, _ = finished
    card = (folder / "my-adapter" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    reply = json.loads((folder / "my-adapter" / "evaluation.json").read_text(encoding="utf-8"))["replies"][0]
    code = code.replace('"this folder"', repr(str(folder / "my-adapter"))).replace('"..."', repr(reply["prompt"]))
    code = code.replace('dtype="auto"', 'dtype="float32"')  # "auto" is how it is stored; here it was used in float32
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(reply["adapter"]) and reply["adapter"][:9] != reply["base"][:9]


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
def test_another_model_takes_the_same_path(tmp_path, data, qwen, monkeypatch, quick, name, in_4_bits):
    """The profile 7b loads in 4 bits and checkpoints by itself; here its model is small and its GPU is the CPU."""
    seen = []
    train = capstone.train
    monkeypatch.setenv("COURSE_PROFILE", name)
    monkeypatch.setenv("COURSE_MODEL", str(qwen))
    monkeypatch.setattr(loading, "_check_gpu", lambda dtype: None)
    monkeypatch.setattr(capstone, "train", lambda *given: seen.append(train(*given)) or seen[0])
    capstone.fine_tune(data, tmp_path / "out", Settings(steps=20, lr=2e-2))
    losses = [entry["loss"] for entry in seen[0].state.log_history if "loss" in entry]
    last = sum(losses[-5:]) / 5  # one batch's loss alone depends on the rounding of the day
    assert last < losses[0] - 0.1, "a random model's frozen head leaves little room"
    assert is_checkpointing(seen[0].model) == in_4_bits and seen[0].model.config.model_type == "qwen2"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| base in 4 bits | {in_4_bits} |" in card and "for `little-qwen`. It is no model of the Hub" in card


def test_the_profile_7b_without_a_gpu_is_refused(tmp_path, data, qwen, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "7b")
    monkeypatch.setenv("COURSE_MODEL", str(qwen))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        capstone.main(["--data", str(data), "--out", str(tmp_path / "new")])
    assert "torch sees no CUDA GPU here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checkpointing_changes_memory_and_not_the_adapter(tmp_path, data):
    trained = []
    rows, dev = prepared(data)
    for on in (False, True):
        model, tokenizer = capstone.load(four_bit=False)
        settings = replace(SETTINGS, steps=3, checkpointing=on)
        model = capstone.train(model, tokenizer, rows, dev, settings, tmp_path / str(on)).model
        assert is_checkpointing(model) == on
        trained.append({name: p.detach() for name, p in model.named_parameters() if "lora_B" in name})
    assert all(bool(p.any()) for p in trained[0].values())
    for name, p in trained[0].items():
        assert torch.allclose(p, trained[1][name], atol=1e-5), name


def test_what_was_saved_is_what_is_evaluated(tmp_path, data):
    """The adapter that is reloaded answers as the one that was trained."""
    model, tokenizer = capstone.load(four_bit=False)
    trainer = capstone.train(model, tokenizer, *prepared(data), replace(SETTINGS, steps=5), tmp_path)
    capstone.keep_adapter(trainer, tmp_path / "a")
    ids = tokenizer("Say it like a pirate: Zoe was shy.", return_tensors="pt").input_ids
    with torch.inference_mode():
        ours = trainer.model.eval()(ids).logits
        assert torch.allclose(capstone.reload(tmp_path / "a", False)[0](ids).logits, ours, atol=1e-5)


def test_it_is_short():
    lines = (ROOT / "capstone.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 150


def test_a_run_is_known_by_its_base_and_by_every_record(tmp_path, data, monkeypatch):
    """Or a checkpoint of one model would go on over another, and one of a file over what the file became."""
    seen, held = [], tmp_path / "held.jsonl"

    def known(out, run):
        seen.append(run)
        raise ValueError("seen")

    monkeypatch.setattr(capstone, "unfinished", known)
    monkeypatch.setenv("COURSE_PROFILE", "small")
    for model, answer in (("a/one", "yes"), ("b/one", "yes"), ("b/one", "no")):
        monkeypatch.setenv("COURSE_MODEL", model)
        held.write_text(json.dumps({"instruction": "Was it so?", "output": answer}))
        with pytest.raises(ValueError, match="seen"):
            capstone.fine_tune(data, tmp_path / "out", Settings(held_out=str(held)))
    changed = [{name for name in one if one[name] != two[name]} for one, two in zip(seen, seen[1:], strict=False)]
    assert changed == [{"base"}, {"data"}]
