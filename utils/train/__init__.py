"""Training: the course's own loop, TRL's trainers set up for the course, studies and sweeps."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "adapter_cache": "adapter_dir trained_adapter",
        "callbacks": "LiveLoss",
        "consolidate": "check_resumable check_whole gathered save_gathered",
        "loop": "learning_rate_factor train",
        "run_file": "RunFile batch_of_a_process checked_run",
        "own_data": "GENERAL data_facts general_texts hold_out other_texts prompt_key split_records",
        "recipes": "RECIPES Recipe held_out recipe",
        "run_folder": "is_trained keep_adapter last_checkpoint unfinished",
        "settings": "Settings",
        "sft": "OLD_ARGUMENTS lora_config resume sft_config sft_trainer tracker trained_tokens",
        "study": ("Arm Work finished from_record go_on last_loss objective open_study spent suggest teacher_forced"),
    },
)
