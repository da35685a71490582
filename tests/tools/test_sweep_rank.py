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
]
EXAMPLES = task_examples("style", "train", 100)


@pytest.fixture(scope="module")
def together():
    """The losses of the runs in one stack, in float64."""
    return sweep_rank.stack_of(RUNS, "cpu", torch.float64).train(EXAMPLES, steps=12, batch_size=4)


@pytest.mark.parametrize("index", range(3))
def test_a_run_of_the_stack_equals_the_run_alone(together, index):
    """Of three targets and three ranks: what is filled up with zeros takes no part."""
    run = RUNS[index]
    model, tokenizer = models.load_base()
    torch.manual_seed(run.seed)
    lora.inject(model, list(sweep_rank.TARGETS[run.targets]), run.r, 2 * run.r)
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
