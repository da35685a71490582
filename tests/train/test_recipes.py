"""The recipes: one for each task under `tiny`, one short one for every task on a large model."""

from __future__ import annotations

import json

import pytest

from utils.models import ASSETS, PROFILES
from utils.tinyworld import TASKS
from utils.train import recipes

LINEAR_IN_A_BLOCK = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_adapters_were_trained_by_it(task):
    wanted = recipes.recipe(task, "tiny")
    written = json.loads((ASSETS / "adapters" / task / "adapter_config.json").read_text(encoding="utf-8"))
    assert (written["r"], written["lora_alpha"]) == (wanted.r, wanted.lora_alpha)
    held = {name.rsplit(".", 1)[-1] for name in written["target_modules"]}
    assert wanted.target_modules == "all-linear" and held == LINEAR_IN_A_BLOCK


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"tiny"}))
def test_a_large_model_gets_one_short_run_and_fewer_prompts(name):
    large = {recipes.recipe(task, name) for task in TASKS}
    assert len(large) == 1 and recipes.held_out(name) < recipes.held_out("tiny")
    (recipe,) = large
    assert recipe.steps * recipe.batch_size <= recipe.examples, "an example would be seen twice"
    assert recipe.steps < min(recipes.recipe(task, "tiny").steps for task in TASKS)


def test_every_profile_is_known_to_the_recipes():
    assert set(recipes.BY_PROFILE) == set(recipes.HELD_OUT_BY_PROFILE) == set(PROFILES) - {"tiny"}


def test_an_unknown_task_and_an_unknown_profile_are_named():
    with pytest.raises(ValueError, match="no recipe for 'poetry': .*sentiment"):
        recipes.recipe("poetry", "tiny")
    for asked in (lambda: recipes.recipe("style", "giant"), lambda: recipes.held_out("giant")):
        with pytest.raises(ValueError, match="giant"):
            asked()
