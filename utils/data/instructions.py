"""The course's own instruction data, written by tools/make_dataset.py."""

from __future__ import annotations

from utils.models.device import ASSETS

INSTRUCTIONS = ASSETS / "data" / "instructions"
"""The folder with ``train.jsonl``, ``test.jsonl`` and a card."""
