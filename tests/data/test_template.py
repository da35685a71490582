"""What a base's chat template refuses or leaves out is found with the tokenizer alone."""

from __future__ import annotations

import json

import pytest

from utils.data.formats import read_own
from utils.data.records import BadRecords
from utils.data.template import check_template, template_problems
from utils.models import load_tokenizer

USER, ANSWER = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "noon"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]

CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<' + m.role + '>' + m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ '<' + m.role + '>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TINY = load_tokenizer().chat_template
NO_TAGGED = TINY.replace("{% generation %}", "").replace("{% endgeneration %}", "")
NO_TAGGED += "{% generation %}{% endgeneration %}"


def problems(template: str, *messages: dict, **more) -> list[str]:
    tokenizer = load_tokenizer()
    tokenizer.chat_template = template
    return [problem.reason for problem in template_problems([{"messages": list(messages), **more}], tokenizer)]


@pytest.mark.parametrize(
    "template, messages, said",
    [
        (TINY, [SYSTEM, USER, ANSWER], "has the roles system, user, assistant, and the base's chat template refuses"),
        (GEMMA, [SYSTEM, USER, ANSWER], "Conversation roles must alternate"),
        (GEMMA, [USER, USER, ANSWER], "has the roles user, user, assistant, and"),
        (GEMMA, [USER, ANSWER, ANSWER], "has the roles user, assistant, assistant, and"),
        (CHATML, [ANSWER, USER, ANSWER], "begins with the assistant, and the base's chat template has no {% gen"),
        (NO_SYSTEM, [SYSTEM, USER, ANSWER], "loses message 1 (system): the base's chat template leaves it out"),
        (NO_SYSTEM, [USER, {**ANSWER, "reasoning_content": "Hm."}], "loses reasoning_content"),
        (NO_SYSTEM, [USER, CALL, RESULT, ANSWER], "loses tool_calls"),
        (CHATML.replace("m.content }}", "m.content + 1 }}"), [USER, ANSWER], "refuses this conversation: can only"),
        (NO_TAGGED, [USER, ANSWER], "marks nothing of it as the assistant's words"),
    ],
)  # fmt: skip
def test_what_a_template_refuses_or_leaves_out_is_said(template, messages, said):
    (reason,) = problems(template, *messages)
    assert said in reason


@pytest.mark.parametrize(
    "template, messages, more",
    [
        (TINY, [USER, ANSWER, USER, ANSWER], {}),
        (TINY, [ANSWER, USER, ANSWER], {}),  # the tags say where its words begin
        (CHATML, [SYSTEM, USER, ANSWER], {}),
        (CHATML, [USER, CALL, RESULT, ANSWER], {"tools": TOOLS}),
        (CHATML, [USER, {**ANSWER, "reasoning_content": "Hm."}], {}),
        (CHATML, [{**ANSWER, "weight": 0}, USER, ANSWER], {}),
    ],
)
def test_what_a_template_takes_is_no_problem(template, messages, more):
    assert problems(template, *messages, **more) == []


def test_tools_that_nobody_reads_are_named():
    assert problems(NO_SYSTEM, USER, ANSWER, tools=TOOLS) == [
        "loses tools: the base's chat template leaves them out, so the model would never see them"
    ]


def test_the_lines_are_the_files(tmp_path, tokenizer):
    good, bad = {"messages": [USER, ANSWER]}, {"messages": [SYSTEM, USER, ANSWER]}
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + "\n\n".join(map(json.dumps, [good, bad, good, bad])))
    with pytest.raises(
        BadRecords,
        match="2 problems in a.jsonl, so it can't be trained on with this base.*\n  lines 4, 8: has the roles system",
    ):
        check_template(read_own(path), tokenizer)
    path.write_text(json.dumps(good))
    check_template(read_own(path), tokenizer)


def test_each_shape_is_tried_once(tokenizer, monkeypatch):
    from utils.data import template

    tried = []
    monkeypatch.setattr(template, "_problem", lambda talk, tokenizer: tried.append(talk))
    records = [{"messages": [USER, ANSWER] * (1 + n % 2)} for n in range(50)] + [{"instruction": "a", "output": "b"}]
    assert template_problems(records, tokenizer) == [] and len(tried) == 2


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = load_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        template_problems([{"messages": [USER, ANSWER]}], tokenizer)
