"""Whether a base is the one that an adapter was trained on, as far as the two say.

Shapes say little: every fine-tune of a model has them all. An adapter that this course saved has a fingerprint of its
base's embedding (:mod:`utils.lora.fingerprint`), and that is compared. One that PEFT or a Trainer saved has a name
alone, and a name tells of another base only where both are ids of the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from utils.export.weights import Weights
from utils.files import expanded
from utils.lora import fingerprint
from utils.lora.adapter_config import checked_settings
from utils.lora.checkpoint import other_model, written_base
from utils.models.device import TINY_DIR

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


class Compared(NamedTuple):
    """same: whether it is the base; None where nothing tells. why: what was compared, in words."""

    same: bool | None
    why: str


def named_base(settings: Mapping[str, Any]) -> str | None:
    """What an adapter's settings call its base, as a folder or an id that can be loaded; None where they name none. The
    course's own adapters name the tiny model by its name alone.
    """
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        return None
    return str(TINY_DIR) if name == TINY_DIR.name and not Path(name).exists() else name


def base_folder(base: str | Path) -> Path | None:
    """The folder of a model that is on this machine, also in the Hub's cache; None where it isn't."""
    folder = expanded(base)
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    try:
        found = cached_file(str(base), "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(found).parent if found else None


def compared(folder: str | Path, base: Any) -> Compared:
    """Hold the adapter in `folder` against `base`: a model, its folder, its id on the Hub, or its configuration.

    Raises FileNotFoundError and ValueError for an adapter that is missing or damaged, and for a base's damaged weights.
    """
    folder = expanded(folder)
    written = written_base(folder)
    embedding = _embedding(base) if written is not None else None
    if written is not None and embedding is not None:
        if other := fingerprint.difference(written, embedding):
            return Compared(False, f"of the embedding it was trained with, {other}")
        return Compared(True, "its embedding is the one that the adapter was trained with")
    name, here = named_base(checked_settings(folder)), _name(base)
    if other_model(name, here):
        return Compared(False, f"the adapter's settings name {name}, and this is {here}")
    if name is not None and here and (name == here or expanded(name).resolve() == expanded(here).resolve()):
        return Compared(True, "it is the one that the adapter's settings name")
    why = "the adapter has no fingerprint of its base" if written is None else "this base's embedding can't be read"
    return Compared(None, f"{why}, and shapes alone are the same in every fine-tune")


def _embedding(base: Any) -> Tensor | None:
    """The base's input embedding; None where it isn't at hand, or quantized."""
    if isinstance(base, nn.Module):
        return fingerprint.embedding(base)
    found = base_folder(base) if isinstance(base, str | Path) else None
    if found is None or not list(found.glob("model*.safetensors")):
        return None
    weights = Weights(found)
    name = next((name for name in weights.shapes if name.endswith(_EMBEDDINGS)), None)
    tensor = None if name is None else weights[name]
    return tensor if tensor is not None and tensor.is_floating_point() and tensor.ndim == 2 else None


def _name(base: Any) -> str:
    """What a base is called: a folder, or an id of the Hub; "" where it doesn't say."""
    if isinstance(base, str | Path):
        return str(base)
    config = base.config if isinstance(base, nn.Module) else base
    return str(getattr(config, "_name_or_path", "") or "")
