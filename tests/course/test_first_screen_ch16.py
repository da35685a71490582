"""Chapter 16's first table, which no cell computes, is what assets/measurements/remedies.json holds."""

import json
import re
from statistics import mean

import pytest

from tools.measure_remedies import best
from utils.models import ASSETS, ROOT
from utils.train.recipes import RECIPES

RECORD = json.loads((ASSETS / "measurements" / "remedies.json").read_text(encoding="utf-8"))
LESSON = (ROOT / "lessons" / "16_what_an_update_does.md").read_text(encoding="utf-8")


def shown(row: str) -> list[tuple[str, ...]]:
    """The three numbers of style and of translation in the row that begins so."""
    (line,) = re.findall(rf"^\| {re.escape(row)}.*$", LESSON, re.MULTILINE)
    return re.findall(r"(\d+)%, ([\d.]+), (\d+)%", line)


def numbers(found) -> tuple[str, ...]:
    test, stories, copying = (mean(found[k]) for k in ("test", "stories_test", "copying"))
    return f"{test:.0%}"[:-1], f"{stories:.2f}", f"{copying:.0%}"[:-1]


def settings(task, remedy):
    wanted = {"task": task, "method": "LoRA", "remedy": remedy}
    return [s for s in RECORD["settings"] if all(s[k] == v for k, v in wanted.items())]


def reported(setting):
    places = [i for i, seed in enumerate(setting["seeds"]) if seed in RECORD["report"]]
    return {k: [setting[k][i] for i in places] for k in ("test", "stories_test", "copying")}


@pytest.mark.parametrize(
    ("row", "remedy"),
    [("lower learning rate", "rate"), ("weight decay", "weight decay"), ("replay", "replay"), ("KL to the base", "kl")],
)
def test_a_remedy_has_the_numbers_of_the_seeds_that_report(row, remedy):
    assert shown(row) == [numbers(best(settings(task, remedy), 0.95)) for task in ("style", "translation")]


def test_the_recipe_and_the_adapter_turned_down_have_the_records_numbers():
    recipe, turned = [], []
    for task, factor in (("style", 0.7), ("translation", 0.9)):
        (one,) = [s for s in settings(task, "rate") if s["lr"] == RECIPES[task].lr]
        (down,) = [s for s in settings(task, "scale") if s["lr"] == RECIPES[task].lr and s["knob"] == factor]
        recipe.append(numbers(reported(one)))
        turned.append(numbers(reported(down)))
    assert shown("none, the course's recipe") == recipe
    assert shown("turn the finished adapter down") == turned


def test_switched_off_the_base_is_back():
    base = [RECORD["base"][task] for task in ("style", "translation")]
    assert shown("take it off outside its task") == [
        (f"{b['test']:.0%}"[:-1], f"{b['stories_test']:.2f}", f"{b['copying']:.0%}"[:-1]) for b in base
    ]
