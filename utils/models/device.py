"""The profile, the folders, and the device and dtype that a machine computes with.

COURSE_PROFILE chooses among :data:`PROFILES`.

Attributes:
    ASSETS: The folder of everything that is shipped with the course and is not text.
    TINY_DIR: The tiny base model with its tokenizer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


ASSETS = ROOT / "assets"


TINY_DIR = ASSETS / "tiny-llama"


class Profile(NamedTuple):
    """A size of the work: the model (a Hub id; the tiny one is shipped), its parameters, and what it takes."""

    model: str
    parameters: float
    needs: str


PROFILES = {
    "tiny": Profile("assets/tiny-llama", 1.8e6, "nothing: it is shipped with the course and runs on the CPU"),
    "small": Profile("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6, "a free Colab T4, or patience on a CPU"),
    "7b": Profile("Qwen/Qwen2.5-7B-Instruct", 7.6e9, "a CUDA GPU of 16 GB or more"),
}


def profile() -> str:
    """The value of COURSE_PROFILE, "tiny" when it isn't set. Raises ValueError for a profile that doesn't exist."""
    name = os.environ.get("COURSE_PROFILE") or "tiny"
    if name not in PROFILES:
        raise ValueError(
            f"COURSE_PROFILE is {name!r}, but the course knows {', '.join(PROFILES)}. Set it to one of them"
        )
    return name


def check_profile(name: str) -> str:
    """The name again. Raises ValueError for a profile that doesn't exist."""
    if name not in PROFILES:
        raise ValueError(f"there is no profile {name!r}: the course knows {', '.join(PROFILES)}")
    return name


def model_name(profile: str) -> str:
    """The model that a profile loads: what COURSE_MODEL says, a folder or a Hub id, else the profile's own.

    The tiny model is always the shipped one. Raises ValueError for a profile that doesn't exist.
    """
    chosen = os.environ.get("COURSE_MODEL") if check_profile(profile) != "tiny" else None
    return chosen or PROFILES[profile].model


def best_device() -> torch.device:
    """The fastest device that is there: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def model_device() -> torch.device:
    """Where the profile's model is loaded to: the CPU for the tiny one, else the best device."""
    return torch.device("cpu") if profile() == "tiny" else best_device()


def compute_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """The dtype to compute in on `device` (default: where the profile's model is loaded to).

    CUDA: bfloat16 where the card has it in hardware, else float16, which needs loss scaling. Elsewhere float32: a CPU
    is fastest with it, and whether an Apple GPU takes bfloat16 depends on its system.
    """
    device = model_device() if device is None else torch.device(device)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def weights_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """The dtype of a whole model's weights on `device`: :func:`compute_dtype`, but float32 where that is float16.

    Gradients in float16 vanish without loss scaling, which a trainer has and a loop of a few lines has not. So a card
    without bfloat16, such as a T4, gets float32 weights; a trainer computes with them in float16 by autocast.
    """
    dtype = compute_dtype(device)
    return torch.float32 if dtype == torch.float16 else dtype


def trainer_precision(device: torch.device | str | None = None) -> dict[str, bool]:
    """The arguments of a Trainer that depend on the machine, for ``SFTConfig(..., **trainer_precision())``.

    They are `bf16` or `fp16`, by :func:`compute_dtype`, or neither; `use_cpu`; and `dataloader_pin_memory`, which is
    for CUDA alone. With fp16 see :func:`widen_trainable`.
    """
    device = model_device() if device is None else torch.device(device)
    dtype = compute_dtype(device)
    return {
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
    }


def widen_trainable(model: nn.Module) -> int:
    """Turn every trainable parameter of 16 bits into float32, and return how many there were.

    fp16 training scales the loss and takes the scale out of the gradients again, and torch does that for float32
    gradients alone. TRL makes the adapters of a 4-bit model bfloat16, whatever the card: call this between making such
    a trainer and its ``train()``.
    """
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)]
    for parameter in narrow:
        parameter.data = parameter.data.float()
    return len(narrow)
