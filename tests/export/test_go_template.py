"""The TEMPLATE renders as :class:`Turns` does: held to what Go made of it, and to Go itself where it is installed."""

import json

import pytest

from tools.go_render import go_render, go_version
from tools.template_talks import TALKS, families, family_tokenizer
from utils.export.errors import ExportError
from utils.export.go_template import go_template, quoted
from utils.export.turns import ODD, read_turns, talk
from utils.models import ROOT

GOLDEN = json.loads((ROOT / "tests" / "export" / "renderings.json").read_text(encoding="utf-8"))
needs_go = pytest.mark.skipif(go_version() is None, reason="needs Go: apt-get install golang-go")


def turns_of(family):
    return read_turns(family_tokenizer(families()[family]))


def by_turns(turns, messages):
    try:
        return turns.render(messages).removeprefix(turns.bos)
    except ExportError:
        return None


def test_the_golden_file_has_every_family():
    assert list(GOLDEN) == list(families())


@pytest.mark.parametrize("family", GOLDEN)
def test_what_go_made_of_it_is_what_turns_render(family):
    """`python -m tools.measure_templates --golden` writes the file anew when a template changes."""
    turns = turns_of(family)
    assert go_template(turns) == GOLDEN[family]["template"]
    assert [by_turns(turns, messages) for messages in TALKS.values()] == GOLDEN[family]["renderings"]


@needs_go
@pytest.mark.parametrize("family", GOLDEN)
def test_go_still_renders_so(family):
    assert go_render(GOLDEN[family]["template"], list(TALKS.values())) == GOLDEN[family]["renderings"]


@needs_go
@pytest.mark.parametrize("family", GOLDEN)
def test_go_and_turns_agree_on_rare_conversations_and_with_bos(family):
    turns = turns_of(family)
    rare = [messages for _, messages in ODD]
    assert go_render(go_template(turns), rare) == [by_turns(turns, messages) for messages in rare]
    asked = talk("user: Hello")
    assert go_render(go_template(turns, bos=True), [asked]) == [turns.render(asked)]


@needs_go
def test_other_roles_end_in_an_error_and_not_in_silence():
    assert go_render(GOLDEN["Llama 3"]["template"], [[{"role": "tool", "content": "x"}]]) == [None]


@needs_go
def test_strings_with_everything_in_them_come_out_as_they_were():
    texts = ['a"b', "back\\slash", "\n\t\r", "{{ x }}", "é\u2603\U0001f680\u00a0\u200d", '"""', "\x00\x7f"]
    template = "{{- range .Messages }}{{ .Content }}{{ end }}" + "".join(f"{{{{ {quoted(text)} }}}}" for text in texts)
    assert go_render(template, [talk("user: x")]) == ["x" + "".join(texts)]


@needs_go
@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ .Prompt }}", "uau2"),
        ("{{ .System }}|{{ .Prompt }}|", "s|u|a|u2|"),
        ("{{ if .System }}S{{ .System }} {{ end }}U{{ .Prompt }} A{{ .Response }}<end>", "Ss Uu Aa<end>Uu2 A"),
        ("{{ range .Messages }}[{{ .Role }} {{ .Content }}]{{ end }}", "[system s][user u][assistant a][user u2]"),
        ("{{ .System }}{{ range .Messages }}{{ .Role }}{{ end }}", "ssystemuserassistantuser"),
    ],
)
def test_the_renderer_does_both_kinds_of_templates(template, rendered):
    """As Ollama's own template engine did with the same, on 2026-08-21; without .Response it is added at the end."""
    assert go_render(template, [talk("system: s", "user: u", "assistant: a", "user: u2")]) == [rendered]
