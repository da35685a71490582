"""Ids and labels: equal to what TRL makes of the same records; and a length that leaves nothing is refused at once."""

import json
import logging
import re

import pytest
import torch

from utils import data, models
from utils.data.chat import IGNORED, collate, encode
from utils.data.formats import read_records
from utils.data.instructions import INSTRUCTIONS
from utils.data.labels import (
    assistant_labels,
    check_completions_survive,
    encode_record,
    encode_rows,
    prompt_completion_labels,
)
from utils.data.records import BadRecords, to_messages, to_prompt_completion
from utils.tinyworld import task_examples

torch.set_num_threads(1)

LONG = [
    {"role": "user", "content": "Say it like a pirate: Zoe was shy."},
    {"role": "assistant", "content": "Arr! Zoe be shy."},
    {"role": "user", "content": "Say it like a pirate: Tom was kind."},
    {"role": "assistant", "content": "Arr! Tom be kind."},
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    """One of each test's own: some give it another chat template."""
    return models.load_tokenizer()


@pytest.fixture(scope="module")
def records():
    return read_records(INSTRUCTIONS / "test.jsonl")[:40]


@pytest.fixture
def trained_on(tmp_path, tokenizer):
    """What SFTTrainer makes of rows: its prepared data set, and its collator."""

    def prepare(rows, **settings):
        from datasets import Dataset, disable_progress_bars
        from trl import SFTConfig, SFTTrainer

        disable_progress_bars()
        config = SFTConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=None,
            **{"max_length": 512, **settings},
        )  # fmt: skip
        trainer = SFTTrainer(
            models.load_base()[0], config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        return trainer.train_dataset, trainer.data_collator

    return prepare


def pairs(rows):
    return [(row["input_ids"], row["labels"]) for row in rows]


# -------------------------------------------------------------------------------------------------- equality with TRL


def test_prompt_and_completion_are_trls(tokenizer, records, trained_on):
    theirs, _ = trained_on([to_prompt_completion(r) for r in records])
    ours = [prompt_completion_labels(tokenizer, r) for r in records]
    assert ours == pairs(theirs)
    assert all(IGNORED in labels and labels[-1] == tokenizer.eos_token_id for _, labels in ours)


@pytest.mark.parametrize("template", [None, CHATML])
def test_assistant_only_is_trls(tokenizer, records, trained_on, template):
    if template:
        tokenizer.chat_template = template
    rows = [to_messages(r) for r in records] + [{"messages": LONG}]
    theirs, _ = trained_on(rows, assistant_only_loss=True)
    assert [assistant_labels(tokenizer, r["messages"]) for r in rows] == pairs(theirs)


def test_all_answers_are_trls_but_for_those_with_the_weight_0(tokenizer, records, trained_on):
    """TRL knows no weights: what it learns of the conversation, without that answer."""
    rows = [to_messages(r)["messages"] + LONG for r in records[:4]]
    theirs = pairs(trained_on([{"messages": messages} for messages in rows], assistant_only_loss=True)[0])
    assert list(encode_rows(tokenizer, [{"messages": messages} for messages in rows])) == theirs
    tagged = tokenizer.chat_template
    plain = re.sub(r"\{% (end)?generation %\}", "", tagged)
    for messages, (ids, labels) in zip(rows, theirs, strict=True):
        learned = tokenizer.decode([label for label in labels if label != IGNORED])
        for turn in (1, 3):
            weighed = {"messages": [{**m, "weight": int(n != turn)} for n, m in enumerate(messages)]}
            tokenizer.chat_template = tagged
            found = encode_record(tokenizer, weighed)
            left = tokenizer.decode([label for label in found[1] if label != IGNORED])
            assert found[0] == ids and left == learned.replace(f"{messages[turn]['content']}<|end|>", "", 1)
            tokenizer.chat_template = plain
            assert encode_record(tokenizer, weighed) == found, "by comparing the same"


def test_tools_are_rendered_as_trl_renders_them(tokenizer, trained_on):
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    rows = [{"messages": LONG, "tools": tools}, {"messages": LONG[:2], "tools": tools}]
    theirs, _ = trained_on([{**row, "tools": json.dumps(tools)} for row in rows], assistant_only_loss=True)
    assert list(encode_rows(tokenizer, [rows[0], {"messages": LONG[:2]}, rows[1]]))[::2] == pairs(theirs)
    asked = [to_prompt_completion(row) for row in rows]
    assert all(pair["tools"] == tools for pair in asked)
    assert encode(tokenizer, asked[:1])[0][0][:3] == pairs(theirs)[0][0][:3], "a prompt begins with its tools"


def test_many_rows_are_encoded_as_each_alone_and_a_bad_one_is_named(tokenizer, records):
    rows = [*records[:3], {"messages": LONG}, {"input_ids": [1, 2], "labels": [-100, 2]}, *records[3:6]]
    assert list(encode_rows(tokenizer, rows)) == [encode_record(tokenizer, row) for row in rows]
    with pytest.raises(BadRecords, match="number 2 of 2: this record can't be used: instruction is missing") as caught:
        list(encode_rows(tokenizer, [records[0], {"output": "x"}]))
    assert [problem.row for problem in caught.value.problems] == [2]
    system = {"messages": [{"role": "system", "content": "Be kind."}, *LONG]}
    with pytest.raises(
        ValueError, match="number 3 of 3: the base's chat template refuses this conversation: the tiny model"
    ):
        list(encode_rows(tokenizer, [records[0], records[1], system]))


def test_weights_that_cannot_be_told_apart_are_refused(tokenizer):
    """Tags around the whole conversation make one stretch of two answers."""
    tokenizer.chat_template = (
        "{% generation %}{% for m in messages %}{{ '<|user|>' + m.content + '<|end|>' }}{% endfor %}{% endgeneration %}"
    )
    messages = [LONG[0], {**LONG[1], "weight": 0}, *LONG[2:]]
    with pytest.raises(ValueError, match="tags 1 stretches for 2 answers"):
        encode_record(tokenizer, {"messages": messages})


def test_plain_texts_are_trls(tokenizer, trained_on):
    rows = [{"prompt": f"{e.prompt} ->", "completion": f" {e.answer}"} for e in task_examples("style", "test", 8)]
    rows.append({"prompt": "Sing:", "completion": f" La.{tokenizer.eos_token}"})
    theirs, _ = trained_on(rows)
    assert [prompt_completion_labels(tokenizer, r) for r in rows] == pairs(theirs)


def test_tokens_that_merge_across_the_boundary_begin_where_trls_begin(tokenizer, trained_on, caplog):
    """ "Sing:" and "ing" make other tokens together than apart, so the completion begins where the two part."""
    caplog.set_level(logging.ERROR, logger="trl")  # for this test only
    row = {"prompt": "He likes to s", "completion": "ing."}
    prompt = tokenizer(row["prompt"]).input_ids
    ids, labels = prompt_completion_labels(tokenizer, row)
    assert ids[: len(prompt)] != prompt, "no merge here: choose another text"
    theirs, _ = trained_on([row])
    assert (ids, labels) == pairs(theirs)[0]


def test_a_conversation_as_prompt_and_completion_learns_the_last_answer_only(tokenizer, trained_on):
    theirs, _ = trained_on([to_prompt_completion({"messages": LONG})])
    ours = prompt_completion_labels(tokenizer, {"messages": LONG})
    assert ours == pairs(theirs)[0]
    learnt = tokenizer.decode([i for i in ours[1] if i != IGNORED])
    assert learnt == "Arr! Tom be kind.<|end|>"
    learnt = tokenizer.decode([i for i in assistant_labels(tokenizer, LONG)[1] if i != IGNORED])
    assert learnt == "Arr! Zoe be shy.<|end|>Arr! Tom be kind.<|end|>"


def test_the_collators_batch_is_ours(tokenizer, trained_on):
    examples = task_examples("style", "train", 6)
    rows = [
        {"prompt": [{"role": "user", "content": e.prompt}], "completion": [{"role": "assistant", "content": e.answer}]}
        for e in examples
    ]
    theirs, collator = trained_on(rows)
    batch, ours = collator([theirs[i] for i in range(6)]), collate(encode(tokenizer, examples), tokenizer.pad_token_id)
    assert sorted(batch) == sorted(ours) and all(torch.equal(batch[k], ours[k]) for k in ours)


def test_trl_drops_without_a_word_what_we_count_and_refuse(tokenizer, records, trained_on):
    rows = [to_prompt_completion(r) for r in records]
    for max_length in (16, 24, 40):
        kept, _ = trained_on(rows, max_length=max_length)
        assert check_completions_survive(records, tokenizer, max_length) == len(records) - len(kept) > 0
    kept, _ = trained_on(rows, max_length=8)
    assert len(kept) == 0
    with pytest.raises(ValueError, match="max_length=8 cuts away the completion of every one of the 40 records"):
        check_completions_survive(records, tokenizer, 8)


def test_pad_as_eos_costs_the_old_collator_every_end_mark_and_trl_none(tokenizer, records, trained_on):
    from transformers import DataCollatorForLanguageModeling

    tokenizer.pad_token = tokenizer.eos_token
    theirs, collator = trained_on([to_prompt_completion(r) for r in records[:8]])
    rows = [{"input_ids": theirs[i]["input_ids"]} for i in range(8)]
    end = tokenizer.eos_token_id
    assert (DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"] == end).sum() == 0
    assert (collator([theirs[i] for i in range(8)])["labels"] == end).sum() == 8


# -------------------------------------------------------------------------------------------------- our own properties


@pytest.mark.parametrize("template", [None, CHATML])
def test_without_tags_comparing_finds_the_same_tokens(tokenizer, records, template):
    tokenizer.chat_template = template or tokenizer.chat_template
    rows = [to_messages(r)["messages"] for r in records] + [LONG]
    tagged = [assistant_labels(tokenizer, messages) for messages in rows]
    tokenizer.chat_template = re.sub(r"\{% (end)?generation %\}", "", tokenizer.chat_template)
    assert "generation %" not in tokenizer.chat_template
    assert [assistant_labels(tokenizer, messages) for messages in rows] == tagged


def test_where_the_tags_leave_something_out_they_decide(tokenizer):
    """SmolLM2's template writes a line's end behind the end mark, which nobody has to learn."""
    tokenizer.chat_template = CHATML.replace("'<|im_end|>\\n' }}{% endgen", "'<|im_end|>' }}{% endgen")
    tokenizer.chat_template = tokenizer.chat_template.replace("{% endgeneration %}", "{% endgeneration %}{{ '\\n' }}")
    ids, labels = assistant_labels(tokenizer, LONG)
    assert labels[-1] == IGNORED and tokenizer.decode(ids).endswith("<|im_end|>\n")
    assert prompt_completion_labels(tokenizer, LONG_PAIR)[1][-1] != IGNORED


def test_ids_are_the_chat_forms_and_labels_are_ids_or_ignored(tokenizer, records):
    for record in records:
        messages = to_messages(record)["messages"]
        ids, labels = prompt_completion_labels(tokenizer, record)
        assert ids == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert all(label in (i, IGNORED) for i, label in zip(ids, labels, strict=True))
        assert tokenizer.decode([x for x in labels if x != IGNORED]) == record["output"] + tokenizer.eos_token
        assert (ids, labels) == assistant_labels(tokenizer, messages) == encode_record(tokenizer, record)
        assert encode_record(tokenizer, {"messages": messages}) == (ids, labels)
        assert encode_record(tokenizer, {"input_ids": ids, "labels": labels}) == (ids, labels)
    assert encode_record(tokenizer, {"input_ids": [4, 5]}) == ([4, 5], [4, 5])


def test_the_labels_are_those_of_the_training_loop(tokenizer):
    for example, (prompt, answer) in zip(
        examples := task_examples("translation", "test", 10), encode(tokenizer, examples), strict=True
    ):
        record = {"instruction": example.prompt, "output": example.answer}
        assert prompt_completion_labels(tokenizer, record) == (prompt + answer, [IGNORED] * len(prompt) + answer)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    last = "{{ m['content'] + ('' if loop.last else '(old)') + '<|end|>' }}"
    tokenizer.chat_template = f"{{% for m in messages %}}{last}{{% endfor %}}"
    with pytest.raises(ValueError, match="writes message 2 otherwise when the whole conversation is rendered"):
        assistant_labels(tokenizer, LONG)


LONG_PAIR = {"prompt": LONG[:1], "completion": LONG[1:2]}


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    for encode_it in (
        lambda: assistant_labels(tokenizer, LONG),
        lambda: prompt_completion_labels(tokenizer, LONG_PAIR),
    ):
        with pytest.raises(ValueError, match="has no chat template"):
            encode_it()


@pytest.mark.parametrize("messages", [[], LONG[:1], [{"role": "assistant", "content": ""}]])
def test_what_is_no_conversation_gets_no_labels(tokenizer, messages):
    with pytest.raises(BadRecords):
        assistant_labels(tokenizer, messages)


# ------------------------------------------------------------------------------------------------------- truncation


def test_the_refusal_says_which_length_is_needed(tokenizer, records):
    begins = [next(i for i, x in enumerate(encode_record(tokenizer, r)[1]) if x != IGNORED) for r in records]
    with pytest.raises(ValueError) as caught:
        check_completions_survive(records, tokenizer, min(begins))
    longest = max(len(encode_record(tokenizer, r)[0]) for r in records)
    assert f"begin after {min(begins)} to {max(begins)} tokens, so above {max(begins)} every" in str(caught.value)
    assert f"{longest} keeps all of them whole" in str(caught.value)
    assert check_completions_survive(records, tokenizer, min(begins) + 1) == sum(b > min(begins) for b in begins)
    assert check_completions_survive(records, tokenizer, max(begins) + 1) == 0
    assert check_completions_survive(records, tokenizer, max(begins)) == sum(b == max(begins) for b in begins) > 0
    assert check_completions_survive(records, tokenizer, None) == 0


def test_a_dataset_and_tokenized_rows_are_taken_too(tokenizer, records):
    from datasets import Dataset

    rows = Dataset.from_list([to_prompt_completion(r) for r in records])
    assert check_completions_survive(rows, tokenizer, 24) == check_completions_survive(records, tokenizer, 24)
    tokenized = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": [IGNORED, IGNORED, 6]}])
    assert check_completions_survive(tokenized, tokenizer, 3) == 0
    with pytest.raises(ValueError, match="above 2 every"):
        check_completions_survive(tokenized, tokenizer, 2)


def test_nothing_to_learn_at_any_length_is_said_so(tokenizer):
    with pytest.raises(ValueError, match="none of the 2 records has a label"):
        check_completions_survive([{"input_ids": [4], "labels": [IGNORED]}] * 2, tokenizer, 512)


@pytest.mark.parametrize(("rows", "max_length", "said"), [([], 8, "no records"), ([{}], 0, "at least 1, or None")])
def test_what_cannot_be_checked_is_refused(tokenizer, rows, max_length, said):
    with pytest.raises(ValueError, match=said):
        check_completions_survive(rows, tokenizer, max_length)


def test_the_front_door_has_what_it_names():
    assert sorted(data.__all__) == data.__all__ and all(hasattr(data, name) for name in data.__all__)
