"""What every fuzz target has in common: the trials by number, how an error is judged, and the table at the end.

A target is a module of tools/fuzz that is named in :data:`TARGETS` and has one function::

    def trial(draw: random.Random, folder: Path) -> Iterable[Trial]

It damages something by `draw`, and by nothing else that is random, in the empty `folder`, and hands back a
:class:`Trial` for each reader that it showed the damage to; :func:`judged` makes one. Trial 137 of a seed is the same
whether or not the others run, so that a finding can be run again by itself.

Attributes:
    TARGETS: The targets by name, each with the module that holds it.
    OUTCOMES: How a trial can end, and whether that is a fault. `silent` is a reader that took damaged input and gave
        something else without a word; where nothing in the input tells (a flipped bit in a file without a checksum),
        it can't be avoided.
"""

from __future__ import annotations

import linecache
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "adapters": "tools.fuzz.adapters",
    "records": "tools.fuzz.records",
}
Outcome = Literal["clear error", "right", "silent", "silent, not finite", "raw", "half-written"]
OUTCOMES: dict[Outcome, bool] = {outcome: outcome not in ("clear error", "right") for outcome in get_args(Outcome)}


def change_bytes(draw: random.Random, data: bytearray, kind: str, at: int, end: int) -> None:
    """One change of bytes that any file can suffer, in place; the kinds of its targets' own are none of these."""
    if kind == "bit":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        data[at] = draw.randrange(256)
    elif kind == "cut":
        del data[at:]
    elif kind == "gone":
        del data[at:end]
    elif kind == "doubled":
        data[at:at] = data[at:end]
    elif kind == "zeros":
        data[at:end] = bytes(len(data[at:end]))
    else:
        raise ValueError(f"no kind of change is called {kind!r}")


class Trial(NamedTuple):
    """One reader's answer to one damage; `words` are the error's, or what was wrong with the answer."""

    damage: str
    reader: str
    outcome: Outcome
    words: str = ""


class Report(NamedTuple):
    """The trials of a run with their numbers, and the longest time, in seconds, that one number took."""

    trials: list[tuple[int, Trial]]
    slowest: float

    def count(self, outcome: Outcome) -> int:
        return sum(trial.outcome == outcome for _, trial in self.trials)

    def faults(self, *outcomes: Outcome) -> list[str]:
        """A line for each trial that ended in one of the `outcomes`; without any, in one that is a fault."""
        wanted = outcomes or [outcome for outcome, fault in OUTCOMES.items() if fault]
        return [
            f"#{number} {trial.reader}, {trial.damage}: {trial.outcome}: {trial.words}"
            for number, trial in self.trials
            if trial.outcome in wanted
        ]

    def table(self) -> str:
        """How many trials of each reader ended how, as Markdown."""
        counts = Counter((trial.reader, trial.outcome) for _, trial in self.trials)
        readers = list(dict.fromkeys(trial.reader for _, trial in self.trials))
        lines = [f"| reader | tried | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
        for reader in readers:
            row = [counts[reader, outcome] for outcome in OUTCOMES]
            lines.append(f"| {reader} | {sum(row)} | {' | '.join(map(str, row))} |")
        return "\n".join(lines)


def is_clear(error: BaseException) -> bool:
    """Whether an error is one of the project's own: raised by a ``raise`` in utils/, not by an operation that failed
    there or beneath.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(frame.filename).resolve().is_relative_to(ROOT / "utils")
    return ours and linecache.getline(frame.filename, frame.lineno or 0).lstrip().startswith("raise")


def judged(damage: str, reader: str, call: Callable[[], Any], wrong: Callable[[Any], Outcome | None]) -> Trial:
    """The trial in which `reader` is what `call` does; `wrong` says how its result is at fault, or None.

    `wrong` itself may raise, as when what was read can't be computed with: that is judged like an error of `call`.
    """
    try:
        result = call()
        outcome = wrong(result)
    except Exception as error:
        clear: Outcome = "clear error" if is_clear(error) else "raw"
        return Trial(damage, reader, clear, f"{type(error).__name__}: {error}")
    return Trial(damage, reader, outcome or "right")


def run(target: str, count: int, seed: int = 0, *, only: int | None = None) -> Report:
    """The trials 0 to `count` - 1 of a target, or the number `only` alone. Raises ValueError for an unknown target."""
    if target not in TARGETS:
        raise ValueError(f"there is no target {target!r}: choose from {', '.join(TARGETS)}")
    trial: Callable[[random.Random, Path], Iterable[Trial]] = import_module(TARGETS[target]).trial
    trials, slowest = [], 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for number in range(count) if only is None else [only]:
            folder = Path(scratch, str(number))
            folder.mkdir()
            began = time.perf_counter()
            trials += [(number, done) for done in trial(random.Random(f"{target} {seed} {number}"), folder)]
            slowest = max(slowest, time.perf_counter() - began)
    return Report(trials, slowest)
