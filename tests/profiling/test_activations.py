"""What autograd keeps, counted: with data, without data, and with gradient checkpointing."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from utils.lora import inject
from utils.profiling import flops as module
from utils.profiling.activations import checkpoint_blocks, is_checkpointing, saved_activation_bytes
from utils.profiling.flops import dry_run

torch.set_num_threads(1)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_tensors_without_data_are_told_apart():
    """All of them have the address 0, so counting by address would see one."""

    def kept():
        layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        return saved_activation_bytes(layers, lambda: layers(torch.zeros(5, 8)).sum())

    with FakeTensorMode():
        without = kept()
    assert without == kept() == 4 * 5 * (8 + 16), "the first layer's input, and tanh's output, which the second takes"


def test_the_graph_is_let_go():
    """An operation that saves its own result must not keep itself alive."""
    gc.collect()
    layer = nn.Linear(8, 8)
    seen = []

    def forward():
        out = layer(torch.ones(2, 8)).tanh()
        seen.append(weakref.ref(out))
        return out.sum()

    gc.disable()
    try:
        saved_activation_bytes(layer, forward)
        assert seen[0]() is None
    finally:
        gc.enable()


def test_the_loss_can_still_go_backward():
    layer, losses = nn.Linear(4, 1), []
    saved_activation_bytes(layer, lambda: losses.append(layer(torch.ones(3, 4)).sum()) or losses[0])
    losses[0].backward()
    assert torch.equal(layer.weight.grad, torch.full((1, 4), 3.0))


# ------------------------------------------------------------------------------------------------------ dry runs


def small_config():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "real_config", lambda name: small_config())


@pytest.mark.parametrize("targets", [None, ATTENTION, "all-linear"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dry_run_counts_what_a_real_step_keeps(small, targets, checkpointing):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(small_config(), dtype=torch.float32, attn_implementation="sdpa").train()
    if targets:
        inject(model, targets, r=8, lora_alpha=16)
    if checkpointing:
        checkpoint_blocks(model)
    ids = torch.zeros(2, 10, dtype=torch.long)
    kept = saved_activation_bytes(model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
    assert dry_run("small", 2, 10, dtype="float32", target_modules=targets, checkpointing=checkpointing)[0] == kept


@pytest.mark.parametrize("targets", [None, ["q_proj", "lm_head"]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_shallow_models_tell_what_a_deep_one_takes(small, targets, checkpointing):
    """To the byte and to the operation: the deep one is played through block by block."""
    from utils.profiling import flops as module

    settings = {"dtype": "bfloat16", "target_modules": targets, "r": 4, "checkpointing": checkpointing}
    deep = module.dry_run("small", 2, 10, layers=7, **settings)
    assert deep == module._run("small", 2, 10, 7, **settings)


def test_the_arithmetic_of_a_step(small):
    linear = 3 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48) + 32 * 100
    forward = 2 * 20 * linear
    full = dry_run("small", 2, 10)
    assert (full.forward_flops, full.backward_flops) == (forward, 2 * forward)
    lora = dry_run("small", 2, 10, target_modules=["lm_head"], r=1)
    thin = 2 * 20 * (32 + 100)
    assert lora.forward_flops == forward + thin
    backward = 2 * thin - 2 * 20 * 32  # the input of lora_A needs no gradient
    assert lora.backward_flops == backward, "nothing below the head trains, and no frozen weight has a gradient"


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_checkpointing_keeps_less_and_computes_more(small, targets):
    plain, again = (dry_run("small", 4, 64, target_modules=targets, checkpointing=on) for on in (False, True))
    assert again.activations < 0.4 * plain.activations
    assert again.forward_flops == plain.forward_flops
    extra = again.backward_flops - plain.backward_flops
    assert 0.5 * plain.forward_flops < extra < plain.forward_flops


def test_a_16_bit_model_keeps_about_half(small):
    whole, half = (dry_run("small", 2, 10, dtype=dtype).activations for dtype in ("float32", "bfloat16"))
    assert 0.45 * whole < half < 0.75 * whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Llama-9"}, "no configuration of 'Llama-9'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"batch": 0}, "not 0 of 8"),
        ({"length": 0}, "not 1 of 0"),
        ({"target_modules": ["q_porj"]}, "q_porj"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dry_run(**{"name": "Llama-2-7B", "batch": 1, "length": 8, **changes})


# ------------------------------------------------------------------------------------------------- the two switches


def test_checkpointing_is_switched_on_and_off_without_a_warning(recwarn):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(small_config())
    states = [is_checkpointing(model)]
    for on in (True, False):
        checkpoint_blocks(model, on)
        states.append(is_checkpointing(model))
    assert states == [False, True, False]
    assert [str(warning.message) for warning in recwarn] == []


def test_an_older_transformers_has_the_older_name():
    class Older(nn.Module):
        called = ()

        def gradient_checkpointing_enable(self):
            self.called += ("on",)

        def gradient_checkpointing_disable(self):
            self.called += ("off",)

    model = Older()
    checkpoint_blocks(model)
    checkpoint_blocks(model, on=False)
    assert model.called == ("on", "off")


def test_a_model_that_cant_checkpoint_is_refused():
    with pytest.raises(ValueError, match="Linear can't checkpoint its blocks"):
        checkpoint_blocks(nn.Linear(2, 2))
    assert not is_checkpointing(nn.Linear(2, 2))
