"""From shares of an adapter on many processes to an ordinary PEFT folder, and how to see that a folder holds one share.

Attributes:
    FSDP_SHARDS, FSDP_WHOLE: What accelerate's FSDP calls a model in a checkpoint: a folder of shards, or one file.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from utils.files import new_folder, replaced_folder
from utils.lora.adapter_config import CONFIG, checked_settings, read_settings
from utils.lora.checkpoint import WEIGHTS, read_header

if TYPE_CHECKING:
    from peft import PeftModel

FSDP_SHARDS, FSDP_WHOLE = "pytorch_model_fsdp_0", "pytorch_model_fsdp.bin"


# ------------------------------------------------------------------------------------------- out of running processes


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The trained weights of a model, whole, on the CPU, by their names in it: every process has to call it.

    A weight is whole already (DDP), or a DTensor whose shares are gathered (FSDP2), or one that DeepSpeed has cut
    (ZeRO-3). The frozen base is left where it is.
    """
    from torch.distributed.tensor import DTensor

    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if isinstance(parameter, DTensor):
            whole = cast(DTensor, parameter.detach()).full_tensor()
        elif hasattr(parameter, "ds_id"):  # ZeRO-3's mark
            with _deepspeed("").zero.GatheredParameters([parameter]):
                whole = parameter.detach().clone()
        else:
            whole = parameter.detach()
        found[name.replace("_checkpoint_wrapped_module.", "")] = whole.cpu().clone()
    return found


def save_gathered(model: PeftModel, folder: str | Path, *, main: bool) -> None:
    """Save a model's adapter from all processes as PEFT would from one: all call it, and the `main` one writes.

    Raises ValueError when what was written is no whole adapter (:func:`check_whole`).
    """
    state = gathered(model)
    if main:
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)  # or PEFT asks the Hub
        check_whole(folder)


# ---------------------------------------------------------------------------------------------- out of a checkpoint


def consolidate(checkpoint: str | Path, out: str | Path) -> Path:
    """Make an ordinary PEFT folder of a checkpoint of any engine; no other process is needed. Returns the folder.

    checkpoint: a trainer's ``checkpoint-N``, of DDP, of FSDP2 (sharded or whole), or of ZeRO-3.
    Raises FileExistsError when `out` is there, FileNotFoundError for a folder that holds none of these,
    ModuleNotFoundError for ZeRO-3 without deepspeed, and ValueError when the result isn't whole.
    """
    checkpoint, out = Path(checkpoint), new_folder(out)
    settings = read_settings(checkpoint)
    tensors = peft_names(_weights(checkpoint))
    with replaced_folder(out) as scratch:
        from safetensors.torch import save_file

        save_file(tensors, str(scratch / WEIGHTS), metadata={"format": "pt"})
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (scratch / CONFIG).write_text(text, encoding="utf-8")
        check_whole(scratch)
    return out


def peft_names(state: Mapping[str, Tensor], adapter: str = "default") -> dict[str, Tensor]:
    """An adapter's weights by the names of PEFT's file, whichever of PEFT's names they have: without the adapter's own
    (``lora_A.default.weight`` becomes ``lora_A.weight``). Frozen weights of the base are left out."""
    found = {}
    for name, tensor in state.items():
        ours = f".{adapter}." in name or name.endswith(f".{adapter}")
        if "lora_" in name or ours:
            short = name.replace(f".modules_to_save.{adapter}.", ".").replace(f".{adapter}.", ".")
            found[short.removesuffix(f".{adapter}")] = tensor.detach().contiguous().clone()
    return found


def _deepspeed(module: str) -> Any:
    """A module of DeepSpeed, which isn't among the course's packages: only a run under ZeRO-3 needs it."""
    try:
        return importlib.import_module(f"deepspeed{module}")
    except ImportError as error:
        raise ModuleNotFoundError(
            "the weights are DeepSpeed's, which has to be installed to read them: pip install deepspeed"
        ) from error


def saved_by(checkpoint: str | Path) -> tuple[str, int | None]:
    """The engine whose checkpoint it is, "FSDP2", "ZeRO-3" or "DDP" (also without an engine), and on how many
    processes alone it can be gone on with: None for any number."""
    checkpoint = Path(checkpoint)
    if (checkpoint / FSDP_SHARDS).is_dir() or (checkpoint / FSDP_WHOLE).is_file():
        return "FSDP2", None
    if list(checkpoint.glob("global_step*")):
        return "ZeRO-3", len(list(checkpoint.glob("global_step*/*optim_states.pt")))
    return "DDP", None


