"""A LoRA adapter on disk, in the form that PEFT writes and reads.

A folder holds `adapter_config.json`, the settings, and `adapter_model.safetensors`, the matrices, under the names
``base_model.model.<layer>.lora_A.weight`` (r, in) and ``….lora_B.weight`` (out, r). The base model isn't in it; what
:func:`save_adapter` adds, where the model has an embedding, is a fingerprint of the base (:func:`base_fingerprint`) in
the header's free-form metadata, which PEFT doesn't look at.

Attributes:
    PICKLE: What PEFT wrote before safetensors: a pickle, which can run any code when it is loaded.
    DTYPE_BYTES: Bytes of one number of each of safetensors' usual dtypes, by the name that the header gives it.
    LONGEST_HEADER: Bytes: the safetensors library refuses a longer header, so that a bad file can't fill the memory.
    UNSUPPORTED: Settings of PEFT's LoraConfig that change the arithmetic and that this reader refuses rather than
        ignores.
    BASE_CHANGING: Initialisations of PEFT that change the base weight too, so that the matrices mean nothing beside the
        plain base.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.files import replaced_folder
from utils.lora.layer import LoRALinear, lora_layers, refuse_second, wrap
from utils.lora.target_modules import refuse_unfit

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
FINGERPRINT = "base_fingerprint"
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
LONGEST_HEADER = 100_000_000
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
BASE_CHANGING = ("pissa", "corda", "olora", "lora_ga", "loftq")


class Entry(NamedTuple):
    """One tensor in a safetensors header; `begin` and `end` count bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A safetensors header: the tensors by name, the free-form metadata, and the byte of the file where data begin."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_begin: int


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file, read by hand.

    The file is 8 bytes, an unsigned little-endian number `n`; then `n` bytes of JSON; then the numbers of all tensors,
    one behind the other. No tensor is read. Raises FileNotFoundError without the file, and ValueError, saying what is
    wrong, when the file is cut short, its header is no such JSON, or the tensors don't fill the data exactly (which is
    what the safetensors library asks for too).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    size = path.stat().st_size

    def damaged(what: str) -> ValueError:
        return ValueError(f"{path} is truncated or damaged ({what}): copy the file again")

    with path.open("rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise damaged(f"it has {size} bytes, and the length of the header alone takes 8")
        length = int.from_bytes(first, "little")
        if length > min(size - 8, LONGEST_HEADER):
            raise damaged(f"its first 8 bytes promise a header of {length} bytes, and {size - 8} follow")
        text = file.read(length)
    try:
        fields = json.loads(text)
        metadata = fields.pop("__metadata__", {})
        entries = {
            name: Entry(str(field["dtype"]), tuple(map(int, field["shape"])), *map(int, field["data_offsets"]))
            for name, field in fields.items()
        }
        sizes = {name: DTYPE_BYTES.get(e.dtype, 0) * math.prod(e.shape) for name, e in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged("its header is no JSON of tensors") from error
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != at or entry.end < at:
            raise damaged(f"{name} begins at byte {entry.begin} of the data, not at {at}")
        if entry.dtype in DTYPE_BYTES and entry.end - entry.begin != sizes[name]:
            raise damaged(f"{name} takes {entry.end - entry.begin} bytes; {entry.dtype} {entry.shape} is {sizes[name]}")
        at = entry.end
    if at != size - 8 - length:
        raise damaged(f"the tensors take {at} bytes, and {size - 8 - length} follow the header")
    return Header(entries, metadata, 8 + length)


def base_fingerprint(model: nn.Module) -> str | None:
    """16 hexadecimal digits that tell one base model from another of the same shapes; None without an embedding.

    They are of the input embedding, rounded to bfloat16: LoRA on linear layers, merging and 4-bit loading leave it
    alone, so the base has one fingerprint in all these states.
    """
    try:
        weight = cast(Any, model).get_input_embeddings().weight  # of transformers' models
    except (AttributeError, NotImplementedError):
        return None
    data = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]


def save_adapter(
    model: nn.Module, folder: str | Path, *, base_model: str = "", dtype: torch.dtype = torch.float32
) -> None:
    """Write the model's LoRA layers to `folder`, with the matrices in `dtype`, so that PEFT can read them.

    `base_model` is the name of the base, kept in the settings. A variant is written as the plain LoRA that computes the
    same on the base as it was: rsLoRA with another lora_alpha, PiSSA with twice the rank, AdaLoRA with lambda in A. The
    files replace older ones only when both are whole. Raises ValueError when the model has no LoRA layers, layers of
    different rank, alpha or dropout, which one file can't say, or a variant that no plain LoRA equals (DoRA, VeRA).
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("this model has no LoRA layers, so there is nothing to save")
    factors = {name: layer.variant.as_lora(layer) for name, layer in layers.items()}
    kinds = {
        (len(A), _alpha(layers[name], len(A), s), layers[name].lora_dropout.p) for name, (A, _, s) in factors.items()
    }
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
        f"{PREFIX}{name}.{matrix}.weight": value.detach().to("cpu", dtype).contiguous()
        for name, (A, B, _) in factors.items()
        for matrix, value in (("lora_A", A), ("lora_B", B))
    }
    fingerprint = base_fingerprint(model)
    metadata = {"format": "pt"} | ({FINGERPRINT: fingerprint} if fingerprint else {})
    with replaced_folder(folder) as new:
        save_file(tensors, new / WEIGHTS, metadata=metadata)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _alpha(layer: LoRALinear, r: int, scaling: float) -> float:
    """The lora_alpha that gives a plain LoRA layer of rank `r` this scaling: the layer's own where it does."""
    own = layer.lora_alpha
    return own if own is not None and own / r == scaling else scaling * r


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
    """`lora_A` and `lora_B` of every layer in an adapter's folder, on the CPU.

    Raises FileNotFoundError without the file, ValueError when it is damaged, holds anything else, or is a pickle.
    """
    path = folder / WEIGHTS
    if not path.exists():
        if (folder / PICKLE).exists():
            raise ValueError(
                f"{folder} holds {PICKLE}, a pickle, which can run any code of its writer's while it is loaded: it was "
                f"not opened. Ask for {WEIGHTS}, or make it with utils.lora.checkpoint.convert_pickle(folder), which "
                "reads numbers and refuses code"
            )
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


def convert_pickle(folder: str | Path) -> None:
    """Write adapter_model.safetensors from the adapter_model.bin beside it, which stays, without running its code.

    ``torch.load(weights_only=True)`` builds tensors and refuses to call anything else. Raises FileNotFoundError
    without the pickle, and ValueError when it holds anything but tensors by name, or isn't one.
    """
    folder = Path(folder)
    if not (folder / PICKLE).exists():
        raise FileNotFoundError(f"{folder} holds no {PICKLE}, so there is nothing to convert")
    try:
        tensors = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{folder / PICKLE} holds more than numbers, or is damaged: it may run code, and was not loaded. "
            "Delete it, and ask its owner for safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{folder / PICKLE} is truncated or damaged: copy the adapter again") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{folder / PICKLE} holds no tensors by name: it is no adapter")
    with replaced_folder(folder) as new:
        save_file({name: t.contiguous() for name, t in tensors.items()}, new / WEIGHTS, metadata={"format": "pt"})


