"""The answers to chapter 12's exercises, cell by cell as the lesson solves them.

Generated from lessons/12_generation.md by `make notebooks`: edit the lesson, not this file.
"""

import torch

# fmt: off

# -------- soften
def soften(logits, temperature):
    return torch.softmax(logits / temperature, dim=-1)


# -------- nucleus
def nucleus(logits, p):
    falling, order = logits.sort(descending=True)
    probabilities = falling.softmax(dim=-1)
    gone = probabilities.cumsum(dim=-1) - probabilities >= p
    return logits.masked_fill(gone.scatter(0, order, gone), -float("inf"))


# -------- cached_step
def cached_step(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k]), torch.cat([past_v, v])
    weights = torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1)
    return weights @ v, k, v


# -------- pad_left
def pad_left(rows, pad_id):
    missing = [max(map(len, rows)) - len(row) for row in rows]
    ids = [[pad_id] * gap + row for gap, row in zip(missing, rows)]
    return ids, [[0] * gap + [1] * len(row) for gap, row in zip(missing, rows)]


# -------- answer_ids
def answer_ids(output, prompt_length, eos_id):
    answer = output[prompt_length:]
    return answer[: answer.index(eos_id)] if eos_id in answer else answer


# -------- penalize
def penalize(logits, seen, penalty):
    result = logits.clone()
    scores = logits[seen]
    result[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return result
