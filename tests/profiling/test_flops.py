"""A step's arithmetic: counted by hand, and by playing a deep model through."""

from __future__ import annotations

import dataclasses

import pytest

from utils.models.configs import llama_config
from utils.profiling import flops
from utils.profiling.flops import step_flops
from utils.profiling.memory import Setup

SIZES = {"hidden": 32, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate": 48, "vocabulary": 100}
SMALL = Setup(llama_config(**SIZES), "full", batch=2, length=10)
LINEAR = 3 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48) + 32 * 100
FORWARD = 2 * 20 * LINEAR


def test_full_fine_tuning_goes_back_twice_as_long():
    assert step_flops(SMALL) == (FORWARD, 2 * FORWARD)
    assert step_flops(SMALL).total == 3 * FORWARD


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_lora_computes_no_gradient_of_what_is_frozen(method, attention):
    changes = {"method": method, "target_modules": ["down_proj"], "r": 1, "attention": attention}
    forward, backward = step_flops(dataclasses.replace(SMALL, **changes))
    thin = 3 * 2 * 20 * (48 + 32)
    assert forward == FORWARD + thin
    below = 2 * 20 * (32 * (32 + 16 + 16 + 32) + 2 * 32 * 48)  # the first block's layers before its down_proj
    frozen = FORWARD - below - 2 * 20 * 32 * 48  # the first block's down_proj gets an input that needs no gradient
    first_input = 2 * 20 * 48  # of the first lora_A: nothing before it trains
    assert backward == frozen + 2 * thin - first_input


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_shallow_models_tell_what_a_deep_one_computes(method, checkpointing):
    deep = dataclasses.replace(
        SMALL, model=llama_config(**{**SIZES, "layers": 7}), method=method, checkpointing=checkpointing
    )
    assert step_flops(deep) == flops._count(deep, 7)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_computes_the_blocks_twice(method):
    plain, again = (step_flops(dataclasses.replace(SMALL, method=method, checkpointing=on)) for on in (False, True))
    assert again.forward == plain.forward
    assert 0.5 * plain.forward < again.backward - plain.backward < plain.forward
    if method == "full":
        head, last = 2 * 20 * 32 * 100, 3 * 2 * 20 * 48 * 32  # a block's last product is nobody's input within it
        assert again.backward - plain.backward == FORWARD - head - last


def test_a_target_that_isnt_there_is_named():
    with pytest.raises(ValueError, match="q_porj"):
        step_flops(dataclasses.replace(SMALL, method="lora", target_modules=["q_porj"]))
