"""A model's weights, one tensor at a time: from a folder's safetensors, or from a model in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from utils.export.errors import ExportError
from utils.lora.checkpoint import read_header

_IGNORED = ("rotary_emb.inv_freq", ".masked_bias")  # buffers that old folders hold, computed from the configuration
_INDEX = "model.safetensors.index.json"


class Weights:
    """The tensors of a model by their names in transformers, read when they are asked for.

    shapes: of every tensor. where: what a message calls the place.
    """

    shapes: dict[str, tuple[int, ...]]

    def __init__(self, source: Path | nn.Module) -> None:
        """Look a folder's safetensors files over, or a model's state. Raises ExportError for a folder without weights
        in safetensors, or without one of the files that its index names, and ValueError for a damaged header.
        """
        self._state: Mapping[str, Tensor] = {}
        self._files: dict[str, Path] = {}
        if isinstance(source, nn.Module):
            self.where, self._state = f"this {type(source).__name__}", source.state_dict()
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._state.items()}
        else:
            self.where, self.shapes = str(source), {}
            for file in _weight_files(source):
                for name, entry in read_header(file).entries.items():
                    self._files[name], self.shapes[name] = file, entry.shape
        for name in [name for name in self.shapes if name.endswith(_IGNORED)]:
            del self.shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, on the CPU, in its own dtype."""
        if name in self._state:
            return self._state[name].detach().cpu()
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name)

    def without_tied_head(self, config: Any) -> None:
        """Leave the output head out where it is the embedding again. Raises ExportError when it no longer is."""
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if not config.tie_word_embeddings or head not in self.shapes or embedding not in self.shapes:
            return
        if not self[head].equal(self[embedding]):
            raise ExportError(
                f"{self.where} says tie_word_embeddings, and its lm_head is another matrix than its embedding: set "
                "config.tie_word_embeddings = False before the model is saved"
            )
        del self.shapes[head]


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        try:
            named = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ExportError(f"{folder / _INDEX} is damaged ({error}): copy the model again") from error
        if missing := [name for name in named if not (folder / name).is_file()]:
            raise ExportError(f"{folder} lacks {missing[0]}, which its index names: copy the model again")
        return [folder / name for name in named]
    if found := sorted(folder.glob("model*.safetensors")):
        return found
    raise ExportError(
        f"{folder} holds no model.safetensors: pass the folder that save_pretrained wrote (a pickle, "
        "pytorch_model.bin, isn't opened)"
    )
