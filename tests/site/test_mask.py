"""The loss mask has the ids and labels that utils.data makes, under the chat templates that TRL ships."""

from __future__ import annotations

import json
from itertools import groupby

import pytest
from transformers import DataCollatorForLanguageModeling

from tests.site.nodes import needs_node, run
from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from tools.site import golden
from utils.data.chat import IGNORED, render
from utils.data.labels import assistant_labels, prompt_completion_labels
from utils.models import TINY_DIR


@pytest.fixture(scope="module")
def rows():
    return golden.masks(50)


@needs_node
def test_ids_and_labels_are_those_of_utils_data(rows, tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(rows), encoding="utf-8")
    found = run("mask_check.js", TINY_DIR / "tokenizer.json", tmp_path / "cases.json")
    assert len(found) == len(rows) == 150
    for row, own in zip(rows, found, strict=True):
        if "refused" in row:
            assert own["refused"] in row["refused"]
        else:
            assert own == {name: row[name] for name in ("ids", "text", "labels")}, row["messages"]
    refused = [row["template"] for row in rows if "refused" in row]
    assert refused == ["tiny"] * 13  # those with a system message


def test_the_models_own_templates_write_what_trls_copies_write(rows):
    for name, group in groupby(rows, lambda row: row["template"]):
        own = golden.with_chat_template(name, training=False)
        for row in group:
            assert "refused" in row or render(own, row["messages"], open_turn=False) == row["text"]


def test_eos_masked_is_what_a_collator_does_whose_padding_is_eos(rows):
    row = next(row for row in rows if row["template"] == "chatml")
    tokenizer = golden.with_chat_template("chatml")
    tokenizer.pad_token = tokenizer.eos_token
    made = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": row["ids"]}])
    assert made["labels"][0].tolist() == row["labels"]["all, EOS masked"] != row["labels"]["all"]
