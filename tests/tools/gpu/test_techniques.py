"""tools/gpu/techniques.py on a small model: what is changed, and that a change leaves the base as it was."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tools.gpu import techniques as tool
from utils.models import ASSETS
from utils.profiling import techniques
from utils.profiling.gpu_step import adapted, base_model, base_of

torch.set_num_threads(1)
BY_NAME = {technique.name: technique for technique in tool.TECHNIQUES}


def test_every_technique_changes_something_and_only_the_last_repeats_the_first():
    changes = [technique[1:] for technique in tool.TECHNIQUES]
    assert len(BY_NAME) == len(changes)
    assert changes[0] == changes[-1] == (tool.USUAL, False, 1, False)
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
    row = techniques.measure_technique(model, BY_NAME[name], "cpu", True)
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
        monkeypatch.setattr(techniques, "optimizer_of", lambda *a, o=optimizers: o.append(Keeping(*a)) or o[0])
        torch.manual_seed(0)
        setup = tool._with(dtype="float32", batch=4, length=16)
        wrapped = adapted(base, setup)
        techniques.step_of(wrapped, techniques.Technique("x", setup, pieces=pieces), base.config.vocab_size, "cpu")()
        found.append(optimizers[0].kept)
        wrapped.unload()
    assert found[0] and max(gradient.abs().max() for gradient in found[0]) > 1e-4
    for whole, summed in zip(*found, strict=True):
        torch.testing.assert_close(summed, whole, atol=1e-6, rtol=1e-4)  # float32 sums in another order


def test_a_second_step_begins_without_the_gradients_of_the_first(monkeypatch):
    base, optimizers = base_model(tool.USUAL, "cpu", True), []
    monkeypatch.setattr(techniques, "optimizer_of", lambda *a: optimizers.append(Keeping(*a)) or optimizers[0])
    setup = tool._with(batch=2, length=8)
    step = techniques.step_of(adapted(base, setup), techniques.Technique("x", setup), base.config.vocab_size, "cpu")
    step()
    first = optimizers[0].kept
    step()
    assert any(g.abs().max() > 0 for g in first)
    assert all(torch.equal(a, b) for a, b in zip(first, optimizers[0].kept, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_without_a_gpu_it_says_so():
    assert techniques.techniques_on_this_gpu() == "there is no CUDA GPU here to measure"


def test_on_a_gpu_every_change_is_measured_on_its_own_base_and_told(monkeypatch):
    """With a CPU in the GPU's place: what is measured, in which order, on how many models."""
    made = []

    def small(setup, device, trial):
        made.append(base_of(setup))
        return base_model(setup, "cpu", True)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(techniques, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(techniques, "base_model", small)
    monkeypatch.setattr(techniques, "free", lambda: 0)
    measured = techniques.measure_technique

    def as_trial(model, technique, device, trial):
        assert device == "cuda" and not trial
        with monkeypatch.context() as inside:
            inside.setattr(torch.cuda, "is_available", lambda: False)
            return measured(model, technique, "cpu", True)

    monkeypatch.setattr(techniques, "measure_technique", as_trial)
    lines = techniques.techniques_on_this_gpu().splitlines()
    assert len(made) == 3 and len(set(made)) == 3, "the usual base, eager attention's and the one in 4 bits"
    assert lines[0].startswith("Some GPU") and lines[1].startswith("unchanged") and lines[1].endswith("1.00")
    assert [line.split("  ")[0].strip() for line in lines[2:]] == [
        "checkpointing", "accumulation, 4 pieces", "adapters in 16 bits", "eager attention", "NF4, double"
    ]  # fmt: skip


def test_a_step_that_ran_out_has_a_line_and_the_first_is_what_the_others_are_compared_with():
    rows = {
        "one": {"peak": 3 * 10**9, "milliseconds": {"median": 10.0}},
        "two": {"peak": 2 * 10**9, "milliseconds": {"median": 15.0}},
        "three": {"out_of_memory": "CUDA out of memory."},
    }
    title, one, two, three = techniques.techniques_table(rows, "Some GPU", 10**9).splitlines()
    assert one.split() == ["one", "2.00", "10.0", "1.00"] and two.split() == ["two", "1.00", "15.0", "1.50"]
    assert three.split() == ["three", "ran", "out", "of", "memory"]
    without = techniques.techniques_table({"three": rows["three"], "one": rows["one"]}, "Some GPU").splitlines()
    assert without[2].split() == ["one", "3.00", "10.0"]


RECORD = json.loads((ASSETS / "measurements" / "techniques.json").read_text())
ROWS = {row["key"]: row for row in RECORD["rows"]}


def test_the_record_has_every_technique_where_it_was_measured_and_its_spread():
    assert list(ROWS) == list(BY_NAME) and RECORD["seed"] == techniques.SEED
    assert RECORD["hardware"].startswith("NVIDIA H100") and {"torch", "cuda", "bitsandbytes"} <= set(RECORD["versions"])
    for name, row in ROWS.items():
        technique, took = BY_NAME[name], row["milliseconds"]
        assert (row["autocast"], row["pieces"]) == technique[2:4]
        assert row["setup"] == json.loads(json.dumps(dataclasses.asdict(technique.setup)))
        assert 0 < took["lower"] <= took["median"] <= took["upper"] and took["runs"] == techniques.STEPS


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
