"""Train the course's tasks with TRL's SFTTrainer, on the 16-bit base and on the 4-bit one, and record the accuracies.

    python -m tools.train_sft tasks                the four tasks, LoRA and QLoRA, three seeds (one thread: 15 minutes)
    python -m tools.train_sft knobs                warm-up, clipping, weight decay, batch on one short task (10 minutes)

Written to assets/measurements/sft.json, which chapter 9 reads. Every accuracy is the exact match on held-out prompts.

Attributes:
    KNOBS: One change each to a run of 100 steps on style.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch

from utils import models
from utils.data.chat import Example
from utils.evaluate import metrics
from utils.tinyworld import TASKS, task_examples
from utils.train import sft
from utils.train.recipes import HELD_OUT, RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements" / "sft.json"
SEEDS = (0, 1, 2)

KNOBS: dict[str, dict] = {
    "as in the lesson": {},
    "no warm-up": {"warmup_steps": 0},
    "half of it warm-up": {"warmup_steps": 0.5},
    "no clipping": {"max_grad_norm": 0.0},
    "clipped to 0.1": {"max_grad_norm": 0.1},
    "weight decay 0.01": {"weight_decay": 0.01},
    "weight decay 1": {"weight_decay": 1.0},
    "batch 4 x 2 accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "batch 2": {"per_device_train_batch_size": 2},
    "cosine": {"lr_scheduler_type": "cosine"},
    "rate 0.0002 (the guide)": {"learning_rate": 2e-4},
    "rate 0.00002 (TRL's default)": {"learning_rate": 2e-5},
}
KNOB_STEPS = 100


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
    return metrics.exact_match(trainer.model, tokenizer, task_examples(task, "test", HELD_OUT))


def tasks() -> dict:
    """Accuracy before and after, for every task, seed by seed."""
    record = {}
    for task in TASKS:
        test = task_examples(task, "test", HELD_OUT)
        row = {
            name: metrics.exact_match(*load(), test)
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


def main() -> None:
    import datasets

    sections = {"tasks": tasks, "knobs": knobs}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=sections)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    for section in args.sections:
        made = sections[section]()
        record = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
        record["what"] = __doc__.splitlines()[0]
        record[section] = made
        temporary = OUT.with_suffix(".partial")
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, OUT)


if __name__ == "__main__":
    main()
