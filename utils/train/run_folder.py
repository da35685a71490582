"""A run's folder while it is not finished: checkpoints, then the adapter, then its card, and going on after a stop.

`out` appears when everything is done. Until then all of it is in ``out.partial``, with `run.json`: of which run it is.
The same command again goes on from there.

Attributes:
    RUN: The file that says of which run a partial folder is.
    CHECKPOINTS: The folder of the trainer's checkpoints in it.
    TRAINED: The file that says what was trained on, written when the adapter is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from utils.files import new_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTTrainer

RUN, CHECKPOINTS, TRAINED = "run.json", "checkpoints", "trained.json"


class TrainedOn(NamedTuple):
    """What a run did. records: that were trained on, after what was dropped; tokens, learned: theirs in an epoch, and
    those that the loss counts; dev: records by whose loss the checkpoint was chosen, 0 for none; steps, epochs: taken;
    kept: the step whose weights were kept; planned: steps that were planned."""

    records: int
    tokens: int
    learned: int
    dev: int
    steps: int
    epochs: float
    kept: int
    planned: int


def trained_on(trainer: SFTTrainer) -> TrainedOn:
    """What a trainer that is done trained on."""
    from utils.train.sft import trained_tokens

    rows = cast("Dataset", trainer.train_dataset)
    learned, tokens = trained_tokens(rows)
    dev = 0 if trainer.eval_dataset is None else len(cast("Dataset", trainer.eval_dataset))
    state = trainer.state
    kept = state.best_global_step if dev and state.best_global_step else state.global_step
    return TrainedOn(
        len(rows), tokens, learned, dev, state.global_step, round(state.epoch or 0, 2), kept,
        state.max_steps,
    )  # fmt: skip


def partial_folder(out: str | Path) -> Path:
    """Where a run that is to become `out` is while it isn't finished."""
    out = Path(out) if Path(out).name else Path(out).resolve()
    return out.with_name(out.name + ".partial")


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint in a folder of them. The trainer writes `trainer_state.json` last, so one without it,
    or with half of it, is one whose saving was cut off."""
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda f: int(f.name.rpartition("-")[2]))
    return next((folder for folder in reversed(found) if _read(folder / "trainer_state.json") is not None), None)


def is_trained(partial: str | Path) -> TrainedOn | None:
    """What was trained on, when the adapter in a partial folder is done; else None."""
    found = _read(Path(partial, TRAINED))
    return None if found is None else TrainedOn(**found)


def keep_adapter(trainer: SFTTrainer, partial: str | Path) -> TrainedOn:
    """Save a trainer's adapter into a partial folder, so that nothing that happens later can take it away."""
    done = trained_on(trainer)
    Path(partial).mkdir(parents=True, exist_ok=True)
    cast("PeftModel", trainer.model).save_pretrained(str(partial), save_embedding_layers=False)  # or PEFT asks the Hub
    _write(Path(partial, TRAINED), done._asdict())
    return done


def what_is_left(out: str | Path) -> str:
    """A sentence on what a run that stopped has left, and how it goes on; "" when there is nothing."""
    partial = partial_folder(out)
    if is_trained(partial):
        return (
            f"The adapter is trained and saved in {partial}; its evaluation is missing. The same command again "
            "goes on with that, and the folder can be used as it is"
        )
    if (last := last_checkpoint(partial / CHECKPOINTS)) is not None:
        step = last.name.rpartition("-")[2]
        return f"The run can go on from step {step}: the same command again does so. What there is lies in {partial}"
    return ""


@contextmanager
def unfinished(out: str | Path, run: Mapping[str, Any]) -> Iterator[Path]:
    """The partial folder of the run that `run` describes; it becomes `out` when the block ends without an error.

    One that an earlier run with the same description has left is gone on with, and a line says so. Stopped before there
    is anything to go on from, it is removed. Raises FileExistsError, before the block, when `out` exists, or when the
    partial folder is another run's: then it says what differs.
    """
    out, partial = new_folder(out), partial_folder(out)
    run = json.loads(json.dumps(run, default=str))
    if partial.exists():
        _check_same(partial, run)
        if said := what_is_left(out):
            print(f"An earlier run of the same file and settings stopped. {said.partition(':')[0].partition(';')[0]}.")
    else:
        partial.mkdir(parents=True)
        _write(partial / RUN, run)
    try:
        yield partial
        shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
        for name in (RUN, TRAINED):
            (partial / name).unlink(missing_ok=True)
        os.replace(partial, out)
    finally:
        if partial.exists() and not what_is_left(out):
            shutil.rmtree(partial, ignore_errors=True)


def _check_same(partial: Path, run: Mapping[str, Any]) -> None:
    was = _read(partial / RUN)
    if was is None:
        raise FileExistsError(f"{partial} exists already and is no unfinished run: move it away, or take another --out")
    differ = [
        f"{name} was {was.get(name)} and is {run.get(name)}"
        for name in {**was, **run}
        if was.get(name) != run.get(name)
    ]
    if differ:
        raise FileExistsError(
            f"{partial} is what another run has left: {'; '.join(differ)}. Call it with that run's settings to go on, "
            "remove the folder to begin anew, or take another --out"
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
