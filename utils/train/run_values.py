"""Whether the values in a run's file are of the kinds that LoraConfig, SFTConfig and BitsAndBytesConfig have.

The kinds are those of the classes' own annotations. The classes themselves take most values as they come: PEFT trains
DoRA for ``use_dora: maybe``, and a learning rate that is a word ends in a traceback of PyTorch's.

Attributes:
    RANGES: For fields in which a number may be of the right kind and still make no sense: the test, and its words.
    FOUR_BIT: The fields of BitsAndBytesConfig that say something about 4-bit weights.
"""

from __future__ import annotations

import glob
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from utils.train.run_file import RunFile, refuse_unknown

_POSITIVE: tuple[Callable[[float], bool], str] = (lambda value: value > 0, "above 0")
_ONE: tuple[Callable[[float], bool], str] = (lambda value: value >= 1, "1 or more")
_NONE: tuple[Callable[[float], bool], str] = (lambda value: value >= 0, "0 or more")
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lora.r": _ONE,
    "lora.lora_alpha": _POSITIVE,
    "lora.lora_dropout": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "sft.learning_rate": _POSITIVE,
    "sft.num_train_epochs": _POSITIVE,
    "sft.gradient_accumulation_steps": _ONE,
    "sft.per_device_eval_batch_size": _ONE,
    "sft.max_length": _ONE,
    "sft.max_steps": (lambda value: value >= 1 or value == -1, "1 or more (or -1 for whole epochs)"),
    "sft.ddp_timeout": _ONE,
    "sft.weight_decay": _NONE,
    "sft.warmup_steps": _NONE,
    "sft.max_grad_norm": _NONE,
    "sft.seed": _NONE,
    "sft.data_seed": _NONE,
}
FOUR_BIT: dict[str, Any] = {
    "load_in_4bit": Literal[True],
    "bnb_4bit_quant_type": Literal["nf4", "fp4"],
    "bnb_4bit_use_double_quant": bool,
    "bnb_4bit_compute_dtype": Literal["bfloat16", "float16", "float32"],
    "bnb_4bit_quant_storage": Literal["uint8", "int8", "bfloat16", "float16", "float32", "float64"],
    "llm_int8_skip_modules": list[str],
}
_LEVELS = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]
_OWN: dict[str, Any] = {  # where the annotation says less, or more, than the class takes
    "lora.lora_alpha": float,
    "lora.rank_pattern": dict[str, int] | None,
    "lora.alpha_pattern": dict[str, float] | None,
    "sft.log_level": _LEVELS,
    "sft.log_level_replica": _LEVELS,
}


def check_values(run: RunFile) -> None:
    """Raise ValueError for the first key of `lora`, `sft` or `four_bit` that isn't known, has a value of another kind
    than its field, or a number that makes no sense, with the key, the value and what is asked for; and what
    :func:`check_model` and :func:`check_data` raise. Nothing is loaded."""
    check_model(run.model)
    check_data(run.data, run.streaming)
    check_section("lora", run.lora)
    check_section("sft", run.sft)
    check_section("four_bit", run.four_bit or {})


def check_section(name: Literal["lora", "sft", "four_bit"], given: Mapping[str, Any]) -> None:
    """:func:`check_values` for one of the three."""
    if name == "four_bit":
        known = FOUR_BIT
    elif name == "lora":
        from peft import LoraConfig

        known = _hints(LoraConfig)
    else:
        from trl import SFTConfig

        known = _hints(SFTConfig)
    refuse_unknown(given, known, f"{name} has")
    for key, value in given.items():
        field = f"{name}.{key}"
        wanted = dict if key.endswith("_kwargs") else known[key]  # a text is there for the command line
        check_value(field, value, _OWN.get(field, wanted))


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_model(model: str) -> None:
    """Raise ValueError for a folder that holds no model, and FileNotFoundError for a name that is neither a folder nor
    of a Hub id's form. Nothing is loaded."""
    place = Path(model)
    if place.is_dir():
        if not (place / "config.json").is_file():
            kind = (
                "is an adapter's: give its base" if (place / "adapter_config.json").is_file() else "has no config.json"
            )
            raise ValueError(f"model: the folder {model} {kind}")
    elif place.exists():
        raise ValueError(f"model: {model} is a file; give the model's folder, or a Hub id")
    elif not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(f"model: there is no folder {model}, and it isn't a Hub id (owner/name) either")


