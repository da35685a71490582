"""Fifty conversations and the chat templates of six families, to compare who renders what.

Attributes:
    TALKS: Name and messages of each. The name says what is rare in it.
    FAMILIES: Chat template, BOS and EOS token and special tokens of each family. Qwen2.5's, Llama 3's and Gemma 3's
        templates are those that TRL carries.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

from utils.data.records import Message
from utils.export.turns import talk
from utils.models import TINY_DIR

_EXCHANGES = (
    ("Good morning.", "Good morning to you."),
    ("What is the capital of France?", "Paris."),
    ("Say it like a pirate: my friend is here", "arr, me matey be 'ere!"),
    ("Is this good or bad? Tom lost his hat.", "bad"),
    ("How many?", "Three: one, two, three."),
)
_CONTENTS = (
    ("several lines", "one\ntwo\n\nfour", "a\n\nb"),
    ("code", 'def f(x):\n    return {"x": x}', "```python\nprint('hi')\n```"),
    ("braces", "{{ .Content }} and {% if x %}", "{{ messages }} }} {{"),
    ("quotes", '"""three""" \'one\' `tick`', 'he said "no"'),
    ("backslashes", "C:\\new\\table \\n \\u0041", "\\\\"),
    ("emoji", "snow \u2603, rocket \U0001f680", "family \U0001f468\u200d\U0001f469\u200d\U0001f467"),
    ("other scripts", "\u0928\u092e\u0938\u094d\u0924\u0947 \u4f60\u597d \u0645\u0631", "\u00c0 e\u0301"),
    ("no-break space", "10\u00a0km", "a\u3000b"),
    ("HTML", "<b>bold</b> & <think>", "&amp; <br/>"),
    ("numbers", "1 000 000.50", "-1e-9"),
)  # fmt: skip
_EDGES = (
    ("blank behind", "Hello "), ("blank in front", " Hello"), ("line end behind", "Hello\n"), ("blanks inside", "a  b"),
    ("a tab behind", "Hello\t"),
)  # fmt: skip


def _fifty() -> dict[str, list[Message]]:
    talks: dict[str, list[Message]] = {}
    for user, _ in _EXCHANGES:
        talks[f"one question: {user[:12]}"] = talk(f"user: {user}")
    lines: list[str] = []
    for number, (user, assistant) in enumerate(_EXCHANGES, 1):
        lines.append(f"user: {user}")
        talks[f"question {number} of a conversation"] = talk(*lines)
        lines.append(f"assistant: {assistant}")
    for number in (1, 2, 3, 5):
        talks[f"system, {number} questions"] = talk("system: You are brief.", *lines[: 2 * number - 1])
    for what, user, assistant in _CONTENTS:
        talks[f"{what} in a question"] = talk(f"user: {user}")
        talks[f"{what} in an answer"] = talk("user: Well?", f"assistant: {assistant}", "user: Go on.")
    for what, _, assistant in _CONTENTS[:4]:
        talks[f"{what} in a system message"] = talk(f"system: {assistant}", "user: Well?")
    for what, user in _EDGES:
        talks[f"edge: {what}"] = talk(f"user: {user}")
    talks["edge: blanks around an answer"] = talk("user: Hello", "assistant:  Hi. \n", "user: Well?")
    talks["begun: an answer"] = talk("user: Hello", "assistant: Good")
    talks["begun: an answer after two"] = talk("user: Hello", "assistant: Hi.", "user: Well?", "assistant: I")
    talks["empty: question"] = talk("user: ")
    talks["empty: answer"] = talk("user: Hello", "assistant: ", "user: Well?")
    talks["empty: system message"] = talk("system: ", "user: Hello")
    talks["neighbours: two questions"] = talk("user: Hello", "user: And this?")
    return talks


TALKS = _fifty()


class Family(NamedTuple):
    """A chat template and the special tokens that go with it. `adds_bos`: whether the tokenizer adds its BOS token."""

    template: str
    bos: str | None
    eos: str
    special: tuple[str, ...]
    adds_bos: bool


def _trl(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


_SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last and system is defined %}{{ system + '\\n\\n' }}{% endif %}{{ message.content + '[/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
"""In the form of Mistral 7B Instruct v0.3: the system message stands in the last turn of the user's."""


def families() -> dict[str, Family]:
    """The six, by name. Needs TRL."""
    headers = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    chatml = ("<|im_start|>", "<|im_end|>")
    tiny = (TINY_DIR / "chat_template.jinja").read_text(encoding="utf-8")
    return {
        "tiny Llama": Family(tiny, None, "<|end|>", (), False),
        "Qwen2.5 (ChatML)": Family(_trl("qwen2_5"), None, "<|im_end|>", chatml, False),
        "SmolLM2 (ChatML)": Family(_SMOLLM2, "<|im_start|>", "<|im_end|>", chatml, False),
        "Llama 3": Family(_trl("llama3"), "<|begin_of_text|>", "<|eot_id|>", headers, True),
        "Mistral v0.3": Family(_MISTRAL, "<s>", "</s>", ("<s>", "</s>", "[INST]", "[/INST]"), True),
        "Gemma 3": Family(
            _trl("gemma3"), "<bos>", "<eos>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), True
        ),
    }


def family_tokenizer(family: Family) -> Any:
    """The tiny model's tokenizer with the family's special tokens, template and way with BOS."""
    from tokenizers.processors import TemplateProcessing

    from utils.models import load_tokenizer

    tokenizer: Any = load_tokenizer()
    tokenizer.chat_template = family.template
    if family.special:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(family.special)}, replace_extra_special_tokens=False
        )
        tokenizer.eos_token = family.eos
    if family.bos:
        tokenizer.bos_token = family.bos
    if family.adds_bos:
        bos = (family.bos, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[bos]
        )
    return tokenizer
