"""The engine in site/engine computes what transformers, PEFT and utils.lora compute."""

from __future__ import annotations

import json

import pytest

from tests.site.nodes import needs_node, run
from tools.site import golden

pytestmark = needs_node
SYSTEMS = ("base", "sentiment", "translation", "summarization", "style", "mix")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the engine makes of the golden values."""
    file = tmp_path_factory.mktemp("engine") / "golden.json"
    values = golden.golden()
    assert len(values["strings"]) == 500
    file.write_text(json.dumps(values), encoding="utf-8")
    return run("engine_check.js", file)


def test_tokenizer_gives_the_same_ids_and_texts(found):
    assert found["otherIds"] == []
    assert found["otherTexts"] == []
    assert found["otherPrompts"] == []


def test_logits_are_those_of_pytorch(found):
    assert set(found["logits"]) == set(SYSTEMS)
    assert max(found["logits"].values()) < 1e-4, found["logits"]


def test_combinations_are_those_of_python(found):
    assert set(found["updates"]) == set(golden.WAYS)
    assert max(found["updates"].values()) < 1e-5, found["updates"]
    assert found["catIsSum"] < 1e-5


@pytest.mark.slow
def test_greedy_answers_are_equal_on_200_prompts(found):
    """And the first of each task in the record are what Python gives today."""
    record = json.loads(golden.ANSWERS.read_text(encoding="utf-8"))
    assert len(record["prompts"]) == 200
    fresh = golden.answers(1)
    for name, values in fresh["systems"].items():
        assert values["answers"] == record["systems"][name]["answers"][::50], name
    assert run("engine_check.js", golden.ANSWERS, seconds=600)["answers"] == dict.fromkeys(SYSTEMS, 200)
    assert found["answers"] == dict.fromkeys(SYSTEMS, 8)


def test_ranks_weights_and_layers(found):
    """A rank of zero and a weight of zero leave the base; more rank than there is changes nothing."""
    none, own, more = found["rankChanges"]
    assert none > 1
    assert own == more == 0
    assert found["weightZero"] == 0
    assert sorted(name.rpartition(".")[2] for name in found["layers"][0]) == ["k_proj", "q_proj"]
    assert found["layers"][1] == []


def test_sampling_draws_what_top_p_leaves(found):
    """Of logits 2, 1, 0, -1 at temperature 0.7 the first two reach 0.9; their odds are e^(1/0.7)."""
    assert found["probabilities"] == pytest.approx([0.80668, 0.19332, 0, 0], abs=1e-5)
    assert found["shares"] == pytest.approx(found["probabilities"], abs=0.01)


def test_temperature_and_top_p_are_those_of_python(found):
    """Softmax by PyTorch, and top-p by utils.inference: which tokens stay, and with which probability."""
    rows = found["distributions"]
    assert len(rows) == 8 * len(golden.TEMPERATURES) * len(golden.TOP_PS)
    assert not [row for row in rows if row["otherKept"]]
    assert max(row["error"] for row in rows) < 1e-12
    assert {1, 1024} < {row["kept"] for row in rows}


@pytest.mark.parametrize(
    ("number", "says"),
    list(enumerate((
        "a.safetensors is no whole safetensors file: model", "it has 3 bytes", "style says rank 4", "isn't plain LoRA",
        "isn't plain byte-level BPE", "a gpt2", "the prompt has 600 tokens",
    ))),
)  # fmt: skip
def test_what_it_cannot_do_it_says(found, number, says):
    assert says in found["refused"][number]
