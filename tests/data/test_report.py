"""The report on a data set, on records whose defects are known; and the course's own data, card and generator."""

import json
import re
from pathlib import Path

import pytest
import torch

from tools import make_dataset
from utils import models
from utils.data.chat import (
    Example,
    encode,
)
from utils.data.formats import read_records
from utils.data.instructions import INSTRUCTIONS
from utils.data.records import user_text
from utils.data.report import data_report
from utils.tinyworld import TASKS, task_examples

ROOT = Path(__file__).resolve().parents[2]

torch.set_num_threads(1)


def record(text, answer="bad"):
    return {"instruction": "Is this good or bad?", "input": text, "output": answer}


ZOE, TOM, SUE = record("Zoe was sad."), record("Tom was sad."), record("Sue was so sad that Sue sat down and cried.")


def table(report):
    return dict(re.split(r"  +", line, maxsplit=1) for line in str(report).splitlines())


# ----------------------------------------------------------------------------------------------------- known defects


def test_each_defect_is_counted(tokenizer):
    records = [
        ZOE,
        ZOE,
        ZOE,
        TOM,
        {**TOM, "output": "good"},
        record("x", " "),
        record("x", ""),
        {"instruction": ""},
        "x",
    ]
    report = data_report(records, tokenizer, 512, held_out=[record("ZOE  was sad."), SUE, record("", "")])
    assert (report.count, report.usable, len(report.problems)) == (9, 5, 5)
    assert report.empty == {"output": 2, "instruction": 1}
    assert (report.duplicates, report.contradictions) == (2, 1)
    assert (report.leaked, report.held_out) == (1, 2)
    shown = table(report)
    assert shown["records"] == "9" and shown["with an empty field"] == "output: 2, instruction: 1"
    assert shown["that can be used"] == "5 of 9 (55.6%)"
    assert shown["exact duplicates"] == "2 of 5 (40.0%)" and shown["prompts with two answers"] == "1"
    assert shown["held-out prompts found here"] == "1 of 2 (50.0%)"


def test_lengths_and_cuts_are_those_of_the_encoded_records(tokenizer):
    records = [ZOE, TOM, SUE]
    encoded = encode(tokenizer, [Example(user_text(r), r["output"]) for r in records])
    lengths, begin = [len(p) + len(a) for p, a in encoded], len(encoded[2][0])
    assert lengths[0] == lengths[1] < begin < lengths[2] - 1
    whole = data_report(records, tokenizer, lengths[2])
    assert whole.lengths == lengths
    assert (whole.truncated, whole.lost, whole.endless) == (0, 0, 0)
    assert list(whole.quantiles.items()) == [
        ("shortest", lengths[0]), ("median", lengths[0]), ("90%", lengths[2]), ("99%", lengths[2]),
        ("longest", lengths[2]),
    ]  # fmt: skip
    cut = data_report(records, tokenizer, begin + 1)
    assert (cut.truncated, cut.lost) == (1, 0)
    lost = data_report(records, tokenizer, begin)
    assert (lost.truncated, lost.lost) == (1, 1)
    assert table(lost)["whole completion cut away"] == "1 of 3 (33.3%)"
    assert table(lost)[f"cut at {begin} tokens"] == "1 of 3 (33.3%)"


def test_a_template_without_an_end_mark_is_noticed(tokenizer):
    other = models.load_base()[1]
    other.chat_template = other.chat_template.replace(" + '<|end|>'", "")
    assert data_report([ZOE, SUE], tokenizer, 512).endless == 0
    report = data_report([ZOE, SUE], other, 512)
    assert report.endless == 2 and table(report)["answers without their EOS token"] == (
        "2 of 2 (100.0%), 2 of them before the cut: the chat template learns none"
    )


def test_conversations_are_reported_on_alike(tokenizer):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    report = data_report([{"messages": turns}, {"messages": turns}, {"messages": turns[:1]}], tokenizer, 512)
    assert (report.usable, report.duplicates, len(report.problems)) == (2, 1, 1)


def said(*texts):
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]}


def test_the_rows_are_what_the_report_measured_and_what_trl_trains_on(tokenizer, tmp_path):
    """Several turns, weights, records that the cut empties: TRL takes the rows as they are and drops none."""
    from datasets import Dataset
    from trl import SFTTrainer

    from utils.train.recipes import recipe
    from utils.train.sft import sft_config

    weighed = said("Hi.", "WRONG", "Is this good or bad? Zoe was sad.", "bad")
    weighed["messages"][1]["weight"] = 0
    records = [ZOE, said("Hi.", "Hello.", "Say it like a pirate: Tom ran.", "Arr! Tom be running."), weighed]
    records.append(record("Sue sat down and cried. " * 8))
    cut = len(encode(tokenizer, records[-1:])[0][0])  # nothing is left of its answer
    report = data_report(records, tokenizer, cut)
    args = sft_config(tmp_path, recipe("style", "tiny"), max_length=cut)
    theirs = SFTTrainer(
        models.load_base()[0], args, train_dataset=Dataset.from_list(report.rows), processing_class=tokenizer
    )
    rows = [(row["input_ids"].tolist(), row["labels"].tolist()) for row in report.rows]
    assert [(row["input_ids"], row["labels"]) for row in theirs.train_dataset] == rows
    learned = [tokenizer.decode([label for label in labels if label != -100]) for _, labels in rows]
    assert (len(rows), report.lost, report.truncated) == (3, 1, sum(length > cut for length in report.lengths))
    assert learned[0] == "bad<|end|>" and learned[1].startswith("Hello.<|end|>Arr!") and learned[2] == "bad<|end|>"
    assert report.tokens == sum(len(ids) for ids, _ in rows)
    assert report.learned == sum(label != -100 for _, labels in rows for label in labels)
    assert table(report)["trained on"] == "3 of 4 (75.0%)"


