"""One model in several forms at once, with an adapter beside it or merged, that share what they can: for measuring.

Attributes:
    FORMS: What :func:`forms` makes; a model in float32 has no adapter in 16 bits.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

R, SEED = 8, 0
FORMS = ("base", "adapter", "adapter in 16 bits", "merge_adapter", "merge_and_unload", "base again")


def shared(model: nn.Module) -> nn.Module:
    """The model's modules once more, over the same parameters."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def with_adapters(model: nn.Module, target_modules: Any, names: tuple[str, ...] = ("default",)) -> Any:
    """PEFT's model with a random adapter of each name, r=8, in evaluation mode; `model` is changed in place.

    PEFT keeps the matrices in float32 beside a 16-bit base.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    config = LoraConfig(
        r=R, lora_alpha=2 * R, target_modules=target_modules, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    return wrapped.eval()


def forms(model: nn.Module, target_modules: Any) -> dict[str, nn.Module]:
    """The model in each of :data:`FORMS` with one random adapter, over two sets of weights: its own and merged ones.

    "merge_adapter" keeps PEFT's wrapper, "merge_and_unload" is the plain model with the merged weights, "base again"
    the base a second time, which shows what a difference in time has to exceed. `model` itself stays as it is.
    """
    beside = with_adapters(shared(model), target_modules)
    found = {"base": model, "adapter": beside}
    if model.dtype != torch.float32:
        narrow = found["adapter in 16 bits"] = with_adapters(shared(model), target_modules)
        for name, parameter in narrow.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(model.dtype)
    merged = copy.deepcopy(model)
    plain = shared(merged)
    found["merge_adapter"] = with_adapters(merged, target_modules)
    found["merge_adapter"].merge_adapter()  # into the parameters, which the plain model shares
    return found | {"merge_and_unload": plain, "base again": model}
