"""Records: each kind of bad one is named with its line and reason, and nothing is dropped silently."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.formats import read_records
from utils.data.records import (
    SHOWN,
    BadRecords,
    Problem,
    find_problems,
    message_problem,
    to_messages,
    to_prompt_completion,
    user_text,
)

GOOD = [
    {"instruction": "Say it like a pirate:", "input": "Zoe was shy.", "output": "Arr! Zoe be shy."},
    {"instruction": "Tell me a story.", "input": "", "output": 'Once, é 火 \u2028 there was "a", and\nno more.'},
]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def write(path, records):
    if path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    return path


def refused(path, **kwargs):
    with pytest.raises(BadRecords) as caught:
        read_records(path, **kwargs)
    return caught.value


# -------------------------------------------------------------------------------------------------------- good files


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".JSONL"])
def test_what_was_written_is_read(tmp_path, ending):
    path = tmp_path / f"data{ending}"
    write(path if ending != ".JSONL" else tmp_path / "data.jsonl", GOOD)
    if ending == ".JSONL":
        (tmp_path / "data.jsonl").rename(path)
    assert read_records(path) == GOOD
    assert read_records(str(path)) == GOOD


text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"instruction": text, "input": st.just("") | text, "output": text}), min_size=1))
def test_any_text_survives_each_kind_of_file(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("any")
    for ending in (".json", ".jsonl", ".csv"):
        assert read_records(write(folder / f"data{ending}", records)) == records


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path, ending):
    path = write(tmp_path / f"data{ending}", GOOD[:1] * 2)
    plain = path.read_bytes().replace(b"\r\n", b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    assert read_records(path) == GOOD[:1] * 2


def test_blank_lines_are_passed_over_and_still_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"\n{json.dumps(GOOD[0])}\n\n  \n{json.dumps(GOOD[1])}\n{{}}\n\n")
    assert [p.row for p in refused(path).problems] == [6, 6]
    path.write_text(f"\n{json.dumps(GOOD[0])}\n\n  \n{json.dumps(GOOD[1])}\n\n")
    assert read_records(path) == GOOD


def test_other_fields_are_kept_and_others_can_be_required(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b", "id": 7}])
    assert read_records(path, required=("prompt", "completion")) == [{"prompt": "a", "completion": "b", "id": 7}]
    assert "prompt is missing" not in str(refused(path)) and "instruction is missing" in str(refused(path))


def test_conversations_are_records_too(tmp_path):
    path = write(tmp_path / "chat.jsonl", [{"messages": TURNS}, {"messages": TURNS[:1]}])
    assert refused(path, required=("messages",)).problems == [
        Problem(2, "messages", "has no message by assistant: there is no answer to train on")
    ]


def test_a_chat_that_ends_with_a_thank_you_is_told_where_to_cut(tmp_path):
    thanks = {"role": "user", "content": "Thanks!"}
    path = write(tmp_path / "chat.jsonl", [{"messages": [*TURNS, thanks]}])
    (problem,) = refused(path, required=("messages",)).problems
    cut = f"messages[:{len(TURNS)}]"
    assert problem.reason.startswith("ends with user") and cut in problem.reason
    assert message_problem([*TURNS, thanks][: len(TURNS)]) is None


# --------------------------------------------------------------------------------------------------------- bad files


def test_the_report_names_every_line_and_reason_and_nothing_is_read(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [
        json.dumps(GOOD[0]),
        '{"instruction": "a", "output": "b"',  # cut off
        '{"instruction": "a"}',
        '{"instruction": "a", "output": "  "}',
        '{"instruction": "a", "output": null}',
        '["a", "b"]',
        '{"instruction": "a", "output": 4}',
        '{"instruction": "a", "input": ["b"], "output": "c"}',
        '{"instruction": "a", "instruction": "b", "output": "c"}',
    ]
    path.write_text("\n".join(lines))
    error = refused(path)
    assert str(error).splitlines() == [
        "8 problems in data.jsonl, so nothing was read. Mend these records or take them out:",
        "  line 2: is not valid JSON (Expecting ',' delimiter at column 35); was it cut off?",
        "  line 3: output is missing; the record has instruction",
        "  line 4: output is empty",
        "  line 5: output is null, not text",
        "  line 6: is a list, not an object with the fields instruction, output",
        "  line 7: output is a number, not text (in JSON put it in quotation marks)",
        "  line 8: input is a list, not text",
        "  line 9: names the field 'instruction' twice",
    ]
    assert isinstance(error, ValueError) and [p.row for p in error.problems] == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_a_line_cut_off_anywhere_is_found(tmp_path, cut):
    line = json.dumps(GOOD[0])
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD[1])}\n{line[:cut]}")
    (problem,) = refused(path).problems
    assert problem.row == 2 and problem.reason.endswith("was it cut off?")


def test_ten_problems_are_shown_and_the_rest_counted(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"instruction": "a", f"reply {n}": ""} for n in range(SHOWN + 3)])
    error = refused(path)
    assert len(error.problems) == SHOWN + 3
    assert len(str(error).splitlines()) == SHOWN + 2 and str(error).endswith("  and 3 more")
    path = write(tmp_path / "data.jsonl", [{"instruction": "a", f"reply {n}": ""} for n in range(SHOWN)])
    assert "more" not in str(refused(path))


def test_lines_with_the_same_problem_share_a_sentence(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"instruction": "a", "output": ""}] * 80)
    error = refused(path)
    assert len(error.problems) == 80 and str(error).splitlines()[1:] == [
        "  lines 1, 2, 3, 4 and 76 more: output is empty"
    ]


def test_a_json_file_counts_records_and_must_be_a_list_of_them(tmp_path):
    path = write(tmp_path / "data.json", [GOOD[0], {"instruction": "a", "output": ""}])
    assert "  record 2: output is empty" in str(refused(path))
    path.write_text(json.dumps(GOOD[0]))
    assert "data.json holds an object" in str(refused(path))
    path.write_text("\n".join(json.dumps(r) for r in GOOD))
    assert read_records(path) == GOOD, "one object a line is JSONL by whichever name"
    path.write_text(json.dumps(GOOD)[:-1])
    assert "was it cut off?" in str(refused(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("instruction,output\na,b\nc\n", "line 3: has 1 values for 2 columns"),
        ("instruction,output\na,b, and more\n", "line 2: has 3 values for 2 columns"),
        ('instruction,output\n"a\nb",c\nd,\n', "line 4: output is empty"),
        ('instruction,output\na,"b\n', "line 2: is not valid CSV"),
        ("instruction,response\na,b\n", "line 2: output is missing; the record has instruction, response"),
        ("instruction,output,output\na,b,c\n", "two columns named 'output'"),
        ("instruction,output\n", "holds no records"),
    ],
)
def test_what_is_wrong_with_a_csv_file(tmp_path, content, said):
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert said in str(refused(path))


@pytest.mark.parametrize(("ending", "content"), [(".json", "[]"), (".jsonl", "\n \n"), (".json", ""), (".csv", "")])
def test_a_file_without_records_is_refused(tmp_path, ending, content):
    path = tmp_path / f"data{ending}"
    path.write_text(content)
    assert "holds no records" in str(refused(path))


def test_bytes_that_are_no_utf_8_are_named_with_their_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"instruction": "é"}\n'.encode() + '{"instruction": "é"}'.encode("latin-1"))
    assert "line 2: holds the byte 0xe9, which is no UTF-8" in str(refused(path))


def test_an_unknown_ending_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"data.feather: the ending .* known are .json, .jsonl, .ndjson, .csv"):
        read_records(tmp_path / "data.feather")
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_records(tmp_path / "data.json")


# ------------------------------------------------------------------------------------------------------ looking over


def test_nothing_is_found_where_nothing_is_wrong():
    assert find_problems([*GOOD, {"instruction": "a", "output": "b"}, {**GOOD[0], "input": None}]) == []


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hi", "is a str, not a list of messages"),
        ([], "is empty"),
        (["Hi"], "message 1 is a str"),
        ([{"role": "human", "content": "Hi"}], "message 1 has the role 'human'; known are system, user, assistant"),
        ([{"content": "Hi"}], "has the role None"),
        ([{"role": "user"}, TURNS[1]], "the content of message 1 (user) is missing"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "the content of message 2 (assistant) is empty"),
        ([TURNS[0], {"role": "assistant", "content": None}], "(assistant) is null"),
        ([*TURNS, TURNS[0]], "ends with user, and what follows the last answer"),
        (TURNS[1:], "holds an answer and no prompt"),
        ([TURNS[1], TURNS[0], {**TURNS[1], "weight": 0}], "holds an answer and no prompt"),
        ([TURNS[0], {**TURNS[1], "weight": 0}], "has weight 0 on every answer"),
        (
            [TURNS[0], {**TURNS[1], "weight": "0"}],
            "the weight of message 2 is '0'; known are 0, which isn't trained on",
        ),
        ([TURNS[0], {**TURNS[1], "content": "a \ud83d"}], "(assistant) holds \\ud83d, half of a character"),
        ([TURNS[0], {**TURNS[1], "thinking": "\ud83d"}], "the thinking of message 2 holds \\ud83d"),
        ([TURNS[0], {**TURNS[1], "tool_calls": [{"a": ["\ud83d"]}]}], "the tool_calls of message 2 holds \\ud83d"),
        ([{"role": "user", "content": [{"type": "image"}]}, TURNS[1]], "is a list with parts of the type image"),
    ],
)
def test_what_is_wrong_with_a_conversation(messages, said):
    (problem,) = find_problems([{"messages": messages}], required=("messages",))
    assert said in problem.reason and problem[:2] == (1, "messages")
    with pytest.raises(BadRecords):
        to_messages({"messages": messages})


# ------------------------------------------------------------------------------------------------- from form to form


def test_the_three_forms_say_the_same():
    user, assistant = {"role": "user", "content": "Say it like a pirate: Zoe was shy."}, "Arr! Zoe be shy."
    answer = {"role": "assistant", "content": assistant}
    assert to_messages(GOOD[0]) == {"messages": [user, answer]}
    assert to_prompt_completion(GOOD[0]) == {"prompt": [user], "completion": [answer]}
    assert to_prompt_completion(to_messages(GOOD[0])) == to_prompt_completion(GOOD[0])
    assert to_prompt_completion({"messages": [*TURNS, *TURNS]}) == {
        "prompt": [*TURNS, TURNS[0]],
        "completion": [TURNS[1]],
    }


@pytest.mark.parametrize("extra", [{"input": ""}, {"input": None}, {"input": " "}, {}])
def test_a_record_without_input_is_its_instruction(extra):
    assert user_text({"instruction": "Sing.", **extra}) == "Sing."


@pytest.mark.parametrize("convert", [to_messages, to_prompt_completion])
@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "a", "response": "b"}, "output is missing; the record has instruction, response"),
        ({}, "instruction is missing; the record has no fields at all; output is missing"),
        ("a text", "is a str, not an object"),
    ],
)
def test_no_form_is_made_of_a_bad_record(convert, record, said):
    with pytest.raises(BadRecords, match="this record can't be used: ") as caught:
        convert(record)
    assert said in str(caught.value) and caught.value.problems


def test_every_field_of_a_message_stays_that_is_not_null():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}], "name": None}
    record = {
        "messages": [TURNS[0], call, {"role": "tool", "content": "noon"}, {**TURNS[1], "reasoning_content": "Hm."}]
    }
    made = to_messages({**record, "tools": [{"type": "function"}], "id": 3})
    assert made["messages"][1] == {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]}
    assert made["messages"][3]["reasoning_content"] == "Hm." and made["tools"] == [{"type": "function"}]
    assert set(made) == {"messages", "tools"} and "tools" not in to_messages({**record, "tools": None})


def test_the_completion_is_the_last_answer_that_is_learned():
    silent = {**TURNS[1], "weight": 0}
    assert to_prompt_completion({"messages": [*TURNS, TURNS[0], silent]}) == {
        "prompt": TURNS[:1],
        "completion": TURNS[1:],
    }
    assert to_prompt_completion({"messages": [TURNS[0], silent, *TURNS]})["prompt"] == [TURNS[0], silent, TURNS[0]]


def test_an_answer_alone_is_no_prompt_and_completion():
    with pytest.raises(BadRecords, match="an answer and no prompt"):
        to_prompt_completion({"messages": TURNS[1:]})
