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
from collections.abc import Callable, Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

Reward = Callable[..., Sequence[float]]


class RewardError(ValueError):
    """A reward function raised, or returned something that is no finite number for each completion."""


def name_of(reward: Any) -> str:
    """What errors and tables call a reward: its function's name, or its class's."""
    return getattr(reward, "__name__", None) or type(reward).__name__


def _short(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= 160 else f"{shown[:157]}..."


def _number(reward: Any, value: Any, place: int, completion: str) -> float:
    """The value as a float. Raises RewardError unless it is a finite number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    where = f"for completion {place}, {_short(completion)}"
    if value is None:
        raise RewardError(
            f"the reward {name_of(reward)!r} returned None {where}: does a branch of it end without a return? "
            "Give such a completion the lowest reward that you use"
        )
    if not isinstance(value, Real) or isinstance(value, complex):
        raise RewardError(
            f"the reward {name_of(reward)!r} returned {_short(value)} {where}: return one number for each completion"
        )
    number = float(value)
    if not math.isfinite(number):
        raise RewardError(
            f"the reward {name_of(reward)!r} returned {number} {where}: one such number makes the mean of its group, "
            "and so all weights, NaN. Look for a division by zero or a logarithm of 0, and return a finite number"
        )
    return number


def reward_of(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Float32[Tensor, " samples"]:
    """The reward of each completion, as float32 on the CPU, once it is sure that each is a finite number.

    `columns` are what the data hold beside the prompt, by name, with one entry a sample. True and False count as 1 and
    0. Raises :class:`RewardError`, a ValueError, which names the reward, the completion and what to do: when the reward
    raised or can't be called so, when it returned another number of values, or None, NaN, infinity or no number. Raises
    ValueError when prompts, completions and columns have different lengths, or a column is called like an argument.
    """
    columns = columns or {}
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
            f"the reward {name!r} returned {_short(given)}: return a list with one number for each of the "
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
        raise RewardError(f"a reward is a function, not {_short(reward)}") from None
    try:
        signature.bind(**asked)
    except TypeError as error:
        columns = sorted(asked.keys() - {"prompts", "completions"})
        raise RewardError(
            f"the reward {name_of(reward)!r} can't be called: {error}. It gets prompts, completions and the data's "
            f"columns {columns} by these names: let its parameters end in **columns, for those it doesn't use"
        ) from None


def _culprit(
    reward: Reward, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> str:
    """Which completion alone makes the reward raise, in words; empty when none does."""
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            reward(prompts=[prompt], completions=[completion], **{key: [own[i]] for key, own in columns.items()})
        except Exception:
            return f", for completion {i}, {_short(completion)}"
    return ""