def test_an_eos_token_behind_the_cut_is_missed(tokenizer):
    """The end of a long answer is cut off, and its EOS token with it; the earlier answer's doesn't make up for it."""
    long = said("Hi.", "Hello.", "Tell me a story.", "Once there was a fox. " * 20)
    report = data_report([ZOE, long], tokenizer, 60)
    assert (report.truncated, report.lost, report.endless, report.unended) == (1, 0, 1, 0)
    assert table(report)["answers without their EOS token"] == "1 of 2 (50.0%), cut off"


def test_an_eos_token_that_the_templates_tags_leave_out_is_missed():
    other = models.load_tokenizer()
    other.chat_template = other.chat_template.replace(
        " + '<|end|>' }}{% endgeneration %}", " }}{% endgeneration %}{{ '<|end|>' }}"
    )
    report = data_report([said("Hi.", "Hello.")], other, 512)
    assert report.unended == 1 and "the chat template learns none" in str(report)


def test_special_tokens_in_texts_are_counted_and_named(tokenizer):
    records = [record("Zoe", "go<|end|>od"), record("<|assistant|>bad", "good<|end|>"), TOM]
    report = data_report(records, tokenizer, 512)
    assert report.marks == {"<|end|>": 2, "<|assistant|>": 1}
    shown = table(report)["special tokens in texts"]
    assert shown == "<|end|> in 2, <|assistant|> in 1: each becomes the token itself"
    assert table(data_report([TOM], tokenizer, 512))["special tokens in texts"] == "none"


def test_rows_beyond_the_models_positions_are_counted(tokenizer):
    long = record("Tom ran. " * 60)
    report = data_report([ZOE, long], tokenizer, 400, held_out=[TOM, record("Sue ran. " * 60)], context=100)
    assert report.beyond == 2 and table(report)["beyond the model's 100 positions"] == "2"
    assert "positions" not in str(data_report([ZOE], tokenizer, 400))
    assert table(data_report([ZOE], tokenizer, 400, context=400))["beyond the model's 400 positions"] == "none"


def test_a_cut_that_leaves_nothing_is_refused_when_asked(tokenizer):
    report = data_report([ZOE, TOM], tokenizer, 3)
    assert report.rows == [] and report.lost == 2
    with pytest.raises(ValueError, match="max_length=3 cuts away the completion of every one of the 2 records"):
        report.checked()
    assert data_report([ZOE, TOM], tokenizer, 512).checked().usable == 2


def test_nearly_the_same_prompts_are_counted_here_and_in_the_held_out_data(tokenizer):
    question = "Who went to the lake with the shy fox on the first day of the summer, and what did they find"
    records = [said(f"{question}?", "Zoe."), said(f"{question}??", "Zoe."), said("Is Tom good or bad?", "good")]
    report = data_report(records, tokenizer, 512, held_out=[said(f"{question} ?!", "Zoe."), said("Hi.", "Hello.")])
    assert (report.near, report.duplicates, report.leaked, report.near_leaked) == (1, 0, 0, 1)


def test_records_that_are_all_bad_give_a_report_and_no_error(tokenizer):
    report = data_report([record("x", "")], tokenizer, 512, held_out=[])
    assert report.usable == 0 and report.quantiles == {} and "tokens" not in table(report)
    assert "held-out prompts found here" not in table(report)


@pytest.mark.parametrize(("records", "length", "said"), [([], 8, "no records"), ([ZOE], 0, "at least 1, not 0")])
def test_what_cannot_be_reported_on_is_refused(tokenizer, records, length, said):
    with pytest.raises(ValueError, match=said):
        data_report(records, tokenizer, length)


# ------------------------------------------------------------------------------------------------ the course's own data


def test_the_data_is_made_again_byte_for_byte(tmp_path):
    make_dataset.write(tmp_path / "made")
    made = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    kept = {path.name: path.read_bytes() for path in INSTRUCTIONS.iterdir()}
    assert sorted(made) == ["README.md", "test.jsonl", "train.jsonl"] == sorted(kept)
    assert all(made[name] == kept[name].replace(b"\r\n", b"\n") for name in made)
    assert sum(map(len, kept.values())) < 500_000