def fitting_adapter(model: nn.Module, folder: str | Path) -> tuple[dict, dict[str, dict[str, Tensor]]]:
    """An adapter's settings and its matrices by layer, once it is sure that they fit `model`.

    Raises FileNotFoundError when a file is missing and ValueError for a damaged file, for settings that
    :class:`~utils.lora.layer.LoRALinear` doesn't compute, for a layer in 4 bits, and for an adapter of another base: a
    layer that this model doesn't have, one of another shape, or a fingerprint that isn't this model's.
    """
    folder = Path(folder)
    config, matrices = read_config(folder), read_matrices(folder)
    modules = dict(model.named_modules())
    for name, pair in matrices.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            what = "has no such layer" if module is None else f"has a {type(module).__name__} there"
            raise ValueError(
                f"the adapter in {folder.name!r} has matrices for {name}; this model {what}: it belongs to another base"
            )
        if hasattr(module.weight, "quant_state"):
            raise ValueError(
                f"{name} is in 4 bits: its weight is packed bytes, to which nothing can be added. Load the adapter "
                "with PEFT, or turn the model into plain numbers first: utils.lora.merging.dequantized(model)"
            )
        (d_out, d_in), a, b = module.weight.shape, tuple(pair["lora_A"].shape), tuple(pair["lora_B"].shape)
        if a != (config["r"], d_in) or b != (d_out, config["r"]):
            raise ValueError(
                f"the adapter in {folder.name!r} does not fit {name}: lora_A is {a} and lora_B {b}; this model needs "
                f"{(config['r'], d_in)} and {(d_out, config['r'])}. It belongs to another base or its r was changed"
            )
    refuse_unfit(model, list(matrices))
    written, found = read_header(folder / WEIGHTS).metadata.get(FINGERPRINT), base_fingerprint(model)
    if written and found and written != found:
        raise ValueError(
            f"the adapter in {folder.name!r} fits this model's shapes, but was trained on another base: the "
            f"embedding's fingerprint was {written}, and this model's is {found}. Load the base that it was trained on"
        )
    return config, matrices


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> None:
    """Read an adapter that :func:`save_adapter` or PEFT wrote, and put it on a model that has no LoRA layers yet.

    As in PEFT the adapter comes frozen unless `trainable` is set. Raises RuntimeError when the model has LoRA already,
    and what :func:`fitting_adapter` raises. The model is changed only when everything fits.
    """
    refuse_second(model)
    config, matrices = fitting_adapter(model, folder)
    wrap(model, list(matrices), config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for matrix in ("lora_A", "lora_B"):
                getattr(layer, matrix).copy_(matrices[name][matrix]).requires_grad_(trainable)
