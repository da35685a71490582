"""utils.course.advice: every recommendation stands on evidence that holds, and the right one is given."""

from __future__ import annotations

import json
import re

import pytest

from tools import build_claims as tool
from utils.course.advice import (
    ACTIVATION_BYTES,
    CHECKPOINTED_BYTES,
    CHOICES,
    FOUR_BIT_BYTES,
    Source,
    advise,
    as_table,
    cite,
    needed_gb,
    short_link,
    whole_guide,
)
from utils.course.claims import Cell, Record, Test
from utils.models import ASSETS, ROOT

ALL = [(question, key, choice) for question, choices in CHOICES.items() for key, choice in choices.items()]
PIECES = [(f"{question} {key}", piece) for question, key, choice in ALL for piece in choice.evidence]
CHECKS = {Cell: tool.cell_problem, Test: tool.test_problem, Record: tool.record_problem}


@pytest.mark.parametrize("name, piece", PIECES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PIECES)])
def test_every_piece_of_evidence_holds(name, piece):
    if isinstance(piece, Source):
        assert re.fullmatch(r"https://\S+", piece.url) and re.search(r"\b20\d\d$", piece.text)
    else:
        assert CHECKS[type(piece)](piece, ROOT) is None


def test_every_choice_has_something_that_the_course_measured():
    for question, key, choice in ALL:
        assert any(not isinstance(piece, Source) for piece in choice.evidence), (question, key)
        assert choice.answer and choice.when and choice.why


@pytest.mark.parametrize("piece", [piece for _, piece in PIECES], ids=lambda piece: type(piece).__name__)
def test_every_link_leads_somewhere(piece):
    found = re.findall(r"\]\(([^)]*)\)", cite(piece) + short_link(piece))
    assert len(found) == 2 and found[0] == found[1]
    for target in found:
        assert target.startswith("https://") or (ROOT / "notebooks" / target).resolve().is_file(), target


def test_the_bytes_are_those_that_were_measured():
    rows = json.loads((ASSETS / "measurements" / "loading_7b.json").read_text())["rows"]
    parameters = 6_738_415_616
    lora = [row for row in rows if row["trains"].startswith("LoRA")]
    for row in lora:
        besides = (row["peak"] - row["weights"] - 16 * 8_388_608) / parameters
        assert besides == pytest.approx(CHECKPOINTED_BYTES if row["checkpointing"] else ACTIVATION_BYTES, rel=0.03)
    weights = next(r["weights"] for r in rows if r["base"] == "NF4, double quantization")
    assert weights / parameters == pytest.approx(FOUR_BIT_BYTES, rel=0.01)


def picked(**settings) -> dict[str, str]:
    keys = {id(choice): key for _, key, choice in ALL}
    return {a.question.split()[0] + a.question.split()[1]: keys[id(a.choice)] for a in advise(**settings)}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"billions": 7, "card_gb": 16, "examples": 500}, {"Thebase": "4", "LoRAor": "lora", "Whichrank,": "8"}),
        ({"billions": 7, "card_gb": 24, "examples": 500}, {"Thebase": "16", "Activationcheckpointing?": "on"}),
        ({"billions": 7, "card_gb": 80, "examples": 500}, {"Thebase": "16", "Activationcheckpointing?": "off"}),
        ({"billions": 70, "card_gb": 24, "examples": 500}, {"Thebase": "none"}),
        ({"billions": 70, "card_gb": 80, "examples": 500}, {"Thebase": "4", "Activationcheckpointing?": "on"}),
        ({"billions": 1, "card_gb": 80, "examples": 50_000, "new_knowledge": True},
         {"LoRAor": "full", "Whichrank,": "64"}),
        ({"billions": 1, "card_gb": 80, "examples": 50_000}, {"LoRAor": "lora", "Whichrank,": "8"}),
        ({"billions": 7, "card_gb": 80, "examples": 500, "new_knowledge": True}, {"Whichrank,": "16"}),
        ({"billions": 7, "card_gb": 16, "examples": 500, "fast_answers": True}, {"Merge,or": "merge"}),
        ({"billions": 7, "card_gb": 16, "examples": 500, "fast_answers": True, "tasks": 5}, {"Merge,or": "many"}),
        ({"billions": 7, "card_gb": 16, "examples": 500}, {"Merge,or": "apart", "Whichvariant?": "plain"}),
        ({"billions": 7, "card_gb": 16, "examples": 500, "users": 10_000}, {"Whichvariant?": "vera"}),
        ({"billions": 7, "card_gb": 16, "examples": 50_000, "new_knowledge": True}, {"Whichvariant?": "rslora"}),
    ],
)  # fmt: skip
def test_the_right_choice_is_made(settings, expected):
    found = picked(**settings)
    assert {name: found[name] for name in expected} == expected


def test_every_choice_is_given_to_somebody():
    situations = [
        {"billions": b, "card_gb": g, "examples": n, "new_knowledge": k, "tasks": t, "fast_answers": f, "users": u}
        for b in (1, 7, 70) for g in (16, 80) for n in (500, 50_000) for k in (True, False) for t in (1, 4)
        for f in (True, False) for u in (1, 10_000)
    ]  # fmt: skip
    given = {id(a.choice) for settings in situations for a in advise(**settings)}
    assert [f"{q} {key}" for q, key, choice in ALL if id(choice) not in given] == []


@pytest.mark.parametrize("name", ["billions", "card_gb", "examples", "tasks", "users"])
def test_what_is_not_positive_is_refused(name):
    settings = {"billions": 7, "card_gb": 16, "examples": 500, "tasks": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be more than 0, not 0"):
        advise(**settings)
    with pytest.raises(ValueError, match="more than 0"):
        needed_gb(0, 2)


def test_the_tables_have_a_row_for_each():
    advice = advise(billions=7, card_gb=16, examples=500)
    assert len(as_table(advice).splitlines()) == 2 + len(CHOICES) == 2 + len(advice)
    rows = whole_guide().splitlines()[2:]
    assert len(rows) == len(ALL) and all(re.search(r"\| \[.*\]\(.*\) \|$", row) for row in rows), "each has its link"
