"""A LoRA adapter on disk, in the form that PEFT writes and reads.

A folder holds `adapter_config.json`, the settings, and `adapter_model.safetensors`, the matrices, under the names
``base_model.model.<layer>.lora_A.weight`` (r, in) and ``….lora_B.weight`` (out, r). The base model isn't in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.files import replaced_folder
from utils.lora import lora_layers, refuse_second, wrap

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""Settings of PEFT's LoraConfig that change the arithmetic and that this reader refuses rather than ignores."""
BASE_CHANGING = ("pissa", "corda", "olora", "lora_ga", "loftq")
"""Initialisations of PEFT that change the base weight too, so that the matrices mean nothing beside the plain base."""


def save_adapter(
    model: nn.Module, folder: str | Path, *, base_model: str = "", dtype: torch.dtype = torch.float32
) -> None:
    """Write the model's LoRA layers to `folder`, with the matrices in `dtype`, so that PEFT can read them.

    `base_model` is the name of the base, kept in the settings. The files replace older ones only when both are whole.
    Raises ValueError when the model has no LoRA layers or layers of different rank, alpha or dropout, which one file
    can't say.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("this model has no LoRA layers, so there is nothing to save")
    kinds = {(layer.r, layer.lora_alpha, layer.lora_dropout.p) for layer in layers.values()}
    if len(kinds) > 1:
        raise ValueError(f"the layers differ in (r, lora_alpha, lora_dropout): {sorted(kinds)}; save them apart")
    r, lora_alpha, lora_dropout = kinds.pop()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "target_modules": list(layers),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {
        f"{PREFIX}{name}.{matrix}.weight": getattr(layer, matrix).detach().to("cpu", dtype).contiguous()
        for name, layer in layers.items()
        for matrix in ("lora_A", "lora_B")
    }
    with replaced_folder(folder) as new:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict:
    """The settings in an adapter's folder. Raises FileNotFoundError without one, ValueError when it can't be used
    here.
    """
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG}: it is not an adapter's folder, or its writing was cut short"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy the adapter again") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} is damaged (it holds no settings but a {type(config).__name__}): copy the adapter again"
        )
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path} describes a {config.get('peft_type')} adapter, and this reader knows LORA only")
    used = [key for key in UNSUPPORTED if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
    if str(config.get("init_lora_weights")).lower().startswith(BASE_CHANGING):
        used.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if used:
        raise ValueError(f"{path} uses {', '.join(used)}, which LoRALinear does not compute: load it with PEFT")
    if missing := [key for key in ("r", "lora_alpha") if key not in config]:
        raise ValueError(f"{path} is damaged (it doesn't say {' and '.join(missing)}): copy the adapter again")
    return config


def read_matrices(folder: Path) -> dict[str, dict[str, Tensor]]:
    """`lora_A` and `lora_B` of every layer in an adapter's folder. Raises FileNotFoundError or ValueError."""
    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {WEIGHTS}: its writing was cut short, or it was saved in another form"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy the adapter again") from error
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, matrix = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not key.startswith(PREFIX) or matrix not in ("lora_A", "lora_B"):
            raise ValueError(f"{path} holds {key!r}, which is no matrix of a LoRA layer: load it with PEFT")
        layers.setdefault(name, {})[matrix] = tensor
    if incomplete := [name for name, pair in layers.items() if len(pair) < 2]:
        raise ValueError(f"{path} holds only one of lora_A and lora_B for {incomplete[0]}: copy the adapter again")
    if not layers:
        raise ValueError(f"{path} holds no LoRA matrices")
    return layers


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> None:
    """Read an adapter that :func:`save_adapter` or PEFT wrote, and put it on a model that has no LoRA layers yet.

    As in PEFT the adapter comes frozen unless `trainable` is set. Raises FileNotFoundError when a file is missing,
    RuntimeError when the model has LoRA already, and ValueError for a damaged file, for settings that
    :class:`~utils.lora.LoRALinear` doesn't compute, and for an adapter of another base: a layer that this model doesn't
    have, or one of another shape. The model is changed only when everything fits.
    """
    folder = Path(folder)
    refuse_second(model)
    config, matrices = read_config(folder), read_matrices(folder)
    modules = dict(model.named_modules())
    for name, pair in matrices.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            what = "has no such layer" if module is None else f"has a {type(module).__name__} there"
            raise ValueError(
                f"the adapter in {folder.name!r} has matrices for {name}; this model {what}: it belongs to another base"
            )
        (d_out, d_in), a, b = module.weight.shape, tuple(pair["lora_A"].shape), tuple(pair["lora_B"].shape)
        if a != (config["r"], d_in) or b != (d_out, config["r"]):
            raise ValueError(
                f"the adapter in {folder.name!r} does not fit {name}: lora_A is {a} and lora_B {b}; this model needs "
                f"{(config['r'], d_in)} and {(d_out, config['r'])}. It belongs to another base or its r was changed"
            )
    wrap(model, list(matrices), config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for matrix in ("lora_A", "lora_B"):
                getattr(layer, matrix).copy_(matrices[name][matrix]).requires_grad_(trainable)
