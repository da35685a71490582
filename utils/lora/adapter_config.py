"""The settings of a LoRA adapter, `adapter_config.json`, as PEFT writes them: read, and refused where they are no use.

Attributes:
    CONFIG: The file's name.
    UNSUPPORTED: Settings of PEFT's LoraConfig that change the arithmetic and that this reader refuses rather than
        ignores.
    BASE_CHANGING: Initialisations of PEFT that change the base weight too, so that the matrices mean nothing beside the
        plain base.
    SETTINGS: What a setting that is used has to be: a test for it, and the words.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.files import interrupted
from utils.lora.target_modules import ALL_LINEAR, is_named

CONFIG = "adapter_config.json"
UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
BASE_CHANGING = ("pissa", "corda", "olora", "lora_ga", "loftq")


def short(value: Any) -> str:
    """A value, or what an error says, for a message, however long it is."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value: Any) -> float:
    """A setting as a number; NaN when it is none, or one beyond a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e300 else math.nan


def _names(value: Any) -> bool:
    return value is None or isinstance(value, str) or isinstance(value, list) and all(isinstance(v, str) for v in value)


def _listed(value: Any) -> bool:
    return _names(value) and not isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pattern(value: Any) -> bool:
    """Whether a setting names modules: a list of names, or one regular expression."""
    if not isinstance(value, str):
        return _names(value)
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _flag(value: Any) -> bool:
    """Whether a setting is on or off, or left out: a text such as "false" counts as on wherever it is asked for."""
    return value is None or isinstance(value, bool)


def _by_module(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The test for a dictionary from names of modules, as regular expressions that PEFT puts between two others, to
    values that pass `fits`.
    """

    def test(value: Any) -> bool:
        if value is None:
            return True
        return isinstance(value, dict) and all(
            _pattern(rf"(.*\.)?({key})$") and fits(one) for key, one in value.items()
        )

    return test


def _rank(value: Any) -> bool:
    return _whole(value) and value >= 1


def _alpha(value: Any) -> bool:
    return _number(value) > 0


def _tokens(value: Any) -> bool:
    """Whether a setting names rows of an embedding, or of several by their names."""
    if isinstance(value, dict):
        return all(map(_tokens, value.values()))
    return value is None or isinstance(value, list) and all(_whole(v) and v >= 0 for v in value)


SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_rank, "a whole number from 1 up"),
    "lora_alpha": (_alpha, "positive and finite"),
    "rank_pattern": (_by_module(_rank), "a dictionary from names or regular expressions to whole numbers from 1 up"),
    "alpha_pattern": (_by_module(_alpha), "a dictionary from names or regular expressions to positive, finite numbers"),
    "lora_dropout": (lambda v: 0 <= _number(v) < 1, "a probability from 0 up to, not including, 1"),
    "target_modules": (_pattern, "a list of names or one regular expression"),
    "exclude_modules": (_pattern, "a list of names or one regular expression"),
    "layers_to_transform": (
        lambda v: v is None or _whole(v) or isinstance(v, list) and all(map(_whole, v)),
        "a whole number or a list of them",
    ),
    "layers_pattern": (
        lambda v: _names(v) and all(map(_pattern, v if isinstance(v, list) else [v])),
        "a regular expression or a list of them",
    ),
    "modules_to_save": (_listed, "a list of names"),
    "target_parameters": (_listed, "a list of names"),
    "trainable_token_indices": (_tokens, "a list of tokens' numbers, or one for each embedding by its name"),
    "bias": (lambda v: v in ("none", "all", "lora_only"), '"none", "all" or "lora_only"'),
    "init_lora_weights": (lambda v: _flag(v) or isinstance(v, str), "true, false or a name"),
    "base_model_name_or_path": (lambda v: v is None or isinstance(v, str), "text"),
    "use_rslora": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
    "fan_in_fan_out": (_flag, "true or false"),
    "lora_bias": (_flag, "true or false"),
    "use_qalora": (_flag, "true or false"),
}


def read_settings(folder: Path) -> dict[str, Any]:
    """The dictionary in an adapter's config, whatever it says."""
    path = folder / CONFIG
    if not os.path.isfile(path):  # False, too, for a name that no file can have
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: {why_missing(folder)}")
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is damaged ({short(error)}): copy the adapter again") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} is damaged (it holds no settings but a {type(config).__name__}): copy the adapter again"
        )
    return config


def why_missing(folder: Path) -> str:
    """What to say of a file that isn't there."""
    if ready := interrupted(folder):
        return (
            f"a save of it was interrupted. Its new files are whole in {ready[-1].name}; "
            f"utils.files.finish_interrupted({str(folder)!r}) brings them in"
        )
    return "it is not an adapter's folder, or its writing was cut short"


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """The settings that are more than plain LoRA."""
    used = [key for key in UNSUPPORTED if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING):
        used.append(f"init_lora_weights={short(start)}")
    return used


def read_config(folder: str | Path) -> dict[str, Any]:
    """The settings in an adapter's folder, `r`, `lora_alpha` and `lora_dropout` among them.

    Raises FileNotFoundError without the file, and ValueError when it is damaged, when a setting isn't what it can be,
    or when the adapter is more than plain LoRA.
    """
    folder = Path(folder)
    path, config = folder / CONFIG, read_settings(folder)
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{path} describes a {short(config.get('peft_type'))} adapter, and this reader knows LORA only"
        )
    if used := unsupported(config):
        raise ValueError(f"{path} uses {', '.join(used)}, which LoRALinear does not compute: load it with PEFT")
    config.setdefault("lora_dropout", 0.0)
    check_settings(path, config)
    return config


def checked_settings(folder: Path) -> dict[str, Any]:
    """The settings of an adapter of any method. Raises what :func:`read_settings` raises, and of LoRA what
    :func:`check_settings` does.
    """
    config = read_settings(folder)
    if str(config.get("peft_type")).upper() == "LORA":
        check_settings(folder / CONFIG, config)
    return config


def check_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError when a setting of a LoRA adapter isn't what it can be (:data:`SETTINGS`), or `r` or `lora_alpha`
    is left out; `path` is the file that it was read from. Whatever takes an adapter elsewhere asks this first.
    """
    if missing := [key for key in ("r", "lora_alpha") if key not in config]:
        raise ValueError(f"{path} is damaged (it doesn't say {' and '.join(missing)}): copy the adapter again")
    for key, (fits, what) in SETTINGS.items():
        if key in config and not fits(config[key]):
            raise ValueError(
                f"{path} is damaged ({key} must be {what}, not {short(config[key])}): copy the adapter again, or "
                "write what it was trained with"
            )


def targeted(config: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT would give the module `name` an adapter; all-linear, and a config without targets, mean any."""

    def listed(targets: Any) -> bool:
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(is_named(target, name) for target in targets)

    targets, numbers = config.get("target_modules"), config.get("layers_to_transform")
    if config.get("exclude_modules") and listed(config["exclude_modules"]):
        return False
    if targets is None or all_linear(targets):
        return True
    if isinstance(targets, str) or name in targets or numbers in (None, []):
        return listed(targets)
    patterns = config.get("layers_pattern") or []
    rules = [rf"(?:^|.*?\.){p}\.(\d{{1,9}})\." for p in ([patterns] if isinstance(patterns, str) else patterns)]
    found = (re.match(rule, name) for rule in rules or [r".*?\.[^.]*\.(\d{1,9})\."])
    number = next((int(match[1]) for match in found if match), None)
    return listed(targets) and number in ([numbers] if isinstance(numbers, int) else numbers)


def all_linear(targets: Any) -> bool:
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR
