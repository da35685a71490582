"""What a request to the server may say: OpenAI's rules, and a 400 instead of silence for what isn't done.

:func:`staged` tells which models can be asked for, :func:`read` turns a request into what transformers' server is to
do, or raises :class:`Refused` with the status and the JSON that OpenAI answers:
``{"error": {"message", "type", "param", "code"}}``.

Attributes:
    BASE: The name of the model without an adapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from utils.data.chat import render
from utils.lora.adapter_config import short

BASE = "base"
_COLDEST = 1e-4  # a temperature below it is 0: dividing by it makes the scores infinite
_NARROWEST = 1e-9  # top_p 0 is this: the likeliest token alone

# What a request may say and what isn't done, each with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "tools": ([],), "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False), "functions": ([],), "function_call": ("none", "auto"), "store": (False,),
    "modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (),
    "web_search_options": (), "service_tier": ("auto", "default"),
}  # fmt: skip
_TAKEN = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "stream"}
_WHO_ASKS = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")  # read, and of no effect
_TAKEN |= {"stream_options", "metadata", *_WHO_ASKS}
_ROLES = ("user", "assistant", "system", "developer")


class Refused(Exception):
    """A request that gets an error: the HTTP status, and what OpenAI's JSON says of it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


# --------------------------------------------------------------------------------------------- what can be asked for


class Staged:
    """One model of the folder that :func:`utils.inference.serving.stage` laid out: the base, or an adapter on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.parent = BASE if (folder / "adapter_config.json").is_file() else None
        self.created = int((folder / "config.json").stat().st_mtime)

    @cached_property
    def context(self) -> int | None:
        """How many tokens the model can have before it: its prompt and the answer together."""
        from transformers import AutoConfig

        return getattr(self._loaded(AutoConfig).get_text_config(), "max_position_embeddings", None)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own, with the chat template that transformers' server takes too."""
        from transformers import AutoTokenizer

        return self._loaded(AutoTokenizer)

    @cached_property
    def control(self) -> re.Pattern[str] | None:
        """The tokenizer's special tokens as they are written, the longest first."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None

    def _loaded(self, kind: Any) -> Any:
        """The folder's config or tokenizer. Raises Refused, 500: it is no client's fault when they are broken."""
        try:
            return kind.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever transformers raises of files that were deleted or damaged
            why = short(error) if self.folder.is_dir() else "its folder is gone"
            raise Refused(500, f"The model {self.name!r} can't be loaded: {why}", "model") from None

    def listed(self) -> dict[str, Any]:
        """The entry in ``/v1/models``, with the fields that vLLM adds."""
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "local",
            "root": self.name, "parent": self.parent, "max_model_len": self.context,
        }  # fmt: skip


def staged(folder: Path) -> dict[str, Staged]:
    """The models in `folder` by name, the base first."""
    found = sorted(folder.glob("*/config.json"), key=lambda path: (path.parent.name != BASE, path.parent.name))
    return {path.parent.name: Staged(path.parent) for path in found}


# ---------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Wanted:
    """A request that can be answered: `forward` goes to transformers' server, the rest is done here."""

    model: Staged
    forward: dict[str, Any]
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    prompt_tokens: int


