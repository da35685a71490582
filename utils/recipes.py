"""How each of the course's tasks is taught: the settings that the shipped adapters and the lessons use."""

from __future__ import annotations

from typing import NamedTuple

from utils.tinyworld import Task

HELD_OUT = 200
"""So many held-out prompts every accuracy in the course is measured on."""


class Recipe(NamedTuple):
    """A training run's settings: `examples` different training examples are drawn from in batches of `batch_size`."""

    r: int
    lora_alpha: int
    lr: float
    steps: int
    batch_size: int = 16
    examples: int = 4000
    target_modules: str = "all-linear"


RECIPES: dict[Task, Recipe] = {
    "sentiment": Recipe(r=8, lora_alpha=16, lr=4e-3, steps=150),
    "translation": Recipe(r=16, lora_alpha=32, lr=4e-3, steps=500),
    "summarization": Recipe(r=8, lora_alpha=16, lr=4e-3, steps=120),
    "style": Recipe(r=8, lora_alpha=16, lr=6e-3, steps=180, batch_size=8),
}