def test_the_prompts_are_the_tiny_worlds(tokenizer):
    train, test = (read_records(INSTRUCTIONS / f"{name}.jsonl") for name in ("train", "test"))
    assert (len(train), len(test)) == (1800, 200)
    for name, records in (("train", train), ("test", test)):
        for task in TASKS:
            mine = [(user_text(r), r["output"]) for r in records if r["task"] == task]
            assert mine == [tuple(e) for e in task_examples(task, name, len(records) // len(TASKS))]
            assert [r["task"] for r in records[:8]].count(task) == 2


def test_the_data_has_none_of_the_defects_that_the_report_looks_for(tokenizer):
    train, test = (read_records(INSTRUCTIONS / f"{name}.jsonl") for name in ("train", "test"))
    report = data_report(train, tokenizer, 256, held_out=test)
    assert (report.problems, report.duplicates, report.contradictions, report.leaked) == ([], 0, 0, 0)
    assert (report.held_out, report.truncated, report.lost, report.endless) == (200, 0, 0, 0)


def test_the_card_says_what_is_there():
    card = (INSTRUCTIONS / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    shown = re.search(r"^    (\{.*\})$", card, re.M)[1]
    assert shown in (INSTRUCTIONS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for field in json.loads(shown):
        assert f"\n| {field} | " in card
    assert "1,800 records" in card and "and 200 to test" in card


def test_an_instruction_that_no_longer_fits_its_task_is_noticed():
    with pytest.raises(ValueError, match="style no longer begins with"):
        make_dataset.record("style", task_examples("translation", "test", 1)[0])


def test_records_whose_answers_begin_beyond_the_model_are_refused_with_the_length(tokenizer):
    long = record("Zoe was sad. " * 40)
    first = min(data_report([long], tokenizer, 400).firsts)
    assert data_report([long], tokenizer, 400, context=first + 1).checked()
    with pytest.raises(ValueError, match=rf"begin after {first} tokens at the earliest, and the model has {first} pos"):
        data_report([long], tokenizer, 400, context=first).checked()
    assert data_report([ZOE, long], tokenizer, 400, context=first).checked()  # one of them fits


# ------------------------------------------------------------------------------------------------- what to stop at


def talk(n, answer):
    words = "abcdefghijklmnopqrstuvwxyz"
    return [{"instruction": f"Say {k * k + 17}, then {words[k % 26] * 9}.", "output": answer} for k in range(n)]


def test_of_good_data_nothing_is_said_and_each_fault_has_its_sentence(tokenizer):
    """Answers that lost their EOS token, and special tokens in texts, once went into training without a word."""
    good = talk(24, "Arr! Thar be one.")
    assert data_report(good[:4], tokenizer, 512, good[4:]).warnings() == []
    few = data_report(good[:4], tokenizer, 512, good[4:10]).warnings()
    assert few == ["Look: 6 held-out records are too few to tell anything from luck: collect 40 or more in all."]
    one = data_report(good[:4], tokenizer, 512, good[4:5]).warnings()
    assert one == ["Look: 1 held-out record is too few to tell anything from luck: collect 40 or more in all."]
    many = data_report(talk(39, "Arr!"), tokenizer, 512, good[4:5]).warnings()
    assert "Look: 1 held-out record is too few to tell anything from luck: --held-out 20." in many
    for answer, said in (
        ("Arr!<|end|> Thar.", r"special tokens stand written out in texts \(<\|end\|> in 4\)"),
        ("  Arr!\n", "4 answers begin or end with white space"),
        ("Arr! " * 80, r"4 of 4 \(100.0%\) answers lose their end, and so don't teach to stop: --max-length \d+ keeps"),
    ):
        assert any(re.search(said, line) for line in data_report(talk(4, answer), tokenizer, 90).warnings()), answer
    [line] = data_report(talk(4, ("Arr! " * 80).strip()), tokenizer, 90, context=100).warnings()
    assert line.endswith("shorten them, or take a model with more positions.")
    twins = [{**r, "instruction": r["instruction"] + "?" * k} for r in good[:2] for k in range(4)]
    assert any("are nearly another one" in line for line in data_report(twins, tokenizer, 512).warnings())
    two = data_report([good[0], {**good[0], "output": "No."}], tokenizer, 512).warnings()
    assert two == ["Look: 1 prompts have more than one answer: exact match can't reach 100%."]


def test_a_files_name_is_no_list_of_records(tokenizer):
    for given in ({"records": "mine.jsonl"}, {"records": [ZOE], "held_out": Path("mine.jsonl")}):
        with pytest.raises(TypeError, match=r"read_own\('mine.jsonl'\).records"):
            data_report(tokenizer=tokenizer, max_length=64, **given)
    with pytest.raises(ValueError, match="at least 1, not None"):
        data_report([ZOE], tokenizer, None)
