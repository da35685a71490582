"""A stack of LoRA runs gives what each run gives alone."""

import pytest
import torch

from tools import sweep_rank
from tools.ensemble import Ensemble
from utils import lora, models
from utils.evaluate import metrics
from utils.lora.checkpoint import load_adapter
from utils.tinyworld import task_examples
from utils.train import loop
from utils.train.adapter_cache import trained_adapter

RUNS = [
    sweep_rank.Run("q,v", 2, 2e-3, 0),
    sweep_rank.Run("all-linear", 5, 8e-3, 1),
    sweep_rank.Run("MLP", 1, 1e-2, 0),
    sweep_rank.Run("all-linear", 1, 1e-3, 1, lora_alpha=32),
    sweep_rank.Run("attention", 4, 4e-3, 0, lora_alpha=32),
]
EXAMPLES = task_examples("style", "train", 100)


@pytest.fixture(scope="module")
def together():
    """The losses of the runs in one stack, in float64."""
    return sweep_rank.stack_of(RUNS, "cpu", torch.float64).train(EXAMPLES, steps=12, batch_size=4)


@pytest.mark.parametrize("index", range(len(RUNS)))
def test_a_run_of_the_stack_equals_the_run_alone(together, index):
    """Of several targets, ranks and scalings: what is filled up with zeros takes no part, and each has its alpha."""
    run = RUNS[index]
    model, tokenizer = models.load_base()
    torch.manual_seed(run.seed)
    lora.inject(model, list(sweep_rank.TARGETS[run.targets]), run.r, run.lora_alpha or 2 * run.r)
    model.double()
    alone = loop.train(model, tokenizer, EXAMPLES, steps=12, lr=run.lr, batch_size=4, seed=run.seed, progress=False)
    # transformers computes norms, attention weights and the loss in float32 even so: 6e-8, which Adam enlarges
    assert together[:, index].tolist() == pytest.approx(alone, rel=5e-5)
    assert alone[-1] < alone[0] * 0.97, "the run must move for the comparison to mean anything"


def test_controls_have_the_parameters_of_all_linear_at_rank_8():
    model, _ = models.load_base()

    def count(targets, r):
        return sum(r * sum(model.get_submodule(n).weight.shape) for n in lora.find_targets(model, list(targets)))

    wanted = count(sweep_rank.TARGETS["all-linear"], 8)
    for name, r in sweep_rank.CONTROLS.items():
        assert count(sweep_rank.TARGETS[name], r) == pytest.approx(wanted, rel=0.013)


def test_teacher_forcing_marks_as_greedy_decoding_does():
    """At three strengths of the shipped adapter, one of which gets some answers right and others not."""
    model, tokenizer = models.load_base()
    load_adapter(model, trained_adapter("style", "tiny"))
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n}
    starts = [{n: p * (factor if "lora_B" in n else 1) for n, p in trained.items()} for factor in (0.0, 0.5, 1.0)]
    held_out, greedy = task_examples("style", "test", 40), []
    for start in starts:
        model.load_state_dict(start, strict=False)
        greedy.append(metrics.exact_match(model, tokenizer, held_out))
    assert greedy[0] == 0 < greedy[1] < greedy[2], "half-learnt, or the comparison is empty"
    for n, p in model.named_parameters():
        p.requires_grad_(n in trained)
    stack = Ensemble(model, tokenizer, starts, [1e-3] * 3, [0] * 3, device="cpu")
    assert stack.exact_match(held_out) == pytest.approx(greedy)


def test_a_row_of_the_table_reports_the_test_split_at_the_rate_that_dev_chose():
    results = [
        {"targets": "MLP", "r": 2, "lr": lr, "seed": seed, "dev": dev, "test": test, "perplexity": 3.0 + seed}
        for lr, seed, dev, test in [(2e-3, 0, 0.5, 0.1), (2e-3, 1, 0.6, 0.3), (1e-3, 0, 0.1, 0.9), (1e-3, 1, 0.2, 0.9)]
    ]
    (row,) = sweep_rank.summarize(results, 150, {("MLP", 2): 99})
    assert (row["steps"], row["targets"], row["r"], row["parameters"], row["lr"]) == (150, "MLP", 2, 99, 2e-3)
    assert row["test_mean"] == 0.2 and row["test_by_seed"] == [0.1, 0.3]
    assert row["dev_by_lr"] == {"0.001": 0.15, "0.002": 0.55} and row["perplexity_by_lr"]["0.002"] == 3.5


