"""A Modelfile is read as Ollama's own parser reads it, and what is quoted comes back."""

import json
import random
from pathlib import Path

import pytest

from utils.export.errors import ExportError
from utils.export.modelfile_syntax import parse, quoted_value

FILES = json.loads(Path(__file__).with_name("modelfiles.json").read_text(encoding="utf-8"))["files"]


def as_ollama_names(name: str, value: str) -> list[str]:
    first, _, rest = name.partition(" ")
    return {
        "from": ["model", value],
        "parameter": [rest, value],
        "message": ["message", f"{rest}: {value}"],
    }.get(first, [name, value])


@pytest.mark.parametrize(("text", "read"), FILES)
def test_it_reads_what_ollamas_parser_reads_and_refuses_what_that_refuses(text, read):
    if read is None:
        with pytest.raises(ExportError):
            parse(text)
    else:
        assert [as_ollama_names(*command) for command in parse(text)] == read


@pytest.mark.parametrize(
    "value",
    ["plain", "two words", "two\nlines", " edges ", "", '"quoted"', 'he said "no" twice', '"', "#", "tab\there",
     "a\r\nb", 'ends """ here\nand on', '"""three"""x', "{{ .Prompt }}", "\u2603 \U0001f680", '"""a', 'x"""', "FROM y",
     "line\n"],
)  # fmt: skip
def test_a_quoted_value_is_read_back_between_other_commands(value):
    text = f"FROM x\nSYSTEM {quoted_value(value, 'it')}\nLICENSE MIT\n"
    assert [command.value for command in parse(text)] == ["x", value, "MIT"]


def test_random_values_are_read_back_or_refused():
    rng = random.Random(0)
    bits = ['"', '"""', " ", "\n", "a", "\t", "{{", "\r", "#", "FROM"]
    refused = 0
    for _ in range(3000):
        value = "".join(rng.choices(bits, k=rng.randrange(8)))
        try:
            text = f"FROM x\nSYSTEM {quoted_value(value, 'it')}\nLICENSE MIT\n"
        except ExportError:
            refused += 1
            assert '"""' in value or '"' in value
            continue
        assert [command.value for command in parse(text)] == ["x", value, "MIT"], value
    assert 0 < refused < 1500


@pytest.mark.parametrize(
    ("value", "words"),
    [("10\u00a0km", r"U\+00A0"), ("a\x00", r"U\+0000"), ('ends """\nand on', '""" at the end of a line')],
)
def test_what_a_modelfile_cant_hold_is_refused_by_name(value, words):
    with pytest.raises(ExportError, match=words):
        quoted_value(value, "the system message")


def test_errors_name_the_line():
    with pytest.raises(ExportError, match="line 3 .* 'FRUM'"):
        parse("FROM x\n\nFRUM y\n")
    with pytest.raises(ExportError, match="ends within TEMPLATE"):
        parse('FROM x\nTEMPLATE """open\n')
    with pytest.raises(ExportError, match="no FROM line"):
        parse("SYSTEM x\n")
