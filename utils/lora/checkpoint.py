"""A LoRA adapter on disk, in the form that PEFT writes and reads.

A folder holds `adapter_config.json`, the settings, and `adapter_model.safetensors`, the matrices, under the names
``base_model.model.<layer>.lora_A.weight`` (r, in) and ``….lora_B.weight`` (out, r). The base model isn't in it.

:func:`read_files` is the one reader: whatever loads, merges, combines or serves an adapter goes through it, and so is
refused in the same words. What it can check depends on who wrote the file. :func:`save_adapter` adds three things to
the header's free-form metadata, which PEFT doesn't look at: the settings that the arithmetic needs, so that a config
that was edited later, or belongs to another save, is seen; a checksum of the matrices; and a fingerprint of the base
(:mod:`utils.lora.fingerprint`). A file that PEFT or a Trainer wrote has none of these. There the shapes are compared,
the layers that the settings name, and the base's name where it is one of the Hub's; so a changed `lora_alpha`, a
flipped bit, another revision of the base, or another base of the same shapes in a local folder go unseen.

Attributes:
    PICKLE: What PEFT wrote before safetensors: a pickle, which can run any code when it is loaded.
    SETTINGS: In the metadata: `r` and `lora_alpha`, as JSON.
    CHECKSUM: In the metadata: the SHA-256 of the matrices, see :func:`checksum`.
    BASE: In the metadata: the fingerprint of the base's embedding.
    DTYPE_BYTES: Bytes of one number of each of safetensors' usual dtypes, by the name that the header gives it.
    FLOATS: The dtypes that an adapter's matrices may have.
    LONGEST_HEADER: Bytes: the safetensors library refuses a longer header, so that a bad file can't fill the memory.
    LARGEST: What a correction may reach, by the largest entries of its parts. Trained ones stay under 1e3; far above,
        the model's own numbers overflow.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from utils.files import replaced_folder
from utils.lora import fingerprint
from utils.lora.adapter_config import (
    CONFIG,
    all_linear,
    checked_settings,
    read_config,
    short,
    targeted,
    unsupported,
    why_missing,
)
from utils.lora.layer import LoRALinear, lora_layers, refuse_second, wrap
from utils.lora.target_modules import match_targets, refuse_unfit

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
SETTINGS, CHECKSUM, BASE = "lora_settings", "sha256", "base_embedding"
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LONGEST_HEADER = 100_000_000
LARGEST = 1e12
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")


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
    if not os.path.isfile(path):
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
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
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


# ------------------------------------------------------------------------------------------------------------ saving


def save_adapter(
    model: nn.Module, folder: str | Path, *, base_model: str = "", dtype: torch.dtype = torch.float32
) -> None:
    """Write the model's LoRA layers to `folder`, with the matrices in `dtype`, so that PEFT can read them.

    `base_model` is the name of the base, kept in the settings. A variant is written as the plain LoRA that computes the
    same on the base as it was: rsLoRA with another lora_alpha, PiSSA with twice the rank, AdaLoRA with lambda in A. The
    files replace older ones as :func:`utils.files.replaced_folder` does: whoever is killed here leaves the old adapter,
    or the new one, but no mixture. Raises ValueError when the model has no LoRA layers, layers of different rank, alpha
    or dropout, which one file can't say, a variant that no plain LoRA equals (DoRA, VeRA), a matrix that isn't finite,
    or numbers that `dtype` can't hold; TypeError when `dtype` isn't one of :data:`FLOATS`; OSError when the files can't
    be written. What was in `folder` is then as it was.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("this model has no LoRA layers, so there is nothing to save")
    if dtype not in FLOATS:
        raise TypeError(
            f"the matrices can't be saved as {dtype}: choose torch.float32, torch.bfloat16 or torch.float16"
        )
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
        f"{PREFIX}{name}.{matrix}.weight": _stored(value, dtype, f"{matrix} of {name}")
        for name, (A, B, _) in factors.items()
        for matrix, value in (("lora_A", A), ("lora_B", B))
    }
    metadata = {
        "format": "pt",
        SETTINGS: json.dumps({"r": r, "lora_alpha": lora_alpha}),
        CHECKSUM: checksum(tensors),
    }
    if (embedding := fingerprint.embedding(model)) is not None:
        metadata[BASE] = fingerprint.fingerprint(embedding).text()
    if moved := _read_otherwise(model, list(layers)):
        warnings.warn(
            f"PEFT takes {moved[0]}, and what is called like it, for parts of this model's fused experts: it would "
            "read this adapter otherwise than it was trained. load_adapter reads it rightly; for PEFT leave these "
            "layers out of the targets",
            stacklevel=2,
        )
    text = json.dumps(config, indent=2) + "\n"
    _write(folder, {WEIGHTS: _bytes(tensors, metadata), CONFIG: text.encode()})


