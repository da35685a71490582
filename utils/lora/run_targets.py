"""What a run's targets mean in its model, asked of the model without its weights, before any are loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.lora.target_modules import ALL_LINEAR, check_targets, expert_parameters, is_named, propose_targets

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def excluding(parts: Sequence[str] | None) -> str | None:
    """LoraConfig's `exclude_modules` for parts of a model, such as ``["vision_tower"]``: each, and all inside of it.

    One regular expression, because PEFT reads a list as ends of names, and a layer inside of a tower ends otherwise.
    """
    return None if not parts else rf"(.*\.)?({'|'.join(map(re.escape, parts))})(\..*)?"


def skeleton(config: PretrainedConfig) -> nn.Module:
    """The causal language model of a configuration on the meta device: names and shapes, no data, nothing fetched."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def look_at_targets(
    model: nn.Module,
    targets: str | Sequence[str],
    parameters: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[str]:
    """Refuse names that mean nothing in this model, and say in a sentence each what the targets miss or take too much.

    `targets`, `parameters` and `exclude` are LoraConfig's `target_modules`, `target_parameters` and parts for
    :func:`excluding`. `model` may be a :func:`skeleton`. Raises ValueError for a name that matches nothing, and where
    the exclusion leaves nothing, besides what :func:`utils.lora.target_modules.check_targets` raises.
    """
    found = check_targets(model, targets)
    weights = [name for name, _ in model.named_parameters()]
    experts = expert_parameters(model)
    for name in parameters or ():
        if not any(is_named(name, weight) for weight in weights):
            known = sorted({weight.rpartition(".")[2] for weight in experts})
            there = f"; its experts are called {', '.join(known)}" if known else ", which has no experts"
            raise ValueError(f"the target parameter {name!r} is no weight of this {type(model).__name__}{there}")
    modules = [name for name, _ in model.named_modules() if name]
    for name in exclude or ():
        if not any(is_named(name, module) for module in modules):
            raise ValueError(
                f"--exclude {name} names no part of this {type(model).__name__}, so it would spare nothing"
            )
    if (pattern := excluding(exclude)) is not None:
        found = [name for name in found if not re.fullmatch(pattern, name)]
        if not found and not parameters:
            raise ValueError(f"--exclude {' '.join(exclude or ())} leaves no layer that could get an adapter")
    if targets != ALL_LINEAR:
        return []
    return _said(model, found, experts, parameters)


def _said(model: nn.Module, found: list[str], experts: list[str], parameters: Sequence[str] | None) -> list[str]:
    """What "all-linear" leaves out or takes in, and the options that change it."""
    proposed, said = propose_targets(model), []
    if experts and not parameters and not {*experts} & {*found}:
        said.append(
            'Look: "all-linear" leaves out the experts of this model, which are parameters and no layers: '
            f"--target-parameters {' '.join(proposed.parameters)} trains them."
        )
    for tower in proposed.towers:
        if any(name.startswith(f"{tower}.") for name in found):
            said.append(
                f'Look: "all-linear" takes in {tower}, which reads no text: --exclude {tower.rpartition(".")[2]} '
                "leaves it out."
            )
    return said
