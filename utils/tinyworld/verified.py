"""Two generated tasks that a small model finds hard, each with a checker: a form filled in from a text, and sums told
as stories.

The answers are checked by what they say and not by how they are written: JSON by its schema and its values, a sum by
its number. The sentences of the splits come from different templates, so a model that has learnt its templates by heart
is found out: train has most of them, dev and test have three each that no other split uses.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from utils.data.chat import Example
from utils.tinyworld.corpus import Split
from utils.tinyworld.drawn import all_different

VerifiedTask = Literal["extraction", "sums"]
VERIFIED: tuple[VerifiedTask, ...] = get_args(VerifiedTask)

_PEOPLE = tuple("Anna Ben Carla David Elena Frank Grace Hassan Ines Jonas Kim Lucia Marco Nadia Omar Paula Rosa Tariq Vera Yuki".split())  # fmt: skip  # noqa: E501
_GOODS = (
    "chairs", "lamps", "notebooks", "bicycles", "kettles", "blankets", "mirrors", "tents", "radios", "pillows",
    "hammers", "baskets", "candles", "umbrellas", "backpacks", "teapots",
)  # fmt: skip
_CITIES = tuple("Lyon Porto Oslo Turin Ghent Kyoto Quito Dakar Leeds Malmo Tunis Perth Lima Graz Cork Bergen".split())
_MONTHS = tuple("January February March April May June July August September October November December".split())

_ORDERS: dict[str, tuple[str, ...]] = {
    "train": (
        "{who} from {city} ordered {count} {goods} on {date}, and paid {price} euros.",
        "On {date}, {who} bought {count} {goods} for {price} euros. They go to {city}.",
        "Please send {count} {goods} to {who} in {city}. The order is of {date}, the price is {price} euros.",
        "{count} {goods}, {price} euros, to be sent to {city}: that is what {who} asked for on {date}.",
        "We got {price} euros from {who} on {date} for {count} {goods}. The address is in {city}.",
        "{city}, {date}. Dear shop, I would like {count} {goods} and enclose {price} euros. {who}",
        "{other} took the call of {who} on {date}: {count} {goods} for {price} euros, sent to {city}.",
        "{who} first wanted {wrong} {goods}, and then, on {date}, ordered {count} for {price} euros. City: {city}.",
    ),
    "dev": (
        "The parcel with {count} {goods} for {who} left for {city} on {date}; {price} euros were paid.",
        "{other} sold {count} {goods} to {who}, who lives in {city}, on {date} and asked for {price} euros.",
        "Order of {date}: {goods}, {count} of them, {price} euros in all, customer {who}, city {city}.",
    ),
    "test": (
        "{who} called on {date} from {city}. It is about {count} {goods}, and {price} euros have come in.",
        "For {price} euros {who} gets {count} {goods}, not {wrong}; they were ordered on {date} and go to {city}.",
        "A customer in {city}, {who}, has ordered {count} {goods} through {other}. Date: {date}. Total: {price} euros.",
    ),
}
_KEYS: dict[str, type] = {"name": str, "city": str, "item": str, "count": int, "date": str, "cents": int}

_SUMS: dict[str, tuple[tuple[str, Callable[[int, int, int], int]], ...]] = {
    "train": (
        ("{who} has {a} {goods} and buys {b} more. How many {goods} does {who} have?", lambda a, b, c: a + b),
        ("There were {a} {goods} in a shop, and {b} were sold. How many are left?", lambda a, b, c: a - b),
        ("{who} packs {c} boxes with {b} {goods} in each. How many {goods} is that?", lambda a, b, c: b * c),
        ("{who} had {a} {goods}, gave {b} away and found {c}. How many has {who} now?", lambda a, b, c: a - b + c),
        ("{who} has {a} {goods}. {other} has {b} fewer. How many has {other}?", lambda a, b, c: a - b),
        ("A shop gets {a} {goods} on Monday and {b} on Friday. How many in all?", lambda a, b, c: a + b),
        ("{c} people carry {b} {goods} each. How many {goods} do they carry?", lambda a, b, c: b * c),
        ("{who} sells {b} of {a} {goods} and then {c} more. How many remain?", lambda a, b, c: a - b - c),
    ),
    "dev": (
        ("{other} lends {b} {goods} to {who}, who had {a}. How many has {who} then?", lambda a, b, c: a + b),
        ("Of {a} {goods} in a store, {b} are broken. How many are whole?", lambda a, b, c: a - b),
        ("A van brings {b} {goods}, and comes {c} times. How many does it bring?", lambda a, b, c: b * c),
    ),
    "test": (
        ("{who} counts {a} {goods} in one room and {b} in another. What is the total?", lambda a, b, c: a + b),
        ("{who} needs {a} {goods} and has {b}. How many are missing?", lambda a, b, c: a - b),
        ("On each of {c} shelves stand {b} {goods}. How many stand on all of them?", lambda a, b, c: b * c),
    ),
}  # fmt: skip


def _order(split: str, rng: random.Random) -> Example:
    who, other = rng.sample(_PEOPLE, 2)
    count, wrong = rng.sample(range(2, 60), 2)
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(2015, 2026)
    euros, rest = rng.randint(5, 900), rng.choice((0, 0, 5, 20, 50, 75, 90))
    city, goods = rng.choice(_CITIES), rng.choice(_GOODS)
    text = rng.choice(_ORDERS[split]).format(
        who=who, other=other, count=count, wrong=wrong, goods=goods, city=city,
        date=f"{day} {_MONTHS[month]} {year}", price=f"{euros}.{rest:02}" if rest else str(euros),
    )  # fmt: skip
    wanted = {
        "name": who, "city": city, "item": goods, "count": count, "date": f"{year}-{month + 1:02}-{day:02}",
        "cents": 100 * euros + rest,
    }  # fmt: skip
    return Example(f"Fill in name, city, item, count, date and cents as JSON. {text}", json.dumps(wanted))


def _sum(split: str, rng: random.Random) -> Example:
    who, other = rng.sample(_PEOPLE, 2)
    b, c = rng.randint(2, 9), rng.randint(2, 5)
    a = rng.randint(b + c + 1, 20)
    text, result = rng.choice(_SUMS[split])
    told = text.format(who=who, other=other, goods=rng.choice(_GOODS), a=a, b=b, c=c)
    return Example(f"Answer with a number. {told}", str(result(a, b, c)))


_MAKERS: dict[str, Callable[[str, random.Random], Example]] = {"extraction": _order, "sums": _sum}


def verified_examples(task: VerifiedTask, split: Split, n: int, seed: int = 0) -> list[Example]:
    """`n` different examples of a task from one split, the same for the same seed.

    Raises ValueError for an unknown task or split and for an `n` below 1.
    """
    if task not in VERIFIED:
        raise ValueError(f"unknown task {task!r}: the tasks with a checker are {', '.join(VERIFIED)}")
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    what, seed_of = f"examples of {task} ({split})", f"{task}/{split}/{seed}"
    return all_different(lambda rng: _MAKERS[task](split, rng), lambda example: example.prompt, n, seed_of, what)


class Checked(NamedTuple):
    """What a checker says of an answer: `valid`, it has the form that was asked for; `right`, it says what is true."""

    valid: bool
    right: bool
    why: str


def check(task: VerifiedTask, answer: str, wanted: str) -> Checked:
    """Whether `answer` has the form of a task's answers and says what `wanted`, an example's own answer, says.

    Extraction: JSON with exactly the six keys and their types (a count is a whole number and no text), in any order and
    with any spaces. Sums: a whole number and nothing else but space around it, or a full stop behind it. `why` names
    the first thing that is wrong. Raises ValueError for an unknown task.
    """
    if task == "extraction":
        return _check_json(answer, json.loads(wanted))
    if task != "sums":
        raise ValueError(f"unknown task {task!r}: the tasks with a checker are {', '.join(VERIFIED)}")
    said = answer.strip().removesuffix(".")
    if not said.removeprefix("-").isdecimal():
        return Checked(False, False, f"no whole number: {answer[:40]!r}")
    right = int(said) == int(wanted)
    return Checked(True, right, "" if right else f"{said}, not {wanted}")


def _check_json(answer: str, wanted: dict) -> Checked:
    try:
        said = json.loads(answer)
    except ValueError as error:
        return Checked(False, False, f"no JSON: {error}")
    if not isinstance(said, dict):
        return Checked(False, False, f"JSON, but no object: {answer[:40]!r}")
    if missing := _KEYS.keys() - said.keys():
        return Checked(False, False, f"without {', '.join(sorted(missing))}")
    if more := said.keys() - _KEYS.keys():
        return Checked(False, False, f"with {', '.join(sorted(more))}, which nobody asked for")
    for key, kind in _KEYS.items():
        if type(said[key]) is not kind:
            return Checked(False, False, f"{key} is {said[key]!r}, no {'text' if kind is str else 'whole number'}")
    for key in _KEYS:
        if said[key] != wanted[key]:
            return Checked(True, False, f"{key} is {said[key]!r}, not {wanted[key]!r}")
    return Checked(True, True, "")
