"""A file of one's own becomes the course's records: what of it, under which name, and what is said of the rest."""

from __future__ import annotations

import json

import pytest

from utils.data.formats import read_own
from utils.data.records import BadRecords, to_prompt_completion

USER, ANSWER = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}


def read(folder, *records, name="a.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return read_own(path)


def refused(folder, *records) -> str:
    with pytest.raises(BadRecords) as caught:
        read(folder, *records)
    return str(caught.value)


@pytest.mark.parametrize(
    "record, made",
    [
        ({"Instruction ": "a", "OUTPUT": "b"}, {"instruction": "a", "output": "b"}),
        ({"instruction": "a", "input": None, "output": "b"}, {"instruction": "a", "output": "b"}),
        ({"instruction": "a", "input": "c", "output": "b"}, {"instruction": "a", "input": "c", "output": "b"}),
        ({"instruction": "a", "context": "c", "response": "b"}, {"instruction": "a", "input": "c", "output": "b"}),
        ({"question": "a", "answer": "b", "id": 3}, {"instruction": "a", "output": "b"}),
        ({"system": "s", "prompt": "Hi.", "completion": "Hello."},
         {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}),
        ({"system": "s", "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]},
         {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
         {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}),
        ({"prompt": [USER], "response": "Hello."}, {"messages": [USER, ANSWER]}),
        ({"messages": [{"role": "User", "content": ["Hi", {"type": "text", "text": "."}]}, {**ANSWER, "name": None}]},
         {"messages": [USER, ANSWER]}),
        ({"messages": [USER, ANSWER], "tools": '[{"type": "function"}]', "prompt": "x"},
         {"messages": [USER, ANSWER], "tools": [{"type": "function"}]}),
        ({"instruction": "Hi.", "output": "Hello.", "tools": [{"type": "function"}]},
         {"messages": [USER, ANSWER], "tools": [{"type": "function"}]}),
    ],
)  # fmt: skip
def test_a_record_becomes_one_of_ours(tmp_path, record, made):
    assert read(tmp_path, record).records == [made]


def test_a_sentence_says_it_all_and_notes_name_the_rest(tmp_path):
    records = [
        {"Question": "a", "Answer": "b", "source": "web", "n": 3, "none": None},
        {"question": "c", "answer": "d"},
    ]
    reading = read(tmp_path, *records)
    assert str(reading).splitlines() == [
        "a.jsonl read as question and answer: Question -> the user's words, Answer -> the answer that is trained on; "
        "2 records, JSONL",
        "not used: source (in 1), n (in 1)",
    ]
    talk = {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "thinking": "Hm.", "date": "today"}]}
    assert read(tmp_path, talk).notes == [
        "weight 0: 1 answers are read and not trained on",
        "fields of messages beside role and content, kept for the chat template: thinking, date",
    ]


def test_the_answers_before_a_completion_are_not_learned_as_trl_does(tmp_path):
    record = {"prompt": [USER, ANSWER, USER], "completion": [{**ANSWER, "content": "Bye."}]}
    made = read(tmp_path, record).records[0]
    assert to_prompt_completion(made)["completion"] == [{**ANSWER, "content": "Bye."}]


def test_lines_are_the_files_own(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,output\n"a\nb",c\n\nd,e\n')
    assert read_own(path).lines == [2, 5] and read_own(path).unit == "line"
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}] * 2))
    assert read_own(path).lines == [1, 2] and read_own(path).unit == "record"


def test_one_bad_line_is_named_in_the_files_own_words(tmp_path):
    good = {"Question": "a", "Answer": "b"}
    assert "line 2: Answer is missing; the record has Question, Reply" in refused(
        tmp_path, good, {"Question": "a", "Reply": "b"}, good
    )
    assert "line 2: system is a number, not text" in refused(tmp_path, {**good, "system": "x"}, {**good, "system": 3})
    assert "line 1: is a list, not an object with fields" in refused(tmp_path, [1], good)
    system = {"messages": [{"role": "system", "content": "x"}, USER, ANSWER], "system": "y"}
    assert "line 1: system is there, and a system message too" in refused(tmp_path, system)
    assert "line 1: tools is an object, not a list of tools" in refused(
        tmp_path, {"messages": [USER, ANSWER], "tools": {"a": 1}}
    )


def test_a_wrong_schema_is_one_sentence_however_many_records(tmp_path):
    said = refused(tmp_path, *[{"id": n, "foo": "x"} for n in range(80)])
    assert said.startswith("a.jsonl: no record has a question and an answer") and len(said.splitlines()) == 1
    assert "yours have id, foo. Rename the fields. Known are messages (role, content)" in said


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "Prompt": "b", "completion": "c"}, "differ in upper and lower case alone: rename one of the"),
        ({"instruction": None, "input": None, "output": None}, "no record has a value under both instruction and outp"),
        ({"question": "a", "answer": None}, "no record has a value under both question and answer"),
        ({"messages": None}, "no record has a value under messages"),
        ({"id": 1, "Conversations": None}, "no record has a value under Conversations"),
    ],
)
def test_right_names_are_not_told_to_be_renamed(tmp_path, record, said):
    told = refused(tmp_path, record, record)
    assert said in told and "Known are" not in told


def test_rare_names_dont_decide(tmp_path):
    """One line with another name for the answer is a bad line, not another form."""
    rows = [{"instruction": "a", "output": "b"}] * 5
    assert "line 6: output is missing; the record has instruction, response" in refused(
        tmp_path, *rows, {"instruction": "a", "response": "b"}
    )
    rows = [{"instruction": "a", "input": "", "output": "b"}] * 3
    assert "line 4: instruction is missing" in refused(tmp_path, *rows, {"input": "x", "output": "b"})


def test_a_file_without_one_good_line_says_what_its_lines_are(tmp_path):
    (tmp_path / "torn.jsonl").write_text('{"instruction": "a", \n{"instruction": "b", \n')
    with pytest.raises(BadRecords, match=r"torn.jsonl(.|\n)*not valid JSON"):
        read_own(tmp_path / "torn.jsonl")


def test_a_line_that_was_cut_is_told_in_one_sentence(tmp_path):
    (tmp_path / "torn.jsonl").write_text('{"instruction": "a')
    with pytest.raises(BadRecords, match=r"Unterminated string starting at column 17\); was it cut off"):
        read_own(tmp_path / "torn.jsonl")


def test_what_a_spreadsheet_leaves_empty_behind_the_last_column_is_no_column(tmp_path):
    (tmp_path / "sheet.csv").write_text("question,answer,,\nWho?,I,,\nWhat?,,,\nWhere?,Here\n")
    with pytest.raises(BadRecords, match="line 3: answer is empty"):
        read_own(tmp_path / "sheet.csv")
    (tmp_path / "sheet.csv").write_text("question,answer,,\nWho?,I,,\nWhere?,Here\n")
    assert [record["output"] for record in read_own(tmp_path / "sheet.csv").records] == ["I", "Here"]
