"""Counting: real models on the meta device, bytes of training, bytes that autograd keeps."""

import pytest
import torch
from torch import nn

from utils.lora import count_parameters, inject
from utils.models.configs import REAL_MODELS, lora_parameter_count, meta_model, real_config
from utils.profiling import memory
from utils.profiling.activations import saved_activation_bytes


@pytest.fixture(scope="module")
def llama():
    return meta_model("Llama-2-7B")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Llama-2-7B", 6_738_415_616), ("Mistral-7B", 7_241_732_096), ("GPT-3-175B", 174_604_259_328)],
)
def test_real_models_have_the_parameters_of_the_claims_ledger(name, parameters):
    model = meta_model(name)
    assert count_parameters(model)[1] == parameters
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_every_named_model_can_be_built_and_no_other():
    assert set(REAL_MODELS) == {"Llama-2-7B", "Mistral-7B", "GPT-3-175B"}
    with pytest.raises(ValueError, match=r"'Llama-3'.*Llama-2-7B"):
        real_config("Llama-3")


@pytest.mark.parametrize(
    ("targets", "r", "expected"),
    [
        (["q_proj", "v_proj"], 8, 4_194_304),
        (["q_proj", "k_proj", "v_proj", "o_proj"], 8, 8_388_608),
        ("all-linear", 16, 39_976_960),
    ],
)
def test_lora_parameters_of_llama_2_7b(llama, targets, r, expected):
    assert lora_parameter_count(llama, targets, r) == expected


def test_counting_lora_agrees_with_injecting_it():
    model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(3, 9, bias=False)})
    counted = lora_parameter_count(model, ["a", "b"], 2)
    inject(model, ["a", "b"], r=2, lora_alpha=4)
    assert count_parameters(model)[0] == counted == 2 * (10 + 12)


def test_a_rank_below_one_is_refused(llama):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        lora_parameter_count(llama, ["q_proj"], 0)


def test_full_finetuning_is_sixteen_bytes_a_parameter_either_way():
    n = 7_000_000_000
    assert memory.full_finetuning(n) == (4 * n, 4 * n, 8 * n)
    assert memory.full_finetuning(n).total == 112 * memory.GB
    assert memory.mixed_precision(n) == (2 * n, 2 * n, 12 * n)
    assert memory.full_finetuning(n, "bfloat16").total == 56 * memory.GB


def test_adam_really_holds_what_is_counted():
    model = nn.Linear(10, 10, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for name, t in state.items() if name != "step")
    held = model.weight.nbytes, model.weight.grad.nbytes, moments
    assert memory.full_finetuning(100) == held


def test_lora_holds_a_16_bit_base_and_a_training_adapter():
    state = memory.lora(6_738_415_616, 8_388_608)
    assert state.total == 2 * 6_738_415_616 + 16 * 8_388_608
    assert 1 - state.total / memory.full_finetuning(6_738_415_616).total == pytest.approx(0.874, abs=5e-4)


def test_qlora_holds_a_4_bit_base_and_a_training_adapter():
    state = memory.qlora(6_476_005_376, 262_410_240, 8_388_608)
    assert (state.weights - 4 * 8_388_608) / memory.GB == pytest.approx(3.866, abs=5e-4)
    assert (state.gradients, state.optimizer) == (4 * 8_388_608, 8 * 8_388_608)
    plain = memory.qlora(6_476_005_376, 262_410_240, 8_388_608, double=False)
    assert (plain.weights - state.weights) / memory.GB == pytest.approx(0.302, abs=5e-4)
    assert memory.qlora(64, 10, 1, kept_dtype="float32").weights - memory.qlora(64, 10, 1).weights == 20


@pytest.mark.parametrize(
    "call",
    [
        lambda: memory.qlora(0, 1, 1),
        lambda: memory.qlora(1, -1, 1),
        lambda: memory.qlora(1, 0, 0),
        lambda: memory.qlora(1, 0, 1, kept_dtype="nf4"),
        lambda: memory.full_finetuning(0),
        lambda: memory.mixed_precision(-1),
        lambda: memory.lora(1, 0),
        lambda: memory.full_finetuning(1, "float8"),
    ],
)
def test_bad_counts_and_dtypes_are_refused(call):
    with pytest.raises(ValueError, match=r"at least|float8|nf4"):
        call()


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
