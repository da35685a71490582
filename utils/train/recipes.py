"""How each of the course's tasks is taught: the settings that the shipped adapters and the lessons use.

Attributes:
    HELD_OUT: So many held-out prompts every accuracy in the course is measured on under the profile `tiny`.
    BY_PROFILE: Under a profile with a large model every task has the same short recipe; it was not searched for.
"""

from __future__ import annotations

from typing import NamedTuple

from utils.models.device import check_profile
from utils.tinyworld import Task

HELD_OUT = 200


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


BY_PROFILE: dict[str, Recipe] = {
    "small": Recipe(r=8, lora_alpha=16, lr=1e-3, steps=40, batch_size=4, examples=400),
    "7b": Recipe(r=8, lora_alpha=16, lr=2e-4, steps=100, batch_size=4, examples=1000),
}
HELD_OUT_BY_PROFILE = {"small": 20, "7b": 50}


def recipe(task: Task, profile: str) -> Recipe:
    """The task's recipe under a profile, such as ``recipe("style", profile())``.

    Raises ValueError for an unknown task or profile.
    """
    if task not in RECIPES:
        raise ValueError(f"there is no recipe for {task!r}: the course's tasks are {', '.join(RECIPES)}")
    return BY_PROFILE.get(check_profile(profile), RECIPES[task])


def held_out(profile: str) -> int:
    """How many held-out prompts an accuracy is measured on under a profile. Raises ValueError for an unknown one."""
    return HELD_OUT_BY_PROFILE.get(check_profile(profile), HELD_OUT)
