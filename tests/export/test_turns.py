"""A chat template's strings are read off its renderings: what is found, what is refused, and what is said to differ."""

import re

import pytest

from tools.template_talks import TALKS, families, family_tokenizer
from utils.export.errors import ExportError
from utils.export.turns import ODD, Turns, read_turns, rendered, talk
from utils.models import load_tokenizer

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def read(template: str, **tokens: str) -> Turns:
    tokenizer = load_tokenizer()
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return read_turns(tokenizer)


def test_the_tiny_models_own_template(tokenizer):
    turns = read_turns(tokenizer)
    assert (turns.user, turns.assistant, turns.generation) == (
        ("<|user|>", ""),
        ("<|assistant|>", "<|end|>"),
        "<|assistant|>",
    )
    assert (turns.bos, turns.head, turns.default_system, turns.system_place) == ("", "", "", "refused")
    assert "knows the roles user and assistant" in turns.refusal
    assert turns.differences == ("two messages of the user's, one after the other",)


@pytest.mark.parametrize(
    ("family", "name", "place", "bos"),
    [
        ("Qwen2.5 (ChatML)", "ChatML", "turn", ""),
        ("SmolLM2 (ChatML)", "ChatML", "turn", ""),  # its BOS token begins every turn, and is no BOS here
        ("Llama 3", "Llama 3", "turn", "<|begin_of_text|>"),
        ("Mistral v0.3", "Mistral", "last user", "<s>"),
        ("Gemma 3", "Gemma", "first user", "<bos>"),
    ],
)
def test_families_are_told_by_what_they_render(family, name, place, bos):
    turns = read_turns(family_tokenizer(families()[family]))
    assert (turns.name, turns.system_place, turns.bos) == (name, place, bos)


def test_the_default_system_message_is_found():
    smollm2 = read_turns(family_tokenizer(families()["SmolLM2 (ChatML)"])).default_system
    assert smollm2 == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    assert "You are Qwen" in read_turns(family_tokenizer(families()["Qwen2.5 (ChatML)"])).default_system
    assert read(CHATML + OPEN).default_system == ""


@pytest.mark.parametrize("family", families())
def test_it_renders_as_transformers_does_wherever_it_doesnt_say_that_it_differs(family):
    tokenizer = family_tokenizer(families()[family])
    turns = read_turns(tokenizer)
    trims = "blanks at the edges of a message" in turns.differences
    for name, messages in TALKS.items():
        try:
            theirs = rendered(tokenizer, messages)
        except ValueError:
            theirs = None
        try:
            ours = turns.render(messages)
        except ExportError:
            ours = None
        differs = name.startswith("neighbours") or (trims and name.startswith("edge") and "inside" not in name)
        assert (theirs != ours) == differs, name


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHATML.replace("m.content", "m.content | upper") + OPEN, "more than fixed strings"),
        ("{% for m in messages %}{{ loop.index ~ m.role ~ m.content }}{% endfor %}", "depends on its place"),
        ("{{ messages[-1].content }}", "leaves out a message"),
        (CHATML + "{% if messages | length > 5 %}long{% endif %}" + OPEN, "."),
        (CHATML.replace("m.content", "m.content | replace('\n\n', '\n')") + OPEN, "user/assistant/user gives"),
        (CHATML.replace("m.content", "m.content | replace('{', '(')") + OPEN, "user/assistant/user gives"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML + OPEN, "today's date"),
        ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}{{ messages | length }}", "."),
    ],
)
def test_a_template_that_writes_more_than_fixed_strings_is_refused(template, words):
    with pytest.raises(ExportError, match=words) as error:
        read(template)
    assert 'template="gguf"' in str(error.value)


def test_no_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        read("")


@pytest.mark.parametrize(
    ("template", "difference"),
    [
        (CHATML.replace("m.content", "m.content | trim") + OPEN, "blanks at the edges of a message"),
        (CHATML.replace("m.content", "m.content.split('</think>')[-1]") + OPEN, "<think> in an earlier answer"),
        (CHATML.replace("{{", "{% if m.content or m.role != 'system' %}{{").replace("}}", "}}{% endif %}") + OPEN,
         "an empty system message"),
        ("{% if messages[0].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + CHATML + OPEN,
         "a conversation that the assistant begins"),
    ],
)  # fmt: skip
def test_what_only_rare_conversations_show_is_named(template, difference):
    assert difference in read(template).differences
    assert difference not in read(CHATML + OPEN).differences
    assert difference in dict(ODD)


def test_eos_behind_the_whole_conversation_belongs_to_no_turn():
    end = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
    assert read(CHATML + end).assistant == ("<|im_start|>assistant\n", "<|im_end|>\n")


def test_a_begun_answer_stays_open_and_neighbours_are_joined():
    turns = read(CHATML + OPEN)
    assert turns.render(talk("user: a", "user: b", "assistant: c")) == (
        "<|im_start|>user\na\n\nb<|im_end|>\n<|im_start|>assistant\nc"
    )
    with pytest.raises(ExportError, match="not the role 'tool'"):
        turns.render([{"role": "tool", "content": "x"}])


def test_a_system_message_that_is_refused_is_refused_here_too(tokenizer):
    with pytest.raises(ExportError, match=re.escape("takes no system message: ") + ".*tiny model"):
        read_turns(tokenizer).render(talk("system: x", "user: y"))
