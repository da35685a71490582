"""The answers to chapter 13's exercises, cell by cell as the lesson solves them.

Generated from lessons/13_tune_and_troubleshoot.md by `make notebooks`: edit the lesson, not this file.
"""

import math

# fmt: off

# -------- halving_steps
def halving_steps(trials, shortest, longest, eta):
    total = done = 0
    until = shortest
    while trials and until <= longest:
        total += trials * (until - done)
        trials, done, until = trials // eta, until, until * eta
    return total


# -------- honest_winner
def honest_winner(first, again):
    winner = first.index(min(first))
    return winner, first[winner], sum(again[winner]) / len(again[winner])


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
