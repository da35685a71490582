"""Records and examples, and the one way from a prompt to token ids and labels."""

from utils.data.chat import IGNORED, Example, batches, collate, encode, render
from utils.data.instructions import INSTRUCTIONS
from utils.data.labels import assistant_labels, check_completions_survive, encode_record, prompt_completion_labels
from utils.data.packing import PackedRow, block_diagonal_mask, pack
from utils.data.records import (
    BadRecords,
    Problem,
    find_problems,
    from_dolly,
    read_records,
    to_messages,
    to_prompt_completion,
    user_text,
)
from utils.data.report import Report, data_report

__all__ = [
    "BadRecords",
    "Example",
    "IGNORED",
    "INSTRUCTIONS",
    "PackedRow",
    "Problem",
    "Report",
    "assistant_labels",
    "batches",
    "block_diagonal_mask",
    "check_completions_survive",
    "collate",
    "data_report",
    "encode",
    "encode_record",
    "find_problems",
    "from_dolly",
    "pack",
    "prompt_completion_labels",
    "read_records",
    "render",
    "to_messages",
    "to_prompt_completion",
    "user_text",
]
