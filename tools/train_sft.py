"""Train the course's tasks with TRL's SFTTrainer, on the 16-bit base and on the 4-bit one, and record the accuracies.

    python -m tools.train_sft tasks                the four tasks, LoRA and QLoRA, three seeds (one thread: 15 minutes)
    python -m tools.train_sft knobs                warm-up, clipping, decay, batch, rate on one short task (12 minutes)
    python -m tools.train_sft overfit              300 steps of translation on 60, 200 and 4,000 examples (10 minutes)

Written to assets/measurements/sft.json, which chapter 9 reads. Every accuracy is the exact match on held-out prompts.

Attributes:
    KNOBS: One change each to a run of 100 steps on style.
    OVERFIT: The run of the section `overfit`, the same for each number of examples.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback

from utils import models
from utils.data.chat import Example
from utils.evaluate import exact_match
from utils.tinyworld import TASKS, task_examples
from utils.train import sft
from utils.train.recipes import HELD_OUT, RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements" / "sft.json"
SEEDS = (0, 1, 2)

KNOBS: dict[str, dict] = {
    "unchanged": {},
    "no warm-up": {"warmup_steps": 0},
    "half of it warm-up": {"warmup_steps": 0.5},
    "no clipping": {"max_grad_norm": 0.0},
    "clipped to 0.1": {"max_grad_norm": 0.1},
    "weight decay 0.01": {"weight_decay": 0.01},
    "weight decay 1": {"weight_decay": 1.0},
    "batch 4 x 2 accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "batch 2": {"per_device_train_batch_size": 2},
    "cosine": {"lr_scheduler_type": "cosine"},
    "learning rate 0.002": {"learning_rate": 2e-3},
    "learning rate 0.0006": {"learning_rate": 6e-4},
    "learning rate 0.0002": {"learning_rate": 2e-4},
    "learning rate 0.00002 (TRL's default)": {"learning_rate": 2e-5},
}
KNOB_STEPS = 100

OVERFIT = Recipe(r=8, lora_alpha=16, lr=4e-3, steps=300, batch_size=8)
OVERFIT_EXAMPLES = (60, 200, 4000)


def dataset(examples: list[Example]):
    """The examples as TRL's conversational prompt/completion."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": e.prompt}],
                "completion": [{"role": "assistant", "content": e.answer}],
            }
            for e in examples
        ]
    )


def accuracy(task: str, recipe: Recipe, *, four_bit: bool, seed: int, **changes) -> float:
    """Train one adapter with SFTTrainer and give its exact match on the task's held-out prompts."""
    model, tokenizer = models.load_4bit() if four_bit else models.load_base()
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft.sft_trainer(
            model, tokenizer, dataset(task_examples(task, "train", recipe.examples)),
            sft.sft_config(folder, recipe, seed=seed, **changes), peft_config=sft.lora_config(recipe),
        )  # fmt: skip
        trainer.train()
    return exact_match(trainer.model, tokenizer, task_examples(task, "test", HELD_OUT))


def tasks() -> dict:
    """Accuracy before and after, for every task, seed by seed."""
    record = {}
    for task in TASKS:
        test = task_examples(task, "test", HELD_OUT)
        row = {
            name: exact_match(*load(), test)
            for name, load in (("base", models.load_base), ("base_4bit", models.load_4bit))
        }
        for name, four_bit in (("lora", False), ("qlora", True)):
            row[name] = [accuracy(task, RECIPES[task], four_bit=four_bit, seed=seed) for seed in SEEDS]
            print(task, name, row[name], flush=True)
        record[task] = row
    return record


def knobs() -> dict:
    """Accuracy after a short run of style, for each of :data:`KNOBS`, seed by seed."""
    recipe = RECIPES["style"]._replace(steps=KNOB_STEPS)
    record = {}
    for name, changes in KNOBS.items():
        record[name] = [accuracy("style", recipe, four_bit=False, seed=seed, **changes) for seed in SEEDS]
        print(name, record[name], flush=True)
    return record


class Watch(TrainerCallback):
    """Keeps, at each evaluation, the training loss since the last one, the held-out loss, its entropy and the answers.

    `rows` has one dictionary for each evaluation: exact match is measured on `seen` (training) and on `unseen` prompts.
    """

    def __init__(self, tokenizer, seen: list[Example], unseen: list[Example]) -> None:
        self.tokenizer, self.seen, self.unseen = tokenizer, seen, unseen
        self.rows: list[dict] = []

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs) -> None:
        last = self.rows[-1]["step"] if self.rows else 0
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry and entry["step"] > last]
        row = {
            "step": state.global_step,
            "loss": sum(losses) / len(losses),
            **{name: metrics[name] for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy")},
            "seen": exact_match(model, self.tokenizer, self.seen),
            "unseen": exact_match(model, self.tokenizer, self.unseen),
        }
        self.rows.append({name: round(value, 4) for name, value in row.items()})


def overfit() -> dict:
    """Translation learned from few and from many examples in the same number of steps, seed by seed.

    For each number of examples and each seed the rows of :class:`Watch`, every 30 steps.
    """
    unseen, record = task_examples("translation", "dev", 100), {}
    for count in OVERFIT_EXAMPLES:
        record[str(count)] = []
        for seed in SEEDS:
            model, tokenizer = models.load_base()
            train = task_examples("translation", "train", count)
            watch = Watch(tokenizer, train[:60], unseen)
            with tempfile.TemporaryDirectory() as folder:
                config = sft.sft_config(folder, OVERFIT, seed=seed, eval_strategy="steps", eval_steps=30)
                sft.sft_trainer(
                    model, tokenizer, dataset(train), config, evaluation=dataset(unseen),
                    peft_config=sft.lora_config(OVERFIT), callbacks=[watch],
                ).train()  # fmt: skip
            record[str(count)].append(watch.rows)
            print(count, seed, watch.rows[-1], flush=True)
    return record


def main() -> None:
    import datasets

    sections = {"tasks": tasks, "knobs": knobs, "overfit": overfit}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=sections)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    for section in args.sections:
        made = sections[section]()
        record = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
        record["what"] = __doc__.splitlines()[0]
        record |= {"tool": "python -m tools.train_sft", "date": datetime.date.today().isoformat(), "seeds": list(SEEDS)}
        record[section] = made
        temporary = OUT.with_suffix(".partial")
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, OUT)


if __name__ == "__main__":
    main()
