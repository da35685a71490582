"""Records and examples, and the one way from a prompt to token ids and labels."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "chat": "IGNORED Example collate encode padded render",
        "duplicates": "near_duplicates",
        "formats": "Reading read_own read_records",
        "instructions": "INSTRUCTIONS",
        "labels": (
            "assistant_labels batches check_completions_survive encode_record encode_rows prompt_completion_labels"
        ),
        "packing": "PackedRow block_diagonal_mask pack",
        "records": "BadRecords Problem find_problems to_messages to_prompt_completion user_text",
        "report": "Report data_report",
        "template": "check_template template_problems",
    },
)
