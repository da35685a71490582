"""Train plain LoRA and activated LoRA (aLoRA) on the course's four tasks, and record how often each answers exactly.

    python -m tools.measure_alora                  one thread: 25 minutes

Written to assets/measurements/alora.json, which chapter 11 reads, after every run; a run that is in the file is not run
again. `--trial` runs two steps of one task and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from utils.evaluate.metrics import exact_match
from utils.files import replaced_folder
from utils.models import load_base
from utils.tinyworld import TASKS, Task, task_examples
from utils.train.loop import train
from utils.train.recipes import HELD_OUT, RECIPES

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements" / "alora.json"
SEEDS = (0, 1, 2)
INVOCATION = "<|assistant|>"
RANK = 32  # what PEFT's documentation begins with


def run(task: Task, r: int, alora: bool, seed: int, steps: int | None = None) -> dict[str, Any]:
    """One training by the task's recipe, with rank `r` and the recipe's alpha: a row of the record."""
    recipe = RECIPES[task]
    base, tokenizer = load_base()
    invocation = tokenizer.encode(INVOCATION, add_special_tokens=False) if alora else None
    config = LoraConfig(
        r=r, lora_alpha=recipe.lora_alpha, target_modules=recipe.target_modules, task_type="CAUSAL_LM",
        alora_invocation_tokens=invocation,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    losses = train(
        model, tokenizer, task_examples(task, "train", recipe.examples), steps=steps or recipe.steps, lr=recipe.lr,
        batch_size=recipe.batch_size, seed=seed, progress=False,
    )  # fmt: skip
    last = losses[-10:]
    return {
        "task": task,
        "alora": alora,
        "r": r,
        "seed": seed,
        "train_loss": round(sum(last) / len(last), 4),
        "exact_match": exact_match(model, tokenizer, task_examples(task, "test", HELD_OUT)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="two steps of one task, nothing written")
    trial = parser.parse_args(arguments).trial
    record: dict[str, Any] = {
        "what": f"LoRA and aLoRA (invoked by {INVOCATION}), by each task's recipe, all-linear, with its alpha; "
        f"share of {HELD_OUT} held-out prompts answered exactly; the training loss is the mean of the last ten steps",
        "hardware": f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "tool": "python -m tools.measure_alora",
        "date": datetime.date.today().isoformat(),
        "seeds": list(SEEDS),
        "rows": [] if trial or not OUT.exists() else json.loads(OUT.read_text())["rows"],
    }
    done = {(row["task"], row["r"], row["alora"], row["seed"]) for row in record["rows"]}
    for seed in SEEDS[:1] if trial else SEEDS:
        for task in TASKS[:1] if trial else TASKS:
            for r, alora in ((RECIPES[task].r, False), (RECIPES[task].r, True), (RANK, True)):
                if (task, r, alora, seed) in done:
                    continue
                record["rows"].append(run(task, r, alora, seed, steps=2 if trial else None))
                print(record["rows"][-1], flush=True)
                if not trial:
                    with replaced_folder(OUT.parent) as folder:
                        (folder / OUT.name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
