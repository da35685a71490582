"""Training data, from a file to a batch: the front door to four modules of one idea each.

:mod:`utils.records` reads records and refuses bad ones, :mod:`utils.labels` makes token ids and labels of them,
:mod:`utils.packing` puts several into one row, :mod:`utils.data_report` looks a data set over.
"""

from __future__ import annotations

from utils.data_report import Report, data_report
from utils.labels import assistant_labels, check_completions_survive, encode_record, prompt_completion_labels
from utils.models import ASSETS
from utils.packing import PackedRow, block_diagonal_mask, pack
from utils.records import (
    BadRecords,
    Problem,
    find_problems,
    from_dolly,
    read_records,
    to_messages,
    to_prompt_completion,
    user_text,
)

INSTRUCTIONS = ASSETS / "data" / "instructions"
"""The course's own instruction data: ``train.jsonl`` and ``test.jsonl``, with a card."""

__all__ = [
    "BadRecords",
    "INSTRUCTIONS",
    "PackedRow",
    "Problem",
    "Report",
    "assistant_labels",
    "block_diagonal_mask",
    "check_completions_survive",
    "data_report",
    "encode_record",
    "find_problems",
    "from_dolly",
    "pack",
    "prompt_completion_labels",
    "read_records",
    "to_messages",
    "to_prompt_completion",
    "user_text",
]