def check_data(data: str, streaming: bool = False) -> None:
    """Raise FileNotFoundError when there is no such file, or with `streaming` none of the pattern's, and ValueError for
    a folder."""
    if not streaming and Path(data).is_dir():
        raise ValueError(
            f"data: {data} is a folder; give a file, or with streaming: true a pattern such as {data}/*.jsonl"
        )
    if not (glob.glob(data) if streaming else Path(data).exists()):
        raise FileNotFoundError(f"data: there is no file {data}, seen from {Path.cwd()}")


def check_numbers(section: Literal["lora", "sft"], given: Mapping[str, Any]) -> None:
    """Raise ValueError for the first value that has a range (:data:`RANGES`) and isn't a number in it, or None."""
    for key, value in given.items():
        if (field := f"{section}.{key}") in RANGES:
            check_value(field, value, float | None)


def check_value(field: str, value: Any, annotation: Any) -> None:
    """Raise ValueError when `value` isn't of the annotation's kind, or not in the field's range (:data:`RANGES`)."""
    if not fits(value, annotation):
        given = "empty" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        words = in_words(annotation)
        quote = ". YAML reads no, off, yes and on without quotes as false and true" if isinstance(value, bool) else ""
        raise ValueError(f"{field} is {given}, and has to be {words}{quote}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field} is {value}, and has to be a finite number")
    if field in RANGES and isinstance(value, int | float):
        holds, words = RANGES[field]
        if not holds(value):
            raise ValueError(f"{field} is {value}, and has to be {words}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value that was read from YAML is of an annotation's kind.

    A whole number is a float too; a boolean is no number. An Enum is met by one of its values, and where a union has an
    Enum beside str, only by those. A class that YAML can't make is met by the mapping of its fields.
    """
    if annotation is Any:
        return True
    if value is None or annotation is None or annotation is types.NoneType:
        return value is None and (
            annotation in (None, types.NoneType) or any(fits(None, a) for a in _union(annotation))
        )
    if members := _union(annotation):
        if isinstance(value, str) and (named := [a for a in members if _is_enum(a)]):
            members = [a for a in members if a is not str or not named]
        return any(fits(value, member) for member in members)
    origin = get_origin(annotation)
    if origin is Literal:
        return any(_is_choice(value, choice) for choice in get_args(annotation))
    if origin in (list, tuple):
        each = get_args(annotation)[:1]
        return isinstance(value, list) and all(fits(v, a) for v in value for a in each)
    if origin is dict or annotation is dict:
        each = get_args(annotation)[1:]
        return isinstance(value, Mapping) and all(fits(v, a) for v in value.values() for a in each)
    if _is_enum(annotation):
        return value in [member.value for member in annotation]
    if annotation in (bool, str, list):
        return isinstance(value, annotation)
    if annotation in (int, float):
        return isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
    return isinstance(value, Mapping)


def in_words(annotation: Any) -> str:
    """What an annotation asks for, in words for a reader: "true or false", "a whole number", "a list or a text"."""
    if members := _union(annotation):
        named = any(_is_enum(a) for a in members)
        words = [in_words(a) for a in members if a is not types.NoneType and not (named and a is str)]
        return " or ".join(sorted(set(words)))  # an annotation keeps the order in which Python first met its like
    origin = get_origin(annotation)
    if origin is Literal:
        return _one_of(get_args(annotation))
    if _is_enum(annotation):
        return _one_of(member.value for member in annotation)
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if annotation in plain:
        return plain[annotation]
    if origin in (list, tuple) or annotation is list:
        return "a list"
    each = get_args(annotation)[1:] if origin is dict else ()
    return f"a mapping, each value {in_words(each[0])}" if each and each[0] is not Any else "a mapping"


def _one_of(choices: Iterable[Any]) -> str:
    said = ["true" if each is True else "false" if each is False else str(each) for each in choices]
    return said[0] if len(said) == 1 else "one of " + ", ".join(said)


def _is_choice(value: Any, choice: Any) -> bool:
    """Equal and of one type; "pissa_niter_[number of iters]" stands for any number."""
    if isinstance(choice, str) and "[number" in choice:
        return isinstance(value, str) and bool(re.fullmatch(re.sub(r"\[.*\]", r"\\d+", choice), value))
    return type(value) is type(choice) and value == choice


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _union(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else []


def _hints(config: type) -> dict[str, Any]:
    """The fields' annotations; a name that the installed packages can't resolve stands for anything."""
    fields = config.__dataclass_fields__  # type: ignore[attr-defined]
    try:
        resolved = get_type_hints(config)
    except NameError:
        resolved = {name: Any if isinstance(field.type, str) else field.type for name, field in fields.items()}
    return {name: resolved[name] for name in fields}