def test_full_fine_tuning_in_a_stack_equals_the_run_alone():
    run = sweep_rank.Run(sweep_rank.FULL, None, 1e-3, 1)
    stack = sweep_rank.stack_of([sweep_rank.Run(sweep_rank.FULL, None, 2e-3, 0), run], "cpu", torch.float64)
    model, tokenizer = models.load_base()
    model.requires_grad_(True).double()
    losses = stack.train(EXAMPLES, steps=6, batch_size=4)[:, 1].tolist()
    alone = loop.train(model, tokenizer, EXAMPLES, steps=6, lr=run.lr, batch_size=4, seed=run.seed, progress=False)
    assert losses == pytest.approx(alone, rel=5e-5) and alone[-1] < alone[0] * 0.97
    with pytest.raises(ValueError, match="two stacks"):
        sweep_rank.stack_of([run, RUNS[0]], "cpu")


def test_the_rules_meet_at_rank_16_and_nowhere_else():
    runs = sweep_rank.rule_runs((8, 16), (1e-3, 2e-3), (0,))
    assert [(run.r, run.lora_alpha, run.scaling) for run in runs[::2]] == [(8, 16, 2), (8, 32, 4), (16, 32, 2)]


def rule_results(dev, loss):
    """Results of one rank under both rules: by alpha and rate the accuracy and the loss on dev."""
    about = {"task": "translation", "batch_size": 16, "steps": 3, "targets": "all-linear", "r": 8}
    return [
        about | {"lora_alpha": alpha, "lr": lr, "seed": seed, "dev": dev[alpha][i], "test": i + seed / 10,
                 "dev_loss": loss[alpha][i], "test_loss": 1.0 + i}
        for alpha in (16, 32) for i, lr in enumerate((1e-3, 2e-3, 4e-3)) for seed in (0, 1)
    ]  # fmt: skip


def test_a_rules_row_has_the_best_rate_by_accuracy_and_by_loss():
    results = rule_results({16: (0.1, 0.2, 0.7), 32: (0.1, 0.5, 0.4)}, {16: (2, 1, None), 32: (1, 2, 3)})
    first, second = sweep_rank.rule_rows(results, {("all-linear", 8): 99})
    assert (first["rule"], first["scaling"], first["lr"], first["lr_by_loss"]) == ("alpha = 2r", 2, 4e-3, 2e-3)
    assert (second["rule"], second["scaling"], second["lr"], second["lr_by_loss"]) == ("alpha = 32", 4, 2e-3, 1e-3)
    assert first["lr_at_the_grids_edge"] and not second["lr_at_the_grids_edge"]
    assert first["test_by_seed"] == [2, 2.1] and second["test_by_seed"] == [1, 1.1]
    assert first["test_loss_mean"] == 2 and second["lr_by_seed"] == [2e-3, 2e-3]


def test_a_seed_without_all_its_rates_is_left_out():
    results = rule_results({16: (0.1, 0.2, 0.7), 32: (0.1, 0.5, 0.4)}, {16: (2, 1, 1), 32: (1, 2, 3)})
    cut = [x for x in results if (x["lora_alpha"], x["lr"], x["seed"]) != (32, 4e-3, 1)]
    assert len(cut) == 11 and len(sweep_rank.complete(results)) == 12
    assert [row["seeds"] for row in sweep_rank.rule_rows(sweep_rank.complete(cut), {("all-linear", 8): 99})] == [
        [0, 1], [0],
    ]  # fmt: skip


def test_no_stack_is_larger_than_its_limit():
    runs = sweep_rank.rule_runs((1, 2), sweep_rank.RULE_RATES, range(5))
    for batch_size in (4, 64, 256, 4000):
        parts = sweep_rank.split_up(runs, batch_size)
        assert [run for part in parts for run in part] == runs
        assert max(len(part) for part in parts) <= max(1, sweep_rank.TOKENS // (49 * batch_size))
