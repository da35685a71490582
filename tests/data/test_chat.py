"""From examples and records to ids, labels and batches: what is learned, and what is refused."""

import copy
import hashlib
import json

import pytest
import torch
import torch.nn.functional as F

from utils.data.chat import IGNORED, Example, collate, encode, prompt_completion, render, token_id
from utils.data.labels import batches, prompt_completion_labels
from utils.data.records import BadRecords
from utils.tinyworld import ASSISTANT, END, PAD, USER, task_examples

torch.set_num_threads(1)

EXAMPLES = [
    Example("Say it like a pirate: Zoe was a shy fox.", "Arr! Zoe be a shy fox."),
    Example("Is this good or bad? Tom won the race.", "good"),
    Example("Say it in French: The fox sees a red apple.", "Le renard voit une pomme rouge."),
]


def test_an_example_is_the_chat_form_and_its_end_mark(tokenizer):
    for example, (prompt, answer) in zip(EXAMPLES, encode(tokenizer, EXAMPLES), strict=True):
        assert tokenizer.decode(prompt) == f"{USER}{example.prompt}{ASSISTANT}"
        assert tokenizer.decode(answer) == f"{example.answer}{END}"
        assert answer[-1] == tokenizer.eos_token_id and answer.count(tokenizer.eos_token_id) == 1


def test_the_ids_are_those_of_the_whole_conversation(tokenizer):
    for example, (prompt, answer) in zip(EXAMPLES, encode(tokenizer, EXAMPLES), strict=True):
        assert tokenizer.apply_chat_template(conversation(example), return_dict=True)["input_ids"] == prompt + answer


def test_only_the_answer_and_its_end_mark_have_labels(tokenizer):
    encoded = encode(tokenizer, EXAMPLES)
    batch = collate(encoded, tokenizer.pad_token_id)
    longest = max(len(p) + len(a) for p, a in encoded)
    assert {t.shape for t in batch.values()} == {(3, longest)}
    for row, (prompt, answer) in enumerate(encoded):
        padding = longest - len(prompt) - len(answer)
        ids, labels, mask = (batch[key][row].tolist() for key in ("input_ids", "labels", "attention_mask"))
        assert ids == prompt + answer + [tokenizer.pad_token_id] * padding
        assert labels == [IGNORED] * len(prompt) + answer + [IGNORED] * padding
        assert mask == [1] * (longest - padding) + [0] * padding
    assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == PAD


def test_the_loss_is_the_mean_over_the_answers_tokens_whatever_the_padding(base, tokenizer):
    encoded = encode(tokenizer, EXAMPLES)
    with torch.no_grad():
        together = base(**collate(encoded, tokenizer.pad_token_id)).loss
        total, count = 0.0, 0
        for prompt, answer in encoded:
            logits = base(input_ids=torch.tensor([prompt + answer])).logits[0]
            places = logits[len(prompt) - 1 : -1]  # what stands before each token of the answer
            total += F.cross_entropy(places, torch.tensor(answer), reduction="sum").item()
            count += len(answer)
    # float32 in another order of sums: the logits differ by about 1e-5.
    assert together.item() == pytest.approx(total / count, rel=1e-5)


def conversation(example):
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]


def test_the_chat_template_marks_the_assistants_tokens_for_trl(tokenizer):
    """TRL's assistant_only_loss reads this mask; it must be exactly the labels that we train on."""
    for example, (prompt, answer) in zip(EXAMPLES, encode(tokenizer, EXAMPLES), strict=True):
        marked = tokenizer.apply_chat_template(
            conversation(example), return_assistant_tokens_mask=True, return_dict=True
        )  # fmt: skip
        assert marked["input_ids"] == prompt + answer
        assert marked["assistant_masks"] == [0] * len(prompt) + [1] * len(answer)


def test_each_turn_of_a_longer_conversation_is_marked(tokenizer):
    messages = conversation(EXAMPLES[0]) + conversation(EXAMPLES[1])
    marked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    pieces = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(pieces) == f"{EXAMPLES[0].answer}{END}{EXAMPLES[1].answer}{END}"


def test_a_role_that_the_model_does_not_know_is_refused(tokenizer):
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be kind."}], tokenize=False)


def test_batches_hold_different_examples_and_follow_the_seed(tokenizer):
    examples = task_examples("style", "train", 40)
    rows = encode(tokenizer, examples)

    def drawn(seed, size=8):
        return [b["input_ids"].tolist() for b in batches(tokenizer, examples, steps=4, batch_size=size, seed=seed)]

    assert len(drawn(0)) == 4 and all(len(batch) == 8 for batch in drawn(0))
    assert drawn(0) == drawn(0) != drawn(1)
    for batch in drawn(0):
        assert len({tuple(row) for row in batch}) == 8
        for row in batch:
            assert any(row[: len(p) + len(a)] == p + a for p, a in rows)
    assert [len(batch) for batch in drawn(0, size=100)] == [40] * 4


