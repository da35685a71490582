"""Chapter 17's first table, which no cell computes, is what assets/measurements/remedies.json holds."""

import json
import re
from statistics import mean

import pytest

from tools.measure_remedies import PENALTY_BATCH, PENALTY_LENGTH, PENALTY_TEXTS, best
from utils.data.labels import encode_rows
from utils.evaluate.forgetting import replay_examples
from utils.models import ASSETS, ROOT, load_tokenizer
from utils.tinyworld import task_examples
from utils.train.recipes import RECIPES

RECORD = json.loads((ASSETS / "measurements" / "remedies.json").read_text(encoding="utf-8"))
LESSON = (ROOT / "lessons" / "17_what_an_update_does.md").read_text(encoding="utf-8")


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


def tokens(rows) -> float:
    """Tokens of an example, template and all, on average."""
    return mean(len(ids) for ids, _ in encode_rows(load_tokenizer(), rows))


@pytest.mark.parametrize("task", ["style", "translation"])
def test_what_a_remedy_costs_is_counted_in_tokens_a_step(task):
    own, old = tokens(task_examples(task, "train", 400)), tokens(replay_examples(400))
    (said,) = re.findall(r"\| (\d+) times the tokens a step; old data \|", LESSON)
    assert round((own + old) / own) == int(said)
    (low, high) = re.findall(r"\| ([\d.]+) to ([\d.]+) times the tokens, a pass of the base; old data \|", LESSON)[0]
    texts = [load_tokenizer()(e.answer, add_special_tokens=False).input_ids for e in replay_examples(PENALTY_TEXTS)]
    kept = mean(min(len(text), PENALTY_LENGTH) for text in texts)
    times = 1 + PENALTY_BATCH * kept / (RECIPES[task].batch_size * own)
    assert float(low) <= round(times, 1) <= float(high)


def test_the_first_sentence_has_the_bases_numbers():
    (stories, copying) = re.findall(r"held-out stories at a perplexity of ([\d.]+) and copies (\d+)%", LESSON)[0]
    base = RECORD["base"]["style"]
    assert (stories, copying) == (f"{base['stories_test']:.2f}", f"{base['copying']:.0%}"[:-1])


def test_translations_large_decay_missed_the_target_by_a_third_of_a_point():
    tried = [s for s in settings("translation", "weight decay") if s["knob"] == 3.0]
    places = [[i for i, seed in enumerate(s["seeds"]) if seed in RECORD["select"]] for s in tried]
    dev = max(mean(s["dev"][i] for i in at) for s, at in zip(tried, places, strict=True))
    assert "a decay of 3.0 missed it by a third of a point" in LESSON and 0.95 - dev == pytest.approx(1 / 300, abs=5e-4)
