"""utils.train.own_data: a file of one's own is read or refused, and split without a leak."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.data.chat import IGNORED, Example
from utils.data.formats import read_own
from utils.data.labels import prompt_completion_labels
from utils.data.records import BadRecords
from utils.lora import inject
from utils.models import ROOT, load_base, load_tokenizer
from utils.train.loop import train
from utils.train.own_data import (
    GENERAL,
    data_facts,
    general_texts,
    hold_out,
    other_texts,
    prompt_key,
    split_records,
)


def record(prompt: str, answer: str = "yes") -> dict[str, str]:
    return {"instruction": prompt, "output": answer}


def talk(prompt: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


prompts = st.lists(st.sampled_from([f"{c} {n}" for c in "abc" for n in range(12)]), min_size=60, max_size=90)


@given(prompts, st.integers(0, 5), st.floats(0.05, 0.5))
def test_no_prompt_is_on_both_sides_and_nothing_is_lost(texts, seed, share):
    texts += [f"own {n}" for n in range(10)]
    records = [record(text.upper() if i % 3 else f" {text} ", str(i % 2)) for i, text in enumerate(texts)]
    split = split_records(records, share, seed=seed)
    sides = [{prompt_key(r) for r in side} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1] and all(sides)
    assert len(split.train) + len(split.held_out) + split.dropped == len(records)
    assert {(prompt_key(r), r["output"]) for r in split.train + split.held_out} == {
        (prompt_key(r), r["output"]) for r in records
    }


def test_the_share_the_most_and_the_seed():
    records = [record(f"prompt {n}") for n in range(500)]
    split = split_records(records)
    assert (len(split.train), len(split.held_out), split.dropped) == (450, 50, 0)
    assert len(split_records(records, at_most=7).held_out) == 7
    assert split_records(records) == split and split_records(records, seed=1) != split
    assert split.train == [r for r in records if r in split.train], "the file's order is kept"


@pytest.mark.parametrize("share", [0.95, 0.99])
def test_something_is_left_to_train_on_however_much_is_held_out(share):
    split = split_records([record(f"prompt {n}") for n in range(10)], share)
    assert (len(split.train), len(split.held_out)) == (1, 9)


def test_duplicates_are_dropped_and_two_answers_to_a_prompt_stay_together():
    records = [record(f"p {n}") for n in range(20)] + [record("p 3"), record("P  3", "no"), record("p 4 ", "yes ")]
    split = split_records(records, share=0.5)
    assert split.dropped == 2
    assert len({r["output"].strip() for side in split[:2] for r in side if prompt_key(r) == ("p 3",)}) == 2


@pytest.mark.parametrize(
    "records, settings, said",
    [
        ([record("only")] * 50, {}, "the 50 records have 1 different prompt;"),
        ([], {}, "0 different prompts"),
        ([record(str(n)) for n in range(20)], {"share": 0}, "share between 0 and 1"),
        ([record(str(n)) for n in range(20)], {"share": 1.0}, "share between 0 and 1"),
        ([record(str(n)) for n in range(20)], {"at_most": 0}, "at least one record"),
    ],
)
def test_what_cant_be_split_is_refused(records, settings, said):
    with pytest.raises(ValueError, match=said):
        split_records(records, **settings)


def test_nearly_the_same_prompts_stay_on_one_side():
    """One more "?" made of a training prompt a held-out one."""
    questions = [
        f"What did {name} find at the lake near the old mill on day {n}" for n, name in enumerate("abcdefghijkl")
    ]
    records = [record(question + end) for end in ("?", "??") for question in questions]
    split = split_records(records, share=0.4)
    sides = [{r["instruction"].rstrip("?") for r in side} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1] and all(sides) and split.near == 12
    with pytest.raises(
        ValueError, match=r"3 different prompts, when prompts that are nearly the same .* \(6 differ at"
    ):
        split_records([r for r in records if int(r["instruction"].rstrip("?").split()[-1]) < 3])


def test_a_bad_file_is_refused_before_anything_large_is_imported(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\none,\n")
    code = (
        "import sys\nfrom utils.train.own_data import read_own, split_records\n"
        "try:\n    read_own(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.csv")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "line 2: output is empty" in done.stdout and done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_each_kind_of_file_is_read(tmp_path, name):
    rows = [record("one"), record("two, and three", 'say "no"')]
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text('instruction,output\none,yes\n"two, and three","say ""no"""\n')
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    assert read_own(path).records == rows


def test_conversations_are_read_and_a_bad_one_is_refused_with_its_line(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(talk(f"q {n}", "a")) for n in range(3)))
    assert read_own(path).records[2] == talk("q 2", "a")
    assert prompt_key(talk("  Q 2", "a")) == ("q 2",)
    path.write_text(path.read_text() + "\n" + json.dumps({"messages": []}))
    with pytest.raises(BadRecords, match="line 4: messages is empty"):
        read_own(path)


def test_a_bad_csv_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\none,yes\ntwo,\n")
    with pytest.raises(BadRecords, match="line 3: output is empty"):
        read_own(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "none.csv")


def test_the_facts_are_the_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(record(f"p {n}")) for n in range(30)))
    facts = data_facts(path, split_records(read_own(path).records))
    assert facts == ("a.jsonl", hashlib.sha256(path.read_bytes()).hexdigest(), 27, 3, 0, 0)


