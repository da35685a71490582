"""tools/gpu/techniques.py on a small model: what is changed, and that a change leaves the base as it was."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch

from utils.models import ASSETS, ROOT
from utils.real_step import adapted, base_model, base_of

sys.path.insert(0, str(ROOT / "tools"))

from gpu import techniques as tool  # noqa: E402

torch.set_num_threads(1)
BY_NAME = {technique.name: technique for technique in tool.TECHNIQUES}


def test_every_technique_changes_something_and_only_the_last_repeats_the_first():
    changes = [technique[1:] for technique in tool.TECHNIQUES]
    assert len(BY_NAME) == len(changes)
    assert changes[0] == changes[-1] == (tool.USUAL, False, 1)
    same = {name for name, t in BY_NAME.items() if t[1:] == changes[0]}
    assert same == {"unchanged", "unchanged, again"}
    groups = [base_of(t.setup) for t in tool.TECHNIQUES[:-1]]
    starts = [group for place, group in enumerate(groups) if not place or groups[place - 1] != group]
    assert len(starts) == len(set(groups)), "techniques of one base model follow each other: it is made once"


@pytest.fixture(scope="module")
def model():
    return base_model(tool.USUAL, "cpu", True)


@pytest.mark.parametrize("name", ["unchanged", "checkpointing", "accumulation, 4 pieces"])
def test_a_row_has_a_time_and_the_base_is_afterwards_as_it_was(model, name):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    row = tool.measure(model, BY_NAME[name], "cpu", True)
    assert row["milliseconds"]["runs"] == 4 and 0 < row["milliseconds"]["lower"] <= row["milliseconds"]["median"]
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(p.requires_grad for p in model.parameters()) and not model.is_gradient_checkpointing
    assert not torch.backends.cuda.matmul.allow_tf32


class Keeping:
    """An optimizer that keeps the gradients of a step and moves nothing."""

    def __init__(self, setup, trainable):
        self.trainable, self.kept = trainable, []

    def step(self):
        self.kept = [p.grad.clone() for p in self.trainable]

    def zero_grad(self):
        for p in self.trainable:
            p.grad = None


def test_four_pieces_have_the_gradients_of_one_batch(monkeypatch):
    """In float32; all sequences are as long, so the mean of the pieces' means is the batch's mean."""
    base, found = base_model(tool._with(dtype="float32"), "cpu", True), []
    for pieces in (1, 4):
        optimizers = []
        monkeypatch.setattr(tool, "optimizer_of", lambda *a, o=optimizers: o.append(Keeping(*a)) or o[0])
        torch.manual_seed(0)
        setup = tool._with(dtype="float32", batch=4, length=16)
        wrapped = adapted(base, setup)
        tool.step_of(wrapped, tool.Technique("x", setup, pieces=pieces), base.config.vocab_size, "cpu")()
        found.append(optimizers[0].kept)
        wrapped.unload()
    assert found[0] and max(gradient.abs().max() for gradient in found[0]) > 1e-4
    for whole, summed in zip(*found, strict=True):
        torch.testing.assert_close(summed, whole, atol=1e-6, rtol=1e-4)  # float32 sums in another order


RECORD = json.loads((ASSETS / "measurements" / "techniques.json").read_text())
ROWS = {row["key"]: row for row in RECORD["rows"]}


def test_the_record_has_every_technique_where_it_was_measured_and_its_spread():
    assert list(ROWS) == list(BY_NAME) and RECORD["seed"] == tool.SEED
    assert RECORD["hardware"].startswith("NVIDIA H100") and {"torch", "cuda", "bitsandbytes"} <= set(RECORD["versions"])
    for name, row in ROWS.items():
        technique, took = BY_NAME[name], row["milliseconds"]
        assert (row["autocast"], row["pieces"]) == technique[2:]
        assert row["setup"] == json.loads(json.dumps(dataclasses.asdict(technique.setup)))
        assert 0 < took["lower"] <= took["median"] <= took["upper"] and took["runs"] == tool.STEPS


def test_what_chapter_11_says_of_them_holds_in_the_record():
    def against(name):
        usual = ROWS["unchanged"]
        return ROWS[name]["peak"] / usual["peak"], ROWS[name]["milliseconds"]["median"] / usual["milliseconds"][
            "median"
        ]

    assert ROWS["unchanged, again"]["peak"] == ROWS["unchanged"]["peak"] and against("unchanged, again")[1] < 1.15
    memory, time = against("checkpointing")
    assert 0.5 < memory < 0.6 and time > 1.5
    assert against("accumulation, 4 pieces")[1] > 3
    assert max(against("adapters in 16 bits")) < 0.9
    assert against("8-bit AdamW")[0] > 0.99
    assert against("NF4, double, checkpointing")[0] < 0.25
    assert against("float32")[1] > 5 and against("float32, TF32 products")[1] < 1.5
    assert against("float32, autocast to bfloat16")[0] > against("float32")[0] > 1.5
