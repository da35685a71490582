"""Call an answer, and hold what it did: result or exception, what it printed, and its arguments as it left them.

Every call gets fresh arguments and the same random seed, so an answer that changes its arguments or draws random
numbers is judged like any other; nothing of the course's own can be reached through an argument.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from utils.course.checks.registry import Case


@dataclass(frozen=True, eq=False)
class Outcome:
    """One call's result, or the exception that it raised.

    printed: what it wrote to the standard output. after: the arguments as the call left them. given: for each of them
    whether the result shares its memory.
    """

    value: Any = None
    raised: BaseException | None = None
    printed: str = ""
    after: tuple[Any, ...] = ()
    shares: tuple[bool, ...] = ()


def outcome(function: Callable[..., Any], case: Case, seconds: float | None = None) -> Outcome:
    """What `function` does in a case, with fresh arguments and the same seed each time. Nothing is raised but what
    interrupts the kernel.

    seconds: when a loop is given up, for arguments that a task doesn't have: one that counts upwards to them may never
    end. The outcome is then a TimeoutError.
    """
    arguments = arguments_of(case)
    seed(case.seed)
    printed = io.StringIO()
    limit = contextlib.nullcontext() if seconds is None else _given_up_after(seconds)
    try:
        with contextlib.redirect_stdout(printed), torch.enable_grad(), limit:
            value = function(*arguments)
    except (Exception, SystemExit) as problem:
        return Outcome(raised=problem, printed=printed.getvalue(), after=arguments)
    shares = tuple(_share_memory(value, argument) for argument in arguments)
    return Outcome(value, None, printed.getvalue(), arguments, shares)


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError at the next line of Python that runs later than so many seconds from now."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def watch(*_: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"no result after {seconds} s")
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def arguments_of(case: Case) -> tuple[Any, ...]:
    """The case's arguments, anew: each time the same numbers in memory of their own."""
    seed(case.seed)
    return tuple(fresh(argument) for argument in case.make())


def fresh(value: Any) -> Any:
    """A copy that shares no storage with `value`."""
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(fresh(v) for v in value)
    if type(value) is dict:
        return {k: fresh(v) for k, v in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:  # a generator, an open file: what can't be copied is handed on as it was made
        return value


def seed(number: int = 0) -> None:
    """Seed every generator.

    Where there is no accelerator, only the processor's: `torch.manual_seed` then writes down the whole stack, for a
    GPU that might be found later, and that takes longer than most exercises do.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put back, at the end, the states of all generators of random numbers and whether gradients are recorded."""
    numpy = sys.modules.get("numpy")
    kept = random.getstate(), numpy.random.get_state() if numpy else None
    gradients = torch.is_grad_enabled()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_grad_enabled(gradients)
            random.setstate(kept[0])
            if numpy:
                numpy.random.set_state(kept[1])


def changed_argument(expected: Sequence[Any], got: Sequence[Any]) -> int | None:
    """The place of the first argument that one call left in another state than the other, or None."""
    pairs = enumerate(zip(expected, got, strict=True))
    return next((place for place, (one, other) in pairs if not _same_state(one, other)), None)


def _same_state(one: Any, other: Any) -> bool:
    """Whether two copies of one argument still hold the same. What can't be looked into counts as the same."""
    if isinstance(one, torch.nn.Module):
        return isinstance(other, torch.nn.Module) and _same_state(_state(one), _state(other))
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        return one.is_meta or one.detach().cpu().equal(other.detach().cpu()) or _same_nans(one, other)
    if isinstance(one, Mapping):
        same_keys = isinstance(other, Mapping) and list(one) == list(other)
        return same_keys and all(_same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same_state, one, other))
    if isinstance(one, set | frozenset | str | bytes | int | float):
        return one == other or one != one
    return True


def _same_nans(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.is_floating_point() and torch.equal(one.detach().nan_to_num(), other.detach().nan_to_num())


def _state(module: torch.nn.Module) -> list[Any]:
    """What a call may change in a module: its tensors, their being trained, its mode and its parts."""
    tensors = [(name, tensor, tensor.requires_grad) for name, tensor in module.named_parameters()]
    tensors += [(name, tensor, False) for name, tensor in module.named_buffers()]
    return [tensors, [(name, type(part).__name__, part.training) for name, part in module.named_modules()]]


def _share_memory(value: Any, argument: Any) -> bool:
    ours = {tensor.untyped_storage().data_ptr() for tensor in _tensors(argument) if tensor.numel()}
    return any(tensor.untyped_storage().data_ptr() in ours for tensor in _tensors(value))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [] if value.is_meta or value.layout != torch.strided else [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [tensor for item in value.values() for tensor in _tensors(item)] if type(value) is dict else []
