"""Call an answer, and hold what it did: result or exception, what it printed, and its arguments as it left them.

Every call gets fresh arguments, the same random seed and the same settings of the process, so an answer that changes
its arguments, draws random numbers or sets torch's default dtype is judged like any other; nothing of the course's own
can be reached through an argument. What an answer prints, warns of and displays doesn't reach the notebook.

Attributes:
    DEPTH: How deep lists and dictionaries within each other are looked into: an answer's may hold itself.
    LARGE: From so many numbers on a result is not copied.
    KEPT: So many letters of what an answer prints are kept, and the rest is dropped.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from utils.course.checks.registry import Case

DEPTH = 20
LARGE = 1_000_000
KEPT = 10_000


@dataclass(frozen=True, eq=False)
class Outcome:
    """One call's result, or the exception that it raised.

    value: the result as it was when the call ended: lists and tensors are copied, so that a later call can't change
    what an earlier one gave. printed: what it wrote to the standard output. after: the arguments as the call left them.
    shares: for each of them whether the result shares its memory.
    """

    value: Any = None
    raised: BaseException | None = None
    printed: str = ""
    after: tuple[Any, ...] = ()
    shares: tuple[bool, ...] = ()


class Printed(io.StringIO):
    """What an answer prints, of which the first KEPT letters are held: it may print without an end."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, KEPT - self.tell())])
        return len(text)


class TooLong(BaseException):
    """A call took longer than it was given. No Exception, or a bare except in the call's loop would go on with it."""


def outcome(function: Callable[..., Any], case: Case, seconds: float | None = None) -> Outcome:
    """What `function` does in a case, with fresh arguments and the same seed each time.

    Nothing is raised but what interrupts the kernel. seconds: see :func:`limit`; a call that is broken off counts as
    one that raised `TooLong`.
    """
    arguments = arguments_of(case)
    seed(case.seed)
    printed = Printed()
    try:
        with quiet(printed), _settings_kept(), limit(seconds), torch.enable_grad():
            value = function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # SystemExit and what a learner derives from BaseException
        return Outcome(raised=problem, printed=printed.getvalue(), after=arguments)
    if inspect.iscoroutine(value):
        value.close()  # or Python warns of each one that nobody waited for
    shares = tuple(_share_memory(value, argument) for argument in arguments)
    return Outcome(_snapshot(value), None, printed.getvalue(), arguments, shares)


@contextmanager
def quiet(printed: Printed | None = None) -> Iterator[None]:
    """Keep what is printed, warned of and displayed out of the notebook: an answer is called dozens of times."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    with contextlib.ExitStack() as stack:
        if shell is not None:
            from IPython.utils.capture import capture_output

            stack.enter_context(capture_output(stdout=False, stderr=False))
        stack.enter_context(contextlib.redirect_stdout(printed or Printed()))
        stack.enter_context(contextlib.redirect_stderr(Printed()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back, at the end, what a call may have set for the whole process."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    folder, variables, limit = os.getcwd(), dict(os.environ), sys.getrecursionlimit()
    try:
        yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if os.environ != variables:
            os.environ.clear()
            os.environ.update(variables)
        if os.getcwd() != folder:
            os.chdir(folder)
        sys.setrecursionlimit(limit)


@contextmanager
def limit(seconds: float | None) -> Iterator[None]:
    """Break off Python code that runs longer, where a limit is given: a loop without an end would hang the notebook.

    Raises `TooLong` in the block. The main thread has an alarm for it, which costs nothing; elsewhere, and on Windows,
    each line that is run looks at the clock. Code of a library is broken off when it comes back to Python.
    """
    if seconds is None:
        yield
    elif hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        with _alarm(seconds):
            yield
    else:
        with _watched(seconds):
            yield


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)  # None: not set from Python


@contextmanager
def _watched(seconds: float) -> Iterator[None]:
    end = time.perf_counter() + seconds

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if time.perf_counter() > end:
            raise TooLong
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def arguments_of(case: Case) -> tuple[Any, ...]:
    """The case's arguments, anew: each time the same numbers in memory of their own."""
    seed(case.seed)
    return tuple(fresh(argument) for argument in case.make())


def _snapshot(value: Any, depth: int = DEPTH) -> Any:
    """The value as it is now. What takes part in a backward pass stays itself, and so does what isn't plain data."""
    if type(value) is torch.Tensor and not value.requires_grad and value.layout == torch.strided:
        return value if value.is_meta or value.numel() > LARGE else value.clone()
    if depth and type(value) in (list, tuple):
        return type(value)(_snapshot(item, depth - 1) for item in value)
    if depth and type(value) is dict:
        return {key: _snapshot(item, depth - 1) for key, item in value.items()}
    return set(value) if type(value) is set else value


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
    """Put back, at the end, the states of all generators of random numbers, whether gradients are recorded, and the
    settings of the process."""
    numpy = sys.modules.get("numpy")
    kept = random.getstate(), numpy.random.get_state() if numpy else None
    gradients = torch.is_grad_enabled()
    with torch.random.fork_rng(), _settings_kept():
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


def _tensors(value: Any, depth: int = DEPTH) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [] if value.is_meta or value.layout != torch.strided else [value]
    if not depth or type(value) not in (list, tuple, dict):
        return []
    items = value.values() if type(value) is dict else value
    return [tensor for item in items for tensor in _tensors(item, depth - 1)]