def _read_otherwise(model: nn.Module, names: list[str]) -> list[str]:
    """Which of the layers PEFT doesn't give their matrices, because it takes their names for those of experts."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(kind, str):
        return []
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if get_checkpoint_conversion_mapping(kind) is None:
        return []
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=names)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # gate_proj without up_proj, which it can't fuse
        return names
    return [name for name in names if name not in (config.target_modules or ())]


def _write(folder: str | Path, contents: Mapping[str, bytes]) -> None:
    """Write files into `folder`, all or none."""
    with replaced_folder(folder) as new:
        try:
            for name, data in contents.items():
                (new / name).write_bytes(data)
        except OSError as error:
            raise OSError(
                f"the adapter couldn't be written to {folder} ({error}). What was there is as it was: free some space, "
                "or choose another place, and save again"
            ) from error


def _alpha(layer: LoRALinear, r: int, scaling: float) -> float:
    """The lora_alpha that gives a plain LoRA layer of rank `r` this scaling: the layer's own where it does."""
    own = layer.lora_alpha
    return own if own is not None and own / r == scaling else scaling * r


def _stored(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """A matrix as it is written. Raises ValueError when it isn't finite, or no longer is in `dtype`."""
    value = value.detach().to("cpu")
    if not value.isfinite().all():
        raise ValueError(f"{what} holds NaN or infinity, so the training has diverged: nothing was saved")
    stored = value.to(dtype).contiguous()
    if not stored.isfinite().all():
        raise ValueError(
            f"{what} holds {value.abs().max().item():g}, and {dtype} ends at {torch.finfo(dtype).max:g}: save in "
            "torch.bfloat16 or torch.float32"
        )
    return stored


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors by name: of their names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in another order each time."""
    data = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    text = json.dumps(header | {"__metadata__": dict(sorted(metadata.items()))}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


# ----------------------------------------------------------------------------------------------------------- reading


class AdapterFiles(NamedTuple):
    """An adapter as its two files have it: the settings, `lora_A` and `lora_B` by layer, the base's fingerprint."""

    config: dict[str, Any]
    matrices: dict[str, dict[str, Tensor]]
    base: fingerprint.Fingerprint | None


def read_files(folder: str | Path) -> AdapterFiles:
    """An adapter, once it is sure that its two files are whole and belong together; what fits which model is another
    question (:func:`fitting_adapter`).

    Raises what :func:`read_config` and :func:`read_matrices` raise, and ValueError when settings and matrices don't
    belong together: another rank, another r or lora_alpha than was saved with the matrices, or a layer that
    `target_modules` doesn't name.
    """
    folder = Path(folder)
    config, (tensors, metadata) = read_config(folder), _read_tensors(folder)
    matrices = _by_layer(tensors, folder / WEIGHTS)
    for key, was in _parsed(metadata, SETTINGS, folder, _settings_of).items():
        if config[key] != was:
            raise ValueError(
                f"{folder / CONFIG} says {key}={short(config[key])}, and the matrices beside it were saved with "
                f"{key}={short(was)}: the settings were changed after saving, or belong to another adapter. Write "
                f"{key}={short(was)} again, or save the adapter again"
            )
    largest = 0.0
    for name, pair in matrices.items():
        (r, d_in), (d_out, columns) = pair["lora_A"].shape, pair["lora_B"].shape
        if {r, columns} != {config["r"]}:
            raise ValueError(
                f"{folder / CONFIG} says r={short(config['r'])}, and the matrices of {name} are {(r, d_in)} and "
                f"{(d_out, columns)}: the settings were changed, or belong to another adapter"
            )
        if not targeted(config, name):
            raise ValueError(
                f"{folder} holds matrices for {name!r}, and its target_modules doesn't name that layer: the settings "
                "belong to another adapter"
            )
        sizes = (max(1.0, pair[matrix].abs().max().item()) for matrix in ("lora_A", "lora_B"))
        largest = max(largest, math.prod(sizes) * config["lora_alpha"] / r)
    if largest > LARGEST:
        raise ValueError(
            f"the correction in {folder} could reach {largest:.0e}, with lora_alpha={short(config['lora_alpha'])}; "
            "no model can compute with that: copy the adapter again"
        )
    return AdapterFiles(config, matrices, _parsed(metadata, BASE, folder, fingerprint.parsed) or None)


def written_base(folder: str | Path) -> fingerprint.Fingerprint | None:
    """The fingerprint of its base that an adapter's file has, of whatever method; None where it has none. Only the
    header is read. Raises FileNotFoundError without the file, and ValueError when it is damaged.
    """
    folder = Path(folder)
    return _parsed(read_header(folder / WEIGHTS).metadata, BASE, folder, fingerprint.parsed) or None


def refuse_untouched(config: Mapping[str, Any], matrices: Mapping[str, Any], folder: str | Path) -> None:
    """Raise ValueError when a list of targets has an entry for which there are no matrices: without the model that is
    all of a missing part that can be seen.
    """
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else []:
        if not any(targeted({"target_modules": [target]}, name) for name in matrices):
            raise ValueError(
                f"target_modules in {Path(folder) / CONFIG} names {short(target)}, and there are no matrices for it: "
                "copy the adapter again. If that name never meant a layer of the model, take it out of target_modules"
            )


def check_files(folder: str | Path) -> AdapterFiles | None:
    """:func:`read_files` for any adapter that PEFT reads: of one that is more than plain LoRA the settings have to be
    what they can be and the tensors whole, and None is returned. Raises what :func:`read_files` raises.
    """
    config = checked_settings(Path(folder))
    if config.get("peft_type") == "LORA" and not unsupported(config):
        return read_files(folder)
    _read_tensors(Path(folder))
    return None


def read_matrices(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """`lora_A` (r, in) and `lora_B` (out, r) of every layer in an adapter's folder, on the CPU.

    Raises FileNotFoundError without the file, and ValueError when it is damaged, is a pickle, or holds anything but
    pairs of finite matrices of one of :data:`FLOATS`, or others than it was saved with.
    """
    folder = Path(folder)
    return _by_layer(_read_tensors(folder)[0], folder / WEIGHTS)


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in an adapter's file, whatever they are called, and its metadata."""
    path = folder / WEIGHTS
    if not os.path.isfile(path):  # False, too, for a name that no file can have
        if os.path.isfile(folder / PICKLE):
            raise ValueError(
                f"{folder} holds {PICKLE}, a pickle, which can run any code of its writer's while it is loaded: it was "
                f"not opened. Ask for {WEIGHTS}, or make it with utils.lora.checkpoint.convert_pickle(folder), which "
                "reads numbers and refuses code"
            )
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}: {why_missing(folder)}")
    metadata = read_header(path).metadata
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy the adapter again") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{path} holds {name!r} in {tensor.dtype}, which is no adapter's: load it with PEFT")
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path} holds NaN or infinity in {name!r}: its training diverged, or its numbers didn't fit into the "
                "dtype that it was saved in"
            )
    if metadata.get(CHECKSUM, saved := checksum(tensors)) != saved:
        raise ValueError(
            f"{path} doesn't hold the numbers that it was saved with (their checksum is another): copy the adapter "
            "again"
        )
    return tensors, metadata


