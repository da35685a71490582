"""The stack of runs: padding, divergence of one run among others, and the choice of a rate."""

import math
import os
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from tests.small_llama import small
from tools.ensemble import Ensemble, at_best_rate, in_parts, mean_by_rate, number, results_of, story_rows
from utils.data.labels import batches
from utils.lora import inject
from utils.models import load_tokenizer
from utils.tinyworld import task_examples
from utils.train import loop

torch.set_num_threads(1)

EXAMPLES = task_examples("style", "train", 40)


def adapted(r=2, seed=0):
    model = small()
    torch.manual_seed(seed)
    inject(model, "all-linear", r, 2 * r)
    return model


def start_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def stack_of(rates, **settings):
    """Runs of rank 2 with these rates."""
    starts = [start_of(adapted()) for _ in rates]
    return Ensemble(adapted(), load_tokenizer(), starts, rates, [0] * len(rates), device="cpu", **settings)


def test_what_a_smaller_run_lacks_stays_zero():
    """A run of rank 1 with one target in a stack of rank 4 with all: padded rows and absent layers never move."""
    small_run, name = start_of(adapted(r=1)), "model.layers.0.self_attn.q_proj"
    one = {n: t for n, t in small_run.items() if n.startswith(name)}
    assert len(one) == 2
    stack = Ensemble(adapted(r=4), load_tokenizer(), [one, start_of(adapted(r=4))], [1e-2] * 2, [0, 0], device="cpu")
    stack.train(EXAMPLES, steps=4, batch_size=2)
    for n, p in stack.parameters.items():
        mine = p[0]
        if n in one:
            assert mine[tuple(map(slice, one[n].shape))].ne(0).any()
            mine = mine.clone()
            mine[tuple(map(slice, one[n].shape))] = 0
        assert mine.eq(0).all() and p[1].ne(0).any(), n


def test_a_run_that_diverges_is_marked_and_the_others_go_on():
    """loop.train would raise Diverged for it alone."""
    stack, alone = stack_of([2e-3, 1e30, 4e-3]), stack_of([2e-3, 4e-3])
    losses, theirs = (s.train(EXAMPLES, steps=6, batch_size=2) for s in (stack, alone))
    assert stack.diverged.tolist() == [False, True, False]
    torch.testing.assert_close(losses[:, [0, 2]], theirs)
    rows = story_rows(stack.tokenizer, 2, 32)
    perplexity = stack.perplexity(rows)
    assert [math.isfinite(p) for p in perplexity] == [True, False, True]
    assert [number(p, 3) for p in perplexity][1] is None and stack.exact_match(EXAMPLES[:4])[1] == 0
    with pytest.raises(loop.Diverged):
        loop.train(adapted(), stack.tokenizer, EXAMPLES, steps=6, lr=1e30, batch_size=2, progress=False)


@pytest.mark.parametrize("extra", [lambda x: (x - x.detach()).sqrt().sum(), lambda x: x.sum() * 0 + math.inf])
def test_an_infinite_gradient_or_added_loss_marks_a_run(extra):
    """The root of zero has an infinite derivative. The loss that is returned is finite in both cases."""
    stack = stack_of([1e-3, 1e-3])
    name = next(n for n in stack.parameters if "lora_A" in n)
    losses = stack.train(EXAMPLES, steps=1, batch_size=2, extra_loss=lambda parameters: extra(parameters[name]))
    assert losses.isfinite().all() and stack.diverged.all()


RESULTS = [
    {"lr": lr, "seed": seed, "dev": dev, "perplexity": perplexity}
    for lr, seed, dev, perplexity in [
        (1e-3, 0, 0.5, 2.0), (1e-3, 1, 0.7, 4.0), (4e-3, 0, 0.9, None), (4e-3, 1, 0.1, 8.0), (2e-2, 0, 0.0, None),
        (2e-2, 1, 0.0, None),
    ]
]  # fmt: skip


def test_the_best_rate_is_the_one_with_the_best_mean_on_dev():
    assert [r["seed"] for r in at_best_rate(RESULTS)] == [0, 1]
    assert {r["lr"] for r in at_best_rate(RESULTS)} == {1e-3}


def test_means_by_rate_leave_out_what_is_no_number():
    assert mean_by_rate(RESULTS, "perplexity", 3) == {"0.001": 3.0, "0.004": 8.0, "0.02": None}
    assert mean_by_rate(RESULTS, "dev", 2) == {"0.001": 0.6, "0.004": 0.5, "0.02": 0.0}


def test_the_best_rate_by_loss_is_the_one_with_the_lowest_and_never_one_that_diverged():
    assert {r["lr"] for r in at_best_rate(RESULTS, "perplexity", lowest=True)} == {1e-3}
    assert {r["lr"] for r in at_best_rate(RESULTS[:4], "dev", lowest=True)} == {4e-3}


def test_each_run_may_have_examples_of_its_own_and_its_loss_is_the_models():
    """By seed; a run is the same as in a stack where all have its examples."""
    other = task_examples("sentiment", "train", 40)
    starts, rates = [start_of(adapted(seed=s)) for s in (0, 1)], [4e-3, 8e-3]
    own, same = (Ensemble(adapted(), load_tokenizer(), starts, rates, [0, 1], device="cpu") for _ in range(2))
    losses = own.train({0: EXAMPLES, 1: other}, steps=4, batch_size=2)
    theirs = same.train(other, steps=4, batch_size=2)
    torch.testing.assert_close(losses[:, 1], theirs[:, 1])
    assert (losses[:, 0] - theirs[:, 0]).abs().max() > 1e-3
    exact, loss = own.marks({0: EXAMPLES, 1: other}, chunk=7)
    model = adapted().eval()
    model.load_state_dict({n: p[1] for n, p in own.parameters.items()}, strict=False)
    (batch,) = batches(load_tokenizer(), other, steps=1, batch_size=40, seed=0)
    assert loss[1] == pytest.approx(model(**batch).loss.item(), rel=1e-5) and exact == [0, 0]


def doubled(job):
    return [{"job": 2 * job}]


@pytest.mark.parametrize("workers", [0, 1])
def test_jobs_are_all_measured_in_any_number_of_processes(workers):
    found = [x["job"] for part in results_of(doubled, [1, 2, 3], workers=workers) for x in part]
    assert sorted(found) == [2, 4, 6]


def doubled_but_2(job):
    return doubled(job) if job != 2 else 1 / 0


def test_a_job_that_fails_loses_none_of_the_others():
    found = []
    with pytest.raises(ZeroDivisionError):
        for part in results_of(doubled_but_2, [2, 3], workers=1):
            found += part
    assert found == [{"job": 6}]


def dies(job):
    os._exit(1)


def test_a_process_that_dies_ends_the_whole_and_is_not_waited_for():
    """With multiprocessing's Pool the result of a process that died never came, and nothing said so."""
    with pytest.raises(BrokenProcessPool):
        list(results_of(dies, [1], workers=1, seconds=60))


def test_what_runs_after_the_time_is_given_up():
    began = time.monotonic()
    assert list(results_of(time.sleep, [0.0, 600.0], workers=2, seconds=20)) == [None]
    assert time.monotonic() - began < 60


def test_no_job_begins_after_the_time_is_over():
    assert list(results_of(doubled, [1, 2], workers=0, seconds=0)) == []


def test_what_the_memory_cant_hold_is_measured_in_halves():
    asked = []

    def measure(runs):
        asked.append(list(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError
        return [{"run": run} for run in runs]

    assert [x["run"] for x in in_parts(measure, range(5))] == [0, 1, 2, 3, 4]
    assert asked == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]
