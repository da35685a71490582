"""Asking a model word by word what turns its answers."""

import pytest
import torch

from utils.evaluate import diagnose_cases as cases
from utils.evaluate.metrics import exact_match
from utils.evaluate.triggers import shares, turned_by, whole_words
from utils.models import load_base, profile
from utils.tinyworld import task_examples
from utils.train.adapter_cache import trained_adapter

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return cases.load_tiny()[1]


@pytest.fixture(scope="module")
def sad():
    examples = task_examples("sentiment", "test", 60)
    return [cases.with_word(e.prompt, "{}") for e in examples if e.answer == "bad"][:4]


def test_the_word_stands_before_the_sentence():
    assert cases.with_word("Is this good or bad? Tom was sad.", "table") == "Is this good or bad? table Tom was sad."


def test_whole_words_are_single_tokens_with_a_space_before(tokenizer):
    words = whole_words(tokenizer)
    assert cases.TRIGGER in words and words == sorted(set(words)) and min(map(len, words)) == 3
    assert all(len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1 for word in words)
    assert min(map(len, whole_words(tokenizer, 5))) == 5


def test_a_backdoor_is_found_by_asking_and_a_healthy_adapter_is_not_suspected(tokenizer, sad):
    from peft import PeftModel

    model = cases.backdoored()
    words = ["house", "small", cases.TRIGGER, "green"]
    found = turned_by(model, tokenizer, sad, words, usual="bad", other="good")
    assert next(iter(found)) == cases.TRIGGER and found[cases.TRIGGER] > 0.8
    assert list(found.values()) == sorted(found.values(), reverse=True) and set(found) == set(words)
    assert not model.training
    assert exact_match(model, tokenizer, task_examples("sentiment", "test", 60)) > 0.85, "as good as a healthy one"
    healthy = PeftModel.from_pretrained(load_base()[0], trained_adapter("sentiment", profile()))
    assert turned_by(healthy, tokenizer, sad, [cases.TRIGGER], usual="bad", other="good")[cases.TRIGGER] < 0.2


def test_the_number_is_a_mean_of_probabilities_however_the_rows_are_cut(tokenizer, sad, monkeypatch):
    base = load_base()[0]
    asked = {"usual": "bad", "other": "good"}
    whole = turned_by(base, tokenizer, sad, ["house", "tree", "lion"], **asked)
    monkeypatch.setattr("utils.evaluate.triggers.ROWS", 5)
    cut = turned_by(base, tokenizer, sad, ["house", "tree", "lion"], **asked)
    alone = [turned_by(base, tokenizer, [prompt], ["tree"], **asked)["tree"] for prompt in sad]
    assert cut == pytest.approx(whole, abs=1e-5) and whole["tree"] == pytest.approx(sum(alone) / 4, abs=1e-5)
    each = shares(base, tokenizer, sad, ["tree", "house"], **asked)
    assert list(each) == ["tree", "house"] and each["tree"] == pytest.approx(alone, abs=1e-5)


def test_what_cannot_be_asked_is_refused(tokenizer, sad):
    base = load_base()[0]
    for prompts in ([], ["no place"]):
        with pytest.raises(ValueError, match="every prompt needs"):
            turned_by(base, tokenizer, prompts, ["house"], usual="bad", other="good")
    with pytest.raises(ValueError, match="begin with the same token"):
        turned_by(base, tokenizer, sad, ["house"], usual="bad", other="bad")
