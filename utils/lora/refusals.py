"""What the LoRA layers refuse, in words for a learner. Nothing here changes anything."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.lora.nf4_linear import NUMBERS, NF4Linear, is_quantized

if TYPE_CHECKING:
    from utils.lora.layer import LoRA, LoRALinear


def check_hyperparameters(r: Any, lora_alpha: Any, lora_dropout: Any) -> None:
    """Raise TypeError or ValueError when no layer with a scaling can have these."""
    _check_rank_and_dropout(r, lora_dropout)
    if lora_alpha is None:
        raise TypeError(
            "lora_alpha is missing: the correction is multiplied by lora_alpha / r. Take 2 * r to begin with"
        )
    check_number("lora_alpha", lora_alpha, 16)
    if not 0 < lora_alpha < math.inf:
        what = "finite" if lora_alpha == math.inf else "positive"
        raise ValueError(
            f"lora_alpha must be {what}, not {lora_alpha}: the correction is multiplied by lora_alpha / r; with 0 it "
            "would never have an effect or a gradient. Take 2 * r to begin with"
        )


def check_no_alpha(variant: str, r: Any, lora_alpha: Any, lora_dropout: Any) -> None:
    """:func:`check_hyperparameters` for a variant that isn't scaled, by its name."""
    _check_rank_and_dropout(r, lora_dropout)
    if lora_alpha is not None:
        raise ValueError(f"{variant} has no scaling, and so no use for lora_alpha={lora_alpha}: leave it out")


def _check_rank_and_dropout(r: Any, lora_dropout: Any) -> None:
    _check_whole("the rank r", r)
    if r < 1:
        raise ValueError(f"the rank r must be at least 1, not {r}: a correction of rank 0 can't learn anything")
    check_number("lora_dropout", lora_dropout, 0.05)
    if not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout is a probability from 0 up to, not including, 1; it can't be {lora_dropout}")


def check_number(name: str, value: Any, example: float) -> None:
    """Raise TypeError for what is no number, text and True among it; `name` and `example` are shown."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number such as {example}, not {value!r:.160}{_of_text(value)}")


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number such as 8, not {value!r:.160}{_of_text(value)}")


def _of_text(value: Any) -> str:
    """How a number came to be text; empty for what isn't text."""
    if not isinstance(value, str):
        return ""
    return ", which is text: leave the quotes out. YAML reads 1e-3 as text too, and 1.0e-3 as a number"


