"""The answers to chapter 16's exercises, cell by cell as the lesson solves them.

Generated from lessons/16_what_an_update_does.md by `make notebooks`: edit the lesson, not this file.
"""

import torch

# -------- choose
situations = {
    "the base alone does not fit on the card": None,
    "ten thousand users, an adapter each, and little room to store them": None,
    "lora_alpha was found at r=8, and now r=64 is to be tried": None,
    "which layers need rank is to be found out by training": None,
    "a first run on a new task": None,
}
names = ["QLoRA", "VeRA", "rsLoRA", "AdaLoRA", "LoRA"]
choose = dict(zip(situations, names))


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


# -------- dpo_loss
import torch.nn.functional as F


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    lead = beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)
    return -F.logsigmoid(lead).mean()
