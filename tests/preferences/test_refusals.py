"""What lists, rows, functions and their results are refused for, each named by the argument that it was given as."""

from __future__ import annotations

import contextlib
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.preferences import refusals
from utils.train.loop import Diverged

ROW = {"prompt": "Tell me a story."}
CHAT = [{"role": "user", "content": "Tell me a story."}]


@given(st.lists(st.text(alphabet="ab ", min_size=1).filter(str.strip), min_size=1))
def test_lists_and_tuples_of_texts_are_prompts(prompts):
    refusals.check_prompts(prompts)
    refusals.check_prompts(tuple(prompts))


def test_a_dataset_of_hugging_faces_is_rows_and_its_columns_are_named():
    from datasets import Dataset

    rows = [ROW | {"words": ["fox"], "level": 1}] * 2
    assert refusals.check_rows(Dataset.from_list(rows)) == refusals.check_rows(rows) == ["words", "level"]
    assert refusals.check_rows((MappingProxyType(ROW),)) == []


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "there are no prompts to answer"),
        ("one", "prompts is one text, 'one', and would be taken letter by letter"),
        (b"one", "prompts is one text"),
        (None, "prompts must be a list of texts, not None"),
        (3, "prompts must be a list of texts, not 3"),
        ({"a": 1}, "prompts must be a list of texts, not {'a': 1}"),
        ({"a"}, "prompts must be a list of texts, not {'a'}"),
        ((p for p in "ab"), r"prompts can be gone through only once: pass list\(prompts\)"),
        (["a", "\n"], r"prompt 1 is empty, '\\n'"),
        (["a", None], "prompt 1 must be the user's words as a string, not None"),
        ([CHAT], 'prompt 0 must be .*: that is a conversation, so take its "content"'),
        ([ROW], 'prompt 0 must be .*: that is a row, so take its "prompt"'),
    ],
)
def test_what_are_no_prompts(prompts, said):
    with pytest.raises(ValueError, match=said):
        refusals.check_prompts(prompts)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows to train on"),
        (ROW, "rows must be a list of mappings"),
        ([{"words": 1}], 'row 0 has no "prompt"'),
        ([{"prompt": CHAT}], 'the "prompt" of row 0 must be .*: that is a conversation, so take its "content"'),
        ([{"prompt": None}], 'the "prompt" of row 0 must be the user\'s words'),
        ([ROW, ROW | {1: 2, "a": 3}], "row 1 has a column called 1"),
        ([ROW | {None: 2}], "row 0 has a column called None"),
        ([ROW, ROW | {"a": 3}], r"row 1 has the columns \['a', 'prompt'\] and row 0 has \['prompt'\]"),
    ],
)
def test_what_are_no_rows(rows, said):
    with pytest.raises(ValueError, match=said):
        refusals.check_rows(rows)


def test_a_long_value_is_shortened():
    assert len(refusals.shown("x" * 5000)) == 160 and refusals.shown("x") == "'x'"


def test_a_function_is_called_with_what_it_takes():
    for function in (lambda a, b: 0, lambda *_: 0, lambda a, b, c=1: 0, max, torch.add):
        refusals.check_called("loss", function, "own", "other")
    for function in (lambda a: 0, lambda a, b, c: 0, lambda a, *, b: 0):
        with pytest.raises(TypeError, match=r"loss is called as loss\(own, other\), which '<lambda>' can't be: "):
            refusals.check_called("loss", function, "own", "other")
    with pytest.raises(TypeError, match=r"loss must be a function, called as loss\(own, other\), not 3: leave it out"):
        refusals.check_called("loss", 3, "own", "other", advice=": leave it out")


def test_a_block_is_what_with_takes():
    block = contextlib.nullcontext()
    assert refusals.opened("teacher", lambda model: block, None) is block
    for given_back in (None, 3, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=r"teacher\(model\) must give a block for `with`.* '<lambda>' returned"):
            refusals.opened("teacher", lambda model, back=given_back: back, None)


def test_an_own_loss_comes_back_and_is_blamed_only_for_what_it_did_itself():
    own = torch.tensor([1.0], requires_grad=True)
    loss = own.sum()
    assert refusals.check_own_loss(max, loss, 0, own) is loss
    endless = loss * torch.inf
    with pytest.raises(Diverged, match="the loss 'max' returned inf at step 4, and all that it got was finite"):
        refusals.check_own_loss(max, endless, 4, own)
    assert refusals.check_own_loss(max, endless, 4, own, torch.tensor([torch.nan])) is endless
