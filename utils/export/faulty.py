"""Exports with one fault each, for chapter 13's reader to find: made from right ones, by what people forget.

Attributes:
    FAULTS: What each letter's export forgets; the chapter asks for this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

Letter = Literal["A", "B", "C", "D"]
FAULTS: dict[Letter, str] = {"A": "template", "B": "adapter's rotation", "C": "base's rotation", "D": "alpha"}

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def faulty(letter: Letter, base: str | Path, adapter: str | Path, folder: str | Path) -> tuple[Path, Path]:
    """Copies in `folder` of a right base and a right adapter (GGUF), one of them with the fault of `letter`.

    Both are of a Llama, in f32. Returns the base's path and the adapter's. Raises ValueError for another letter.
    """
    if letter not in FAULTS:
        raise ValueError(f"there is no export {letter!r}: choose one of {', '.join(FAULTS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{letter}-base.gguf", folder / f"{letter}-adapter.gguf"
    heads = _heads(gguf.GGUFReader(base))

    def turned_back(name: str, rows: np.ndarray) -> np.ndarray:
        for part, count in heads.items():
            if name.startswith("blk.") and name.endswith((f"{part}.weight", f"{part}.weight.lora_b")):
                return rows.reshape(count, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
        return rows

    template = {"tokenizer.chat_template": _CHATML} if letter == "A" else {}
    _copy(base, paths[0], template, turned_back if letter == "C" else None)
    alpha = {"adapter.lora.alpha": 0.0} if letter == "D" else {}  # llama.cpp then takes a scaling of 1
    _copy(adapter, paths[1], alpha, turned_back if letter == "B" else None)
    return paths


def _heads(base: gguf.GGUFReader) -> dict[str, int]:
    def field(name: str) -> int:
        found = base.get_field(f"llama.attention.{name}")
        assert found is not None
        return int(found.contents())

    return {"attn_q": field("head_count"), "attn_k": field("head_count_kv")}


def _copy(
    source: str | Path, target: Path, values: dict[str, Any], change: Callable[[str, np.ndarray], np.ndarray] | None
) -> None:
    """`source` again, with other values of its metadata and with `change` of each tensor's name and rows."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        items = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, values.get(field.name, field.contents()), kind, sub_type=items)
    for tensor in reader.tensors:
        rows = tensor.data if change is None else change(tensor.name, tensor.data)
        writer.add_tensor(tensor.name, np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
