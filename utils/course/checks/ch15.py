"""Chapter 15's exercises: the study's budget and its winner."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from utils.course.checks.references import ch15 as lesson
from utils.course.checks.registry import Mistake, exercise

# ======================================================================================= the study and memory


def _halving_anew(trials: int, shortest: int, longest: int, eta: int) -> int:
    total, until = 0, shortest
    while trials and until <= longest:
        total += trials * until
        trials, until = trials // eta, until * eta
    return total


def _halving_losers(trials: int, shortest: int, longest: int, eta: int) -> int:
    total = done = 0
    until = shortest
    while trials and until <= longest:
        total += trials * (until - done)
        trials, done, until = trials - trials // eta, until, until * eta
    return total


def _halving_added(trials: int, shortest: int, longest: int, eta: int) -> int:
    total = done = 0
    until = shortest
    while trials and until <= longest:
        total += trials * (until - done)
        trials, done, until = trials // eta, until, until + shortest
    return total


def _halving_rounded_up(trials: int, shortest: int, longest: int, eta: int) -> int:
    total = done = 0
    until = shortest
    while until <= longest:
        total += trials * (until - done)
        trials, done, until = -(-trials // eta), until, until * eta
    return total


def _halving_cut(trials: int, shortest: int, longest: int, eta: int) -> int:
    total = done = 0
    until = shortest
    while trials and done < longest:
        total += trials * (min(until, longest) - done)
        trials, done, until = trials // eta, min(until, longest), until * eta
    return total


def _halving_not_alone(trials: int, shortest: int, longest: int, eta: int) -> int:
    total = done = 0
    until = shortest
    while trials > 1 and until <= longest:
        total += trials * (until - done)
        trials, done, until = trials // eta, until, until * eta
    return total


def _halving_by_log(trials: int, shortest: int, longest: int, eta: int) -> int:
    rounds = int(math.log(longest / shortest, eta)) + 1 if longest >= shortest else 0
    return lesson.halving_steps(trials, shortest, shortest * eta ** (rounds - 1), eta) if rounds else 0


def _halving_in_parts(trials: float, shortest: int, longest: int, eta: int) -> int:
    total: float = 0
    done, until = 0, shortest
    while trials >= 1 and until <= longest:
        total += trials * (until - done)
        trials, done, until = trials / eta, until, until * eta
    return int(total)


def _halving_never_alone(trials: int, shortest: int, longest: int, eta: int) -> int:
    total, done, until = 0, 0, shortest
    while until <= longest:
        total += trials * (until - done)
        trials, done, until = max(1, trials // eta), until, until * eta
    return total


def _halving_first_round(trials: int, shortest: int, longest: int, eta: int) -> int:
    return trials * shortest + lesson.halving_steps(trials, shortest, longest, eta)


def _drawn_halving(rng: random.Random) -> tuple[int, int, int, int]:
    shortest, eta = rng.randint(1, 20), rng.randint(2, 4)
    longest = rng.choice([shortest * eta ** rng.randint(0, 3), rng.randint(1, 200)])
    return rng.randint(1, 40), shortest, longest, eta


exercise(
    "halving_steps",
    reference=lesson.halving_steps,
    cases=[
        *((16, 15, 60, 2), (27, 1, 27, 3), (9, 4, 4, 3), (10, 5, 40, 2), (2, 10, 90, 3), (16, 15, 50, 2)),
        *((243, 1, 243, 3), (1000, 1, 1000, 10), (4, 30, 20, 2)),
    ],
    drawn=_drawn_halving,
    mistakes=[
        Mistake(
            _halving_by_log,
            "int(math.log(...)) loses a round where the logarithm is whole: log(243, 3) gives 4.999... Multiply.",
        ),
        Mistake(
            _halving_in_parts,
            "parts of trials go on: round down after each round, trials // eta, and not once at the end.",
        ),
        Mistake(
            _halving_never_alone,
            "where rounding down leaves no trial the study is over, and yours lets one go on.",
        ),
        Mistake(_halving_first_round, "the first round is counted twice."),
        Mistake(
            _halving_anew,
            "a trial that goes on doesn't begin again: from 15 to 30 steps it trains 15 more, not 30.",
        ),
        Mistake(
            lambda trials, shortest, longest, eta: trials * longest,
            "that is the cost without halving: only the survivors train for so long.",
        ),
        Mistake(
            lambda trials, shortest, longest, eta: lesson.halving_steps(trials, shortest, longest - 1, eta),
            "the last round is missing: the trials that reach `longest` train those steps as well.",
        ),
        Mistake(
            _halving_losers,
            "the best 1/eta of the trials go on (trials // eta), and the others stop.",
        ),
        Mistake(
            _halving_added,
            "the rounds don't come at equal distances: 15, 30, 60, not 15, 30, 45. Multiply by eta each time.",
        ),
        Mistake(
            _halving_rounded_up,
            "the number of those who go on is rounded down: of 5 trials 2 go on when eta is 2.",
        ),
        Mistake(
            _halving_cut,
            "a round that would end beyond `longest` isn't begun at all, not even in part.",
        ),
        Mistake(
            _halving_not_alone,
            "a trial that is the last one left still trains on, as long as its round ends by `longest`.",
        ),
    ],
    hints=[
        "Go through the rounds: how many trials are left, and how many steps more does each of them train?",
        "The first round trains `shortest` steps each, the next until `shortest * eta`, the next until eta times that.",
        "total += trials * (until - done), then trials //= eta, done = until, until *= eta, while until <= longest.",
    ],
    why="Each round trains the survivors from where they stand, so a round costs trials * (until - done) steps.",
    points=2,
)


def _honest_by_again(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    means = [sum(later) / len(later) for later in again]
    winner = means.index(min(means))
    return winner, first[winner], means[winner]


def _honest_by_all(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    means = [(one + sum(later)) / (1 + len(later)) for one, later in zip(first, again, strict=True)]
    winner = means.index(min(means))
    return winner, first[winner], sum(again[winner]) / len(again[winner])


def _honest_all(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    winner = first.index(min(first))
    runs = [first[winner], *again[winner]]
    return winner, first[winner], sum(runs) / len(runs)


def _honest_best(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    winner = first.index(min(first))
    return winner, first[winner], min(again[winner])


def _honest_largest(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    winner = first.index(max(first))
    return winner, first[winner], sum(again[winner]) / len(again[winner])


def _honest_swapped(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    winner, promised, worth = lesson.honest_winner(first, again)
    return winner, worth, promised


def _honest_everybody(first: list[float], again: list[list[float]]) -> tuple[int, float, float]:
    winner, runs = first.index(min(first)), [run for later in again for run in later]
    return winner, first[winner], sum(runs) / len(runs)


def _worth(
    first: list[float], again: list[list[float]], worth: Callable[[list[float]], float]
) -> tuple[int, float, float]:
    """The right winner, whose new losses are put together otherwise."""
    winner = first.index(min(first))
    return winner, first[winner], worth(again[winner])


def _drawn_losses(rng: random.Random) -> tuple[list[float], list[list[float]]]:
    n, seeds = rng.randint(1, 6), rng.randint(1, 5)
    return [rng.random() for _ in range(n)], [[rng.random() for _ in range(seeds)] for _ in range(n)]


exercise(
    "honest_winner",
    reference=lesson.honest_winner,
    cases=[
        ([0.4, 0.1, 0.3], [[0.4, 0.6], [0.5, 0.3], [0.1, 0.2]]),
        ([0.2, 0.5], [[0.3, 0.2, 0.7], [0.1, 0.1, 0.1]]),
        ([1.5, 0.9, 0.7, 0.8], [[1.0], [0.6], [1.1], [0.5]]),
    ],
    drawn=_drawn_losses,
    mistakes=[
        Mistake(
            lambda first, again: _worth(first, again, lambda runs: sorted(runs)[len(runs) // 2]),
            "that is the median of the new seeds: their mean is asked for.",
        ),
        Mistake(
            lambda first, again: (first.index(min(first)) + 1, *lesson.honest_winner(first, again)[1:]),
            "the index begins at 0: the first setting is number 0.",
        ),
        Mistake(
            lambda first, again: _worth(first, again, sum),
            "that is the sum of the winner's new losses: divide by how many there are.",
        ),
        Mistake(
            lambda first, again: _worth(first, again, lambda runs: sum(runs) / len(first)),
            "you divided by the number of settings: divide by the number of the winner's new runs.",
        ),
        Mistake(
            _honest_by_again,
            "the winner was chosen by the new seeds: then these are no longer new. The study alone chooses.",
        ),
        Mistake(
            _honest_by_all,
            "the winner was chosen by old and new runs together: the study's own losses alone name it.",
        ),
        Mistake(
            lambda first, again: (lesson.honest_winner(first, again)[0], lesson.honest_winner(first, again)[2]),
            "what the study promised is missing: it stands between the index and the mean.",
        ),
        Mistake(
            _honest_all,
            "the study's own run is in the mean: it was picked for being low, so leave it out.",
        ),
        Mistake(
            _honest_best,
            "the best of the new seeds is a second lucky pick: take their mean.",
        ),
        Mistake(
            _honest_largest,
            "that is the worst setting: a loss is better when it is lower.",
        ),
        Mistake(
            _honest_swapped,
            "the last two have changed places: first what the study promised, then what the winner is worth.",
        ),
        Mistake(
            _honest_everybody,
            "your mean is over every setting's new runs: take the winner's alone, again[winner].",
        ),
    ],
    hints=[
        "first.index(min(first)) is the winner by the study.",
        "Return three things: that index, its loss in the study, and the mean of again[index].",
    ],
    why="The lowest of many losses is low partly by luck; new seeds that chose nothing say what it is worth.",
)
