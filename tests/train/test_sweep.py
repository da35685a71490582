"""A run of the race's stack gives what the run alone gives, and the entries have the budgets that are said."""

import json

import pytest
import torch

from tools import race_variants
from tools.ensemble import at_best_rate, story_rows, write
from utils import models
from utils.lora.nf4_linear import NF4Linear
from utils.tinyworld import task_examples
from utils.train import sweep

STEPS, BATCH = 20, 2
EXAMPLES = task_examples("style", "train", 100)
SMALL = {"VeRA r=3630"}
"""Too slow for a test on a CPU; VeRA is there with r=256."""


def stacked(name):
    """Two runs of an entry in one stack, in float64: (the second run's rate and seed, the stack, its losses)."""
    entry = sweep.ENTRIES[name]
    runs = [(entry.rates[1], 0), (entry.rates[2], 1)]
    stack = race_variants.stack_of(entry, runs, "cpu", torch.float64)
    return runs[1], stack, race_variants.train_stack(entry, stack, EXAMPLES, steps=STEPS, batch_size=BATCH)


def alone(name, lr, seed):
    """One run by itself, in float64: the model and its losses."""
    model, tokenizer = models.load_base()
    sweep.build(sweep.ENTRIES[name], model, seed)
    model.double()
    for layer in model.modules():
        if isinstance(layer, NF4Linear):
            layer.float()  # whose scales are float32 by what they are
    settings = {"steps": STEPS, "batch_size": BATCH, "lr": lr, "seed": seed}
    return model, sweep.train(sweep.ENTRIES[name], model, tokenizer, EXAMPLES, **settings)


# transformers computes norms, attention weights and the loss in float32 even here: 6e-8, which twenty steps of Adam
# enlarge, because it divides small gradients by their size.
CLOSE = {"rel": 5e-5}


@pytest.mark.parametrize("name", [name for name in sweep.ENTRIES if name not in SMALL])
def test_a_run_of_the_stack_equals_the_run_alone(name):
    (lr, seed), stack, losses = stacked(name)
    model, own = alone(name, lr, seed)
    assert losses[:, 1].tolist() == pytest.approx(own, **CLOSE)
    assert own[-1] < own[0] * 0.97, "the run must move for the comparison to mean anything"
    assert not stack.diverged.any()
    rows = story_rows(stack.tokenizer, 2)
    with torch.inference_mode():
        expected = model(input_ids=rows, labels=rows).loss.exp().item()
    assert stack.perplexity(rows)[1] == pytest.approx(expected, **CLOSE)


def test_the_comparison_would_see_another_seed_or_decay(monkeypatch):
    """The negative control: each of these runs differs from the stack's by more than the tolerance."""
    (lr, seed), _, losses = stacked("LoRA")
    assert losses[:, 1].tolist() != pytest.approx(alone("LoRA", lr, seed + 1)[1], **CLOSE)
    adamw = torch.optim.AdamW

    def decaying(*args, **settings):
        return adamw(*args, **settings | {"weight_decay": 0.01})

    monkeypatch.setattr(torch.optim, "AdamW", decaying)
    assert losses[:, 1].tolist() != pytest.approx(alone("LoRA", lr, seed)[1], **CLOSE)


def test_a_second_call_trains_only_what_is_missing(tmp_path):
    job = {"entry": "LoRA r=1", "task": "style", "rates": [1e-3, 2e-3], "choose": [0, 1], "report": [5, 6], "steps": 5,
           "held_out": 4, "device": "cpu", "file": str(tmp_path / "part.json")}  # fmt: skip

    def run(lr, seed, test=0.25):
        return {"lr": lr, "seed": seed, "dev": 0.5, "test": test, "loss": 1.0, "perplexity": 2.0}

    there = [run(1e-3, s) for s in (0, 1, 9)]
    reported = [run(1e-3, 5, 0.75), run(2e-3, 6)]
    write(tmp_path / "part.json", {"steps": 5, "choosing": there, "reported": reported})
    assert race_variants.done_already(job) == (there[:2], reported), "a run with a seed that isn't wanted is left out"
    assert race_variants.done_already(job | {"steps": 6}) == ([], [])
    assert not race_variants.finished(job)
    race_variants.one_part(job)
    part = json.loads((tmp_path / "part.json").read_text())
    assert [(r["lr"], r["seed"]) for r in part["choosing"]] == [(1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1)]
    assert part["choosing"][:2] == there[:2], "what was there is kept"
    assert [(r["lr"], r["seed"]) for r in part["reported"]] == [(1e-3, 5), (1e-3, 6)], "at the chosen rate alone"
    assert part["reported"][0] == reported[0] and race_variants.finished(job)
    row = race_variants.summarize(part)
    assert row["lr"] == 1e-3 and row["lr_at_the_grids_edge"] and row["test_by_seed"][0] == 0.75
    assert row["test_low"] < row["test_mean"] < row["test_high"]


def test_entries_are_compared_with_lora_by_seed_and_corrected_for_their_number():
    lora, better = [0.1 * i for i in range(8)], [0.1 * i + 0.05 for i in range(8)]
    rows = [{"entry": n, "task": "style", "test_by_seed": v} for n, v in
            (("LoRA", lora), ("DoRA", better), ("PiSSA", lora[:-1] + [0.6]))]  # fmt: skip
    dora, pissa = race_variants.compared(rows)
    assert (dora["entry"], dora["difference"], dora["p"], dora["p_holm"]) == (
        "DoRA",
        0.05,
        round(2 / 256, 5),
        round(4 / 256, 5),
    )
    assert pissa["p"] == pissa["p_holm"] == 1 and pissa["low"] < 0 < pissa["high"]


def test_budgets_are_what_the_module_says():
    model, _ = models.load_base()
    from utils.lora.variants import expected_parameters

    budget = expected_parameters(model, "all-linear", "LoRA", 8)
    assert budget == 108_544
    for name, entry in sweep.ENTRIES.items():
        if entry.variant != "full" and name not in ("VeRA r=256", "LoRA r=1"):
            assert expected_parameters(model, "all-linear", entry.variant, entry.r) == pytest.approx(budget, rel=0.065)
    small = [expected_parameters(model, "all-linear", *sweep.ENTRIES[n][:2]) for n in ("VeRA r=256", "LoRA r=1")]
    assert small[0] == pytest.approx(small[1], rel=0.04)


def test_an_entry_of_lora_without_a_rank_is_refused():
    with pytest.raises(ValueError, match="DoRA has no rank r"):
        sweep.build(sweep.SweepEntry("DoRA", None, (1e-3,)), torch.nn.Sequential(torch.nn.Linear(2, 2)), 0)


def test_the_record_is_of_these_entries_rates_and_courses():
    """assets/measurements/variants.json was made with what stands in the tables, or the race is another one."""
    parts = json.loads((models.ROOT / "assets/measurements/variants.json").read_text())["parts"]
    assert {(part["entry"], part["task"]) for part in parts} == {
        (name, task) for name in sweep.ENTRIES for task in sweep.COURSES
    }
    for part in parts:
        course = sweep.COURSES[part["task"]]
        assert tuple(part["rates"]) == sweep.ENTRIES[part["entry"]].rates, part["entry"]
        assert part["steps"] == course.steps
        assert (part["choose"], part["report"]) == (list(race_variants.CHOOSE), list(race_variants.REPORT))
        assert not set(part["choose"]) & set(part["report"]), "the seeds that choose are not those that are reported"
        (lr,) = {run["lr"] for run in part["reported"]}
        assert lr == at_best_rate(part["choosing"])[0]["lr"]
