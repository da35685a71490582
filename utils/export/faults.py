"""Exports with one fault each, for chapter 13's reader to find by their symptoms.

Attributes:
    FAULTS: What each letter's export forgets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from utils.export.breakages import rotation_forgotten
from utils.export.edit import edited
from utils.files import expanded

Letter = Literal["A", "B", "C", "D"]
FAULTS: dict[Letter, str] = {"A": "template", "B": "adapter's rotation", "C": "base's rotation", "D": "alpha"}

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def faulty(letter: Letter, model: str | Path, adapter: str | Path, folder: str | Path) -> tuple[Path, Path]:
    """A model's file and an adapter's, one of them with the fault of `letter`; what is faulty is written into `folder`.

    `model` and `adapter` are right GGUF files of a Llama, in float32. Raises ValueError for another letter.
    """
    if letter not in FAULTS:
        raise ValueError(f"there is no export {letter!r}: choose one of {', '.join(FAULTS)}")
    model, adapter, folder = expanded(model), expanded(adapter), expanded(folder)
    unturned = rotation_forgotten(model)
    if letter == "A":
        return edited(model, folder / "A.gguf", {"tokenizer.chat_template": _CHATML}), adapter
    if letter == "B":
        return model, edited(adapter, folder / "B.gguf", tensors=unturned)
    if letter == "C":
        return edited(model, folder / "C.gguf", tensors=unturned), adapter
    return model, edited(adapter, folder / "D.gguf", {"adapter.lora.alpha": 0.0})  # llama.cpp: a scaling of 1
