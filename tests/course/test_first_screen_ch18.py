"""Chapter 18's first screen: its code runs as it stands, and its numbers are those of the record."""

from __future__ import annotations

import functools
import json
import re

import pytest

from utils.models import ASSETS, ROOT, load_base

RECORD = json.loads((ASSETS / "measurements" / "rewards.json").read_text(encoding="utf-8"))
LESSON = (ROOT / "lessons" / "18_preferences_and_rewards.md").read_text(encoding="utf-8")


def says(role, text):
    return [{"role": role, "content": text}]


def test_the_three_calls_make_trainers_with_the_settings_of_the_table(tmp_path, monkeypatch):
    import trl
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    here = dict(use_cpu=True, bf16=False, gradient_checkpointing=None, report_to="none", disable_tqdm=True)
    for name in ("DPOConfig", "GRPOConfig", "DistillationConfig"):
        monkeypatch.setattr(trl, name, functools.partial(getattr(trl, name), **here))
    made = {}
    for name in ("DPOTrainer", "GRPOTrainer", "DistillationTrainer"):
        kind = getattr(trl, name)
        monkeypatch.setattr(trl, name, lambda *args, kind=kind, **kw: made.setdefault(kind.__name__, kind(*args, **kw)))
    (code,) = re.findall(r"```python \.noeval\n(.*?)```", LESSON, re.S)
    rows = [{"prompt": says("user", "Tell me a story."), "words": ["fox"]}] * 8
    pairs = [
        {"prompt": r["prompt"], "chosen": says("assistant", "Yes."), "rejected": says("assistant", "No.")} for r in rows
    ]
    _, tokenizer = load_base()
    monkeypatch.chdir(tmp_path)
    for call in re.split(r"\n(?=\w+Trainer\()", code)[1:]:
        world = {
            "model": load_base()[0], "teacher": load_base()[0], "tokenizer": tokenizer,
            "rows": Dataset.from_list(rows), "pairs": Dataset.from_list(pairs),
            "reward": lambda prompts, completions, **columns: [0.0] * len(completions),
        }  # fmt: skip
        exec(re.split(r"\n(?=\w+Trainer\()", code)[0] + "\n" + call, world)
    assert {name: trainer.args.learning_rate for name, trainer in made.items()} == {
        "DPOTrainer": 5e-6, "GRPOTrainer": 1e-5, "DistillationTrainer": 1e-5
    }  # fmt: skip
    assert [made[name].args.beta for name in made] == [0.1, 0.0, 1.0]
    assert made["GRPOTrainer"].args.num_generations == 8
    assert all(t.model.peft_config["default"].r == 16 for t in made.values())


def percent(share: float) -> str:
    return f"{share:.0%}"


def test_what_it_gave_here_is_the_record():
    (said,) = re.findall(r"\*\*What it gave here\*\*.*?\n\n", LESSON, re.S)
    of = {e["name"]: e for e in RECORD["race"] + RECORD["control"]}
    shares = re.findall(r"\d+%", said)
    names = ("SFT on gold", "LoRA r=16", "LoRA r=4", "rejection sampling")
    assert shares == [percent(RECORD["base"]["race"]["told"]), *(percent(of[name]["told"]) for name in names)]
    (gold,) = (b for b in RECORD["bits"] if b["how"] == "sft")
    assert f"SFT on {gold['answers']} right answers" in said
    assert all(f"{b['episodes']:,}" == "1,920" for b in RECORD["bits"] if b["section"] == "race") and "1,920" in said
    for name in ("LoRA r=4", "rejection sampling"):
        assert sum(told < 0.8 for told in of[name]["told_by_seed"]) == 1
    assert all(len(of[name]["seeds"]) == 5 for name in names)


@pytest.mark.parametrize("name", ["DPOConfig", "GRPOConfig", "DistillationConfig"])
def test_trls_default_rate_is_the_one_that_is_told(name):
    import trl

    assert getattr(trl, name).__dataclass_fields__["learning_rate"].default == 1e-6
    assert "TRL's own default learning rate is 1e-6 for all three" in LESSON


def test_how_far_the_rates_of_the_records_are_from_the_tables():
    small = [run["lr"] for run in RECORD["tried"]]
    tiny = [e["lr"] for e in RECORD["race"] if e["method"] != "full fine-tuning"]
    assert "1e-5 to 5e-5" in LESSON
    far = [(round(min(rates) / 5e-5), round(max(rates) / 1e-5)) for rates in (small, tiny)]
    assert far == [(2, 450), (15, 1600)]
    assert "SmolLM2 took 2 to 450 times as much over 80 steps, and the tiny model's LoRA 15 to 1,600 times" in LESSON
