"""The course's own instruction data, written by tools/make_dataset.py.

Attributes:
    INSTRUCTIONS: The folder with ``train.jsonl``, ``test.jsonl`` and a card.
"""

from __future__ import annotations

from utils.models.device import ASSETS

INSTRUCTIONS = ASSETS / "data" / "instructions"
