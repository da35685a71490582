"""Adapters that later chapters need: shipped under `tiny`, trained once and kept under another profile."""

from __future__ import annotations

import pytest
import torch

from utils import models
from utils.lora.checkpoint import WEIGHTS
from utils.models import device, profile
from utils.tinyworld import TASKS
from utils.train import adapter_cache, recipes
from utils.train.adapter_cache import adapter_dir


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The profile `small` with the tiny model in place of the large one, a recipe of few steps, and an empty cache."""
    monkeypatch.setenv("COURSE_PROFILE", "small")
    monkeypatch.setenv("COURSE_MODEL", "assets/tiny-llama")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cpu"))
    short = recipes.BY_PROFILE["small"]._replace(steps=3)
    monkeypatch.setitem(recipes.BY_PROFILE, "small", short)
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_under_tiny_it_is_the_shipped_one(task, monkeypatch):
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    assert adapter_cache.trained_adapter(task, profile()) == adapter_dir(task)


def test_under_another_profile_it_is_trained_once_and_fits_its_base(small, monkeypatch):
    from peft import PeftModel

    folder = adapter_cache.trained_adapter("style", profile())
    assert small in folder.parents
    base, _ = models.load_base()
    model = PeftModel.from_pretrained(base, folder)
    trained = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert trained and all(p.abs().max() > 0 for p in trained), "lora_B is as it was before training"
    monkeypatch.setattr(adapter_cache, "_train", lambda *args: pytest.fail("trained again"))
    assert adapter_cache.trained_adapter("style", profile()) == folder


def test_a_changed_recipe_or_model_has_a_folder_of_its_own(small, monkeypatch):
    asked = []
    monkeypatch.setattr(adapter_cache, "_train", lambda task, settings, folder: asked.append(folder))
    adapter_cache.trained_adapter("style", profile())
    monkeypatch.setitem(recipes.BY_PROFILE, "small", recipes.BY_PROFILE["small"]._replace(lr=1e-5))
    adapter_cache.trained_adapter("style", profile())
    monkeypatch.setenv("COURSE_MODEL", str(models.TINY_DIR))
    adapter_cache.trained_adapter("style", profile())
    assert len(set(asked)) == 3


def test_an_interrupted_training_leaves_no_folder_and_a_damaged_one_is_made_again(small, monkeypatch):
    from trl import SFTTrainer

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "train", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            adapter_cache.trained_adapter("style", profile())
    assert not list(small.rglob(WEIGHTS))
    weights = adapter_cache.trained_adapter("style", profile()) / WEIGHTS
    weights.unlink()
    assert adapter_cache.trained_adapter("style", profile()) / WEIGHTS == weights and weights.is_file()


def test_an_unknown_task_is_named(monkeypatch):
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    with pytest.raises(ValueError, match="poetry"):
        adapter_cache.trained_adapter("poetry", profile())
