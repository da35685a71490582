"""What nobody else should read, found in the text of a file that is about to be sent: tokens, keys, passwords, places.

A token of a known service has a form of its own and is found wherever it stands. A password has none; it is found by
its name and an equals sign or a colon, unless the value is a placeholder or code. In a vocabulary only the first kind
is looked for: there every piece of text is a token, and a colon follows it.

Attributes:
    TOKENS: Forms of tokens and keys, by what they are.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.lora.checkpoint import WEIGHTS, read_header

TOKENS = {
    "a token of the Hub": r"\b(hf|api_org)_[A-Za-z0-9]{30,}",
    # random letters: a digit and a capital among them, or twenty in a row; sk-learn and a hyphenated word have neither
    "an API key": r"(?<![\w-])sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}|(?<![\w-])sk-[\w-]*?[A-Za-z0-9]{20,}",
    "a key of Stripe's": r"\b[spr]k_(live|test)_[A-Za-z0-9]{16,}",
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google's": r"\bAIza[0-9A-Za-z_-]{35}",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Slack token": r"\bxox[abeoprs]-(?=[\w-]*\d)[\w-]{10,}|\bxapp-\d-\w{8,}|hooks\.slack\.com/services/T\w+/B\w+/\w+",
    "a token of PyPI or npm": r"\bpypi-AgE[\w-]{20,}|\bnpm_[A-Za-z0-9]{36}\b",
    "a signed web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----",
}
_PLACE = r"(?<![\w/.])/(home|Users|root|mnt|tmp)/[\w.-]+|[A-Za-z]:\\{1,2}Users\\{1,2}\w+"
_IN_URL = re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@\"'<>]+:(?P<value>[^\s/@\"'<>]{3,})@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<name>(password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|"
    r"(auth|access|bearer|refresh|api|hf|github|wandb|hub)[_-]?token))[\"'`]?\s*(?P<sign>[:=])\s*"
    r"(?P<quote>[\"'`]?)(?P<value>[^\s\"'`,;&]{4,})",
    re.IGNORECASE,
)
_NO_VALUE = re.compile(
    r"[<$({\[%*.:=|]|(your|my|the|some|an?|x{3,}|change|replace|insert|enter|example|placeholder|redacted|none|null|true|"
    r"false|required|optional|not|str|string|bytes|os|env|environ|getenv|getpass|self|args|config|settings|read|input)"
    r"(?![A-Za-z0-9])|.*[({\[]",
    re.IGNORECASE,
)
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model")


class Secret(NamedTuple):
    """line: the number of the line where it stands, from 1; what: what it looks like."""

    line: int
    what: str


def secrets_in(name: str, data: bytes) -> Iterator[Secret]:
    """What the file `name` with the content `data` holds of that kind, by lines; the answer doesn't repeat it."""
    vocabulary = name in _VOCABULARY
    for number, line in enumerate(_text(data).splitlines(), 1):
        for what, pattern in TOKENS.items():
            if re.search(pattern, line):
                yield Secret(number, what)
        if re.search(_PLACE, line):
            yield Secret(number, "a folder of this machine")
        if not vocabulary and _password(line):
            yield Secret(number, "a password")


def secrets_in_weights(path: Path) -> Iterator[Secret]:
    """The same of the free-form text in the header of an adapter's safetensors file; every line is its first."""
    text = json.dumps(read_header(path).metadata, ensure_ascii=False, indent=0)
    for found in secrets_in(WEIGHTS, text.encode()):
        yield found._replace(line=1)


def _text(data: bytes) -> str:
    """A file's text: UTF-16 where its first bytes say so, else UTF-8, with a mark for what is neither."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8", errors="replace")


def _password(line: str) -> bool:
    """Whether a line gives something called like a password or a key a value of its own."""
    if any(not _NO_VALUE.match(found["value"]) for found in _IN_URL.finditer(line)):
        return True
    return any(_is_value(found) for found in _NAMED.finditer(line))


def _is_value(found: re.Match[str]) -> bool:
    """Whether what follows the name is a value. Behind an equals sign that is anything but a placeholder or code;
    behind a colon, which sentences have too, of a password what is quoted or has a digit. A key or a token is long and
    random: 16 characters with a digit.
    """
    value = found["value"].rstrip(".!?)")
    if len(value) < 4 or _NO_VALUE.match(value) or found["name"].lower() == value.lower():
        return False
    digit, name = any(c.isdigit() for c in value), found["name"].lower()
    if name.startswith("pass"):
        return found["sign"] == "=" or digit or bool(found["quote"])
    return (name == "secret" and found["sign"] == "=") or (len(value) >= 16 and digit)
