"""Preferences and rewards: DPO on pairs, GRPO on a reward, distillation from a teacher, and what they share."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "distill": "ReverseKL distillation_loss reverse_kl train_distillation",
        "dpo": (
            "Pair adapter_off answer_log_probs dpo_loss drift evaluate_pairs has_moral moral_pairs numbers "
            "pair_batch reference_log_probs sample train_dpo trl_trainer"
        ),
        "grpo": "Samples advantages grpo_loss sample_groups train_grpo train_on_best",
        "log_probs": "completion_log_probs completion_mask",
        "rewards": "Reward RewardError reward_of",
    },
)
