"""Chapter 13's exercises: the study's budget and its winner, the optimizer's bytes; the clinic's diagnoses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from utils.course.checks.references import ch13 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.evaluate.diagnose import Signs, Trend

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


def _drawn_sizes(rng: random.Random) -> tuple[list[int]]:
    border = [1, 255, 256, 257, 4095, 4096, 4097, 4351, 4352, 8192, rng.randint(1, 4000), rng.randint(4098, 50_000)]
    return (rng.choices(border, k=rng.randint(0, 5)),)


exercise(
    "adam8bit_bytes",
    reference=lesson.adam8bit_bytes,
    cases=[([4096],), ([1536, 8192, 4095],), ([4096 + 1, 10_000],), ([100, 200],)],
    drawn=_drawn_sizes,
    mistakes=[
        Mistake(
            lambda sizes: sum(4 * n if n < 4096 else 2 * n + 8 * math.ceil(n / 256) for n in sizes),
            "a small tensor keeps two moments of 4 bytes each: 8 bytes a number, not 4.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else 2 * n + 2 * math.ceil(n / 256) for n in sizes),
            "a scale is a float32: 4 bytes for each block of each moment.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else 2 * n + 4 * math.ceil(n / 256) for n in sizes),
            "the two moments share a scale: each has one of its own for every block.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else 2 * n + 4 * math.ceil(2 * n / 256) for n in sizes),
            "each moment has blocks of its own: round up for one, then take it twice.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else 2 * n + 8 * (n // 256 + 1) for n in sizes),
            "a tensor that fills its blocks has no further one: n // 256 + 1 is one too many there.",
        ),
        Mistake(
            lambda sizes: sum(2 * n + 8 * math.ceil(n / 256) for n in sizes),
            "a tensor of fewer than 4,096 numbers stays in 32 bits: 8 bytes for each of its numbers.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else 2 * n for n in sizes),
            "the scales are missing: each moment has one float32 for every block of 256.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else n + 4 * math.ceil(n / 256) for n in sizes),
            "Adam has two moments, and each has its codes and its scales.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n < 4096 else 2 * n + 8 * (n // 256) for n in sizes),
            "a last block that isn't full has a scale too: round the number of blocks up.",
        ),
        Mistake(
            lambda sizes: sum(8 * n if n <= 4096 else 2 * n + 8 * math.ceil(n / 256) for n in sizes),
            "a tensor of exactly 4,096 numbers is stored in 8 bits.",
        ),
        Mistake(
            lambda sizes: lesson.adam8bit_bytes([sum(sizes)]),
            "the rule goes tensor by tensor: many small ones stay small ones. Don't add the sizes up first.",
        ),
        Mistake(
            lambda sizes: lesson.adam8bit_bytes(sizes) // 2,
            "that is one moment, of the small tensors as of the large ones: Adam keeps two.",
        ),
    ],
    hints=[
        "Two moments. In 32 bits each takes 4 bytes a number.",
        "In 8 bits each moment takes 1 byte a number, and 4 bytes for each block of 256, full or not.",
        "8 * n if n < 4096 else 2 * n + 8 * math.ceil(n / 256)",
    ],
    why="Two moments: 8 bytes a number in 32 bits, or 2 bytes and two float32 scales a block in 8. LoRA's tensors are "
    "often too small for the latter.",
    points=2,
)


# ======================================================================================= the clinic


def _diagnose_curve(signs: Signs) -> list[str]:
    return {"jumped": ["rate too high"], "flat": ["rate too low"], "fell": []}[signs.trend]


def _diagnose_no_count(signs: Signs) -> list[str]:
    return lesson.diagnose(signs._replace(trainable=1))


def _diagnose_both(signs: Signs) -> list[str]:
    found = lesson.diagnose(signs)
    return [*found, "rate too low"] if signs.trainable == 0 and signs.trend == "flat" else found


def _diagnose_no_end(signs: Signs) -> list[str]:
    return lesson.diagnose(signs._replace(eos=True))


def _diagnose_share(signs: Signs) -> list[str]:
    return lesson.diagnose(signs._replace(padding=int(signs.share == 1)))


def _diagnose_labels_first(signs: Signs) -> list[str]:
    found = lesson.diagnose(signs)
    labels = [illness for illness in found if illness in ("padding learnt", "no end mark")]
    return labels[::-1] + [illness for illness in found if illness not in labels]


_OTHER_WAY: dict[Trend, Trend] = {"jumped": "flat", "flat": "jumped", "fell": "fell"}


def _drawn_signs(rng: random.Random) -> tuple[Signs]:
    trends: list[Trend] = ["fell", "flat", "jumped"]
    trend = rng.choice(trends)
    padding = rng.choice([0, 0, 1, 7, 193])
    return (Signs(rng.choice([0, 1, 108_544]), trend, rng.choice([0.05, 0.5, 1.0]), padding, rng.random() < 0.6),)


exercise(
    "diagnose",
    reference=lesson.diagnose,
    cases=[
        (Signs(108_544, "fell", 0.12, 0, True),),
        (Signs(0, "flat", 0.12, 0, True),),
        (Signs(108_544, "flat", 0.12, 0, True),),
        (Signs(108_544, "jumped", 0.12, 0, True),),
        (Signs(108_544, "fell", 0.08, 0, False),),
        (Signs(108_544, "fell", 1.0, 193, True),),
        (Signs(108_544, "fell", 0.6, 96, False),),
        (Signs(108_544, "flat", 0.08, 0, False),),
        (Signs(108_544, "fell", 1.0, 0, True),),
        (Signs(0, "flat", 1.0, 12, False),),
    ],
    drawn=_drawn_signs,
    mistakes=[
        Mistake(
            lambda signs: ["nothing trainable"] if signs.trainable == 0 else lesson.diagnose(signs),
            "where nothing is trainable you stop: the labels may be wrong as well, and that stays after the cure.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs._replace(padding=int(signs.padding > 1))),
            "a single label on padding is one too many: padding learnt where signs.padding isn't 0.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs._replace(trend=_OTHER_WAY[signs.trend])),
            "too high and too low are exchanged: a jump comes from too large steps, a flat curve from too small ones.",
        ),
        Mistake(
            _diagnose_curve,
            "you look at the curve alone. Labels on padding and missing end marks leave it falling like a healthy one.",
        ),
        Mistake(
            _diagnose_no_count,
            'a model with nothing trainable is called "rate too low". No rate moves what has no gradient: count first.',
        ),
        Mistake(
            _diagnose_both,
            "where nothing is trainable the flat curve is explained; a rate too low would need gradients.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs)[:1],
            "a run can have two illnesses, and yours stops at the first: put all of them in the list.",
        ),
        Mistake(
            _diagnose_no_end,
            "a run without an end mark among its labels passes as healthy: it will never stop. Look at signs.eos.",
        ),
        Mistake(
            _diagnose_share,
            "the share of labels says nothing about padding: one long answer may fill a batch. Look at signs.padding.",
        ),
        Mistake(
            lambda signs: lesson.diagnose(signs) or ["healthy"],
            "a healthy run has nothing, so its list is empty: [].",
        ),
        Mistake(
            _diagnose_labels_first,
            "all illnesses are found, but not in the order of the text. The labels' come last: padding, then end mark.",
        ),
    ],
    hints=[
        "Three questions, in this order: can anything learn? what does the curve do? what do the labels hold?",
        'The first two exclude each other: if signs.trainable == 0 ... elif signs.trend == "jumped" ... elif "flat".',
        "The labels' illnesses come on top: two more ifs that append, not elif.",
    ],
    why="Nothing trainable explains the curve, whatever it does; nothing explains the labels away.",
    points=2,
)


def _merged_case(times: float, noise: float = 0.0):
    """`noise`: what else befell the weight, such as rounding to few bits."""
    return lambda: _merged(6, 8, 2, times, noise)


def _merged(d_out: int, d_in: int, r: int, times: float, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = lambda *size: torch.randn(*size, dtype=torch.float64)  # noqa: E731
    before, a, b = draw(d_out, d_in), draw(r, d_in), draw(d_out, r)
    return before, before + times * (b @ a) + noise * draw(d_out, d_in), a, b


def _drawn_merge(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_out, d_in = rng.sample(range(3, 9), 2)
    return _merged(d_out, d_in, rng.randint(1, 3), rng.choice([0.5, 1, 2, 3, -1]), rng.choice([0.0, 0.3]))


def _unsquared(before: Tensor, after: Tensor, A: Tensor, B: Tensor) -> float:
    return float(((after - before) * (B @ A)).sum() / (B @ A).norm())


exercise(
    "how_often",
    reference=lesson.how_often,
    cases=[_merged_case(2.0), _merged_case(1.0), _merged_case(4.0), _merged_case(0.0), _merged_case(2.0, noise=0.8)],
    drawn=_drawn_merge,
    mistakes=[
        Mistake(
            lambda before, after, A, B: float(round(lesson.how_often(before, after, A, B))),
            "the number needn't be whole: 1.5 says that a wrong scaling was merged. Don't round.",
        ),
        Mistake(
            lambda before, after, A, B: lesson.how_often(before, after, A, 2 * B),
            "that is half of it: delta is B @ A, once.",
        ),
        Mistake(
            lambda before, after, A, B: float((after - before).square().sum() / ((after - before) * (B @ A)).sum()),
            "the roles are exchanged: before + s * delta comes nearest with <added, delta> / <delta, delta>.",
        ),
        Mistake(
            lambda before, after, A, B: float((after - before).norm() / (B @ A).norm()),
            "a ratio of sizes takes every other change for the adapter, rounding too: project on B @ A.",
        ),
        Mistake(_unsquared, "divide by the square of B @ A's size: (delta * delta).sum(), not its norm."),
        Mistake(
            lambda before, after, A, B: float((after * (B @ A)).sum() / (B @ A).square().sum()),
            "the weight itself is in it: what the merge added is after - before.",
        ),
        Mistake(
            lambda before, after, A, B: float(((before - after) * (B @ A)).sum() / (B @ A).square().sum()),
            "the sign is wrong: added is after - before.",
        ),
        Mistake(
            lambda before, after, A, B: float(((after - before) / (B @ A)).mean()),
            "a mean of ratios blows up where an entry of B @ A is near zero: multiply and sum, then divide once.",
        ),
        Mistake(
            lambda before, after, A, B: float((after - before).sum() / (B @ A).sum()),
            "in a plain sum, entries with opposite signs cancel: weigh each by its entry of B @ A before you sum.",
        ),
        Mistake(
            lambda before, after, A, B: float(((after - before) * (B @ A)).sum()),
            "a division is missing: <added, delta> grows with the size of B @ A, so divide by <delta, delta>.",
        ),
    ],
    hints=[
        "added = after - before should be s times delta = B @ A. Which s is nearest, over all entries?",
        "Least squares: s = <added, delta> / <delta, delta>.",
        "float(((after - before) * delta).sum() / delta.square().sum())",
    ],
    why="A projection sees only what lies along B @ A, so rounding and other changes hardly touch it.",
    points=2,
)


def _drawn_bytes(rng: random.Random) -> tuple[float, float, float]:
    per_sequence = rng.choice([1, 3, 5, 2e9, 3.5e9])
    held = (rng.randint(0, 9) + rng.choice([0.0, 0.25, 0.75])) * per_sequence
    return held + rng.choice([-1.0, 0.0, 0.5, 1.0, 2.75, 3.0, 7.5]) * per_sequence, held, per_sequence


exercise(
    "largest_batch",
    reference=lesson.largest_batch,
    cases=[(24e9, 13.6e9, 3.3e9), (16e9, 13.6e9, 3.3e9), (8e9, 13.6e9, 3.3e9), (20, 10, 5)],
    drawn=_drawn_bytes,
    mistakes=[
        Mistake(
            lambda budget, held, per_sequence: lesson.largest_batch(0.9 * budget, held, per_sequence),
            "you left a tenth of the budget free: the margin is in `held` already.",
        ),
        Mistake(
            lambda budget, held, per_sequence: float(lesson.largest_batch(budget, held, per_sequence)),
            "a batch has a whole number of sequences, and a float's // stays a float: int(...) makes it one.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, math.ceil((budget - held) / per_sequence) - 1),
            "where the last sequence fills the budget exactly it still fits.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, int(budget // per_sequence)),
            "weights, gradients and the optimizer are there whatever the batch: take them off the budget first.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, math.ceil((budget - held) / per_sequence)),
            "rounding up runs out of memory by a part of a sequence: round down.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, round((budget - held) / per_sequence)),
            "round() goes to the nearest whole number, up too, and a part of a sequence is no sequence: use // or int.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(1, int((budget - held) // per_sequence)),
            "where not one sequence fits, the answer is 0.",
        ),
        Mistake(
            lambda budget, held, per_sequence: int((budget - held) // per_sequence),
            "less than nothing is left for the batch: the answer is 0, not a negative number.",
        ),
        Mistake(
            lambda budget, held, per_sequence: max(0, int(budget // (held + per_sequence))),
            "the base is held once, and not once for each sequence.",
        ),
    ],
    hints=[
        "What is left for the batch is budget - held.",
        "Whole sequences only, and never less than 0: max(0, int(left // per_sequence)).",
    ],
    why="Only the activations grow with the batch; what is there anyway comes off the budget once.",
)
