"""What an adapter's folder says of itself without a weight being read: its settings, and its tensors' names and shapes.

PEFT writes `adapter_config.json` and a safetensors file, whose first bytes list every tensor by name, dtype and shape.
That is enough to tell what a server will refuse, so an adapter of any size is looked at in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.export.adapter_settings import check_rank
from utils.files import expanded
from utils.lora.adapter_config import checked_settings
from utils.lora.checkpoint import PICKLE, PREFIX, WEIGHTS, read_header

_PAIR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True)
class AdapterFacts:
    """The settings and the tensors of one adapter.

    folder: where it is. settings: adapter_config.json, with what it leaves out left out. shapes: of every tensor, by
    its name in the file without PEFT's prefix. dtypes: likewise, as safetensors calls them (F32, BF16 ...). files: the
    other files in the folder, by name.
    """

    folder: Path
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    files: tuple[str, ...]

    @property
    def method(self) -> str:
        """The PEFT method, in capitals: LORA, LOHA, VERA ..."""
        return str(self.settings.get("peft_type")).upper()

    @property
    def linear(self) -> dict[str, int]:
        """The rank of every linear layer that has a lora_A and a lora_B, by the layer's name. Pairs on fused experts,
        which hold r rows for each expert, aren't among them.
        """
        ends = (name.removesuffix(f".{_PAIR[0]}") for name in self.shapes if name.endswith(f".{_PAIR[0]}"))
        fused = bool(self.settings.get("target_parameters"))
        return {name: self.shapes[f"{name}.{_PAIR[0]}"][0] for name in ends if not (fused and ".experts" in name)}

    def check_ranks(self) -> None:
        """Raise ValueError when the ranks of the linear layers' pairs aren't those that the settings say."""
        for name in self.linear:
            a, b = (self.shapes.get(f"{name}.{matrix}") for matrix in _PAIR)
            if a is None or b is None:
                raise ValueError(
                    f"{self.folder / WEIGHTS} holds only one of lora_A and lora_B for {name}: copy the adapter again"
                )
            check_rank(self.folder, self.settings, name, a, b)

    @property
    def embeddings(self) -> list[str]:
        """The embeddings that have a low-rank pair of their own, by name."""
        return sorted(n.removesuffix(f".{_EMBEDDING[0]}") for n in self.shapes if n.endswith(f".{_EMBEDDING[0]}"))

    @property
    def magnitudes(self) -> list[str]:
        """DoRA's trained lengths, by the names of their tensors."""
        return [name for name in self.shapes if "lora_magnitude_vector" in name]

    @property
    def tokens(self) -> list[str]:
        """Trained rows of an embedding (`trainable_token_indices`), by the names of their tensors."""
        return [name for name in self.shapes if "trainable_tokens_delta" in name]

    @property
    def biases(self) -> list[str]:
        """Trained biases, of layers or of lora_B, by the names of their tensors."""
        return [name for name in self.shapes if name.endswith(".bias")]

    @property
    def whole(self) -> list[str]:
        """Weights that are saved whole, by the names of their tensors: of `modules_to_save`, or an embedding and a
        head that PEFT saved because the vocabulary had grown.
        """
        known = (*_PAIR, *_EMBEDDING, ".bias")
        rest = [name for name in self.shapes if not name.endswith(known)]
        return [name for name in rest if name not in self.magnitudes + self.tokens]

    @property
    def rank(self) -> int:
        """The largest rank: of the settings' `r`, or of a pair where one is larger."""
        return max([*self.linear.values(), self.settings.get("r", 0) if self.method == "LORA" else 0])


def adapter_facts(folder: str | Path) -> AdapterFacts:
    """Read the settings and the header of the adapter in `folder`.

    Raises FileNotFoundError without one of the two files, and ValueError when one is damaged, or when a setting of a
    LoRA adapter isn't what it can be.
    """
    folder = expanded(folder)
    settings = checked_settings(folder)
    if not (folder / WEIGHTS).is_file():
        why = (
            f"{PICKLE}, a pickle, is there instead. Make it one by utils.lora.convert_pickle"
            if (folder / PICKLE).is_file()
            else "copy the adapter again"
        )
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}: {why}")
    entries = {name.removeprefix(PREFIX): entry for name, entry in read_header(folder / WEIGHTS).entries.items()}
    if bare := [name for name, entry in entries.items() if name.endswith(_PAIR) and len(entry.shape) < 2]:
        raise ValueError(
            f"{folder / WEIGHTS} holds {bare[0]} of shape {entries[bare[0]].shape}, which is no matrix's: copy the "
            "adapter again"
        )
    return AdapterFacts(
        folder,
        settings,
        {name: entry.shape for name, entry in entries.items()},
        {name: entry.dtype for name, entry in entries.items()},
        tuple(sorted(path.name for path in folder.iterdir() if path.is_file())),
    )