def test_numbers_and_empty_answers_are_refused_with_what_to_do(tmp_path):
    """All lines with one fault are one line of the message."""
    rows = [{"question": f"{n} + {n}?", "answer": 2 * n if n < 6 else ""} for n in range(12)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadRecords) as refused:
        read_own(path)
    assert str(refused.value).splitlines()[1:] == [
        "  lines 1, 2, 3, 4 and 2 more: answer is a number, not text (in JSON put it in quotation marks)",
        "  lines 7, 8, 9, 10 and 2 more: answer is empty: write out what should be trained on, or take the record out",
    ]


def test_the_other_texts_are_stories_or_a_file(tmp_path, tokenizer):
    assert other_texts(None, tokenizer) == (general_texts(), GENERAL)
    path = tmp_path / "wiki.txt"
    path.write_text("The tide rose. " * 20_000, encoding="utf-8")
    texts, name = other_texts(path, tokenizer)
    assert name == "wiki.txt" and [len(text) for text in texts] == [100_000]
    path.write_text("The tide rose.", encoding="utf-8")
    with pytest.raises(ValueError, match="holds .* tokens, and a perplexity needs 256: give --general some pages"):
        other_texts(path, tokenizer)
    path.write_bytes("Ebbe und Flüsse. ".encode("latin-1") * 300)
    with pytest.raises(ValueError, match="isn't text in UTF-8"):
        other_texts(path, tokenizer)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        other_texts(tmp_path / "none.txt", tokenizer)


def test_the_general_texts_are_always_the_same_and_enough_for_a_window():
    assert general_texts() == general_texts() and len(" ".join(general_texts()).split()) > 1000


def test_held_out_is_a_share_or_a_number_of_records():
    records = [record(f"prompt number {n} of the file") for n in range(90)]
    assert len(hold_out(records, 0.2).held_out) == 18 and len(hold_out(records, 30.0).held_out) == 30
    assert len(hold_out(records).held_out) == 9 and hold_out(records).dev == []
    assert hold_out(records, seed=1).held_out != hold_out(records).held_out
    with pytest.raises(ValueError, match="held_out=90 of 90 records leaves nothing"):
        hold_out(records, 90)
    for nothing in (0, -3, None, float("nan")):
        with pytest.raises(ValueError, match=rf"held_out={nothing}: give a share such as 0.1"):
            hold_out(records, nothing)
    with pytest.raises(ValueError, match="the record has 1 different prompt; at least"):
        hold_out(records[:1])


def test_held_out_may_be_a_file_and_its_prompts_arent_trained_on(tmp_path):
    names = ["Zoe", "Tom", "Ann", "Max", "Lea", "Ben", "Kim", "Sam", "Eva", "Jon", "Mia", "Leo"]
    records = [record(f"Where does {name} live, and who is {name} married to?", name) for name in names]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, [record("WHERE does Zoe live, and who is Zoe married to"), records[1]])))
    split = hold_out([*records, records[5]], str(path))
    assert split.held_out == read_own(path).records and split.train == records[2:] and split.dropped == 3
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match="every prompt is in .*test.jsonl too"):
        hold_out(records, str(path))


def test_many_records_give_a_dev_split_and_no_prompt_is_on_two_sides():
    records = [record(f"{n} times {n + 3}?", str(n * (n + 3))) for n in range(300)]
    split = hold_out(records)
    sides = [{prompt_key(r) for r in side} for side in (split.train, split.dev, split.held_out)]
    assert [len(side) for side in sides] == [243, 27, 30] and len(set.union(*sides)) == 300
    few = [record(f"{'abcdefghijk'[n % 11] * 9}?", str(n)) for n in range(200)]
    assert hold_out(few).dev == [], "many records of few prompts: there is nothing to split"


def test_an_answer_of_messages_makes_no_conversation(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": 'Name the key, "messages": or not?', "output": "messages"}))
    assert read_own(path).records[0]["output"] == "messages"


# ------------------------------------------------------------------------------------------ from a file to a loss


LINES = [record(f"Say it like a pirate: Zoe has {n} hats.", f"Arr! Zoe has {n} hats.") for n in range(12)]


@pytest.mark.parametrize("shape", ["instructions", "conversations"])
def test_a_file_is_trained_on_by_the_courses_labels_and_loop(tmp_path, shape):
    """The losses are those of the same examples given by hand, and the first one is that of labels made as TRL's."""
    rows = LINES if shape == "instructions" else [talk(r["instruction"], r["output"]) for r in LINES]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    tokenizer, settings = load_tokenizer(), {"lr": 4e-3, "progress": False}

    def adapted():
        model = load_base()[0]
        torch.manual_seed(0)
        inject(model, "all-linear", 4, 8)
        return model

    records = read_own(path).records
    losses = train(adapted(), tokenizer, records, steps=12, batch_size=4, **settings)
    examples = [Example(r["instruction"], r["output"]) for r in LINES]
    assert losses == train(adapted(), tokenizer, examples, steps=12, batch_size=4, **settings)
    assert losses[-1] < 0.9 * losses[0]
    (first,) = train(adapted(), tokenizer, records, steps=1, batch_size=len(rows), **settings)
    total = count = 0
    model = load_base()[0]
    for row in rows:
        ids, labels = (torch.tensor([x]) for x in prompt_completion_labels(tokenizer, row))
        learned = int((labels != IGNORED).sum())
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * learned
        count += learned
    assert first == pytest.approx(total / count, rel=1e-5)  # float32 sums in another order
