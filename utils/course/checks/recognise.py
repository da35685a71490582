"""Say what is wrong with an answer that no listed mistake matches, from how its results relate to the right ones.

A property has to hold in every case in which the two differ, and to explain it: "every result is the right one with
the other sign" is worth more to a learner than one wrong number. :func:`recognised` asks the properties one after
another; the first that holds speaks.
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from utils.course.checks.calls import Outcome, arguments_of, outcome
from utils.course.checks.compare import difference
from utils.course.checks.describe import brief, number
from utils.course.checks.registry import Case, Exercise


class Tried(NamedTuple):
    """One case: its arguments, what the reference did, what the answer did."""

    case: Case
    arguments: tuple[Any, ...]
    want: Any
    have: Any


Same = Callable[[Any, Any], bool]


def recognised(
    found: Exercise, answer: Callable[..., Any], expected: Sequence[Outcome], got: Sequence[Outcome], same: Same
) -> str | None:
    """A sentence on a property of all the wrong results, or None.

    expected, got: the outcomes of the reference and the answer, case by case. same: whether two results count as
    equal. Nothing is said when the answer raised, or returned nothing, where the reference didn't: that says more.
    """
    tried = []
    for case, want, have in zip(found.cases, expected, got, strict=True):
        if want.raised is not None:
            continue
        if have.raised is not None or (have.value is None and want.value is not None):
            return None
        tried.append(Tried(case, arguments_of(case), want.value, have.value))
    wrong = [one for one in tried if not same(one.want, one.have)]
    if not wrong:
        return None
    names = parameters(found.reference)
    for said in _candidates(found, answer, tried, wrong, names, same):
        if said:
            return said
    return None


def _candidates(
    found: Exercise,
    answer: Callable[..., Any],
    tried: Sequence[Tried],
    wrong: Sequence[Tried],
    names: Sequence[str],
    same: Same,
) -> Iterator[str | None]:
    yield _returns_argument(wrong, names)
    yield _parts(wrong, same)
    yield _sequences(wrong, same)
    yield _texts(wrong)
    yield _numbers(wrong, names)
    yield _swapped(found, wrong, names, same)
    yield _unused(found, answer, tried, names, same)
    yield _constant(tried)


def parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _name(names: Sequence[str], place: int) -> str:
    return f"`{names[place]}`" if place < len(names) else f"argument {place + 1}"


def _equal(one: Any, other: Any) -> bool:
    return difference(one, other, any_dtype=True) is None


# ------------------------------------------------------------------------------------------- kinds of results


def _returns_argument(wrong: Sequence[Tried], names: Sequence[str]) -> str | None:
    for place in range(min(len(one.arguments) for one in wrong)):
        if all(_is_container(one.arguments[place]) and _equal(one.arguments[place], one.have) for one in wrong):
            return f"your function returns {_name(names, place)} as it came in."
    return None


def _is_container(value: Any) -> bool:
    return isinstance(value, torch.Tensor | list | dict)


def _parts(wrong: Sequence[Tried], same: Same) -> str | None:
    """Several results in another order, or one of several returned alone."""
    sizes = {len(one.want) if isinstance(one.want, tuple) else 0 for one in wrong}
    if len(sizes) != 1 or not 2 <= (size := sizes.pop()) <= 4:
        return None
    if all(isinstance(one.have, tuple | list) and len(one.have) == size for one in wrong):
        for order in itertools.islice(itertools.permutations(range(size)), 1, None):
            if all(_equal(tuple(one.have[at] for at in order), one.want) for one in wrong):
                return f"the {size} results are right, but in another order than the task asks for."
    for place in range(size):
        if all(_equal(one.want[place], one.have) for one in wrong):
            return f"that is result {place + 1} of {size} alone: return all of them."
    return None


def _sequences(wrong: Sequence[Tried], same: Same) -> str | None:
    pairs = [(one.want, one.have) for one in wrong]
    if not all(isinstance(want, list) and isinstance(have, list | tuple) for want, have in pairs):
        return None
    if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(pairs)):
        return None  # tensors have no single == to compare items with
    pairs = [(want, list(have)) for want, have in pairs]
    for holds, said in _LISTS:
        if all(holds(want, have) for want, have in pairs):
            return said
    return _one_for_another(pairs) or _some_left(pairs)


def _sorted(items: list[Any]) -> list[str]:
    return sorted(map(repr, items))


_LISTS: tuple[tuple[Callable[[list, list], bool], str], ...] = (
    (lambda want, have: have == want[::-1], "the items are right, but in the reverse order."),
    (lambda want, have: _sorted(have) == _sorted(want), "the items are right, but in another order."),
    (lambda want, have: have == want[:-1], "the last item is missing."),
    (lambda want, have: have == want[1:], "the first item is missing."),
    (lambda want, have: have[:-1] == want, "there is one item too many, at the end."),
    (lambda want, have: have[1:] == want, "there is one item too many, at the beginning."),
    (
        lambda want, have: len(want) > 2 and len(have) == len(want) and have[1:] == want[:-1],
        "the items are shifted by one place, towards the end.",
    ),
    (
        lambda want, have: len(want) > 2 and len(have) == len(want) and have[:-1] == want[1:],
        "the items are shifted by one place, towards the beginning.",
    ),
    (
        lambda want, have: set(map(repr, have)) == set(map(repr, want)) and len(have) > len(want),
        "some items are there more than once.",
    ),
    (
        lambda want, have: set(map(repr, have)) == set(map(repr, want)) and len(have) < len(want),
        "an item that belongs there several times is there only once.",
    ),
)


def _one_for_another(pairs: Sequence[tuple[list, list]]) -> str | None:
    """Everywhere the same wrong value in the place of the same right one: -1 for -100."""
    if any(len(want) != len(have) for want, have in pairs):
        return None
    differ = [(w, h) for want, have in pairs for w, h in zip(want, have, strict=True) if not _equal(w, h)]
    plain = all(isinstance(value, int | str) for pair in differ for value in pair)
    if plain and len(differ) > 1 and len(set(differ)) == 1:
        return f"wherever {differ[0][0]!r} belongs, you have {differ[0][1]!r}; the rest is right."
    return None


def _some_left(pairs: Sequence[tuple[list, list]]) -> str | None:
    """Only items too many, or only items too few."""
    known = [(set(map(repr, want)), set(map(repr, have))) for want, have in pairs]
    if all(have > want for want, have in known):
        return f"nothing is missing, but there are items that don't belong there, such as {_first(pairs, 1, 0)}."
    if all(have < want for want, have in known):
        return f"what is there belongs there, but items are missing, such as {_first(pairs, 0, 1)}."
    return None


def _first(pairs: Sequence[tuple[list, list]], there: int, absent: int) -> str:
    pair = pairs[0]
    others = set(map(repr, pair[absent]))
    return next(brief(item) for item in pair[there] if repr(item) not in others)


def _texts(wrong: Sequence[Tried]) -> str | None:
    pairs = [(one.want, one.have) for one in wrong]
    if not all(isinstance(want, str) and isinstance(have, str) for want, have in pairs):
        return None
    if all(want.lower() == have.lower() for want, have in pairs):
        return "the words are right, but not their capital and small letters."
    if all("".join(want.split()) == "".join(have.split()) for want, have in pairs):
        return "the words are right, but not the spaces and line ends between them."
    if all(want.startswith(have) for want, have in pairs):
        return f"the end is missing: {pairs[0][0][len(pairs[0][1]) :][:40]!r}."
    if all(want.endswith(have) for want, have in pairs):
        return f"the beginning is missing: {pairs[0][0][: len(pairs[0][0]) - len(pairs[0][1])][:40]!r}."
    if all(have.startswith(want) for want, have in pairs):
        return f"there is something too much at the end: {pairs[0][1][len(pairs[0][0]) :][:40]!r}."
    return None


# ----------------------------------------------------------------------------------------------------- numbers


def _numbers(wrong: Sequence[Tried], names: Sequence[str]) -> str | None:
    pairs = [_flat(one.want, one.have) for one in wrong]
    if any(pair is None for pair in pairs):
        return None
    if all(isinstance(one.want, bool) and isinstance(one.have, bool) for one in wrong):
        return "it is exactly the other way round: True and False are exchanged." if len(wrong) > 1 else None
    known = [pair for pair in pairs if pair is not None]
    if all(
        _rounded(want, have) for want, have in known
    ):  # the numbers are right: another kind or dtype, which says more
        return None
    enough = sum(len(want) for want, _ in known) > 1  # between two single numbers there is always some relation
    for holds, said in _RELATIONS:
        if enough and all(holds(want, have) for want, have in known):
            return said
    return _transposed(wrong) or _offset(known) or _factor(known) or _argument_factor(wrong, known, names)


def _flat(want: Any, have: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both results as one row of float64, where they are numbers in the same places."""
    rows = _leaves(want), _leaves(have)
    if rows[0] is None or rows[1] is None or [len(part) for part in rows[0]] != [len(part) for part in rows[1]]:
        return None
    return (torch.cat(rows[0]), torch.cat(rows[1])) if rows[0] else None