def read(body: Any, models: Mapping[str, Staged]) -> Wanted:
    """The request in `body`, parsed JSON. Raises Refused for what OpenAI refuses, and for what isn't done here."""
    if not isinstance(body, dict):
        raise Refused(400, "We could not parse the body of your request: it must be a JSON object.")
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # half of a surrogate pair is no text
        raise Refused(400, f"We could not parse the JSON body of your request: {short(error)}") from None
    if unknown := [name for name in body if name not in _TAKEN and name not in _UNSUPPORTED]:
        raise Refused(400, f"Unknown parameter: '{unknown[0][:100]}'.", unknown[0][:100], "unknown_parameter")
    body = {name: value for name, value in body.items() if value is not None}
    model = body.get("model", "")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string")
    if not model:
        raise Refused(400, "you must provide a model parameter", "model", "missing_required_parameter")
    found = find(model, models)
    for name, value in body.items():
        if name in _UNSUPPORTED:
            if not any(type(value) is type(none) and value == none for none in _UNSUPPORTED[name]):
                raise _unsupported(name)
        elif name in _WHO_ASKS and not isinstance(value, str):
            raise _wrong_type(name, "a string")
    metadata = body.get("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _wrong_type("metadata", "an object of strings")

    messages = _messages(body.get("messages"))
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Refused(400, "Give max_tokens or max_completion_tokens, not both.", "max_tokens", "invalid_value")
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    asked = _number(body, limit, int, 1, 2**63 - 1)
    settings = {
        "temperature": _number(body, "temperature", float, 0, 2),
        "top_p": _number(body, "top_p", float, 0, 1),
        "seed": _number(body, "seed", int, -(2**63), 2**63 - 1),
    }
    if settings["temperature"] is not None and settings["temperature"] < _COLDEST:
        settings["temperature"] = 0
    if settings["top_p"] is not None:
        settings["top_p"] = max(settings["top_p"], _NARROWEST)
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise _wrong_type("stream", "a boolean")
    options = body.get("stream_options", {})
    if "stream_options" in body and not stream:
        raise Refused(400, "stream_options is only allowed when stream is true.", "stream_options", "invalid_value")
    if not isinstance(options, dict) or not all(isinstance(value, bool | None) for value in options.values()):
        raise _wrong_type("stream_options", "an object such as {'include_usage': true}")
    if unknown := options.keys() - {"include_usage", "include_obfuscation"}:
        raise Refused(400, f"Unknown parameter: {min(unknown)[:100]!r}.", "stream_options", "unknown_parameter")
    stops = _stops(body.get("stop"))

    text, prompt = _prompt(found, messages)
    settings["max_tokens"] = _room(found, prompt, asked)
    _check_written(text, messages)
    forward = {"model": model, "messages": messages}
    forward |= {name: value for name, value in settings.items() if value is not None}
    return Wanted(found, forward, stops, stream, bool(options.get("include_usage")), prompt)


def find(name: str, models: Mapping[str, Staged]) -> Staged:
    """The model of that name. Raises Refused, 404."""
    if name not in models:
        message = f"The model {name[:100]!r} does not exist; there are: {', '.join(models)}."
        raise Refused(404, message, "model", "model_not_found")
    return models[name]


def _wrong_type(name: str, kind: str) -> Refused:
    return Refused(400, f"Invalid type for '{name}': expected {kind}.", name, "invalid_type")


def _unsupported(name: str) -> Refused:
    message = f"'{name}' isn't supported here. Leave it out: ignored silently, it would give you another answer."
    return Refused(400, message, name, "unsupported_parameter")


def _number(body: Mapping[str, Any], name: str, kind: type, low: int, high: int) -> Any:
    """The number of that name, None when it isn't given; from `low` to `high`."""
    value = body.get(name)
    if value is None:
        return None
    word = "integer" if kind is int else "decimal"
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise _wrong_type(name, f"a number ({word})")
    if not value >= low:  # so is NaN, which Python's JSON knows
        message = f"Invalid '{name}': expected >= {low}, got {short(value)}."
        raise Refused(400, message, name, f"{word}_below_min_value")
    if value > high:
        message = f"Invalid '{name}': expected <= {high}, got {short(value)}."
        raise Refused(400, message, name, f"{word}_above_max_value")
    return value


def _messages(messages: Any) -> list[dict[str, str]]:
    """Messages of a role and a text each. A list of texts is joined by spaces, as transformers' server does."""
    if messages is None:
        raise Refused(400, "Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of messages")
    if not messages:
        raise Refused(400, "Invalid 'messages': empty array. Expected at least one.", "messages", "empty_array")
    read = []
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        if not isinstance(message, dict):
            raise _wrong_type(at, "an object with role and content")
        for name in message.keys() - {"role", "content", "name"}:
            if message[name] not in (None, []):  # the client sends its own answers back with empty fields
                raise _unsupported(f"{at}.{name[:100]}")
        if not isinstance(message.get("name"), str | None):
            raise _wrong_type(f"{at}.name", "a string")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise Refused(400, f"Invalid '{at}.role': expected one of {known}.", f"{at}.role", "invalid_value")
        if isinstance(content, list) and content:
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise _unsupported(f"{at}.content")
            texts = [part.get("text") for part in content]
            content = " ".join(texts) if all(isinstance(text, str) for text in texts) else None
        if not isinstance(content, str):
            raise _wrong_type(f"{at}.content", "a string")
        read.append({"role": role, "content": content})
    return read


def _prompt(model: Staged, messages: list[dict[str, str]]) -> tuple[str, int]:
    """The prompt in the model's chat form, and its number of tokens.

    Raises Refused for what the chat template can't write, and for a special token in a text: it would count as one,
    and a text with a turn's marks in it would be several turns.
    """
    if control := model.control:
        for number, message in enumerate(messages):
            if found := control.search(message["content"]):
                at, what = f"messages[{number}].content", f"holds {found[0]!r}, a special token of this model"
                raise Refused(400, f"Invalid '{at}': it {what}.", at, "invalid_value")
    try:
        text = render(model.tokenizer, cast(Any, messages))
        return text, len(model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    except (ValueError, TypeError) as error:
        raise Refused(400, f"Invalid 'messages': {error}", "messages", "invalid_value") from None


def _check_written(text: str, messages: list[dict[str, str]]) -> None:
    """Raises Refused for a message that the chat template left out of `text`."""
    end = 0
    for number, message in enumerate(messages):
        content = message["content"].strip()
        at = text.find(content, end)
        if at < 0:  # a template may write a system message later than it came
            at = text.find(content)
        if at < 0:
            where = f"messages[{number}]"
            raise Refused(400, f"The model's chat template leaves out '{where}'.", f"{where}.role", "invalid_value")
        end = at + len(content)


def _room(model: Staged, prompt: int, asked: int | None) -> int | None:
    """How many tokens the answer may have. Raises Refused when the context can't hold them."""
    limit = model.context
    if limit is None or prompt + (asked or 1) <= limit:
        return asked if asked or limit is None else limit - prompt
    wanted = f"{prompt} in the messages" + (f" and {asked} in the completion" if asked else ", and no room is left")
    message = f"This model's maximum context length is {limit} tokens; you asked for {prompt + (asked or 0)}: {wanted}."
    raise Refused(400, message, "messages", "context_length_exceeded")


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise _wrong_type("stop", "a string or an array of strings, none of them empty")
    if len(stops) > 4:
        raise Refused(400, "Invalid 'stop': expected an array of at most 4.", "stop", "array_above_max_length")
    return tuple(stops)
