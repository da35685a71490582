"""The answers to chapter 9's exercises, cell by cell as the lesson solves them.

Generated from lessons/09_sft_training.md by `make notebooks`: edit the lesson, not this file.
"""

import math

import torch

# fmt: off

# -------- optimizer_steps
def optimizer_steps(examples, epochs, batch, accumulation):
    batches = math.ceil(examples / batch)
    return epochs * math.ceil(batches / accumulation)


# -------- accumulated_loss
def accumulated_loss(losses):
    return sum(part.sum() for part in losses) / sum(len(part) for part in losses)


# -------- rate_at
def rate_at(step, steps, warmup, peak):
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (steps - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2


# -------- clipped
def clipped(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [g * min(1.0, max_norm / norm) for g in gradients]


# -------- best_checkpoint
def best_checkpoint(losses, patience):
    best, waited = 0, 0
    for now, loss in enumerate(losses):
        if now == 0 or loss < losses[best]:
            best, waited = now, 0
        else:
            waited += 1
        if waited == patience:
            break
    return now, best
