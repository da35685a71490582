"""Records and examples, and the one way from a prompt to token ids and labels."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "chat": "IGNORED Example batches collate encode render",
        "instructions": "INSTRUCTIONS",
        "labels": "assistant_labels check_completions_survive encode_record prompt_completion_labels",
        "packing": "PackedRow block_diagonal_mask pack",
        "records": (
            "BadRecords Problem find_problems from_dolly read_records to_messages to_prompt_completion user_text"
        ),
        "report": "Report data_report",
    },
)