# What the notebooks train on: computed before records went the same way, and unchanged since.
DIGESTS = {
    "translation": "4c39f2b9bddd84f88f01584f304f38f4f7be433478bcc789fc2220ef3e465103",
    "style": "b8036091eb71f2cc784988d193edd6b1a7bc3ad9e6a9b04dc628527c71dd2cc4",
    "sentiment": "fb901f456519dc33e7ceb76620c88e94d2b78da7f35658dd47bd01c718d9d262",
}


@pytest.mark.parametrize("task", DIGESTS)
def test_ids_and_batches_of_the_courses_examples_stay(tokenizer, task):
    examples = task_examples(task, "train", 200)
    drawn = [
        {name: tensor.tolist() for name, tensor in batch.items()}
        for batch in batches(tokenizer, examples, steps=3, batch_size=4, seed=5)
    ]
    text = json.dumps([encode(tokenizer, examples), drawn])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[task]


# --------------------------------------------------------------------------------------------------------- records


def forms_of(example):
    """An example in each shape that a record may have."""
    turns = conversation(example)
    return [
        example,
        {"instruction": example.prompt, "output": example.answer},
        {"instruction": "Say it like a pirate:", "input": "Zoe was a shy fox.", "output": example.answer},
        {"messages": turns},
        {"prompt": turns[:1], "completion": turns[1:]},
    ]


def test_every_form_of_a_record_has_the_ids_of_the_example(tokenizer):
    encoded = encode(tokenizer, forms_of(EXAMPLES[0]))
    assert len(encoded) == 5 and all(row == encoded[0] for row in encoded)


def test_batches_of_records_are_those_of_examples(tokenizer):
    examples = task_examples("style", "train", 20)
    records = [{"instruction": e.prompt, "output": e.answer} for e in examples]
    ours, theirs = (list(batches(tokenizer, rows, steps=3, batch_size=4, seed=1)) for rows in (records, examples))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a)


def test_rows_of_different_forms_may_stand_in_one_list(tokenizer):
    """Plain texts among chats: each row keeps its place, and has the labels that it has alone."""
    plain = {"prompt": "He likes to s", "completion": "ing."}
    rows = [
        plain,
        EXAMPLES[1],
        {"prompt": "Sing:", "completion": f" La.{END}"},
        {"messages": conversation(EXAMPLES[2])},
    ]
    for row, (prompt, answer) in zip(rows, encode(tokenizer, rows), strict=True):
        assert prompt_completion_labels(tokenizer, row) == (prompt + answer, [IGNORED] * len(prompt) + answer)
    text = tokenizer.decode([i for part in encode(tokenizer, [plain])[0] for i in part])
    assert text == f"He likes to sing.{END}", "not in chat form, and with one end mark"


def test_of_a_longer_conversation_the_last_answer_is_learned(tokenizer):
    messages = conversation(EXAMPLES[0]) + conversation(EXAMPLES[1])
    ((prompt, answer),) = encode(tokenizer, [{"messages": messages}])
    assert tokenizer.decode(answer) == f"{EXAMPLES[1].answer}{END}"
    assert tokenizer.decode(prompt) == render(tokenizer, messages[:-1])


def test_a_prompt_is_rendered_alike_as_words_and_as_messages(tokenizer):
    words = EXAMPLES[0].prompt
    assert render(tokenizer, words) == render(tokenizer, [{"role": "user", "content": words}])
    assert render(tokenizer, words) == render(tokenizer, words, open_turn=False) + ASSISTANT


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Example("", "x"), "prompt is empty"),
        (Example("x", " \n"), "answer is empty"),
        (Example("x", 3), "answer is a number, not text"),
        ({"prompt": "x", "answer": "y"}, "completion is missing; the record has prompt, answer"),
        ({"prompt": "x", "completion": " "}, "completion is empty"),
        ({"prompt": conversation(EXAMPLES[0])[:1], "completion": []}, "has no message by assistant"),
        ({"instruction": "x"}, "output is missing"),
        ({"messages": conversation(EXAMPLES[0])[1:]}, "holds an answer and no prompt"),
        (None, "is null, not an object"),
    ],
)
def test_a_bad_row_is_named_by_its_place_and_what_is_wrong(tokenizer, row, said):
    with pytest.raises(BadRecords, match=said):
        prompt_completion(row)
    with pytest.raises(BadRecords, match=f"number 3 of 3: .*{said}") as caught:
        encode(tokenizer, [EXAMPLES[0], EXAMPLES[1], row])
    assert [problem.row for problem in caught.value.problems] == [3]


def test_a_special_token_that_is_missing_is_named(tokenizer):
    assert token_id(tokenizer, "eos") == tokenizer.eos_token_id
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    with pytest.raises(ValueError, match="no pad token: set tokenizer.pad_token"):
        next(batches(bare, EXAMPLES, steps=1, batch_size=2, seed=0))


def test_a_batch_of_nothing_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at least one example, not 0"):
        next(batches(tokenizer, EXAMPLES, steps=1, batch_size=0, seed=0))


def test_no_rows_are_refused(tokenizer):
    with pytest.raises(ValueError, match="no examples"):
        encode(tokenizer, [])
