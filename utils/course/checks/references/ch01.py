"""The answers to chapter 1's exercises, cell by cell as the lesson solves them.

Generated from lessons/01_the_fine_tuning_problem.md by `make notebooks`: edit the lesson, not this file.
"""

from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

# fmt: off

# -------- attention_parameters
def attention_parameters(hidden, heads, kv_heads):
    head_dim = hidden // heads
    return 2 * hidden * hidden + 2 * hidden * kv_heads * head_dim


# -------- training_gb
def training_gb(parameters, bytes_each):
    weights = gradients = parameters * bytes_each
    moments = 2 * parameters * bytes_each
    return (weights + gradients + moments) / 1e9


# -------- lora_training_gb
def lora_training_gb(parameters, trainable):
    base = 2 * parameters
    adapter = 16 * trainable
    return (base + adapter) / 1e9


# -------- sequences_that_fit
def sequences_that_fit(one, two, room):
    if one > room:
        return 0
    return 1 + int((room - one) // (two - one))


# -------- chunked_loss
def chunked_loss(hidden, weight, labels, chunk):
    def summed(rows, targets):
        return cross_entropy(rows @ weight.T, targets, ignore_index=-100, reduction="sum")

    total = 0.0
    for start in range(0, len(labels), chunk):
        part = slice(start, start + chunk)
        total = total + checkpoint(summed, hidden[part], labels[part], use_reentrant=False)
    return total / (labels != -100).sum()
