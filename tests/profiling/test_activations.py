"""What autograd keeps, counted: with data, without data, and with gradient checkpointing."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from utils.models.configs import llama_config
from utils.profiling.activations import checkpoint_blocks, is_checkpointing, saved_activation_bytes

torch.set_num_threads(1)


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


# ------------------------------------------------------------------------------------------------- the two switches


def test_checkpointing_is_switched_on_and_off_without_a_warning(recwarn):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        llama_config(hidden=32, layers=1, heads=4, intermediate=48, vocabulary=100)
    )
    states = [is_checkpointing(model)]
    for on in (True, False):
        checkpoint_blocks(model, on)
        states.append(is_checkpointing(model))
    assert states == [False, True, False]
    assert [str(warning.message) for warning in recwarn] == []


def test_a_model_that_cant_checkpoint_is_refused():
    with pytest.raises(ValueError, match="Linear can't checkpoint its blocks"):
        checkpoint_blocks(nn.Linear(2, 2))
    assert not is_checkpointing(nn.Linear(2, 2))


def test_saved_activations_are_what_the_backward_pass_needs():
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(5, 8)
    kept = saved_activation_bytes(layer, lambda: layer(x).sum())
    assert kept == x.nbytes, "a linear layer keeps its input for its weight's gradient, and its weight is a parameter"
    layer.requires_grad_(False)
    assert saved_activation_bytes(layer, lambda: layer(x).sum()) == 0


def test_a_tensor_that_two_layers_keep_is_counted_once():
    a, b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    x = torch.randn(5, 8)
    assert saved_activation_bytes(nn.ModuleList([a, b]), lambda: (a(x) + b(x)).sum()) == x.nbytes
