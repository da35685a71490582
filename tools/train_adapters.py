"""Train the course's four adapters on the tiny base, write them to assets/adapters, and record what they can do.

    python -m tools.train_adapters                 all four (two CPU cores: about three minutes)
    python -m tools.train_adapters style           one of them

Each is trained with this repository's own LoRALinear and training loop, with the settings of utils.train.recipes, and
saved in bf16. What is recorded in assets/measurements/tasks.json was measured on the saved files, read back.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from pathlib import Path

import torch

from utils import models
from utils.evaluate import metrics
from utils.lora import inject
from utils.lora.checkpoint import WEIGHTS, load_adapter, save_adapter
from utils.tinyworld import TASKS, task_examples, unseen_word_examples
from utils.train import loop as training
from utils.train.adapter_cache import adapter_dir
from utils.train.recipes import HELD_OUT, RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[1]


def make(task: str, recipe: Recipe) -> dict:
    """Train, save, read back and measure one adapter."""
    test = task_examples(task, "test", HELD_OUT)
    model, tokenizer = models.load_base()
    before = metrics.exact_match(model, tokenizer, test)
    torch.manual_seed(0)
    inject(model, recipe.target_modules, recipe.r, recipe.lora_alpha)
    began = time.perf_counter()
    training.train(
        model, tokenizer, task_examples(task, "train", recipe.examples),
        steps=recipe.steps, lr=recipe.lr, batch_size=recipe.batch_size,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    save_adapter(model, adapter_dir(task), base_model=models.TINY_DIR.name, dtype=torch.bfloat16)
    model, tokenizer = models.load_base()
    load_adapter(model, adapter_dir(task))
    row = {
        "base": before,
        "adapter": metrics.exact_match(model, tokenizer, test),
        "seconds": round(seconds, 1),
        "bytes": (adapter_dir(task) / WEIGHTS).stat().st_size,
        **recipe._asdict(),
    }
    if task == "sentiment":
        row["unseen_words"] = metrics.exact_match(model, tokenizer, unseen_word_examples(HELD_OUT))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tasks", nargs="*", metavar="task", help=f"of {', '.join(TASKS)}; all of them when none is named"
    )
    args = parser.parse_args()
    if unknown := [t for t in args.tasks if t not in TASKS]:
        parser.error(f"unknown task {unknown[0]!r}: choose from {', '.join(TASKS)}")
    out = ROOT / "assets" / "measurements" / "tasks.json"
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for task in args.tasks or TASKS:
        record[task] = make(task, RECIPES[task])
        print(task, record[task])
    record["threads"] = torch.get_num_threads()
    record |= {"tool": "python -m tools.train_adapters", "date": datetime.date.today().isoformat(), "seeds": [0]}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, out)


if __name__ == "__main__":
    main()
