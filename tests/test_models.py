"""Where models come from, and what is said when they can't."""

import subprocess
import sys

import pytest
import torch

from utils import models
from utils.tinyworld import TASKS

torch.set_num_threads(1)


@pytest.mark.parametrize("value", [None, "", "tiny"])
def test_the_profile_is_tiny_unless_told_otherwise(monkeypatch, value):
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    if value is not None:
        monkeypatch.setenv("COURSE_PROFILE", value)
    assert models.profile() == "tiny"


def test_an_unknown_profile_is_named(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "7B")
    for function in (models.profile, models.load_base):
        with pytest.raises(ValueError, match="COURSE_PROFILE is '7B'.*tiny"):
            function()


def test_missing_assets_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "TINY_DIR", tmp_path / "tiny-llama")
    with pytest.raises(FileNotFoundError, match="missing from .*tiny-llama.*git clone.*tools/train_tiny_base.py"):
        models.load_base()


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert models.best_device() == torch.device(device)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_own_adapter_folder(task):
    assert models.adapter_dir(task) == models.ASSETS / "adapters" / task


@pytest.mark.parametrize("task", ["poetry", "", "../tiny-llama", "Style"])
def test_other_tasks_have_none(task):
    with pytest.raises(ValueError, match="no adapter for .*sentiment, translation, summarization, style"):
        models.adapter_dir(task)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_base_comes_in_the_dtype_that_was_asked_for(dtype):
    model, tokenizer = models.load_base(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert len(tokenizer) == model.config.vocab_size


def test_every_call_loads_afresh():
    first, second = models.load_base()[0], models.load_base()[0]
    with torch.no_grad():
        first.model.embed_tokens.weight.zero_()
    assert second.model.embed_tokens.weight.any()


def test_loading_says_nothing():
    """A notebook would store whatever goes to the streams."""
    code = "from utils import models; models.load_base()"
    done = subprocess.run([sys.executable, "-c", code], cwd=models.ASSETS.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
