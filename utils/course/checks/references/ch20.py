"""The answers to chapter 20's exercises, cell by cell as the lesson solves them.

Generated from lessons/20_capstone.md by `make notebooks`: edit the lesson, not this file.
"""

import math

# fmt: off

# -------- held_out_rows
def held_out_rows(prompts, every):
    numbers = {}
    keys = [" ".join(prompt.casefold().split()) for prompt in prompts]
    for key in keys:
        numbers.setdefault(key, len(numbers))
    return [row for row, key in enumerate(keys) if numbers[key] % every == every - 1]


# -------- luck
def luck(gained, lost):
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)
