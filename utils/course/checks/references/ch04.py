"""The answers to chapter 4's exercises, cell by cell as the lesson solves them.

Generated from lessons/04_a_lora_layer_from_scratch.md by `make notebooks`: edit the lesson, not this file.
"""

import torch
import torch.nn.functional as F
from torch import nn

# fmt: off

# -------- lora_layer
class LoRALayer(nn.Module):
    def __init__(self, base_layer, r, lora_alpha, lora_dropout=0.0):
        super().__init__()
        d_out, d_in = base_layer.weight.shape
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(r, d_in))
        self.lora_B = nn.Parameter(torch.zeros(d_out, r))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
        self.lora_dropout = nn.Dropout(lora_dropout)
        self.scaling = lora_alpha / r

    def forward(self, x):
        low = F.linear(self.lora_dropout(x), self.lora_A)
        return self.base_layer(x) + self.scaling * F.linear(low, self.lora_B)


# -------- layers_to_wrap
def layers_to_wrap(model, targets):
    named = model.named_modules()
    return [n for n, m in named if isinstance(m, nn.Linear) and n.rpartition(".")[2] in targets]


# -------- answer_labels
def answer_labels(prompt_ids, answer_ids):
    return [-100] * len(prompt_ids) + answer_ids


# -------- merged_weight
def merged_weight(weight, lora_A, lora_B, scaling):
    return weight + scaling * (lora_B @ lora_A)
