"""What a reward is, and the one place that calls one: what it returns is checked before anything learns from it.

A reward is a function with TRL's signature: ``reward(prompts, completions, **columns)`` gets the prompts and the
completions as strings, one of each for every sample, and the data's other columns as lists of the same length, and
returns one number a sample. Higher is better. TRL itself gives strings for prompts that are strings, and lists of
messages for prompts that are lists of messages.

Attributes:
    Reward: The type of such a function. Its columns differ from one set of data to the next, so it names none.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from utils.preferences.refusals import check_list, name_of, shown

Reward = Callable[..., Sequence[float]]

LARGEST = 1e16  # in size: the squares of a million such numbers add up to less than float32's end, 3.4e38


class RewardError(ValueError):
    """A reward function raised, or returned something that is no finite number for each completion, or too large a
    one."""


def _number(reward: Any, value: Any, place: int, completion: str) -> float:
    """The value as a float. Raises RewardError unless it is a number between -LARGEST and LARGEST."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    where = f"for completion {place}, {shown(completion)}"
    if value is None:
        raise RewardError(
            f"the reward {name_of(reward)!r} returned None {where}: does a branch of it end without a return? "
            "Give such a completion the lowest reward that you use"
        )
    if not isinstance(value, Real | Decimal):
        raise RewardError(
            f"the reward {name_of(reward)!r} returned {shown(value)} {where}: return one number for each completion"
        )
    try:
        number = float(value)
    except OverflowError:  # 10**400 and its like
        number = sys.float_info.max
    if not math.isfinite(number):
        raise RewardError(
            f"the reward {name_of(reward)!r} returned {number} {where}: one such number makes the mean of its group, "
            "and so all weights, NaN. Look for a division by zero or a logarithm of 0, and return a finite number"
        )
    if abs(number) > LARGEST:
        raise RewardError(
            f"the reward {name_of(reward)!r} returned a number beyond {LARGEST:g} {where}: rewards are float32, "
            "and the spread of a group of such numbers overflows there. Return smaller ones, from 0 to 1 for example"
        )
    return number


def reward_of(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Float32[Tensor, " samples"]:
    """The reward of each completion, as float32 on the CPU, once it is sure that each is a finite number.

    `columns` are what the data hold beside the prompt, by name, with one entry a sample. A number is any of Python's or
    numpy's, real, or a tensor or an array that holds one; True and False count as 1 and 0. Raises :class:`RewardError`,
    a ValueError, which names the reward, the completion and what to do: when the reward raised or can't be called so,
    when it returned another number of values, or None, NaN, infinity, a number beyond :data:`LARGEST` in size or none.
    Raises ValueError when prompts, completions or a column are no lists (a string isn't one), have different lengths,
    or a column is called like an argument.
    """
    columns = {} if columns is None else columns
    if not isinstance(columns, Mapping):
        raise ValueError(f'columns must be a mapping such as {{"words": [...]}}, not {shown(columns)}')
    for name, values in {"prompts": prompts, "completions": completions}.items():
        check_list(name, values, "texts")
    for name, values in columns.items():
        if not isinstance(name, str):
            raise ValueError(f"a column is called {shown(name)}: a reward gets columns by name, a string")
        check_list(f"the column {name!r}", values, "entries, one for every completion")
    for name, values in {"prompts": prompts, **columns}.items():
        if len(values) != len(completions):
            raise ValueError(f"there are {len(completions)} completions, but {len(values)} entries in {name}")
    if clash := columns.keys() & {"prompts", "completions"}:
        raise ValueError(f"a column of the data is called {min(clash)!r}, like an argument of every reward: rename it")
    name = name_of(reward)
    asked: dict[str, list[Any]] = {"prompts": list(prompts), "completions": list(completions)}
    asked |= {key: list(values) for key, values in columns.items()}
    _check_takes(reward, asked)
    try:
        given = reward(**asked)
    except Exception as error:
        culprit = _culprit(reward, prompts, completions, columns)
        raise RewardError(
            f"the reward {name!r} raised {type(error).__name__}: {error}{culprit}. A model in training writes "
            "anything at all: catch what can go wrong and return the lowest reward for it"
        ) from error
    try:
        if isinstance(given, str | bytes | Mapping | Set) or not len(given) == len(list(given)):
            raise TypeError
    except TypeError:  # what has no length, or none of its numbers a place
        raise RewardError(
            f"the reward {name!r} returned {shown(given)}: return a list with one number for each of the "
            f"{len(completions)} completions"
        ) from None
    given = list(given)
    if len(given) != len(completions):
        raise RewardError(
            f"the reward {name!r} returned {len(given)} rewards for {len(completions)} completions: return one for "
            "each, in their order, the lowest for those that can't be scored"
        )
    pairs = zip(given, completions, strict=True)
    values = [_number(reward, value, place, completion) for place, (value, completion) in enumerate(pairs)]
    return torch.tensor(values, dtype=torch.float32)


def _check_takes(reward: Reward, asked: Mapping[str, Any]) -> None:
    """Raises RewardError when the reward can't be called with these arguments."""
    try:
        signature = inspect.signature(reward)
    except ValueError:  # some written in C have none
        return
    except TypeError:
        several = isinstance(reward, list | tuple) and all(map(callable, reward))
        advice = ": pass one at a time, or add them up in one function" if several else ""
        raise RewardError(f"a reward is a function, not {shown(reward)}{advice}") from None
    try:
        signature.bind(**asked)
    except TypeError as error:
        columns = sorted(asked.keys() - {"prompts", "completions"})
        parameters = signature.parameters.values()
        needed = [
            p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if missing := [name for name in needed if name not in asked]:
            advice = f"rename the parameter {missing[0]!r}, or give every row of the data a column {missing[0]!r}"
        else:
            advice = "let its parameters end in **columns, for those it doesn't use"
        raise RewardError(
            f"the reward {name_of(reward)!r} can't be called: {error}. It gets prompts, completions and the data's "
            f"columns {columns} by these names: {advice}"
        ) from None


def _culprit(
    reward: Reward, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> str:
    """Which completion alone makes the reward raise, in words; empty when none does."""
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            reward(prompts=[prompt], completions=[completion], **{key: [own[i]] for key, own in columns.items()})
        except Exception:
            return f", for completion {i}, {shown(completion)}"
    return ""
