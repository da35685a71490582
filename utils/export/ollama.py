"""A Modelfile for Ollama: base, adapter, the chat template in Go, where an answer ends, and how to sample.

Ollama takes a base and one adapter as GGUF files. What the tokenizer's chat template did in the notebook has to be said
again: without a TEMPLATE the model gets whatever Ollama makes of the file. Ollama's defaults are a temperature of 0.8
and a context of 4,096 tokens on a small GPU, so both are written as well.
(https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx)

Attributes:
    MOST_CONTEXT: The longest context, in tokens, that is set without being asked for: a 7B model's keys and values of
        131,072 tokens take gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.data.chat import token_id
from utils.export.errors import ExportError
from utils.export.gguf_facts import GGUFFacts, gguf_facts
from utils.export.go_template import go_template
from utils.export.modelfile_syntax import parse, quoted_value
from utils.export.parameters import PARAMETERS, fault
from utils.export.turns import Turns, read_turns
from utils.files import expanded, replaced_folder
from utils.lora.adapter_config import short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_CONTEXT = 8192


def added_tokens(tokenizer: Any) -> set[str]:
    """The tokens that a tokenizer recognises whole in a text: the special ones, and what was added besides."""
    return {str(token) for token in tokenizer.all_special_tokens} | set(tokenizer.get_added_vocab())


def ends(tokenizer: PreTrainedTokenizerBase, turns: Turns | None = None) -> list[str]:
    """The tokens that end an answer, as text: EOS, and the special tokens that the template writes behind an answer.

    These are two where the tokenizer's EOS token isn't the end-of-turn token, as in some of Llama 3's folders. Raises
    ValueError when the tokenizer has no EOS token.
    """
    token_id(tokenizer, "eos")
    found = [str(tokenizer.eos_token)]
    behind = turns.assistant[1] if turns else ""
    written = sorted((behind.index(token), token) for token in added_tokens(tokenizer) if token in behind)
    return list(dict.fromkeys(found + [token for _, token in written]))


def modelfile(
    gguf: str | Path,
    adapter_gguf: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    parameters: Mapping[str, Any] | None = None,
    system: str | None = None,
    license: str | None = None,  # noqa: A002  # the command's name
    template: Literal["go", "gguf"] = "go",
) -> str:
    """The Modelfile that runs `gguf`, with the adapter, as transformers runs base and adapter with `tokenizer`.

    Paths are written as they are given; Ollama reads relative ones from the Modelfile's folder. `gguf` may also be the
    name of a model in Ollama's library, but then say which file it is: only the base that the adapter was trained on
    will do. `parameters` (:data:`utils.export.parameters.PARAMETERS`) are beside these, and may replace them:
    temperature 0 (greedy), repeat_penalty 1 (none; 1.1 before v0.32.10), the tokenizer's longest context as num_ctx but
    at most :data:`MOST_CONTEXT`, and the stop strings of :func:`ends`. `system` becomes the system message of
    conversations that have none.

    With ``template="go"`` the tokenizer's chat template is translated (:func:`utils.export.turns.read_turns`). With
    "gguf" there is no TEMPLATE: Ollama then takes a near one of its own, or has llama.cpp render the Jinja template in
    the GGUF file (since v0.30.0, May 2026, when it began to run llama.cpp's server).

    Raises ExportError for a chat template that isn't translated, a parameter that Ollama doesn't know or a value that
    it can't have, a system message that the template refuses, a file that is no GGUF file or the wrong one of the two,
    and for what a Modelfile can't hold. Files that aren't there (yet) aren't read.
    """
    return _written(
        (gguf, adapter_gguf), (str(gguf), str(adapter_gguf)), tokenizer, parameters, system, license, template
    )


def _written(
    files: tuple[str | Path, str | Path | None],
    names: tuple[str, str],
    tokenizer: PreTrainedTokenizerBase,
    parameters: Mapping[str, Any] | None,
    system: str | None,
    licence: str | None,
    template: str,
) -> str:
    """:func:`modelfile`'s text, with `names` in the place of the paths of base and adapter."""
    if template not in ("go", "gguf"):
        raise ExportError(f'template is "go" (translated) or "gguf" (left to llama.cpp), not {template!r}')
    base = _checked(files[0], "model")
    lines = [f"FROM {quoted_value(names[0], 'the path of the base')}"]
    if files[1] is not None:
        _checked(files[1], "adapter")
        lines.append(f"ADAPTER {quoted_value(names[1], 'the path of the adapter')}")
    turns = read_turns(tokenizer) if template == "go" else None
    if turns is not None:
        if system is not None and turns.system_place in ("refused", "left out"):
            raise ExportError(
                "this base's chat template takes no system message, so it wasn't trained with one: leave out system"
            )
        adds_bos = base.adds_bos if base else _adds_bos(tokenizer)
        lines += [f"# renders otherwise than transformers: {what}" for what in turns.differences]
        lines.append(f"TEMPLATE {quoted_value(go_template(turns, bos=not adds_bos), 'the template')}")
    lines += [
        f"PARAMETER {name} {value}"
        for name, value in _settings(tokenizer, turns, {} if parameters is None else parameters)
    ]
    if system is not None:
        lines.append(f"SYSTEM {quoted_value(system, 'the system message')}")
    if licence is not None:
        if not isinstance(licence, str):
            raise ExportError(f"the licence must be text, not {short(licence)}")
        held = "".join(c for c in licence if c.isprintable() or c in "\n\t")  # a form feed, say, is left out
        lines.append(f"LICENSE {quoted_value(held, 'the licence')}")
    text = "\n".join(lines) + "\n"
    parse(text)
    return text


def _checked(path: str | Path, kind: str) -> GGUFFacts | None:
    """What the file says of itself, if it is there. Raises ExportError when it is no GGUF file of this kind."""
    if not expanded(path).is_file():
        return None
    facts = gguf_facts(path)
    if (facts.kind == "adapter") != (kind == "adapter"):
        raise ExportError(f"{path} is a GGUF file of the type {facts.kind!r}, and the {kind} is expected here")
    return facts


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its BOS token in front of a text, as llama.cpp then will."""
    first = tokenizer("a").input_ids[:1]
    return tokenizer.bos_token_id is not None and list(first) == [tokenizer.bos_token_id]


def default_context(longest: int | None) -> int:
    """The num_ctx that is written where none is asked for: the model's longest context, and at most MOST_CONTEXT."""
    return min(int(longest), MOST_CONTEXT) if longest else MOST_CONTEXT


def _settings(
    tokenizer: PreTrainedTokenizerBase, turns: Turns | None, given: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Names and values of the PARAMETER lines. Raises ExportError for one that Ollama doesn't know or can't
    read, or that llama.cpp can't compute with.
    """
    if not isinstance(given, Mapping):
        raise ExportError(f"parameters must be a dictionary, such as {{'temperature': 0.7}}, not {short(given)}")
    chosen: dict[str, Any] = {"temperature": 0, "repeat_penalty": 1}
    chosen["num_ctx"] = default_context(tokenizer.model_max_length)
    chosen["stop"] = ends(tokenizer, turns)
    lines = []
    for name, value in {**chosen, **given}.items():
        if name not in PARAMETERS:
            raise ExportError(f"Ollama knows no parameter {name!r}; it knows {', '.join(sorted(PARAMETERS))}")
        several = name == "stop" and isinstance(value, Sequence) and not isinstance(value, str | bytes)
        for one in value if several else [value]:
            if wrong := fault(name, one):
                raise ExportError(wrong)
            lines.append((name, _text(name, one)))
    return lines


def _text(name: str, value: Any) -> str:
    """A value as a PARAMETER line has it."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    text = quoted_value(value, name)
    return text if '"' in value or text.startswith('"') else f'"{text}"'


def write_modelfile(
    folder: str | Path,
    gguf: str | Path,
    adapter_gguf: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    parameters: Mapping[str, Any] | None = None,
    system: str | None = None,
    license: str | None = None,  # noqa: A002  # as in modelfile
    template: Literal["go", "gguf"] = "go",
) -> Path:
    """Write :func:`modelfile`'s text to ``folder/Modelfile``, with the paths as seen from there; returns its path.

    The file is replaced at once. Raises FileNotFoundError when a GGUF file isn't there, and whatever :func:`modelfile`
    raises; then nothing is written.
    """
    folder = expanded(folder)
    for path in (gguf, adapter_gguf):
        if path is not None and not expanded(path).is_file():
            raise FileNotFoundError(f"there is no GGUF file {path}: write it with to_gguf first")
    names = _seen_from(folder, gguf), _seen_from(folder, adapter_gguf or "")
    text = _written((gguf, adapter_gguf), names, tokenizer, parameters, system, license, template)
    with replaced_folder(folder) as scratch:
        (scratch / "Modelfile").write_text(text, encoding="utf-8")
    return folder / "Modelfile"


def _seen_from(folder: Path, path: str | Path) -> str:
    """`path` relative to `folder`, with "./" in front, as Ollama takes a path and not a model's name."""
    relative = os.path.relpath(expanded(path).resolve(), folder.resolve()).replace(os.sep, "/")
    return relative if relative.startswith("../") else f"./{relative}"
