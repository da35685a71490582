"""The recipes: one for each task under `tiny`, one short one for every task on a large model."""

from __future__ import annotations

import pytest

from utils.models import PROFILES, profile
from utils.tinyworld import TASKS
from utils.train import recipes


@pytest.mark.parametrize("task", TASKS)
def test_under_tiny_each_task_has_its_own(task, monkeypatch):
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    assert recipes.recipe(task, profile()) is recipes.RECIPES[task]
    assert recipes.held_out(profile()) == recipes.HELD_OUT == 200


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"tiny"}))
def test_a_large_model_gets_a_short_run_and_fewer_prompts(name, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", name)
    large = {recipes.recipe(task, profile()) for task in TASKS}
    assert large == {recipes.BY_PROFILE[name]}
    assert recipes.held_out(profile()) == recipes.HELD_OUT_BY_PROFILE[name] < recipes.HELD_OUT
    assert all(r.steps * r.batch_size <= r.examples for r in large), "an example would be seen twice"


def test_every_profile_is_known_to_the_recipes():
    assert set(recipes.BY_PROFILE) == set(recipes.HELD_OUT_BY_PROFILE) == set(PROFILES) - {"tiny"}


def test_an_unknown_task_and_an_unknown_profile_are_named(monkeypatch):
    with pytest.raises(ValueError, match="no recipe for 'poetry': .*sentiment"):
        recipes.recipe("poetry", profile())
    monkeypatch.setenv("COURSE_PROFILE", "giant")
    with pytest.raises(ValueError, match="giant"):
        recipes.recipe("style", profile())