def check_seed(seed: Any) -> int:
    """A seed as Python's own int. Raises TypeError for what is no whole number, and ValueError beyond 64 bits."""
    _check_whole("seed", seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit into 64 bits, and {seed} doesn't: take a small whole number such as 0")
    return int(seed)


def check_model(model: Any) -> None:
    """Raise TypeError for what is no model: None, a path, or the pair of model and tokenizer that load_base gives."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a model, a torch.nn.Module, not {model!r:.160}: model, tokenizer = load_base() gives one"
        )


def check_count(name: str, value: Any) -> None:
    """Raise TypeError for what is no whole number, True among it, and ValueError for one below 1; `name` is shown."""
    _check_whole(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def check_variant(variant: Any) -> None:
    """Raise TypeError for anything but an object such as ``DoRA()``."""
    if isinstance(variant, type):
        raise TypeError(f"variant is the class {variant.__name__}: make an object of it, {variant.__name__}()")
    if not hasattr(variant, "make_parameters"):
        raise TypeError(f"variant is an object such as utils.lora.DoRA(), not {variant!r}")


def check_linear(base_layer: nn.Module) -> None:
    """Raise TypeError for anything but a linear layer, and for one in 8-bit floating point."""
    if not isinstance(base_layer, nn.Linear):
        raise TypeError(f"LoRALinear wraps an nn.Linear, not {type(base_layer).__name__}: choose another target")
    if (dtype := base_layer.weight.dtype).is_floating_point and dtype not in NUMBERS:
        raise TypeError(
            f"a layer's weight is in {dtype}, which PyTorch neither adds to nor multiplies with other dtypes: load the "
            "base in torch.bfloat16"
        )


def warn_above_full_rank(r: int, d_in: int, d_out: int) -> None:
    """Warn when a weight can't have the rank."""
    if r > min(d_in, d_out):
        warnings.warn(
            f"r={r} is more than a {d_out} x {d_in} weight's full rank, {min(d_in, d_out)}: the extra rank "
            "adds parameters and no freedom",
            stacklevel=4,
        )


def check_product(variant: LoRA) -> None:
    """Raise ValueError for a variant whose layers no plain LoRA layer equals."""
    if not variant.is_product:
        raise ValueError(
            f"{type(variant).__name__} computes something else than a product of two thin matrices, and would be read "
            "back as plain LoRA: merge it into the base, utils.lora.merge_and_unload(model), and save that whole with "
            "model.save_pretrained(folder)"
        )


def refuse_merge(layers: Mapping[str, LoRALinear]) -> None:
    """Raise RuntimeError when one of the layers can't be merged: it is merged already, or its weight is quantized; and
    ValueError when its merged weight would hold what the weight's dtype can't: see :func:`check_storable`.

    The key of a layer is what it is called in the message.
    """
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise RuntimeError(
            f"{_which(merged, layers)} merged already: merging again would add the "
            f"{'correction' if len(layers) == 1 else 'corrections'} twice. "
            f"Call unmerge first{_one_by_one(merged, layers)}"
        )
    for name, layer in layers.items():
        if is_quantized(layer.base_layer):
            raise RuntimeError(
                f"the base weight of {name} is quantized, and its few values can't hold the correction: "
                f"{_way_to_numbers(layer.base_layer)}, then merge"
            )
    for name, layer in layers.items():
        weight = layer.base_layer.weight
        check_storable(f"the merged weight of {name}", layer.variant.merged_weight(layer), weight.dtype)


def check_storable(what: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError when `value` holds NaN or infinity, or would in `dtype`; `what` begins the message."""
    if value.to(dtype).isfinite().all():
        return
    largest = value.abs().max().item()  # NaN, where there is one
    if math.isfinite(largest):
        raise ValueError(
            f"{what} would hold {largest:g}, and {dtype} ends at {torch.finfo(dtype).max:g}: convert the base first, "
            "model.to(torch.float32)"
        )
    raise ValueError(
        f"{what} would hold {largest}: the weight or the correction isn't made of finite numbers. Either the training "
        "went wrong or a file is damaged: go back to a base and an adapter without NaN and infinity"
    )


def refuse_unmerge(layers: Mapping[str, LoRALinear]) -> None:
    """Raise RuntimeError when one of the layers isn't merged, or was quantized since; and ValueError when what was
    merged isn't finite any more.
    """
    if plain := [name for name, layer in layers.items() if not layer.merged]:
        raise RuntimeError(
            f"{_which(plain, layers)} not merged, so there is nothing to take out of the weight"
            f"{_one_by_one(plain, layers)}"
        )
    _refuse_quantized_since(layers, "the correction can't be taken out of it")
    for name, layer in layers.items():
        weight = layer.base_layer.weight
        check_storable(f"the base weight of {name}", layer.variant.unmerged_weight(layer), weight.dtype)


def refuse_release(layers: Mapping[str, LoRALinear]) -> None:
    """Raise RuntimeError when the base of one of the layers can't be had back: it is merged, or it was quantized after
    its variant had changed it.
    """
    refuse_while_merged(
        layers,
        "can't be taken off",
        "call unmerge first, or keep them in the weights and take off the rest with utils.lora.merge_and_unload(model)",
    )
    changed = {name: layer for name, layer in layers.items() if layer.variant.changes_base}
    _refuse_quantized_since(changed, "what its variant took out of it can't be put back")


def refuse_while_merged(layers: Mapping[str, LoRALinear], what: str, way: str = "call unmerge first") -> None:
    """Raise RuntimeError when a correction is merged; `what` says what then can't be done with it, `way` what can."""
    if any(layer.merged for layer in layers.values()):
        raise RuntimeError(f"the corrections are merged into the weights and {what}: {way}")


def _refuse_quantized_since(layers: Mapping[str, LoRALinear], what: str) -> None:
    for name, layer in layers.items():
        if is_quantized(layer.base_layer):
            raise RuntimeError(
                f"the base weight of {name} was quantized in the meantime, and {what}: "
                f"{_way_to_numbers(layer.base_layer)}"
            )


def _way_to_numbers(base_layer: nn.Linear) -> str:
    if isinstance(base_layer, NF4Linear):
        return "dequantize the base first (utils.lora.nf4_linear.dequantize_layers(model))"
    if type(base_layer).__module__.startswith("bitsandbytes"):
        return "dequantize the base first (utils.lora.merging.dequantized(model))"
    return f"dequantize the base first, with what made it {type(base_layer).__name__}, or load it unquantized"


def _which(found: list[str], layers: Mapping[str, LoRALinear]) -> str:
    if len(layers) == 1:
        return f"{found[0]} is"
    return "this model is" if len(found) == len(layers) else f"{len(found)} of {len(layers)} layers are"


def _one_by_one(found: list[str], layers: Mapping[str, LoRALinear]) -> str:
    if len(found) == len(layers):
        return ""
    return f". They are in different states, {found[0]} among these: merge or unmerge them one by one (lora_layers)"
