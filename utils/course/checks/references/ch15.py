"""The answers to chapter 15's exercises, cell by cell as the lesson solves them.

Generated from lessons/15_choosing_settings.md by `make notebooks`: edit the lesson, not this file.
"""

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
