"""The record templates.json says what chapter 13 says of it, and its tool still makes such rows."""

import json

import pytest

from tools import measure_templates
from tools.go_render import go_version
from tools.template_talks import TALKS, families

RECORD = json.loads(measure_templates.OUT.read_text(encoding="utf-8"))
TRIMMED = {"Llama 3", "Gemma 3"}
"""Their templates trim every message, which Go's templates can't."""


def test_it_holds_every_family_and_fifty_conversations():
    assert list(RECORD["families"]) == list(families()) and RECORD["conversations"] == len(TALKS) == 50
    assert all(RECORD["versions"].values())


@pytest.mark.parametrize("family", RECORD["families"])
def test_ollamas_rendering_differs_only_where_it_is_said_to(family):
    row = RECORD["families"][family]
    expected = {"neighbours: two questions"}
    if family in TRIMMED:
        expected |= {name for name in TALKS if name.startswith("edge") and "inside" not in name}
        assert "blanks at the edges of a message" in row["differences"]
    assert set(row["ollama"]["differ"]) == expected
    assert row["ollama"]["equal"] + row["ollama"]["both_refuse"] + len(expected) == 50


def test_llama_cpp_differs_in_a_refused_system_message_and_in_a_begun_answer():
    """It puts a system message that the template refuses into the user's turn; and it renders a begun answer as the
    generation prompt and the words, without what Mistral's template writes in front of an answer."""
    differ = {name: row["llama.cpp"]["differ"] for name, row in RECORD["families"].items()}
    tiny = differ.pop("tiny Llama")
    assert tiny == [name for name, messages in TALKS.items() if messages[0]["role"] == "system"]
    assert differ.pop("Mistral v0.3") == [name for name in TALKS if name.startswith("begun")]
    assert not any(differ.values())


def test_bos_is_never_doubled():
    assert not any(row[who]["double_bos"] for row in RECORD["families"].values() for who in ("ollama", "llama.cpp"))


def test_a_wrong_rendering_costs_every_answer_and_a_stray_bos_none():
    found = {name: row for name, row in RECORD["symptoms"].items() if isinstance(row, dict)}
    right = {name: row["right"] for name, row in found.items()}
    assert right["as trained"] == 40 and right["without the adapter"] == 0
    for name in right:
        if "TEMPLATE" in name or "generation prompt" in name or "another base" in name:
            assert right[name] == 0, name
    assert [right[name] for name in right if "BOS" in name or "<|end|><|end|>" in name] == [40, 40, 40]
    endless = found["EOS stops nothing"]
    assert (endless["right"], endless["begin_right"], endless["mean_tokens"]) == (0, 40, measure_templates.MOST)


def test_the_modelfile_answers_as_transformers_does_and_without_its_template_never():
    found = RECORD["modelfiles"]
    assert found["as modelfile() writes it"]["equal_to_transformers"] == 40
    assert found["without PARAMETER stop"]["equal_to_transformers"] == 40  # the GGUF file knows its EOS token
    assert found["without TEMPLATE, as {{ .Prompt }}"]["right"] == found["with ChatML's TEMPLATE"]["right"] == 0
    assert found["without TEMPLATE, as {{ .Prompt }}"]["findings"] == ["no template"]
    assert found["with ChatML's TEMPLATE"]["findings"] == ["another template"]


def test_what_ollamas_importer_guesses_loses_a_default_system_message_and_takes_zephyr_for_phi_3():
    guessed = RECORD["guessed_by_ollama"]
    assert {name: row and row["name"] for name, row in guessed.items()} == {
        "tiny Llama": None, "Qwen2.5 (ChatML)": None, "SmolLM2 (ChatML)": "chatml", "Llama 3": "llama3-instruct",
        "Mistral v0.3": None, "Gemma 3": "gemma3-instruct", "Phi-3": "zephyr",
    }  # fmt: skip
    assert guessed["SmolLM2 (ChatML)"]["equal"] == 9 and guessed["Phi-3"]["equal"] == 0


@pytest.mark.parametrize(
    ("a", "b", "far"), [("kitten", "sitting", 3), ("", "abc", 3), ("same", "same", 0), ("ab", "ba", 2)]
)
def test_the_distance_is_levenshteins(a, b, far):
    assert measure_templates.distance(a, b, 100) == far
    assert measure_templates.distance(a, b, 2) == min(far, 2)


@pytest.mark.slow
@pytest.mark.skipif(go_version() is None, reason="needs Go: apt-get install golang-go")
def test_a_trial_makes_such_a_record(tmp_path):
    measure_templates.main(["--trial", "--out", str(tmp_path / "trial.json")])
    trial = json.loads((tmp_path / "trial.json").read_text(encoding="utf-8"))
    assert set(RECORD) - {"guessed_by_ollama"} == set(trial)
    tiny = trial["families"]["tiny Llama"]
    assert tiny == RECORD["families"]["tiny Llama"]
    assert set(trial["symptoms"]) == set(RECORD["symptoms"]) and trial["symptoms"]["as trained"]["right"] == 4


def test_a_trial_is_no_record():
    with pytest.raises(SystemExit):
        measure_templates.main(["--trial"])
