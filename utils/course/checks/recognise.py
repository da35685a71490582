"""Say what is wrong with an answer that no listed mistake matches, from how its results relate to the right ones.

A property must hold in every case that it speaks of, the passing ones too where it says "every": "every result is the
right one with the other sign" is worth more to a learner than one wrong number, and a property that isn't so is worth
less. :func:`recognised` asks the properties one after another; the first that holds speaks. Numbers are in
:mod:`utils.course.checks.relations`, which cases are wrong in :mod:`utils.course.checks.where`.

Attributes:
    SECONDS: What a call with arguments that no case has may take: 7 billion for 32 layers can be a long loop.
"""

from __future__ import annotations

import itertools
import numbers
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from utils.course.checks.calls import Outcome, arguments_of, outcome
from utils.course.checks.compare import difference
from utils.course.checks.describe import brief
from utils.course.checks.registry import Case, Exercise
from utils.course.checks.relations import numeric
from utils.course.checks.tried import Property, Tried, count, equal, named, parameters, same_kind
from utils.course.checks.where import where_wrong

SECONDS = 0.05

Same = Callable[[Any, Any], bool]


def recognised(
    found: Exercise,
    answer: Callable[..., Any],
    expected: Sequence[Outcome],
    got: Sequence[Outcome],
    right: Sequence[bool],
    same: Same,
) -> str | None:
    """A sentence on a property of the wrong results, or None.

    expected, got, right: the outcomes of the reference and of the answer, and whether they agree, case by case. same:
    whether two results count as equal.
    """
    names = parameters(found.reference)
    tried = [
        Tried(
            case, arguments_of(case), want.raised or want.value, have.raised or have.value, good,
            want.raised is not None or have.raised is not None,
        )
        for case, want, have, good in zip(found.cases, expected, got, right, strict=True)
    ]  # fmt: skip
    return next(filter(None, map(_attempt, _candidates(found, answer, tried, names, same))), None)


def _attempt(property_: Callable[[], str | None]) -> str | None:
    """What a property says; nothing where the learner's objects can't be looked at."""
    try:
        return property_()
    except Exception:
        return None


def _candidates(
    found: Exercise, answer: Callable[..., Any], tried: Sequence[Tried], names: Sequence[str], same: Same
) -> Iterator[Callable[[], str | None]]:
    compared = [one for one in tried if not one.raised]
    wrong = [one for one in compared if not one.right]
    silent = len(wrong) < sum(not one.right for one in tried)  # somewhere an exception says more than a property
    if wrong:
        yield lambda: _keeps(answer, wrong[0], names)
    if wrong and not silent:
        kindred = all(same_kind(one.want, one.have) for one in compared)
        if kindred:
            yield lambda: _constant(compared)
        for property_ in _PROPERTIES:
            yield lambda property_=property_: property_(compared, names)
        yield lambda: _order_of_parameters(answer, compared, names, same)
        yield lambda: _swapped(found, compared, names, same)
        if kindred:
            yield lambda: _unused(found, answer, compared, names, same)
    yield lambda: _somewhere(tried, [] if silent else wrong, names)
    if wrong and not silent:
        yield lambda: _right_parts(compared)
        yield lambda: _right_places(wrong)


def _somewhere(tried: Sequence[Tried], wrong: Sequence[Tried], names: Sequence[str]) -> str | None:
    """In which cases the answer is wrong, and what holds of all the wrong results."""
    said = _attempt(lambda: where_wrong(tried, names))
    also = None
    if 2 <= len(wrong) < len(tried):
        also = next(filter(None, (_attempt(lambda p=p: p(wrong, names)) for p in _PROPERTIES)), None)
    if said:
        return said + (f" There {also}" if also else "")
    right = sum(one.right for one in tried)
    return f"your function is right in {right} of {len(tried)} cases. In the others {also}" if also else None


# ------------------------------------------------------------------------------------------------ whole results


