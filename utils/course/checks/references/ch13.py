"""The answers to chapter 13's exercises, cell by cell as the lesson solves them.

Generated from lessons/13_my_run_went_wrong.md by `make notebooks`: edit the lesson, not this file.
"""

import math


# -------- adam8bit_bytes
def adam8bit_bytes(sizes):
    return sum(8 * n if n < 4096 else 2 * n + 8 * math.ceil(n / 256) for n in sizes)


# -------- diagnose
def diagnose(signs):
    found = []
    if signs.trainable == 0:
        found.append("nothing trainable")
    elif signs.trend == "jumped":
        found.append("rate too high")
    elif signs.trend == "flat":
        found.append("rate too low")
    if signs.padding:
        found.append("padding learnt")
    if not signs.eos:
        found.append("no end mark")
    return found


# -------- how_often
def how_often(before, after, A, B):
    delta = B @ A
    return float(((after - before) * delta).sum() / delta.square().sum())


# -------- largest_batch
def largest_batch(budget, held, per_sequence):
    return max(0, int((budget - held) // per_sequence))
