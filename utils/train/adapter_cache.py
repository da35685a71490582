"""A trained adapter for each of the course's tasks, so that every notebook runs alone and in any order."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import cast

from utils.files import replaced_folder
from utils.lora.checkpoint import CONFIG, WEIGHTS
from utils.models.device import ASSETS, model_name
from utils.models.loading import load_base
from utils.models.smollm2 import cache_dir
from utils.tinyworld import TASKS, Task, task_examples
from utils.train.recipes import Recipe, recipe


def adapter_dir(task: str) -> Path:
    """The folder of the shipped adapter for one of the course's tasks. Raises ValueError for a task that has none."""
    if task not in TASKS:
        raise ValueError(f"there is no adapter for {task!r}: the course ships one each for {', '.join(TASKS)}")
    return ASSETS / "adapters" / task


def trained_adapter(task: Task, profile: str) -> Path:
    """A folder with an adapter for `task` in PEFT's format, for the base of a profile: ``trained_adapter(task,
    profile())``.

    Under `tiny` it is the one that is shipped in assets/adapters. Under another profile the adapter is trained at the
    first call, as in chapter 9, with its :func:`utils.train.recipes.recipe` (SmolLM2-135M, two CPU cores: minutes),
    and kept in the course's cache, see `utils.models.smollm2.cache_dir`. A changed recipe or model has a folder of its
    own, and an interrupted training leaves none. Raises ValueError for an unknown task or profile, and
    utils.models.errors.ModelUnavailable when the base can't be loaded.
    """
    settings = recipe(task, profile)
    if profile == "tiny":
        return adapter_dir(task)
    folder = cache_dir() / "adapters" / profile / f"{task}-{_fingerprint(model_name(profile), settings)}"
    if not all((folder / file).is_file() for file in (CONFIG, WEIGHTS)):
        _train(task, settings, folder)
    return folder


def _fingerprint(model: str, settings: Recipe) -> str:
    """Eight hexadecimal digits that differ when the model or the recipe does."""
    return hashlib.sha256(json.dumps([model, *settings]).encode()).hexdigest()[:8]


def _train(task: Task, settings: Recipe, folder: Path) -> None:
    """Train an adapter for `task` on the profile's base, and write it to `folder` once it is done."""
    from datasets import Dataset
    from peft import PeftModel

    from utils.data.records import to_prompt_completion
    from utils.train.sft import lora_config, sft_config, sft_trainer

    records = [{"instruction": e.prompt, "output": e.answer} for e in task_examples(task, "train", settings.examples)]
    model, tokenizer = load_base()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = sft_trainer(
            model,
            tokenizer,
            Dataset.from_list([to_prompt_completion(r) for r in records]),
            sft_config(scratch, settings),
            peft_config=lora_config(settings),
        )
        trainer.train()
        with replaced_folder(folder) as partial:
            cast(PeftModel, trainer.model).save_pretrained(str(partial), save_embedding_layers=False)
