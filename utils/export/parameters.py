"""What a Modelfile's PARAMETER lines may say: which names Ollama knows, of which type, and within which range.

Names, types and the marks -1 and 0 are those of Ollama's documentation
(https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx, and api/types.go for those that it leaves out). It names
no ranges: these are the ones within which llama.cpp, which computes, does what the name says. A share of the
probabilities lies between 0 and 1; a penalty divides, so it isn't 0; a context holds a token. Ollama takes a value
beyond in silence.

Attributes:
    PARAMETERS: By name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from utils.lora.adapter_config import short

_INT, _FLOAT = 2**31 - 1, 3.4e38  # int32 and float32, in which llama.cpp holds them
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


class Parameter(NamedTuple):
    """One parameter: its type, the least and the most that it may be, and whether the least itself is beyond."""

    kind: type
    least: float = -_FLOAT
    most: float = _FLOAT
    above: bool = False

    @property
    def words(self) -> str:
        """What it may be."""
        if self.kind in (str, bool):
            return "text that isn't empty" if self.kind is str else "true or false"
        number = "a whole number" if self.kind is int else "a finite number"
        if (self.least, self.most) == (-_FLOAT, _FLOAT):
            return number
        if self.most >= _INT:
            return f"{number} above {self.least:g}" if self.above else f"{number} from {self.least:g} up"
        return f"{number} from {self.least:g} to {self.most:g}"

    def takes(self, value: Any) -> bool:
        """Whether a Python value is one that it may have."""
        if self.kind in (str, bool):
            return isinstance(value, self.kind) and value != ""
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)


def _whole(least: int) -> Parameter:
    return Parameter(int, least, _INT)


_SHARE, _ANY = Parameter(float, 0, 1), Parameter(float)
PARAMETERS: dict[str, Parameter] = {
    "num_ctx": _whole(1), "repeat_last_n": _whole(-1), "repeat_penalty": Parameter(float, 0, above=True),
    "temperature": Parameter(float, 0), "seed": Parameter(int, -(2**63), 2**63 - 1), "stop": Parameter(str),
    "num_predict": _whole(-1), "draft_num_predict": _whole(0), "top_k": _whole(0), "top_p": _SHARE, "min_p": _SHARE,
    "num_keep": _whole(-1), "typical_p": _SHARE, "presence_penalty": _ANY, "frequency_penalty": _ANY,
    "num_batch": _whole(1), "num_gpu": _whole(-1), "main_gpu": _whole(0), "num_thread": _whole(0),
    "use_mmap": Parameter(bool),
}  # fmt: skip


def fault(name: str, value: Any) -> str | None:
    """What is wrong with a Python value for the parameter `name`, one of :data:`PARAMETERS`; None when it is fine."""
    parameter = PARAMETERS[name]
    return None if parameter.takes(value) else f"{name} must be {parameter.words}, not {short(value)}"


def read_value(name: str, text: str) -> Any:
    """The value that Ollama reads in a PARAMETER line, as Go's strconv does. Raises ValueError when it refuses it."""
    kind = PARAMETERS[name].kind
    if kind is str:
        return text
    if kind is bool:
        if text not in _TRUE + _FALSE:
            raise ValueError(f"{text!r} is neither true nor false")
        return text in _TRUE
    if "_" in text or not text.isascii() or text != text.strip():
        raise ValueError(f"{text!r} is no number")
    return kind(text)
