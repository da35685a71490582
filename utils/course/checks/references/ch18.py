"""The answers to chapter 18's exercises, cell by cell as the lesson solves them.

Generated from lessons/18_preferences_and_rewards.md by `make notebooks`: edit the lesson, not this file.
"""

import re

import torch
import torch.nn.functional as F

# fmt: off

# -------- dpo_loss
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    lead = beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)
    return -F.logsigmoid(lead).mean()


# -------- group_advantages
def group_advantages(rewards):
    above = rewards - rewards.mean(dim=1, keepdim=True)
    return above / (rewards.std(dim=1, keepdim=True) + 1e-4)


# -------- grpo_loss
def grpo_loss(log_probs, old, advantages, mask, epsilon):
    ratio = (log_probs - old).exp()
    gain = advantages[:, None]
    per_token = torch.minimum(ratio * gain, ratio.clamp(1 - epsilon, 1 + epsilon) * gain)
    return -(per_token * mask).sum() / mask.sum()


# -------- reward_words
def reward_words(prompts, completions, words, **columns):
    rewards = []
    for text, wanted in zip(completions, words):
        said = set(re.findall(r"[a-z]+", text.lower()))
        rewards.append(len(said & set(wanted)) / len(set(wanted)))
    return rewards


# -------- reverse_kl
def reverse_kl(student_logits, teacher_logits):
    p, q = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