def _returns_argument(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    for place in range(count(tried)):
        given = [one.arguments[place] for one in tried]
        if all(equal(value, one.have) for value, one in zip(given, tried, strict=True)) and _varies(given):
            return f"your function returns {named(names, place)} as it came in."
    return None


def _varies(values: Sequence[Any]) -> bool:
    return any(not equal(values[0], value) for value in values[1:])


def _empty(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    if all(isinstance(one.have, str | list | tuple | dict) and not one.have for one in tried) and len(tried) > 1:
        return f"your result is always empty: {brief(tried[0].have)}."
    return None


def _nothing(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    if all(one.have is None and one.want is not None for one in tried):
        return "your function returns nothing: does every way through it end in a return?"
    return None


def _parts(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    """Several results in another order, or one of several returned alone."""
    sizes = {len(one.want) if isinstance(one.want, tuple) else 0 for one in tried}
    if len(sizes) != 1 or not 2 <= (size := sizes.pop()) <= 4:
        return None
    if all(isinstance(one.have, tuple | list) and len(one.have) == size for one in tried):
        same, *others = itertools.permutations(range(size))
        if all(equal(one.want, tuple(one.have[at] for at in same)) for one in tried):
            return None  # the numbers are right and in their order: what is wrong is something else, such as the dtype
        for order in others:
            if all(equal(one.want, tuple(one.have[at] for at in order)) for one in tried):
                return f"the {size} results are right, but in another order than the task asks for."
    for place in range(size):
        if all(equal(one.want[place], one.have) for one in tried):
            return f"that is result {place + 1} of {size} alone: return all of them."
    return None


def _right_parts(tried: Sequence[Tried]) -> str | None:
    """Which of several results are right in every case."""
    if len(tried) < 3:
        return None
    if all(isinstance(one.want, dict) and isinstance(one.have, dict) for one in tried):
        keys = list(tried[0].want)
        if not all(list(one.want) == keys and set(one.have) == set(keys) for one in tried):
            return None
        words = {key: f"the value under {brief(key)}" for key in keys}
    else:
        keys = list(range(len(tried[0].want))) if isinstance(tried[0].want, tuple) else []
        if not all(
            isinstance(one.want, tuple) and isinstance(one.have, tuple | list)
            and len(one.want) == len(one.have) == len(keys) for one in tried
        ):  # fmt: skip
            return None
        words = {key: f"result {key + 1} of {len(keys)}" for key in keys}
    wrong = [key for key in keys if any(difference(one.want[key], one.have[key]) for one in tried)]
    if not 0 < len(wrong) < len(keys):
        return None
    return f"only {' and '.join(words[key] for key in wrong)} is wrong; the rest is right in every case."


def _right_places(wrong: Sequence[Tried]) -> str | None:
    """The only place of lists and tensors that is wrong: the first, the last, the diagonal."""
    masks = [_mask(one.want, one.have) for one in wrong]
    if len(masks) < 2 or any(mask is None or min(mask.shape, default=0) < 2 or mask.all() for mask in masks):
        return None
    for place, said in _PLACES:
        if all(mask is not None and _is_there(mask, place) for mask in masks):
            return f"where your result is wrong, {said}; the rest is right."
    return None


def _mask(want: Any, have: Any) -> torch.Tensor | None:
    """Which entries are wrong."""
    if isinstance(want, torch.Tensor) and isinstance(have, torch.Tensor):
        if want.shape != have.shape or not 1 <= want.ndim <= 2 or want.is_meta:
            return None
        return ~torch.isclose(have.detach().double(), want.detach().double(), rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(want, list) and isinstance(have, list | tuple) and len(want) == len(have):
        return torch.tensor([not equal(one, other) for one, other in zip(want, have, strict=True)])
    return None


def _is_there(mask: torch.Tensor, place: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    there = torch.zeros_like(mask)
    place(there).fill_(True)
    return bool((mask == there).all())


_PLACES: tuple[tuple[Callable[[torch.Tensor], torch.Tensor], str], ...] = (
    (lambda mask: mask[:1] if mask.ndim == 1 else mask[:0], "it is only the first item"),
    (lambda mask: mask[-1:] if mask.ndim == 1 else mask[:0], "it is only the last item"),
    (lambda mask: mask[:1] if mask.ndim == 2 else mask[:0], "it is only the first row"),
    (lambda mask: mask[-1:] if mask.ndim == 2 else mask[:0], "it is only the last row"),
    (lambda mask: mask[:, :1] if mask.ndim == 2 else mask[:0], "it is only the first column"),
    (lambda mask: mask[:, -1:] if mask.ndim == 2 else mask[:0], "it is only the last column"),
    (lambda mask: mask.diagonal() if mask.ndim == 2 else mask[:0], "it is only the diagonal"),
)


# ----------------------------------------------------------------------------------------------- lists and strings


def _sequences(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    pairs = [(_items(one.want), _items(one.have)) for one in tried]
    known = [(want, have) for want, have in pairs if want is not None and have is not None]
    if len(known) < len(tried) or not all(isinstance(one.want, list | torch.Tensor) for one in tried):
        return None
    if all(equal(want, have) for want, have in known):
        return None  # right, and of another kind: a list for a tensor
    for holds, said in _LISTS:
        if all(holds(want, have) for want, have in known):
            return said
    return _one_for_another(known) or _some_left(known)


def _items(value: Any) -> list[Any] | None:
    """A list's items, or a vector's numbers."""
    if isinstance(value, list | tuple):
        return list(value)
    vector = isinstance(value, torch.Tensor) and value.ndim == 1 and value.layout == torch.strided
    return value.detach().tolist() if vector and not value.is_meta and value.numel() <= 1000 else None


def _in_another_order(want: list[Any], have: list[Any]) -> bool:
    if len(want) != len(have) or len(want) > 200:
        return False
    left = list(want)
    for item in have:
        at = next((at for at, other in enumerate(left) if equal(other, item)), None)
        if at is None:
            return False
        del left[at]
    return True


def _counts(items: list[Any]) -> Counter | None:
    """How often each item is there, for items that are told apart by what they are written as."""
    return Counter(map(repr, items)) if all(isinstance(item, str | numbers.Real | None) for item in items) else None


def _repeated(want: list[Any], have: list[Any], too_often: bool) -> bool:
    """Whether the same items are there, and each as often as it should or more (less) often."""
    counts = _counts(want), _counts(have)
    if counts[0] is None or counts[1] is None or set(counts[0]) != set(counts[1]):
        return False
    if counts[0] == counts[1]:
        return equal(want, have)
    return counts[0] <= counts[1] if too_often else counts[1] <= counts[0]


_LISTS: tuple[tuple[Callable[[list, list], bool], str], ...] = (
    (lambda want, have: equal(want[::-1], have), "the items are right, but in the reverse order."),
    (_in_another_order, "the items are right, but in another order."),
    (lambda want, have: equal(want[:-1], have), "the last item is missing."),
    (lambda want, have: equal(want[1:], have), "the first item is missing."),
    (lambda want, have: bool(have) and equal(want, have[:-1]), "there is one item too many, at the end."),
    (lambda want, have: bool(have) and equal(want, have[1:]), "there is one item too many, at the beginning."),
    (
        lambda want, have: len(want) > 2 and equal(want[:-1], have[1:]) and len(have) == len(want),
        "the items are shifted by one place, towards the end.",
    ),
    (
        lambda want, have: len(want) > 2 and equal(want[1:], have[:-1]) and len(have) == len(want),
        "the items are shifted by one place, towards the beginning.",
    ),
    (
        lambda want, have: _repeated(want, have, True),
        "the items are right, but some are there too often.",
    ),
    (
        lambda want, have: _repeated(want, have, False),
        "the items are right, but some are there too seldom.",
    ),
)


def _one_for_another(pairs: Sequence[tuple[list, list]]) -> str | None:
    """Everywhere the same wrong value in the place of the same right one: -1 for -100."""
    if any(len(want) != len(have) for want, have in pairs):
        return None
    both = [(w, h) for want, have in pairs for w, h in zip(want, have, strict=True)]
    if not all(isinstance(value, int | float | str) for pair in both for value in pair):
        return None
    differ = [(w, h) for w, h in both if not equal(w, h)]
    if len(differ) < 2 or len(set(differ)) > 1:
        return None
    right, wrong = differ[0]
    if sum(equal(right, w) for w, _ in both) > len(differ):  # elsewhere it is in its place
        return (
            f"what is wrong is always {brief(wrong)} in the place of {brief(right)}, which elsewhere is in its place."
        )
    return f"wherever {brief(right)} belongs, you have {brief(wrong)}; the rest is right."


def _some_left(pairs: Sequence[tuple[list, list]]) -> str | None:
    """Only items too many, or only items too few."""
    known = [(_counts(want), _counts(have)) for want, have in pairs if not equal(want, have)]
    if all(want is not None and have is not None and want < have for want, have in known):
        return f"nothing is missing, but there are items that don't belong there, such as {_first(pairs, 1, 0)}."
    if all(want is not None and have is not None and have < want for want, have in known):
        return f"what is there belongs there, but items are missing, such as {_first(pairs, 0, 1)}."
    return None


def _first(pairs: Sequence[tuple[list, list]], there: int, absent: int) -> str:
    pair = next(pair for pair in pairs if not equal(*pair))
    left = Counter(map(repr, pair[there])) - Counter(map(repr, pair[absent]))
    return next(brief(item) for item in pair[there] if repr(item) in left)


def _texts(tried: Sequence[Tried], names: Sequence[str]) -> str | None:
    pairs = [(one.want, one.have) for one in tried]
    if not all(isinstance(want, str) and isinstance(have, str) for want, have in pairs):
        return None
    if all(want.lower() == have.lower() for want, have in pairs):
        return "the words are right, but not their capital and small letters."
    if all("".join(want.split()) == "".join(have.split()) for want, have in pairs):
        return "the words are right, but not the spaces and line ends between them."
    want, have = next((want, have) for want, have in pairs if want != have)
    if all(want.startswith(have) for want, have in pairs):
        return f"the end is missing: {brief(want[len(have) :])}."
    if all(want.endswith(have) for want, have in pairs):
        return f"the beginning is missing: {brief(want[: len(want) - len(have)])}."
    if all(have.startswith(want) for want, have in pairs):
        return f"there is something too much at the end: {brief(have[len(want) :])}."
    if all(have.endswith(want) for want, have in pairs):
        return f"there is something too much at the beginning: {brief(have[: len(have) - len(want)])}."
    return None


_PROPERTIES: tuple[Property, ...] = (_nothing, _empty, _returns_argument, _parts, _sequences, _texts, numeric)


# --------------------------------------------------------------------------------------- arguments and their use


def _keeps(answer: Callable[..., Any], one: Tried, names: Sequence[str]) -> str | None:
    """Something else each time for the same arguments and the same seed."""
    first, second = (outcome(answer, one.case, SECONDS) for _ in range(2))
    if first.raised or second.raised or equal(first.value, second.value):
        return None
    if not (_is_data(first.value) and equal(first.value, first.value)):
        return None
    return (
        "called twice with the same, your function gives two different results: does it keep something from one call "
        "to the next, such as a list in def f(x, items=[]) or a variable outside of it?"
    )


def _is_data(value: Any, depth: int = 3) -> bool:
    """Whether a value is numbers, strings, tensors and what holds them."""
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_data(item, depth - 1) for item in items)
    return isinstance(value, int | float | str | torch.Tensor | None)


def _order_of_parameters(
    answer: Callable[..., Any], tried: Sequence[Tried], names: Sequence[str], same: Same
) -> str | None:
    """The right computation, with the parameters written down in another order."""
    mine = parameters(answer)
    if mine == list(names) or sorted(mine) != sorted(names):
        return None

    def by_name(*arguments: Any) -> Any:
        return answer(**dict(zip(names, arguments, strict=True)))

    for one in tried:
        done = outcome(by_name, one.case, SECONDS)
        if done.raised is not None or not same(one.want, done.value):
            return None
    return f"your parameters are in the order ({', '.join(mine)}), and the task wants ({', '.join(names)})."


def _swapped(found: Exercise, tried: Sequence[Tried], names: Sequence[str], same: Same) -> str | None:
    """Two arguments taken for each other: the reference does the same when they are exchanged."""
    if sum(not one.right for one in tried) < 2:
        return None
    order = sorted(tried, key=lambda one: one.right)  # a wrong case refutes an exchange the soonest
    for one, other in itertools.combinations(range(count(tried)), 2):
        if all(_exchanged_gives(found, case, one, other, same) for case in order):
            return f"{named(names, one)} and {named(names, other)} are taken for each other."
    return None


def _exchanged_gives(found: Exercise, tried: Tried, one: int, other: int, same: Same) -> bool:
    values = tried.arguments[one], tried.arguments[other]
    plain = all(isinstance(value, numbers.Real) for value in values)
    if type(values[0]) is not type(values[1]) and not plain:
        return False
    if plain and max(abs(value) for value in values) > 1000 * max(1, min(abs(value) for value in values)):
        return False  # so many rows for so few columns may fill the memory

    def make() -> tuple[Any, ...]:
        arguments = list(tried.case.make())
        arguments[one], arguments[other] = arguments[other], arguments[one]
        return tuple(arguments)

    done = outcome(found.reference, Case(make, tried.case.seed), SECONDS)
    return done.raised is None and same(done.value, tried.have)


def _unused(
    found: Exercise, answer: Callable[..., Any], tried: Sequence[Tried], names: Sequence[str], same: Same
) -> str | None:
    """Arguments that change the right result and never the answer's."""
    unused = [named(names, place) for place in range(count(tried)) if _has_no_effect(found, answer, tried, place, same)]
    if not unused or len(unused) == count(tried) > 1:
        return None
    verb = "does: is it used?" if len(unused) == 1 else "do: are they used?"
    return f"your result doesn't change when {' or '.join(unused)} {verb}"


def _has_no_effect(found: Exercise, answer: Callable[..., Any], tried: Sequence[Tried], place: int, same: Same) -> bool:
    moved = 0
    for one, other in itertools.islice(zip(tried, [*tried[1:], tried[0]], strict=True), 8):
        case = _with_argument(one, other, place)
        if case is None:
            continue
        right = outcome(found.reference, case, SECONDS)
        if right.raised is not None or same(one.want, right.value):
            continue
        mine = outcome(answer, case, SECONDS)
        if mine.raised is not None or not equal(one.have, mine.value):
            return False
        moved += 1
    return moved >= 2


def _with_argument(one: Tried, other: Tried, place: int) -> Case | None:
    """The one case with one argument of the other, where that has the same form."""
    mine, theirs = one.arguments[place], other.arguments[place]
    if isinstance(mine, torch.Tensor):
        if not mine.is_floating_point() or mine.is_meta or not mine.numel():
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
    if len(tried) < 2 or any(not equal(one.have, tried[0].have) for one in tried[1:]):
        return None
    if not _varies([one.want for one in tried]):
        return None
    return f"your function returns the same every time, {brief(tried[0].have)}: does it use its arguments?"
