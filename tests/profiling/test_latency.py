"""utils.profiling.latency: what is timed, in which order, and what is said of it."""

from __future__ import annotations

import statistics
from functools import partial

import pytest
import torch
from transformers.utils import ModelOutput

from utils.profiling import latency


def test_the_spread_is_median_and_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    found = latency.spread(values)
    assert found == (3.0, 2.0, 4.0, 5) and found.median == statistics.median(values)
    with pytest.raises(ValueError, match="at least 4"):
        latency.spread(values[:3])


class Counting:
    """A model that notes what goes through it."""

    def __init__(self):
        self.shapes = []

    def __call__(self, input_ids, use_cache, cache=None, logits_to_keep=0):
        self.shapes.append((tuple(input_ids.shape), cache))
        return ModelOutput(logits=torch.zeros(len(input_ids), 1, 5), cache="cache")


def test_a_round_is_one_prefill_and_a_pass_for_each_token_and_warm_up_does_not_count():
    model = Counting()
    work = partial(latency.one_round, model, torch.ones(2, 7, dtype=torch.long), 3)
    found = latency.in_turns({"base": work}, rounds=4, warm_up=2)["base"]
    assert model.shapes == 6 * [((2, 7), None), *3 * [((2, 1), "cache")]]
    assert found.prefill.runs == found.decode.runs == 4


def test_in_turns_every_way_is_called_in_every_round():
    calls = []
    works = {name: lambda n=name: calls.append(n) or (float(len(calls)), 1.0) for name in "ab"}
    found = latency.in_turns(works, rounds=4, warm_up=1)
    assert calls == ["a", "b"] * 5
    assert found["a"].prefill == latency.spread([3.0, 5.0, 7.0, 9.0]) and found["b"].decode.median == 1.0
    with pytest.raises(ValueError, match="at least 4"):
        latency.in_turns(works, rounds=3, warm_up=1)


def test_the_table_has_every_form_and_its_ratio_to_the_base():
    spreads = [latency.Spread(value, value, value, 4) for value in (2.0, 4.0, 3.0, 1.0)]
    found = {"base": latency.Latency(*spreads[:2]), "adapter": latency.Latency(*spreads[2:])}
    lines = latency.latency_table(found, "Some GPU").splitlines()
    assert [line.split()[0] for line in lines] == ["Some", "base", "adapter"]
    assert lines[1].split()[1:] == ["2.00", "1.00", "4.00", "1.00"]
    assert lines[2].split()[1:] == ["3.00", "1.50", "1.00", "0.25"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_without_a_gpu_it_says_so():
    assert latency.latency_on_this_gpu() == "there is no CUDA GPU here to measure"
