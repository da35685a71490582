"""The remedies' tool: knobs do in a stack what they do alone, and settings are chosen and judged by different seeds."""

import json
import math

import pytest
import torch

from tools import measure_remedies as tool
from utils.lora import inject
from utils.models import ASSETS, load_base
from utils.tinyworld import task_examples
from utils.train import loop

RUNS = [tool.Run(0.01, 0.0, 3), tool.Run(0.01, 5.0, 3)]


def one(remedy, knob, **numbers):
    seeds = [*tool.SELECT, *tool.REPORT]
    filled = {n: [numbers.get(n, 2.0)] * len(seeds) for n in tool.NUMBERS}
    return {"task": "style", "method": "LoRA", "remedy": remedy, "knob": knob, "lr": 0.1, "seeds": seeds} | filled


def test_the_least_perplexity_among_those_that_reach_the_target_is_chosen_and_others_report():
    far, near = one("kl", 0.1, dev=0.9, stories_dev=1.7), one("kl", 0.5, dev=0.96, stories_dev=2.0, stories_test=2.5)
    worse = one("kl", 1.0, dev=1.0, stories_dev=3.0)
    found = tool.best([far, worse, near], 0.95)
    assert found and found["knob"] == 0.5
    assert found["stories_test"] == [2.5] * len(tool.REPORT)
    assert tool.best([far], 0.95) is None


def test_a_run_that_diverged_is_never_chosen():
    broken = one("rate", 0.0, dev=1.0) | {"stories_dev": [None] * 9}
    assert tool.best([broken, one("rate", 1.0, dev=1.0, stories_dev=9.0)], 0.95)["knob"] == 1.0


def test_decay_pulls_towards_the_anchor_and_not_where_the_weight_is_zero():
    data = task_examples("style", "train", 8)
    stack = tool.stack_of("style", "LoRA", RUNS, "cpu")
    zero = {n: torch.zeros_like(p) for n, p in stack.parameters.items()}
    stack.train(data, steps=3, batch_size=2, after_step=tool.decays(stack, [run.knob for run in RUNS], 3, zero))
    plain = tool.stack_of("style", "LoRA", RUNS[:1], "cpu")
    plain.train(data, steps=3, batch_size=2)
    for name, p in stack.parameters.items():
        assert torch.allclose(p[0], plain.parameters[name][0], atol=1e-5)
    name = "model.layers.0.self_attn.q_proj.lora_A"
    assert stack.parameters[name][1].norm() < 0.999 * stack.parameters[name][0].norm()


def test_the_divergence_is_zero_at_the_start_and_holds_a_run_back():
    stack = tool.stack_of("style", "LoRA", RUNS, "cpu")
    texts = tool.texts_for("kl on prompts", "style", stack.tokenizer)[:20]
    at_start = tool.Divergence(stack, texts)({n: p[1] for n, p in stack.parameters.items()})
    assert abs(at_start.item()) < 1e-4
    data = task_examples("style", "train", 8)
    stack.train(data, steps=8, batch_size=4, extra_loss=tool.Divergence(stack, texts))
    free, held = ({n: p[i] for n, p in stack.parameters.items()} for i in (0, 1))
    penalty = torch.ones(1)
    far, near = (tool.Divergence(stack, texts)(run | {"penalty": penalty}).item() for run in (free, held))
    assert 0 < near < far
    assert stack.parameters["penalty"].flatten().tolist() == [0.0, 5.0]


def test_the_average_is_of_the_second_half_of_the_steps():
    kept, seen = {}, []
    stack = tool.stack_of("style", "LoRA", RUNS[:1], "cpu")
    mean = tool.averages(4, kept)
    name = "model.layers.0.self_attn.q_proj.lora_B"

    def after(step, parameters, gradients):
        seen.append(parameters[name].clone())
        mean(step, parameters, gradients)

    stack.train(task_examples("style", "train", 8), steps=4, batch_size=2, after_step=after)
    assert torch.allclose(kept[name], (seen[2] + seen[3]) / 2, atol=1e-7)


def test_a_soup_of_loras_is_the_mean_of_their_updates():
    runs = [tool.Run(0.01, 0.0, seed) for seed in tool.SELECT]
    stack = tool.stack_of("style", "LoRA", runs, "cpu")
    stack.train(task_examples("style", "train", 8), steps=3, batch_size=2)
    seen = []

    class Marks:
        def of(self, mixture):
            seen.append(mixture)
            return [{"dev": 1.0}]

    (row,) = tool.soups("style", "LoRA", runs, stack, Marks(), "cpu")
    assert (row["remedy"], row["lr"], row["seed"], row["dev"]) == ("average of seeds", 0.01, 0, 1.0)
    name = "model.layers.1.mlp.up_proj"
    own = load_base(torch.float32)[0].get_submodule(name).weight
    A, B = (stack.parameters[f"{name}.lora_{m}"] for m in "AB")
    wanted = own + 2 * torch.stack([b @ a for a, b in zip(A, B, strict=True)]).mean(0)
    assert torch.allclose(seen[0].parameters[f"{name}.weight"][0], wanted, atol=1e-6)
    assert tool.soups("style", "LoRA", runs[:2], stack, Marks(), "cpu") == []


def test_copying_is_counted_as_the_gate_counts_it():
    from utils.evaluate.gates import copy_accuracy

    model, tokenizer = load_base(torch.float32)
    torch.manual_seed(0)
    inject(model, "all-linear", 8, 16)
    stack = tool.stack_of("style", "LoRA", [tool.Run(0.01, 0.0, 0)], "cpu")
    marks = tool.Marks("style", tokenizer, True)
    assert marks.copying(stack)[0] == pytest.approx(copy_accuracy(load_base()[0], tokenizer, n=6), abs=1e-6)


def test_every_stack_has_its_own_file_and_rates_that_rise(tmp_path):
    jobs = tool.jobs_of(tmp_path, "cpu", False)
    assert len({job["file"] for job in jobs}) == len(jobs) == 32
    for job in jobs:
        assert list(job["rates"]) == sorted(job["rates"])
    assert loop.MAX_GRAD_NORM == 1.0


# ------------------------------------------------------------------------------------------------------- the record

RECORD = json.loads((ASSETS / "measurements" / "remedies.json").read_text())


@pytest.mark.skipif(RECORD["what"].startswith(("TRIAL", "PRELIMINARY")), reason="no real record yet")
def test_the_record_is_whole_and_its_choices_are_what_best_chooses():
    keys = ("task", "method", "remedy")
    for task in tool.TASKS:
        for method in tool.METHODS:
            for remedy in ("rate", "steps", "scale", "replay", "kl", "kl on prompts", "weight decay"):
                rows = [s for s in RECORD["settings"] if tuple(s[k] for k in keys) == (task, method, remedy)]
                assert rows, (task, method, remedy)
                for row in rows:
                    assert row["seeds"] == [*tool.SELECT, *tool.REPORT]
                    assert all(v is None or math.isfinite(v) for v in row["stories_test"])
                found = tool.best(rows, 0.95)
                told = [
                    c for c in RECORD["chosen"] if (*(c[k] for k in keys), c["target"]) == (task, method, remedy, 0.95)
                ]
                assert [{k: v for k, v in c.items() if k != "target"} for c in told] == ([found] if found else [])
