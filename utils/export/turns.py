"""How a chat template writes a conversation, read off what it renders.

A chat template is a program in Jinja. Most of them do little: each message between two fixed strings, by its role, with
something in front of the first one and something behind the last. :func:`read_turns` finds these strings by rendering
conversations whose words it recognises again, puts them together by itself (:meth:`Turns.render`), and compares: a
template that writes anything else is refused, whatever its name.

Attributes:
    PROBES: Conversations that must come out equal, or the template is refused. The last ones are about their words: a
        template may not look at these.
    ODD: Conversations that are rarer, and what a difference in them is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from utils.data.chat import applied, check_has_template
from utils.data.records import Message
from utils.export.errors import ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]
Place = Literal["turn", "first user", "last user", "refused", "left out"]


def talk(*turns: str) -> list[Message]:
    """A conversation from lines such as ``"user: Good morning"``."""
    pairs = (turn.split(": ", 1) for turn in turns)
    return [{"role": role, "content": words} for role, words in pairs]


_S, _U, _A, _V, _B, _W = "Wsysu", "Wusrv", "Wastw", "Wusrx", "Wasty", "Wusrz"
"""Words that no template writes by itself: a system message, and user and assistant by turns."""

PROBES: tuple[list[Message], ...] = (
    talk("user: Hello"),
    talk("user: Hello", "assistant: Hi.", "user: And now?"),
    talk("user: a", "assistant: b", "user: c", "assistant: d", "user: e", "assistant: f", "user: g"),
    talk("system: Be short.", "user: Hello"),
    talk("system: Be short.", "user: Hello", "assistant: Hi.", "user: And now?"),
    talk("user: two\nlines\n\nand a gap", "assistant: {{ braces }} {% and %} \"quotes\" 'of' `all` kinds", "user: \\n"),
    talk(
        "user: snowman \u2603, \U0001f680, \u0928\u092e\u0938\u094d\u0924\u0947", "assistant: e\u0301", "user: a\u00a0b"
    ),
)

ODD: tuple[tuple[str, list[Message]], ...] = (
    ("an answer that is begun for the assistant", talk("user: Hello", "assistant: Hi")),
    ("blanks at the edges of a message", talk("user:  Hello \n", "assistant:  Hi. \n", "user: \tAnd now? ")),
    ("an empty system message", talk("system: ", "user: Hello")),
    ("an empty message of the user's", talk("user: ")),
    ("an empty answer", talk("user: Hello", "assistant: ", "user: Well?")),
    ("a system message later on", talk("user: Hello", "assistant: Hi.", "system: Be short.", "user: And now?")),
    ("a conversation that the assistant begins", talk("assistant: Hi.", "user: Hello")),
    ("a system message alone", talk("system: Be short.")),
    ("<think> in an earlier answer", talk("user: Hello", "assistant: <think>\nhm\n</think>\n\nHi.", "user: Well?")),
)

MERGED = (
    ("two messages of the user's, one after the other", talk("user: Hello", "user: And now?")),
    ("two system messages", talk("system: Be short.", "system: Be kind.", "user: Hello")),
)
"""Ollama joins neighbours of one role by an empty line, whatever the template is."""


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around messages.

    Attributes:
        bos: The BOS token's text, where a conversation begins with it, or "".
        head: What else every conversation begins with.
        default_system: What stands in the place of a system message when a conversation has none.
        system_place: Whether a system message is a turn of its own, stands in the first turn of the user's or in the
            one that the conversation ends with, is refused with an error, or left out.
        system, user, assistant: What stands before and behind such a message. Of a system message inside a turn of the
            user's, the second is what separates it from the user's words.
        generation: What is written behind the last message, so that the assistant answers.
        refusal: The template's own words for a system message that it refuses.
        differences: The rarer conversations that Ollama's template renders differently, since Go's templates can't do
            it or the form here doesn't hold it.
    """

    bos: str
    head: str
    default_system: str
    system_place: Place
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    refusal: str = ""
    differences: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """What people call this form: by the strings around the user's words, not by the model's name."""
        for mark, name in _NAMES:
            if mark in self.user[0]:
                return name
        return "its own form"

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, up to where the assistant goes on. Raises ExportError for what it refuses.

        When the last message is the assistant's, its turn stays open. Neighbours of one role are joined first, as
        Ollama does.
        """
        joined = _joined(messages)
        has_system = bool(joined) and joined[0]["role"] == "system"
        text = self.bos + self.head + ("" if has_system else self.default_system)
        system = "\n\n".join(m["content"] for m in joined if m["role"] == "system")
        first = True
        for number, message in enumerate(joined, 1):
            role, words, last = message["role"], message["content"], number == len(joined)
            if role == "system":
                if self.system_place == "refused":
                    raise ExportError(f"this base's chat template takes no system message: {self.refusal}")
                text += words.join(self.system) if self.system_place == "turn" else ""
            elif role == "user":
                here = {"first user": first, "last user": last}.get(self.system_place, False)
                first = False
                text += self.user[0] + (system + self.system[1] if here and has_system else "") + words + self.user[1]
            elif role == "assistant":
                text += self.assistant[0] + words + ("" if last else self.assistant[1])
            else:
                raise ExportError(f"only system, user and assistant are translated, not the role {role!r}")
        return text + ("" if joined and joined[-1]["role"] == "assistant" else self.generation)


_NAMES = (
    ("<|im_start|>", "ChatML"), ("<|start_header_id|>", "Llama 3"), ("[INST]", "Mistral"), ("<start_of_turn>", "Gemma"),
)  # fmt: skip


def _joined(messages: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"] != "tool":
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(dict(message))
    return joined


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation as transformers renders it before the assistant goes on.

    That is with the generation prompt or, when the last message is the assistant's, with its turn left open. Raises
    ValueError for what the template refuses.
    """
    begun = messages[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    return applied(tokenizer, list(messages), tokenize=False, **how)


def read_turns(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """What the tokenizer's chat template writes around messages, found in its renderings and held to :data:`PROBES`.

    Raises ValueError when the tokenizer has no chat template, and ExportError, with the first difference, when the
    template writes anything else than fixed strings around messages.
    """
    check_has_template(tokenizer)
    if "strftime_now" in str(tokenizer.chat_template):
        raise ExportError(
            "the base's chat template writes today's date, in a form that Ollama's templates can't. Leave TEMPLATE out "
            '(template="gguf"): llama.cpp then renders the chat template that the GGUF file holds'
        )
    turns = _found(tokenizer)
    for probe in PROBES:
        if probe[0]["role"] == "system" and turns.system_place == "refused":
            continue
        theirs, ours = rendered(tokenizer, probe), turns.render(probe)
        if theirs != ours:
            raise ExportError(_beyond(f"{_shape(probe)} gives {_around(theirs, ours)}, not {_around(ours, theirs)}"))
    return replace(turns, differences=tuple(_differences(tokenizer, turns)))


def _beyond(what: str) -> str:
    return (
        f"the base's chat template writes more than fixed strings around messages ({what}), so it isn't translated for "
        'Ollama. Leave TEMPLATE out (template="gguf"): llama.cpp then renders the chat template in the GGUF file'
    )


def _shape(messages: Sequence[Message]) -> str:
    return "/".join(message["role"] for message in messages)


def _around(text: str, other: str) -> str:
    """The place where `text` parts from `other`."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text[max(0, at - 12) : at + 24])


def _found(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The strings, by rendering words that are recognised again; not yet held to anything."""

    def closed(*turns: str) -> list[str]:
        return _pieces(tokenizer, talk(*turns))

    (before_one, behind_user) = closed(f"user: {_U}")
    front, *middle, end = closed(f"user: {_U}", f"assistant: {_A}", f"user: {_V}", f"assistant: {_B}", f"user: {_W}")
    *_, behind_assistant = closed(f"user: {_U}", f"assistant: {_A}")
    if front != before_one or end != behind_user or middle[0] != middle[2] or middle[1] != middle[3]:
        raise ExportError(_beyond("what stands around a message depends on its place"))
    if not middle[0].startswith(behind_user) and tokenizer.eos_token:  # some end a whole conversation with EOS
        behind_user = behind_user.removesuffix(str(tokenizer.eos_token))
        behind_assistant = behind_assistant.removesuffix(str(tokenizer.eos_token))
    if not (middle[0].startswith(behind_user) and middle[1].startswith(behind_assistant)):
        raise ExportError(_beyond("what stands behind the last message isn't what stands behind others"))
    user = middle[1][len(behind_assistant) :], behind_user
    assistant = middle[0][len(behind_user) :], behind_assistant
    if not front.endswith(user[0]):
        raise ExportError(_beyond(f"the first turn begins with {front!r}, not with {user[0]!r}"))
    whole = applied(tokenizer, talk(f"user: {_U}"), tokenize=False, add_generation_prompt=True)
    generation = whole.split(_U)[-1].removeprefix(behind_user)
    head = front.removesuffix(user[0])
    bos = str(tokenizer.bos_token or "")
    if not head.startswith(bos) or user[0].startswith(bos):  # of SmolLM2 <|im_start|> begins every turn
        bos = ""
    turns = Turns(bos, head[len(bos) :], "", "left out", ("", ""), user, assistant, generation)
    return _with_system(tokenizer, turns)


def _with_system(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> Turns:
    """`turns` with what the template makes of a system message, and of its absence."""
    try:
        text = applied(
            tokenizer, talk(f"system: {_S}", f"user: {_U}", f"assistant: {_A}", f"user: {_V}"), tokenize=False
        )
    except ValueError as error:
        return replace(turns, system_place="refused", refusal=str(error).split(": ", 1)[-1])
    if _S not in text:
        return turns
    front, behind = text.split(_S, 1)
    front = front.removeprefix(turns.bos)
    if _U in front:
        return replace(turns, system_place="last user", system=("", behind.split(_V)[0]))
    if front == turns.head + turns.user[0]:
        return replace(turns, system_place="first user", system=("", behind.split(_U)[0]))
    between = behind.split(_U)[0]
    if not between.endswith(turns.user[0]):
        raise ExportError(_beyond(f"a system message is followed by {between!r}"))
    head, default = (turns.head, "") if front.startswith(turns.head) else ("", turns.head)
    system = front.removeprefix(head), between.removesuffix(turns.user[0])
    return replace(turns, head=head, default_system=default, system_place="turn", system=system)


def _pieces(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[str]:
    """What stands before, between and behind the messages' words, without a generation prompt."""
    rest, pieces = applied(tokenizer, messages, tokenize=False), []
    for message in messages:
        before, found, rest = rest.partition(message["content"])
        if not found:
            raise ExportError(_beyond(f"it leaves out a message of {_shape(messages)}"))
        pieces.append(before)
    return [*pieces, rest]


def _differences(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> list[str]:
    found = []
    for name, messages in (*ODD, *MERGED):
        theirs = ours = None
        try:
            theirs = rendered(tokenizer, messages)
        except ValueError:
            pass  # transformers refuses it: Ollama will not
        try:
            ours = turns.render(messages)
        except ExportError:
            pass
        if theirs != ours:
            found.append(name)
    return found
