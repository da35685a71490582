"""Parity: how two models are trained side by side, and what ends it. Each variant's parity is tests/lora's matter."""

import math

import pytest
import torch

from tests.small_llama import small
from utils.data.labels import batches
from utils.evaluate.parity import differences, shake, trainable
from utils.lora import inject
from utils.models import load_tokenizer
from utils.tinyworld import task_examples
from utils.train.loop import Diverged

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def few():
    return list(batches(load_tokenizer(), task_examples("style", "train", 20), steps=4, batch_size=2, seed=0))


def adapted(seed=0):
    model = small()
    torch.manual_seed(seed)
    inject(model, "all-linear", 2, 4)
    return model


def test_equal_models_have_no_difference_and_another_start_has(few):
    assert differences(adapted(), adapted(), few) == (0, 0, 0, 0)
    found = differences(adapted(), adapted(seed=1), few)
    assert min(found) > 1e-3


def test_nothing_is_clipped_scheduled_or_decayed(few):
    """The numbers after the last step, by hand: AdamW without decay at one rate, on the gradients as they are."""
    ours, theirs = adapted(), adapted()
    seen = []
    differences(ours, theirs, few, lr=1e-2, after_step=(lambda step: seen.append(norm(ours)), None))
    by_hand = adapted()
    shake(by_hand)
    optimizer = torch.optim.AdamW([{"params": list(trainable(by_hand).values())}], lr=1e-2, eps=1e-4, weight_decay=0.0)
    norms = []
    for batch in few[:-1]:
        by_hand.train()(**batch).loss.backward()
        norms.append(norm(by_hand))
        optimizer.step()
        optimizer.zero_grad()
    assert seen == norms
    assert all(torch.equal(p, trainable(by_hand)[n]) for n, p in trainable(ours).items())


def norm(model):
    return torch.stack([p.grad.norm() for p in trainable(model).values()]).norm().item()


@pytest.mark.parametrize(("factor", "said"), [(math.inf, "norm is (inf|nan)"), (math.nan, "norm is nan")])
def test_a_gradient_that_is_not_finite_is_no_parity(few, factor, said):
    """NaN differs from NaN by NaN, and a comparison with that is never true: it has to be said."""
    ours, theirs = adapted(), adapted()
    next(iter(trainable(theirs).values())).register_hook(lambda g: g * factor)
    with pytest.raises(Diverged, match=said):
        differences(ours, theirs, few)


def test_the_modes_stay(few):
    ours, theirs = adapted().eval(), adapted()
    differences(ours, theirs, few)
    assert not any(m.training for m in ours.modules()) and all(m.training for m in theirs.modules())


def test_a_float16_model_is_refused(few):
    """With loss scaling its first steps may be left out, and then nothing would be compared."""
    with pytest.raises(ValueError, match="load both in float32"):
        differences(adapted(), adapted().half(), few)
