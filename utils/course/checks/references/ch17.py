"""The answers to chapter 17's exercises, cell by cell as the lesson solves them.

Generated from lessons/17_what_an_update_does.md by `make notebooks`: edit the lesson, not this file.
"""

from statistics import mean

import torch

# fmt: off

# -------- choose_setting
def choose_setting(settings, target):
    reached = [s for s in settings if mean(s["dev"]) >= target]
    return min(reached, key=lambda s: mean(s["stories_dev"]), default=None)


# -------- stable_rank
def stable_rank(update):
    s = torch.linalg.svdvals(update)
    return ((s**2).sum() / s[0] ** 2).item()


# -------- count_intruders
def count_intruders(base, tuned, threshold, leading):
    old = torch.linalg.svd(base, full_matrices=False).U
    new = torch.linalg.svd(tuned, full_matrices=False).U[:, :leading]
    closest = (old.T @ new).abs().max(dim=0).values  # (leading,)
    return int((closest < threshold).sum())
