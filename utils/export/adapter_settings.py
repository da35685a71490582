"""What an adapter's settings say of its matrices: their ranks, and by what a module's update is multiplied.

What a preflight passes and what a writer takes has to be the same, so both ask here, of settings that
:func:`utils.lora.adapter_config.checked_settings` has read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.lora.adapter_config import CONFIG, short
from utils.lora.checkpoint import LARGEST


def check_rank(folder: Path, settings: Mapping[str, Any], module: str, a: Sequence[int], b: Sequence[int]) -> None:
    """Raise ValueError when the shapes of a module's lora_A, `a`, and lora_B, `b`, aren't of the rank that the settings
    say, or the settings multiply its update by more than any model computes with.
    """
    said = by_pattern(settings.get("rank_pattern"), module, settings.get("r"))
    if not a[0] == b[1] == said:
        raise ValueError(
            f"{folder / CONFIG} says rank {short(said)} for {module}, and its matrices are {tuple(a)} and {tuple(b)}: "
            "the settings were changed, or belong to another adapter"
        )
    if (times := scaling(settings, module, a[0])) > LARGEST:
        raise ValueError(
            f"{folder / CONFIG} multiplies the update of {module} by {times:.0e}; no model can compute with that: copy "
            "the adapter again"
        )


def scaling(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """By what PEFT multiplies ``lora_B @ lora_A`` of a module whose matrices have this rank.

    lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (https://arxiv.org/abs/2312.03732), where alpha_pattern may give
    the module an alpha of its own.
    """
    alpha = by_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def by_pattern(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """What a PEFT pattern says of a module, as PEFT looks it up."""
    if not pattern:
        return otherwise
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(list(pattern), module), otherwise)