def check_resumable(checkpoint: str | Path, engine: str, processes: int) -> None:
    """Raise ValueError when a run of this engine (:func:`saved_by`) on so many processes can't go on from a
    checkpoint."""
    was, only = saved_by(checkpoint)
    name = Path(checkpoint).name
    if was != engine:
        raise ValueError(
            f"{name} was saved under {was}, and this run is under {engine}: start it with {was}'s configuration, or "
            "make an adapter of the checkpoint (tools/train.py --consolidate) and begin a run of its own"
        )
    if only not in (None, processes):
        raise ValueError(
            f"{name} was saved by {only} processes under {was}, whose checkpoints go on on the same number alone; this "
            f"run has {processes}. Start it on {only}, or use fsdp2.yaml, whose checkpoints go on on any number"
        )


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    if (checkpoint / FSDP_SHARDS).is_dir():
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        with tempfile.TemporaryDirectory() as scratch:
            dcp_to_torch_save(checkpoint / FSDP_SHARDS, Path(scratch, "whole.bin"))
            return torch.load(Path(scratch, "whole.bin"), map_location="cpu", weights_only=True)["model"]
    if (checkpoint / FSDP_WHOLE).is_file():
        return torch.load(checkpoint / FSDP_WHOLE, map_location="cpu", weights_only=True)
    if list(checkpoint.glob("global_step*")):
        reader = _deepspeed(".utils.zero_to_fp32")
        return cast("dict[str, Tensor]", reader.get_fp32_state_dict_from_zero_checkpoint(str(checkpoint)))
    if (checkpoint / WEIGHTS).is_file():
        from safetensors.torch import load_file

        return load_file(str(checkpoint / WEIGHTS))
    raise FileNotFoundError(
        f"{checkpoint.name} holds no weights of DDP ({WEIGHTS}), FSDP2 ({FSDP_SHARDS}, {FSDP_WHOLE}) or ZeRO-3 "
        "(global_step...): its saving was cut off, or it is no checkpoint. Take an earlier one"
    )


# ----------------------------------------------------------------------------------------------------------- one share


def check_whole(folder: str | Path) -> None:
    """Raise ValueError when an adapter's folder holds the share of one process, or nothing, instead of the adapter.

    FSDP2 cuts a weight along its first dimension, so in one rank's file ``lora_A`` has r / N of its r rows: accelerate
    before 1.15 saved that (accelerate #4206). ZeRO-3 leaves weights of no numbers behind: a file of 40 bytes, or
    tensors without elements (peft #2892). Only the header of the file is read. At r=1 one rank has all of ``lora_A``;
    then only the base's shapes show it (:func:`utils.lora.checkpoint.fitting_adapter`). Raises also what
    :func:`utils.lora.adapter_config.checked_settings` and :func:`utils.lora.checkpoint.read_header` raise.
    """
    folder = Path(folder)
    settings, entries = checked_settings(folder), read_header(folder / WEIGHTS).entries
    size = (folder / WEIGHTS).stat().st_size
    if not entries:
        raise ValueError(
            f"{folder / WEIGHTS} holds no matrices ({size} bytes): it was saved while DeepSpeed ZeRO-3 had the weights "
            f"cut up. {_AGAIN} or with zero3_save_16bit_model: true"
        )
    if empty := [name for name, entry in entries.items() if 0 in entry.shape]:
        raise ValueError(
            f"{folder / WEIGHTS} holds {len(empty)} of {len(entries)} weights without a number, such as {empty[0]}: a "
            f"rank's file, whose share of them is empty. {_AGAIN}"
        )
    r = settings.get("r")
    for name, entry in entries.items():
        rows = entry.shape[0] if entry.shape else 1
        counted = isinstance(r, int) and not settings.get("rank_pattern")
        if name.endswith(".lora_A.weight") and counted and rows < cast(int, r):
            raise ValueError(
                f"{folder} holds one rank's share of an adapter: {name} has {rows} of r={r} rows, as FSDP2 deals them "
                f"out to {-(-cast(int, r) // rows)} processes. The other shares are lost with this file. {_AGAIN}"
            )


_AGAIN = "Save it again from all processes with utils.train.consolidate.save_gathered, or consolidate() a checkpoint,"