def _leaves(value: Any) -> list[torch.Tensor] | None:
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.is_complex():
            return None
        return [value.detach().cpu().to(torch.float64).flatten()]
    if isinstance(value, numbers.Real):
        try:
            return [torch.tensor([float(value)], dtype=torch.float64)]
        except OverflowError:
            return None
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=repr)]
    if not isinstance(value, list | tuple):
        return None
    parts = [_leaves(item) for item in value]
    return None if any(part is None for part in parts) else [leaf for part in parts for leaf in part or []]


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-9)


def _rounded(want: torch.Tensor, have: torch.Tensor) -> bool:
    return not want.numel() or torch.allclose(want, have, rtol=1e-4, atol=1e-6 * want.abs().max().item())


def _not_trivial(relation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], bool]:
    def holds(want: torch.Tensor, have: torch.Tensor) -> bool:
        moved = relation(want)
        return bool(want.isfinite().all()) and not moved.equal(want) and _near(moved, have)

    return holds


_RELATIONS: tuple[tuple[Callable[[torch.Tensor, torch.Tensor], bool], str], ...] = (
    (_not_trivial(torch.neg), "every result has the wrong sign: it is the right one, negated."),
    (_not_trivial(torch.reciprocal), "your results are upside down: 1 divided by the right ones."),
    (_not_trivial(torch.square), "your results are the squares of the right ones."),
    (_not_trivial(lambda want: want.clamp(min=0).sqrt()), "your results are the square roots of the right ones."),
    (_not_trivial(lambda want: 1 - want), "your results are 1 minus the right ones: the other part of the whole."),
    (_not_trivial(torch.log), "your results are the logarithms of the right ones."),
    (_not_trivial(torch.exp), "your results are e to the power of the right ones: a logarithm is missing."),
    (_not_trivial(torch.abs), "the sizes are right, but the signs are lost."),
    (_not_trivial(torch.floor), "the results are rounded down, and the task wants the fraction kept."),
    (_not_trivial(torch.ceil), "the results are rounded up, and the task wants the fraction kept."),
    (_not_trivial(torch.round), "the results are rounded to whole numbers, and the task wants the fraction kept."),
    *(
        (_not_trivial(lambda want, n=n: torch.round(want, decimals=n)), f"the results are rounded to {n} digits.")
        for n in (1, 2, 3, 4)
    ),
)  # fmt: skip

