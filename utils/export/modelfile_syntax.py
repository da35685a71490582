"""Ollama's Modelfile as text: its commands read as Ollama's own parser reads them, and values quoted so that it does.

A command is a word, a blank and a value. A value ends with its line unless it is quoted: ``"..."``, or three quotes on
either side, over several lines. There are no escapes: a quoted value ends at the first closing quotes that the end
of a line follows, blanks aside. Characters that aren't printable are dropped, blanks, tabs and line ends aside.
(parser/parser.go of https://github.com/ollama/ollama, August 2026; tests/export/modelfiles.json holds what that reads.)
"""

from __future__ import annotations

from typing import NamedTuple

from utils.export.errors import ExportError
from utils.lora.adapter_config import short

COMMANDS = frozenset(
    "from license template system adapter draft renderer parser parameter message requires".split()
)  # fmt: skip
_BLANKS, _ENDS = " \t", "\r\n"


class Command(NamedTuple):
    """One command of a Modelfile: its name in small letters, such as "from", and its value.

    Of ``PARAMETER stop "<|end|>"`` the name is "parameter stop", and of ``MESSAGE user Hello`` "message user".
    """

    name: str
    value: str


def quoted_value(value: str, where: str) -> str:
    """`value` as a Modelfile takes it, in quotes where it needs them. `where` names it in the error.

    Raises ExportError when it is no text, or when the parser would read something else: it drops characters such as the
    no-break space, and can't hold three quotes at the end of a line.
    """
    if not isinstance(value, str):
        raise ExportError(f"{where} must be text, not {short(value)}")
    dropped = sorted({c for c in value if not c.isprintable() and c not in "\n\r\t"})
    if dropped:
        codes = ", ".join(f"U+{ord(c):04X}" for c in dropped[:4])
        raise ExportError(
            f"{where} holds {codes}, which a Modelfile's parser drops: write a plain blank, or leave it out"
        )
    plain = not any(end in value for end in _ENDS) and value == value.strip() and not value.startswith('"')
    text = value if plain and value else f'"""{value}"""'
    try:
        read = parse(f"FROM x\nSYSTEM {text}\n")[-1].value
    except ExportError:
        read = None
    if read != value:
        raise ExportError(f'{where} holds """ at the end of a line, where a Modelfile would end it: write it otherwise')
    return text


def parse(text: str) -> list[Command]:
    """The commands of a Modelfile, in their order. Raises ExportError, with the line, for what Ollama refuses too."""
    commands: list[Command] = []
    state, name, buffer, line = "nothing", "", "", 1
    for char in text:
        line += char in _ENDS
        following, keep = _next(state, char, line)
        if following != state:
            if state == "name":
                if buffer.lower() not in COMMANDS:
                    raise ExportError(f"line {line} of the Modelfile begins with {buffer!r}, which is no command")
                name = buffer.lower()
                following = "key" if name in ("parameter", "message") else "value"
            elif state == "key":
                if name == "message" and buffer not in ("system", "user", "assistant"):
                    raise ExportError(f"line {line} of the Modelfile: a MESSAGE is system's, user's or assistant's")
                name = f"{name} {buffer}"
            elif state == "value":
                value = _unquoted(buffer.strip())
                if value is None or char in _BLANKS:
                    buffer += char
                    continue
                commands.append(Command(name, value))
            buffer, state = "", following
        if keep and char.isprintable():
            buffer += char
    if state == "value" and (value := _unquoted(buffer.strip())) is not None:
        commands.append(Command(name, value))
    elif state not in ("nothing", "comment"):
        raise ExportError(
            f"the Modelfile ends within {(name or buffer).upper()}: a closing quote or a value is missing"
        )
    if not any(command.name == "from" for command in commands):
        raise ExportError("the Modelfile has no FROM line: it names the base")
    return commands


def _next(state: str, char: str, line: int) -> tuple[str, bool]:
    """The state after `char`, and whether the character belongs to what is read."""
    if state == "nothing":
        if char == "#":
            return "comment", False
        return ("nothing", False) if char in _BLANKS + _ENDS else ("name", True)
    if state == "comment":
        return ("nothing", False) if char in _ENDS else ("comment", True)
    if state == "value":
        return ("nothing", True) if char in _BLANKS + _ENDS else ("value", True)
    if char in _BLANKS:
        return "value", False
    if char.isascii() and (char.isalpha() or (state == "key" and (char.isdigit() or char == "_"))):
        return state, True
    raise ExportError(f"line {line} of the Modelfile: {char!r} within a command's name")


def _unquoted(text: str) -> str | None:
    """The value without its quotes; None when a closing quote is missing."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            whole = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if whole else None
    return text