def _by_layer(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, matrix = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not key.startswith(PREFIX) or not key.endswith(".weight") or matrix not in ("lora_A", "lora_B") or not name:
            raise ValueError(f"{path} holds {key!r}, which is no matrix of a LoRA layer: load it with PEFT")
        if tensor.ndim != 2 or not tensor.numel():
            raise ValueError(f"{path} holds {key!r} with the shape {tuple(tensor.shape)}, which is no matrix's")
        layers.setdefault(name, {})[matrix] = tensor
    if incomplete := [name for name, pair in layers.items() if len(pair) < 2]:
        raise ValueError(f"{path} holds only one of lora_A and lora_B for {incomplete[0]}: copy the adapter again")
    if not layers:
        raise ValueError(f"{path} holds no LoRA matrices")
    return layers


def _parsed(metadata: Mapping[str, str], key: str, folder: Path, parse: Callable[[str], Any]) -> Any:
    """What `parse` makes of an entry of the metadata; an empty dictionary where there is none."""
    if key not in metadata:
        return {}
    try:
        return parse(metadata[key])
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged (its {key}: {error}): copy the adapter again") from error


def _settings_of(text: str) -> dict[str, Any]:
    """The settings that were saved with the matrices."""
    try:
        settings = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(settings, dict) or settings.keys() != {"r", "lora_alpha"}:
        raise ValueError("it doesn't say r and lora_alpha")
    return settings


def convert_pickle(folder: str | Path) -> None:
    """Write adapter_model.safetensors from the adapter_model.bin beside it, which stays, without running its code.

    ``torch.load(weights_only=True)`` builds tensors and refuses to call anything else. Raises FileNotFoundError
    without the pickle, and ValueError when it holds anything but tensors by name, or isn't one.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / PICKLE):
        raise FileNotFoundError(f"{folder} holds no {PICKLE}, so there is nothing to convert")
    try:
        tensors = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{folder / PICKLE} holds more than numbers, or is damaged: it may run code, and was not loaded. "
            "Delete it, and ask its owner for safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise ValueError(f"{folder / PICKLE} is truncated or damaged: copy the adapter again") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{folder / PICKLE} holds no tensors by name: it is no adapter")
    _write(folder, {WEIGHTS: save({name: t.contiguous() for name, t in tensors.items()}, metadata={"format": "pt"})})


# ----------------------------------------------------------------------------------------------------- onto a model


def fitting_adapter(
    model: nn.Module, folder: str | Path, *, check_base: bool = True
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """An adapter's settings and its matrices by layer, once it is sure that they fit `model`.

    Raises what :func:`read_files` raises, and ValueError for an adapter of another base, or of which a part is missing:
    a layer that this model doesn't have, one of another shape, a layer of this model that the settings name and the
    file lacks. Unless `check_base` is off, also when the fingerprint of the base's embedding isn't this model's
    (rows that only one of them has don't count), or, where the file has none, when the settings name one model of the
    Hub and this model comes from another.
    """
    folder = Path(folder)
    config, matrices, base = read_files(folder)
    modules = dict(model.named_modules())
    for name, pair in matrices.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            what = "has no such layer" if module is None else f"has a {type(module).__name__} there"
            raise ValueError(
                f"the adapter in {folder.name!r} has matrices for {short(name)}; this model {what}: it belongs to "
                "another base"
            )
        needed, found = (module.out_features, module.in_features), (len(pair["lora_B"]), pair["lora_A"].shape[1])
        if needed != found:  # not the weight's shape: in 4 bits that is another
            raise ValueError(
                f"the adapter in {folder.name!r} does not fit {name}: it corrects a weight of {found}, and this "
                f"model's is {needed}. It belongs to another base"
            )
    refuse_unfit(model, list(matrices))
    _refuse_part(model, config, matrices, folder)
    if check_base:
        _refuse_other_base(model, config, base, folder)
    return config, matrices


def _refuse_part(model: nn.Module, config: dict[str, Any], matrices: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError when the settings name linear layers of the model that the file has no matrices for."""
    targets = config.get("target_modules")
    if targets is None:  # PEFT then takes what it knows to be usual for the architecture
        return
    named = set(match_targets(model, targets)[targets]) if all_linear(targets) else None
    expected = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and targeted(config, name) and (named is None or name in named)
    ]
    if missing := [name for name in expected if name not in matrices]:
        raise ValueError(
            f"the settings of the adapter in {folder.name!r} name {len(expected)} layers of this model, and the file "
            f"has no matrices for {len(missing)} of them, {missing[0]} among these: copy the adapter again"
        )


def _refuse_other_base(
    model: nn.Module, config: dict[str, Any], base: fingerprint.Fingerprint | None, folder: Path
) -> None:
    """Raise ValueError when the adapter was trained on another base, as far as the file tells."""
    embedding = fingerprint.embedding(model)
    if base is not None and embedding is not None:
        if other := fingerprint.difference(base, embedding):
            raise ValueError(
                f"the adapter in {folder.name!r} fits this model's shapes, but was trained on another base: of the "
                f"embedding that it was trained with, {other}. Load the base that it was trained on"
            )
        return
    written, here = config.get("base_model_name_or_path"), getattr(getattr(model, "config", None), "_name_or_path", "")
    if other_model(written, here):
        raise ValueError(
            f"the adapter in {folder.name!r} was trained on {written}, and this model is {here}: load that one. If "
            "they are the same model under two names, pass check_base=False"
        )


def other_model(written: Any, here: Any) -> bool:
    """Whether two names are of different models, for sure: both are ids of the Hub, OWNER/NAME, and the NAMEs differ.

    Another owner may have copied the model, and a folder may have been moved or renamed, so these tell nothing.
    """
    ids = [name for name in (written, here) if isinstance(name, str) and _HUB_ID.fullmatch(name)]
    names = {name.rpartition("/")[2].lower() for name in ids if not Path(name).exists()}
    return len(names) > 1


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False, check_base: bool = True) -> None:
    """Read an adapter that :func:`save_adapter` or PEFT wrote, and put it on a model that has no LoRA layers yet, whose
    layers may be in 4 bits.

    As in PEFT the adapter comes frozen unless `trainable` is set. Raises RuntimeError when the model has LoRA already,
    and what :func:`fitting_adapter` raises. The model is changed only when everything fits.
    """
    refuse_second(model)
    config, matrices = fitting_adapter(model, folder, check_base=check_base)
    wrap(model, list(matrices), config["r"], config["lora_alpha"], config["lora_dropout"])
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for matrix in ("lora_A", "lora_B"):
                getattr(layer, matrix).copy_(matrices[name][matrix]).requires_grad_(trainable)
