"""The two tasks with a checker: splits that share no template, and checks that look at what is said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data import verified
from utils.data.verified import VERIFIED, check, verified_examples

WANTED = json.dumps({"name": "Anna", "city": "Oslo", "item": "lamps", "count": 3, "date": "2020-05-01", "cents": 1250})


@pytest.mark.parametrize("task", VERIFIED)
def test_the_splits_share_no_prompt_and_every_answer_is_right_by_its_own_checker(task):
    rows = {split: verified_examples(task, split, 400) for split in ("train", "dev", "test")}
    prompts = [row.prompt for part in rows.values() for row in part]
    assert len(prompts) == len(set(prompts)) == 1200
    for row in (row for part in rows.values() for row in part):
        assert check(task, row.answer, row.answer) == (True, True, "")
    assert rows["test"] == verified_examples(task, "test", 400) != verified_examples(task, "test", 400, seed=1)


@pytest.mark.parametrize("templates", [verified._ORDERS, {k: [t for t, _ in v] for k, v in verified._SUMS.items()}])
def test_no_template_is_in_two_splits(templates):
    every = [template for part in templates.values() for template in part]
    assert len(every) == len(set(every)) and [len(templates[split]) for split in ("dev", "test")] == [3, 3]


@given(st.integers(0, 10**6))
def test_what_an_order_says_is_in_its_text(seed):
    (row,) = verified_examples("extraction", "test", 1, seed)
    wanted = json.loads(row.answer)
    for key in ("name", "city", "item", "count"):
        assert str(wanted[key]) in row.prompt
    assert f"{wanted['cents'] / 100:.2f}".removesuffix(".00") in row.prompt and wanted["date"][:4] in row.prompt


@given(st.integers(0, 10**6), st.sampled_from(("train", "dev", "test")))
def test_a_sum_is_a_positive_number(seed, split):
    (row,) = verified_examples("sums", split, 1, seed)
    assert int(row.answer) > 0


@pytest.mark.parametrize(
    ("answer", "valid", "right", "why"),
    [
        (json.dumps(json.loads(WANTED), indent=2, sort_keys=True), True, True, ""),
        (WANTED.replace("3", "4", 1), True, False, "count is 4, not 3"),
        (WANTED.replace("3", '"3"', 1), False, False, "count is '3', no whole number"),
        (WANTED.replace("3", "true", 1), False, False, "count is True, no whole number"),
        (WANTED[:-1], False, False, "no JSON"),
        ("[1]", False, False, "no object"),
        ('{"name": "Anna"}', False, False, "without cents, city, count, date, item"),
        (WANTED[:-1] + ', "note": ""}', False, False, "with note, which nobody asked for"),
        ("Here it is: " + WANTED, False, False, "no JSON"),
    ],
)
def test_json_is_checked_by_schema_and_values(answer, valid, right, why):
    found = check("extraction", answer, WANTED)
    assert found[:2] == (valid, right) and why in found.why


@pytest.mark.parametrize(
    ("answer", "valid", "right"),
    [("42", True, True), (" 42.\n", True, True), ("-42", True, False), ("41", True, False), ("It is 42", False, False),
     ("", False, False), ("42.5", False, False)],
)  # fmt: skip
def test_a_sum_is_checked_by_its_number(answer, valid, right):
    assert check("sums", answer, "42")[:2] == (valid, right)


def test_what_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="unknown task 'poems': the tasks with a checker are extraction, sums"):
        verified_examples("poems", "test", 1)
    with pytest.raises(ValueError, match="unknown task 'poems'"):
        check("poems", "", "")
    with pytest.raises(ValueError, match="unknown split 'all': choose one of train, dev, test"):
        verified_examples("sums", "all", 1)
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        verified_examples("sums", "test", 0)
