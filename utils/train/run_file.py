"""A training run as one file: model, data, LoRA's settings, TRL's settings and where the adapter goes.

`tools/train.py` reads the YAML; what it says is checked here, before torch or a model is loaded.

Attributes:
    OURS: Fields of SFTConfig that follow from the file's own keys or the machine, each with the key to use.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

OURS = {
    "output_dir": "output, beside which the checkpoints are until the run is finished",
    "per_device_train_batch_size": "global_batch_size, the records of a step over all processes",
    "ignore_data_skip": "streaming",
}

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


@dataclass(frozen=True)
class RunFile:
    """A run, as its file says it.

    model: a folder or a Hub id. data: a file of records, in the forms of :func:`utils.data.formats.read_own`, or with
    `streaming` a pattern of JSONL files. output: the adapter's folder. only: the records that have these values in
    these fields; None for all. held_out: the share that is evaluated on, with ``sft.eval_strategy``. streaming: read
    the files while training, in `buffer` places of shuffling. global_batch_size: records of an optimizer step, over
    all processes and accumulated batches, so that the run is the same on another number of processes. lora, sft: values
    of PEFT's LoraConfig and TRL's SFTConfig. four_bit: values of transformers' BitsAndBytesConfig for 4-bit weights,
    NF4 unless it says otherwise; None for no QLoRA.
    """

    model: str
    data: str
    output: str
    only: Mapping[str, Any] | None = None
    held_out: float = 0.0
    streaming: bool = False
    buffer: int = 1000
    global_batch_size: int = 8
    lora: Mapping[str, Any] = field(default_factory=dict)
    sft: Mapping[str, Any] = field(default_factory=dict)
    four_bit: Mapping[str, Any] | None = None

    def said(self) -> dict[str, Any]:
        """All of it as JSON can hold it, without the place it goes to: two runs with the same are the same run."""
        return {name: value for name, value in asdict(self).items() if name != "output"}


def checked_run(content: Any, name: str = "the recipe") -> RunFile:
    """The run that a parsed file describes.

    A text such as ``6e-3``, which YAML takes for a word, becomes the number. Raises ValueError, naming them, for keys
    that aren't known, are missing or hold another kind of value, and for fields of SFTConfig that are :data:`OURS`;
    the values in `lora`, `sft` and `four_bit` are checked by :mod:`utils.train.run_values`.
    """
    if not isinstance(content, Mapping):
        what = "is empty" if content is None else f"holds a {type(content).__name__} and no keys with values"
        raise ValueError(f"{name} {what}: see tools/engines/recipe.yaml")
    known = {each.name: each for each in fields(RunFile)}
    refuse_unknown(content, known, f"{name} has")
    if missing := [key for key in ("model", "data", "output") if not content.get(key)]:
        raise ValueError(f"{name} lacks {' and '.join(missing)}")
    kinds: dict[str, tuple[type, ...]] = {
        "model": (str,), "data": (str,), "output": (str,), "only": (Mapping,), "held_out": (int, float),
        "streaming": (bool,), "buffer": (int,), "global_batch_size": (int,), "lora": (Mapping,), "sft": (Mapping,),
        "four_bit": (Mapping,),
    }  # fmt: skip
    given = {key: _numbers(value) for key, value in content.items() if value is not None}
    for key, value in given.items():
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and bool not in kinds[key]):
            wanted = " or ".join("a mapping" if kind is Mapping else kind.__name__ for kind in kinds[key])
            raise ValueError(f"{name}: {key} is {value!r}, and has to be {wanted}")
    run = RunFile(**given)
    for key in ("buffer", "global_batch_size"):
        if getattr(run, key) < 1:
            raise ValueError(f"{name}: {key} is a number of 1 or more, not {getattr(run, key)}")
    if not 0 <= run.held_out < 1:
        raise ValueError(f"{name}: held_out is a share from 0 to below 1, not {run.held_out}")
    if run.streaming and run.held_out:
        raise ValueError(f"{name}: of a stream nothing can be held out; give held_out: 0")
    steps = run.sft.get("max_steps")
    if run.streaming and not (isinstance(steps, int) and steps is not True and steps > 0):
        given = "" if steps is None else f", not {steps!r}"
        raise ValueError(f"{name}: a stream has no end, so sft needs max_steps, a whole number of 1 or more{given}")
    for key in OURS.keys() & run.sft.keys():
        raise ValueError(f"{name}: sft.{key} isn't set there; it follows from {OURS[key]}")
    return run


def refuse_unknown(given: Iterable[str], known: Iterable[str], head: str) -> None:
    """Raise ValueError, with `head` before it, for keys that aren't `known`, each with the one it may have meant."""
    known = list(known)
    said = []
    for key in sorted(set(map(str, given)) - set(known)):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)  # 0.6 takes colour for lora
        said.append(f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if said:
        raise ValueError(f"{head} unknown keys: {', '.join(said)}")


def _numbers(value: Any) -> Any:
    """The value, with texts such as 6e-3 as numbers."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(each) for key, each in value.items()}
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


def batch_of_a_process(global_batch_size: int, processes: int, accumulation: int = 1) -> int:
    """Records that one process computes at once, so that a step has `global_batch_size` of them.

    Raises ValueError when they can't be divided evenly, since some process would have fewer, or another step, and for
    less than one accumulated batch.
    """
    if accumulation < 1:
        raise ValueError(f"gradient_accumulation_steps is {accumulation}, and has to be 1 or more")
    if global_batch_size % (processes * accumulation):
        raise ValueError(
            f"global_batch_size={global_batch_size} can't be divided among {processes} processes"
            + (f" and {accumulation} accumulated batches" if accumulation > 1 else "")
            + f": take a multiple of {processes * accumulation}, or another number of processes"
        )
    return global_batch_size // (processes * accumulation)
