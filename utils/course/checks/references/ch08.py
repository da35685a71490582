"""The answers to chapter 8's exercises, cell by cell as the lesson solves them.

Generated from lessons/08_loraconfig.md by `make notebooks`: edit the lesson, not this file.
"""

import math

# fmt: off

# -------- scaling
def scaling(r, lora_alpha, use_rslora):
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


# -------- upper_mlp
upper_mlp = r".*\.layers\.[23]\.mlp\.(gate|up|down)_proj"


# -------- matches_nothing
def matches_nothing(names, targets):
    def matches(name, target):
        return name == target or name.endswith("." + target)

    return [t for t in targets if not any(matches(name, t) for name in names)]


# -------- count_with_pattern
def count_with_pattern(shapes, r, rank_pattern):
    total = 0
    for name, (d_out, d_in) in shapes.items():
        matching = [k for k in rank_pattern if name == k or name.endswith("." + k)]
        rank = rank_pattern[matching[0]] if matching else r
        total += rank * (d_out + d_in)
    return total
