"""utils.course.model_card: what the Hub reads of a card, what its users must know, and files all or none."""

# ruff: noqa: F811  (a fixture of another file has the name of the argument it fills)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluate.test_report import EXAMPLES, both, loaded  # noqa: F401  (fixtures)
from utils.course.model_card import base_name, model_card, write_card
from utils.evaluate.report import Evaluation, Reply
from utils.train.own_data import DataFacts
from utils.train.run_folder import TrainedOn

FACTS = DataFacts("mine.csv", "ab" * 32, 405, 45, 3, 7)
DONE = TrainedOn(380, 15_000, 7_000, 40, 90, 1.9, 80, 150)


def test_the_cards_header_is_what_the_hub_reads(both, tmp_path):
    from huggingface_hub import ModelCard

    text = model_card("my-adapter", "owner/model", FACTS, DONE, {"r": 8}, *both)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "owner/model" and card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation" and "lora" in card.data.tags
    results = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert results["loss"] == round(both[1].loss, 4) and set(results) == {"loss", "perplexity", "chrf"}


def test_the_card_names_data_settings_results_limits_and_use(both):
    text = model_card("my-adapter", "owner/model", FACTS, DONE, {"r": 8, "learning rate": 0.006}, *both)
    for part in (
        "ab" * 32,
        "| learning rate | 0.006 |",
        "380 records were trained on, 45 held out, 40 used to choose the checkpoint, 3 exact duplicates dropped, "
        "25 dropped because the cut left nothing of their answers. No prompt is on two sides, case and white space "
        "aside. 7 of the prompts are nearly another one's, and stay on its side.",
        "90 steps of 150 planned, because the dev loss had stopped falling, 1.9 epochs: each record was seen about 1.9 "
        "times. An epoch has 15,000 tokens, of which the loss counts 7,000. The weights are those of step 80",
        "With 12 held-out records nothing can be said of how good it is",
    ):
        assert part in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Data", "## Training", "## Results", "## Limits", "## How to use",
    ]  # fmt: skip
    assert f"went from {both[0].general:.2f} to {both[1].general:.2f}" in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_a_base_that_is_a_folder_is_not_named_to_the_hub(both):
    text = model_card("my-adapter", "assets/tiny-llama", FACTS, DONE, {}, *both)
    assert "base_model:" not in text and "needs the same folder" in text


def test_the_base_is_named_as_the_profile_loads_it(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_MODEL", "owner/other")
    assert base_name("tiny") == "assets/tiny-llama"
    assert base_name("small") == "owner/other"
    (tmp_path / "my-base").mkdir()
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path / "my-base"))
    assert base_name("small") == "my-base"
    monkeypatch.delenv("COURSE_MODEL")
    assert base_name("small") == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("name", ["", "two words"])
def test_a_name_is_one_word(both, name):
    with pytest.raises(ValueError, match="one word"):
        model_card(name, "owner/model", FACTS, DONE, {}, *both)


def test_the_files_are_written_and_a_refusal_writes_nothing(both, tmp_path: Path):
    with pytest.raises(ValueError, match="one word"):
        write_card(tmp_path, FACTS, DONE, {}, *both, profile="tiny", name="no name")
    assert list(tmp_path.iterdir()) == []
    write_card(tmp_path, FACTS, DONE, {"r": 8}, *both, profile="tiny")
    results = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert len(results["replies"]) == 12 and results["replies"][0]["adapter"] == EXAMPLES[0].answer
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith("---\n")


def test_a_test_that_is_large_enough_says_how_well_a_share_is_known():
    found = Evaluation(tuple(Reply(f"p{n}", "yes", "yes", 1, True) for n in range(50)), 0.5, None)
    text = model_card("my-adapter", "owner/model", FACTS, DONE, {}, found, found)
    assert "With 50 held-out records a share is known to 13 points either way at most" in text
    assert "type: exact_match" in text and "50 of 50 (100%, 93 to 100)" in text