_FACTORS = {
    100.0: "100 times the right one: percent for a fraction?",
    0.01: "a hundredth of the right one: a fraction for percent?",
    8.0: "8 times the right one: bits for bytes?",
    0.125: "an eighth of the right one: bytes for bits?",
    2.0: "twice the right one.",
    0.5: "half of the right one.",
    1e9: "10^9 times the right one: bytes for gigabytes?",
    1e-9: "10^9 times too small: gigabytes for bytes?",
    1e9 / 2**30: "the right one counted in GiB (2^30 bytes), and a GB has 10^9.",
    2**30 / 1e9: "the right one counted in GB (10^9 bytes), and a GiB has 2^30.",
    1e6 / 2**20: "the right one counted in MiB (2^20 bytes), and a MB has 10^6.",
    2**20 / 1e6: "the right one counted in MB (10^6 bytes), and a MiB has 2^20.",
}


def _transposed(wrong: Sequence[Tried]) -> str | None:
    both = [(one.want, one.have) for one in wrong]
    if all(isinstance(value, torch.Tensor) and value.ndim >= 2 for pair in both for value in pair):
        if all(_equal(want.mT, have) for want, have in both):
            return "your result is the transpose of the right one."
    return None


def _offset(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> str | None:
    off = [have - want for want, have in pairs]
    first = off[0][0].item()
    if len(pairs) > 1 and first and all(_near(one, torch.full_like(one, first)) for one in off):
        more = "off by one?" if abs(first) == 1 else "the same every time."
        return f"every result is too {'large' if first > 0 else 'small'} by {number(abs(first))}: {more}"
    return None


def _ratios(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[float] | None:
    """For each pair the one factor between all of its numbers, or None when a pair has no such."""
    found = []
    for want, have in pairs:
        at = int(want.abs().argmax())
        if not want[at] or not want.isfinite().all() or not have.isfinite().all() or not have[at]:
            return None
        ratio = (have[at] / want[at]).item()
        if not torch.allclose(want * ratio, have, rtol=1e-4, atol=1e-9 * abs(ratio)):
            return None
        found.append(ratio)
    return found


def _factor(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> str | None:
    ratios = _ratios(pairs)
    if ratios is None or not all(math.isclose(ratio, ratios[0], rel_tol=1e-4) for ratio in ratios):
        return None
    if math.isclose(ratios[0], 1, rel_tol=1e-4):  # the right numbers, of another kind, dtype or shape
        return None
    if len(pairs) == 1 and pairs[0][0].numel() == 1:  # one number is always a multiple of another
        return next((f"it is {said}" for k, said in _FACTORS.items() if math.isclose(k, ratios[0], rel_tol=1e-9)), None)
    said = next((said for k, said in _FACTORS.items() if math.isclose(k, ratios[0], rel_tol=1e-5)), None)
    return f"every result is {said or f'{number(ratios[0])} times the right one.'}"


def _argument_factor(
    wrong: Sequence[Tried], pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], names: Sequence[str]
) -> str | None:
    """A factor that is one of the arguments, or one of their sizes, too often or too seldom."""
    ratios = _ratios(pairs)
    if ratios is None or len(wrong) < 3:
        return None
    for words, values in _sizes(wrong, names):
        if len(set(values)) < 2 or any(value in (0, 1) for value in values):
            continue
        for power, said in _POWERS.items():
            if all(math.isclose(r, v**power, rel_tol=1e-4) for r, v in zip(ratios, values, strict=True)):
                return f"every result {said} {words}."
    return None


# The power of an argument that is in the wrong result and not in the right one.
_POWERS = {-1: "lacks the factor", 1: "has once too often the factor", -2: "lacks twice the factor"}


def _sizes(wrong: Sequence[Tried], names: Sequence[str]) -> Iterator[tuple[str, list[float]]]:
    for place in range(min(len(one.arguments) for one in wrong)):
        values = [one.arguments[place] for one in wrong]
        name = _name(names, place)
        if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
            yield name, [float(value) for value in values]
        elif all(isinstance(value, torch.Tensor) for value in values):
            for dim in range(min(value.ndim for value in values)):
                yield f"{name}.shape[{dim}]", [float(value.shape[dim]) for value in values]
        elif all(isinstance(value, list | tuple) for value in values):
            yield f"len({name.strip('`')})", [float(len(value)) for value in values]


# --------------------------------------------------------------------------------------- arguments and their use


def _swapped(found: Exercise, wrong: Sequence[Tried], names: Sequence[str], same: Same) -> str | None:
    """Two arguments taken for each other: the reference does the same when they are exchanged."""
    count = min(len(one.arguments) for one in wrong)
    if count < 2 or len(wrong) < 2:
        return None
    for one, other in itertools.combinations(range(count), 2):
        if all(_exchanged_gives(found, tried, one, other, same) for tried in wrong):
            return f"{_name(names, one)} and {_name(names, other)} are taken for each other."
    return None


def _exchanged_gives(found: Exercise, tried: Tried, one: int, other: int, same: Same) -> bool:
    def make() -> tuple[Any, ...]:
        arguments = list(tried.case.make())
        arguments[one], arguments[other] = arguments[other], arguments[one]
        return tuple(arguments)

    done = outcome(found.reference, Case(make, tried.case.seed), seconds=0.1)
    return done.raised is None and same(done.value, tried.have)


def _unused(
    found: Exercise, answer: Callable[..., Any], tried: Sequence[Tried], names: Sequence[str], same: Same
) -> str | None:
    """An argument that changes the right result and never the answer's."""
    for place in range(min(len(one.arguments) for one in tried)):
        moved = 0
        for one, other in itertools.islice(itertools.pairwise(tried), 8):
            case = _with_argument(one, other, place)
            if case is None:
                continue
            right = outcome(found.reference, case, seconds=0.1)
            if right.raised is not None or same(one.want, right.value):
                continue
            mine = outcome(answer, case, seconds=0.1)
            if mine.raised is not None or not same(one.have, mine.value):
                moved = 0
                break
            moved += 1
        if moved:
            return f"your result doesn't change when {_name(names, place)} does: is it used?"
    return None


def _with_argument(one: Tried, other: Tried, place: int) -> Case | None:
    """The one case with one argument of the other, where that has the same form."""
    mine, theirs = one.arguments[place], other.arguments[place]
    if isinstance(mine, torch.Tensor):
        if not mine.is_floating_point() or mine.is_meta:
            return None
        theirs = mine.detach().roll(1) * torch.linspace(0.5, 2.0, mine.numel()).to(mine).view(mine.shape)
    elif type(mine) is not type(theirs) or not isinstance(mine, int | float | str) or mine == theirs:
        return None

    def make() -> tuple[Any, ...]:
        arguments = list(one.case.make())
        arguments[place] = theirs
        return tuple(arguments)

    return Case(make, one.case.seed)


def _constant(tried: Sequence[Tried]) -> str | None:
    if len(tried) < 2 or any(not _equal(one.have, tried[0].have) for one in tried[1:]):
        return None
    if all(_equal(one.want, tried[0].want) for one in tried[1:]):
        return None
    return f"your function returns the same every time, {brief(tried[0].have)}: does it use its arguments?"
