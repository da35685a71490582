"""Where models come from: the profile, the paths, and the one function that loads the base model.

This is the only module that names a model or picks a dtype for one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.tinyworld import TASKS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).resolve().parents[1] / "assets"
"""The folder of everything that is shipped with the course and is not text."""
TINY_DIR = ASSETS / "tiny-llama"
"""The tiny base model with its tokenizer."""


def adapter_dir(task: str) -> Path:
    """The folder of the shipped adapter for one of the course's tasks. Raises ValueError for a task that has none."""
    if task not in TASKS:
        raise ValueError(f"there is no adapter for {task!r}: the course ships one each for {', '.join(TASKS)}")
    return ASSETS / "adapters" / task


def profile() -> str:
    """The value of COURSE_PROFILE, "tiny" when it isn't set. Raises ValueError for a profile that doesn't exist."""
    name = os.environ.get("COURSE_PROFILE") or "tiny"
    if name != "tiny":
        raise ValueError(
            f"COURSE_PROFILE is {name!r}, but the chapters so far know one profile: tiny. Unset it or set it to tiny"
        )
    return name


def best_device() -> torch.device:
    """The fastest device that is there: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_base(dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The base model of the profile in evaluation mode on the CPU, every time afresh, and its tokenizer.

    The tiny Llama is stored in bf16 and computes in `dtype`; on two CPU cores float32 is the fastest. Raises
    FileNotFoundError when the repository was copied without its assets, ValueError for an unknown profile.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar over 38 small tensors says nothing, and it would be stored as stderr
    profile()
    if not (TINY_DIR / "model.safetensors").exists():
        raise FileNotFoundError(
            f"the tiny base model is missing from {TINY_DIR}: fetch the repository again with git clone, "
            "or train the model with tools/train_tiny_base.py"
        )
    tokenizer = AutoTokenizer.from_pretrained(TINY_DIR)
    model = AutoModelForCausalLM.from_pretrained(TINY_DIR, dtype=dtype, use_safetensors=True)
    return model.eval(), tokenizer
