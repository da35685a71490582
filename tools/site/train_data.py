"""What the website's figure "train" trains on and is measured by: the sentiment recipe's rows, batch by batch.

    python -m tools.site.train_data         writes site/figures/train/task.json

The file holds what every prompt begins with, the rows that are drawn, which of them each step's batch has, in order,
and held-out prompts; and, as "coin", the loss of a model that knows both answers and tosses a coin between them.
:func:`start` is the adapter that the figure begins with.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.site.figure_data import FIGURES, held_out, write
from tools.site.golden import mulberry32
from utils.data.chat import encode
from utils.models.loading import load_tiny
from utils.tinyworld import task_examples
from utils.tinyworld.tasks import Task
from utils.train.recipes import RECIPES

FILE = FIGURES / "train" / "task.json"
TASK: Task = "sentiment"
ASK = "Is this good or bad? "
RECIPE = RECIPES[TASK]
SEED, HELD_OUT = 0, 40


def batches() -> list[list[int]]:
    """The rows that :func:`utils.data.labels.batches` draws for each step, by their numbers."""
    rng = random.Random(SEED)
    return [rng.sample(range(RECIPE.examples), RECIPE.batch_size) for _ in range(RECIPE.steps)]


def task() -> dict[str, Any]:
    """The file's contents; its batches count the rows that are in it."""
    examples, drawn = task_examples(TASK, "train", RECIPE.examples), batches()
    used = sorted({row for batch in drawn for row in batch})
    place = {row: i for i, row in enumerate(used)}
    assert all(examples[row].prompt.startswith(ASK) for row in used)
    tokens = [len(answer) for _, answer in encode(load_tiny()[1], [examples[row] for row in used])]
    return {
        "ask": ASK,
        "coin": round(math.log(2) * len(tokens) / sum(tokens), 3),
        "recipe": RECIPE._asdict(),
        "rows": [[examples[row].prompt.removeprefix(ASK), examples[row].answer] for row in used],
        "batches": [[place[row] for row in batch] for batch in drawn],
        "held_out": held_out(TASK, HELD_OUT),
    }


def start(r: int, seed: int = SEED) -> dict[str, Tensor]:
    """lora_A of each linear layer as the engine draws it: evenly within 1 / sqrt(in), as PEFT's start is."""
    draw, found = mulberry32(seed), {}
    widths = {name: m.in_features for name, m in load_tiny()[0].named_modules() if isinstance(m, nn.Linear)}
    for name in sorted(name for name in widths if name.endswith("_proj")):
        d_in = widths[name]
        values = [(2 * next(draw) - 1) / d_in**0.5 for _ in range(r * d_in)]
        found[name] = torch.tensor(values).view(r, d_in)
    return found


def files() -> dict[Path, str]:
    """The figure's file and what it holds."""
    return {FILE: json.dumps(task(), ensure_ascii=False, separators=(",", ":")) + "\n"}


if __name__ == "__main__":
    write(files())
