"""LoRALinear and its way into a model: equalities in float64, properties, every error with nothing half-changed."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils import lora
from utils.lora import LoRALinear, inject

torch.set_num_threads(1)
QUICK = settings(deadline=None, derandomize=True, max_examples=60)
F64 = {"rtol": 1e-12, "atol": 1e-12}
"""float64 rounds at 1.1e-16; sums of a few hundred products of numbers near 1 stay four orders below this."""
F32 = {"rtol": 1e-5, "atol": 1e-5}
"""float32 rounds at 6e-8; sums of a few hundred products of numbers near 1 stay an order below this."""

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def layer_of(d_in, d_out, r, alpha=4.0, *, dtype=torch.float64, seed=0, bias=True, dropout=0.0, filled=True):
    """A LoRALinear of this shape; `filled` gives lora_B values, as training would."""
    torch.manual_seed(seed)
    layer = LoRALinear(nn.Linear(d_in, d_out, bias=bias, dtype=dtype), r, alpha, dropout)
    if filled:
        nn.init.normal_(layer.lora_B)
    return layer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.norm, self.act = nn.LayerNorm(6), nn.ReLU()

    def forward(self, x):
        return x + self.v_proj(self.act(self.q_proj(self.norm(x))))


class Net(nn.Module):
    """Two blocks between an embedding and a head that shares its weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.my_q_proj = nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.my_q_proj(x))


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net()


IDS = torch.arange(10)[None]


def fill(model, seed=1):
    """Give every lora_B values, as training would."""
    torch.manual_seed(seed)
    for layer in lora.lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    return model


def state(model):
    """Everything about a model that an error may not change."""
    return (
        {name: type(module) for name, module in model.named_modules()},
        {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()},
        model.training,
    )


def assert_unchanged(model, before):
    modules, parameters, training = state(model)
    assert modules == before[0] and training == before[2]
    assert parameters.keys() == before[1].keys()
    for name, (grad, value) in parameters.items():
        assert grad == before[1][name][0], name
        assert torch.equal(value, before[1][name][1]), name


# ----------------------------------------------------------------------------------------------------- the layer itself


@QUICK
@given(shape=shapes, r=st.integers(1, 12), alpha=st.floats(0.5, 64), bias=st.booleans(), seed=st.integers(0, 99))
def test_a_new_layer_computes_exactly_what_its_base_computes(shape, r, alpha, bias, seed):
    d_in, d_out = shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = layer_of(d_in, d_out, r, alpha, seed=seed, bias=bias, dtype=torch.float32, filled=False)
    x = torch.randn(3, d_in)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert torch.count_nonzero(layer.lora_A) == layer.lora_A.numel()


@QUICK
@given(shape=shapes, r=st.integers(1, 12), alpha=st.floats(0.5, 64), bias=st.booleans(), seed=st.integers(0, 99))
def test_the_layer_computes_the_papers_formula(shape, r, alpha, bias, seed):
    d_in, d_out = shape
    r = min(r, *shape)
    layer = layer_of(d_in, d_out, r, alpha, seed=seed, bias=bias)
    W, A, B = layer.base_layer.weight, layer.lora_A, layer.lora_B
    assert A.shape == (r, d_in) and B.shape == (d_out, r)
    assert layer.scaling == alpha / r
    torch.testing.assert_close(layer.delta_weight(), (alpha / r) * B @ A, **F64)
    x = torch.randn(2, 3, d_in, dtype=torch.float64)
    expected = F.linear(x, W + (alpha / r) * (B @ A), layer.base_layer.bias)
    torch.testing.assert_close(layer(x), expected, **F64)
    assert torch.linalg.matrix_rank(layer.delta_weight()) <= r


@QUICK
@given(shape=shapes, r=st.integers(1, 12), bias=st.booleans(), seed=st.integers(0, 99))
def test_merging_changes_the_weight_and_not_the_function(shape, r, bias, seed):
    d_in, d_out = shape
    layer = layer_of(d_in, d_out, min(r, *shape), seed=seed, bias=bias)
    x, before = torch.randn(3, d_in, dtype=torch.float64), layer.base_layer.weight.clone()
    y = layer(x)
    layer.merge()
    assert layer.merged
    torch.testing.assert_close(layer.base_layer.weight, before + layer.delta_weight(), **F64)
    torch.testing.assert_close(layer(x), y, **F64)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.unmerge()
    assert not layer.merged
    torch.testing.assert_close(layer.base_layer.weight, before, **F64)
    torch.testing.assert_close(layer(x), y, **F64)


def test_a_layer_merges_once_and_unmerges_once():
    layer = layer_of(5, 4, 2)
    with pytest.raises(RuntimeError, match="nothing to take out"):
        layer.unmerge()
    layer.merge()
    weight = layer.base_layer.weight.clone()
    with pytest.raises(RuntimeError, match="merged already.*Call unmerge first"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, weight) and layer.merged


@pytest.mark.parametrize("d_in", [50, 200, 1000])
def test_lora_a_begins_with_the_spread_that_its_docstring_says(d_in):
    layer = layer_of(d_in, 64, 40, filled=False)
    bound = 1 / math.sqrt(d_in)
    assert layer.lora_A.abs().max() <= bound
    # 40 * d_in draws: the spread of a uniform sample's standard deviation is about 0.45/sqrt(n), at most 1%.
    assert layer.lora_A.std().item() == pytest.approx(1 / math.sqrt(3 * d_in), rel=0.04)
    assert not layer.lora_B.any()


def test_autograd_agrees_with_finite_differences():
    layer = layer_of(5, 4, 2, alpha=3.0)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def function(x, a, b):
        return torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x,))

    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    assert torch.autograd.gradcheck(function, (x, a, b))
    assert torch.autograd.gradgradcheck(function, (x, a, b))


def test_at_the_start_only_lora_b_gets_a_gradient():
    layer = layer_of(5, 4, 2, filled=False)
    layer(torch.randn(3, 5, dtype=torch.float64)).square().sum().backward()
    assert not layer.lora_A.grad.any() and layer.lora_B.grad.any()
    assert layer.base_layer.weight.grad is None and layer.base_layer.bias.grad is None


def test_only_the_two_matrices_train_and_the_base_is_the_layer_itself():
    base = nn.Linear(5, 4)
    layer = LoRALinear(base, 2, 4)
    assert layer.base_layer is base
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


@pytest.mark.parametrize(
    ("base", "matrices"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ],
)
def test_matrices_are_float32_or_better_and_the_output_has_the_bases_dtype(base, matrices):
    layer = layer_of(8, 6, 2, dtype=base)
    assert layer.lora_A.dtype == layer.lora_B.dtype == matrices
    y = layer(torch.randn(3, 8, dtype=base))
    assert y.dtype == base
    layer.merge()
    assert layer.base_layer.weight.dtype == base


def test_merging_into_bf16_is_right_up_to_its_rounding():
    layer = layer_of(32, 16, 4, dtype=torch.bfloat16)
    exact = layer.base_layer.weight.float() + layer.delta_weight()
    layer.merge()
    # bf16 keeps 8 bits: the correction and the sum are each rounded by at most 2^-9 of what they are.
    rounding = 2**-8 * (exact.abs() + layer.delta_weight().abs())
    assert (layer.base_layer.weight.float() - exact).abs().le(rounding).all()


def test_dropout_acts_on_the_correction_alone_and_keeps_its_mean():
    layer = layer_of(64, 8, 4, dropout=0.3)
    x = torch.randn(1, 64, dtype=torch.float64)
    layer.eval()
    plain, base = layer(x), layer.base_layer(x)
    assert torch.equal(layer(x), plain)
    layer.train()
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    mask = F.dropout(torch.ones_like(x), 0.3)
    torch.testing.assert_close(y, base + (x * mask) @ layer.delta_weight().T, **F64)
    many = layer(x.expand(20_000, -1))
    spread = many.std(0) / math.sqrt(20_000)
    assert (many.mean(0) - plain[0]).abs().le(5 * spread).all()  # five standard errors


def test_a_layer_takes_over_the_mode_of_its_base():
    assert not LoRALinear(nn.Linear(3, 3).eval(), 1, 1, 0.5).lora_dropout.training
    assert LoRALinear(nn.Linear(3, 3), 1, 1, 0.5).lora_dropout.training


def test_the_layer_prints_what_it_is():
    assert "r=2, lora_alpha=4, merged=False\n" in repr(LoRALinear(nn.Linear(3, 3), 2, 4))
    assert "merged=False, variant=DoRA()" in repr(LoRALinear(nn.Linear(3, 3), 2, 4, variant=lora.DoRA()))


def test_a_copied_layer_is_independent():
    layer = layer_of(4, 4, 2)
    other = copy.deepcopy(layer)
    other.merge()
    assert not layer.merged and not torch.equal(layer.base_layer.weight, other.base_layer.weight)


# ------------------------------------------------------------------------------------------------------ into a model


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q_proj"], ["blocks.0.q_proj", "blocks.1.q_proj"]),
        (["v_proj", "q_proj"], [f"blocks.{i}.{p}_proj" for i in range(2) for p in "qv"]),
        (["blocks.1.q_proj"], ["blocks.1.q_proj"]),
        (["1.q_proj", "q_proj"], ["blocks.0.q_proj", "blocks.1.q_proj"]),
        (("my_q_proj",), ["my_q_proj"]),
        ("all-linear", [*(f"blocks.{i}.{p}_proj" for i in range(2) for p in "qv"), "my_q_proj"]),
    ],
)
def test_targets_are_found_by_the_last_parts_of_their_names(net, targets, names):
    assert lora.find_targets(net, targets) == names
    assert inject(net, targets, 2, 4) == names
    assert list(lora.lora_layers(net)) == names


def test_nothing_changes_before_training_and_only_the_matrices_train(net):
    before = net(IDS)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    names = inject(net, "all-linear", 2, 4)
    assert torch.equal(net(IDS), before)
    trainable = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.{matrix}" for name in names for matrix in ("lora_A", "lora_B")}
    assert lora.count_parameters(net) == (len(names) * 2 * (6 + 6), sum(p.numel() for p in net.parameters()))
    net(IDS).square().sum().backward()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    assert not torch.equal(net(IDS), before)
    lora.remove(net)
    assert {name: True for name, p in net.named_parameters() if torch.equal(p, weights[name])}.keys() == weights.keys()
    assert torch.equal(net(IDS), before)


def test_the_shared_head_is_counted_once(net):
    counted = lora.count_parameters(net)[1]
    assert counted == 10 * 6 + 2 * (36 + 6 + 36 + 12) + 42


def test_injection_keeps_the_models_mode(net):
    inject(net.eval(), ["q_proj"], 2, 4, 0.5)
    assert not any(module.training for module in net.modules())


def test_merge_and_unmerge_of_a_model(net):
    inject(net, "all-linear", 2, 4)
    fill(net)
    y = net(IDS)
    base = {name: layer.base_layer.weight.clone() for name, layer in lora.lora_layers(net).items()}
    lora.merge(net)
    torch.testing.assert_close(net(IDS), y, **F32)
    lora.unmerge(net)
    torch.testing.assert_close(net(IDS), y, **F32)
    for name, layer in lora.lora_layers(net).items():
        torch.testing.assert_close(layer.base_layer.weight, base[name], **F32)


def test_disabled_gives_the_base_and_puts_back_what_was(net):
    base = net(IDS)
    inject(net, "all-linear", 2, 4)
    y = fill(net)(IDS)
    assert not torch.allclose(y, base)
    with lora.disabled(net):
        assert torch.equal(net(IDS), base)
        with lora.disabled(net):
            pass
        assert torch.equal(net(IDS), base)
    assert torch.equal(net(IDS), y)
    with pytest.raises(KeyError), lora.disabled(net):
        raise KeyError("inside")
    assert torch.equal(net(IDS), y)


def test_after_remove_another_lora_can_come(net):
    base = net(IDS)
    inject(net, ["q_proj"], 2, 4)
    fill(net)
    lora.remove(net)
    assert lora.lora_layers(net) == {} and torch.equal(net(IDS), base)
    assert inject(net, ["v_proj"], 3, 6)


# ------------------------------------------------------------------------------------------------------------- errors

HYPERPARAMETERS = [
    ((0, 4, 0.0), ValueError, "at least 1, not 0"),
    ((-3, 4, 0.0), ValueError, "at least 1, not -3"),
    ((2.0, 4, 0.0), TypeError, "whole number.* not 2.0"),
    ((True, 4, 0.0), TypeError, "whole number.* not True"),
    (("8", 4, 0.0), TypeError, "whole number.* not '8'"),
    ((2, 0, 0.0), ValueError, "lora_alpha must be positive, not 0"),
    ((2, -1.5, 0.0), ValueError, "lora_alpha must be positive, not -1.5"),
    ((2, math.nan, 0.0), ValueError, "lora_alpha must be positive, not nan"),
    ((2, math.inf, 0.0), ValueError, "lora_alpha must be finite, not inf"),
    ((2, "16", 0.0), TypeError, "lora_alpha must be a number such as 16, not '16'"),
    ((2, True, 0.0), TypeError, "lora_alpha must be a number.* not True"),
    ((2, 4, None), TypeError, "lora_dropout must be a number such as 0.05, not None"),
    ((2, 4, "0.1"), TypeError, "lora_dropout must be a number.* not '0.1'"),
    ((2, 4, 1.0), ValueError, "lora_dropout .* can't be 1.0"),
    ((2, 4, -0.1), ValueError, "lora_dropout .* can't be -0.1"),
]


@pytest.mark.parametrize(("values", "error", "words"), HYPERPARAMETERS)
def test_hyperparameters_that_no_layer_can_have(net, values, error, words):
    base = nn.Linear(4, 4)
    with pytest.raises(error, match=words):
        LoRALinear(base, *values)
    assert base.weight.requires_grad and base.bias.requires_grad
    before = state(net)
    with pytest.raises(error, match=words):
        inject(net, ["q_proj"], *values)
    assert_unchanged(net, before)


def test_numbers_of_numpy_are_taken_as_pythons_own(net):
    inject(net, ["q_proj"], np.int64(2), np.float32(4), np.float64(0.5), lora.RsLoRA())
    layer = net.blocks[0].q_proj
    assert [type(value) for value in (layer.r, layer.lora_alpha, layer.lora_dropout.p)] == [int, float, float]
    assert (layer.r, layer.lora_alpha, layer.scaling) == (2, 4.0, 4 / math.sqrt(2))
    assert LoRALinear(nn.Linear(4, 4), np.uint8(2), variant=lora.VeRA()).r == 2
    with pytest.raises(TypeError, match="whole number"):
        LoRALinear(nn.Linear(4, 4), np.float64(2), 4)


def test_the_weight_and_the_bias_are_the_base_layers_and_counted_once(net):
    """T5 asks its layer wo for weight.dtype; PEFT's layer answers in the same way."""
    names, count = set(net.state_dict()), sum(p.numel() for p in net.parameters())
    inject(net, "all-linear", 2, 4)
    layer = net.blocks[0].q_proj
    assert layer.weight is layer.base_layer.weight and layer.bias is layer.base_layer.bias
    assert net.blocks[0].v_proj.bias is None
    made = {name for name in net.state_dict() if "lora_" in name}
    assert {name.replace(".base_layer", "") for name in set(net.state_dict()) - made} == names
    assert sum(p.numel() for p in net.parameters()) == count + lora.count_parameters(net)[0]
    with pytest.raises(KeyError, match="already exists"):
        layer.weight = nn.Parameter(torch.zeros(6, 6))


def test_a_weight_in_8_bit_floating_point_is_refused(net):
    net.blocks[1].v_proj.weight = nn.Parameter(torch.zeros(6, 6).to(torch.float8_e4m3fn), requires_grad=False)
    before = [type(module) for module in net.modules()]
    with pytest.raises(TypeError, match="float8_e4m3fn.*load the base in torch.bfloat16"):
        inject(net, ["v_proj"], 2, 4)
    assert [type(module) for module in net.modules()] == before and net.embed.weight.requires_grad


@QUICK
@given(
    targets=st.sampled_from([["q_proj"], "all-linear", ["q_proj", "nothing"], ["norm"], ["head"], "q_proj", []]),
    r=st.sampled_from([2, np.int64(3), 6, 0, 2.5, None, "8"]),
    alpha=st.sampled_from([4, np.float32(2), None, 0, -1.0, math.nan, math.inf, "16"]),
    dropout=st.sampled_from([0.0, 0.5, 1.0, None]),
    variant=st.sampled_from([lora.LoRA(), lora.RsLoRA(), lora.DoRA(), lora.PiSSA(), lora.VeRA(), lora.DoRA, None]),
    fault=st.sampled_from([None, None, "float8", "NaN"]),
)
def test_inject_gives_a_layer_or_leaves_the_model_as_it_was(targets, r, alpha, dropout, variant, fault):
    net = Net()
    if fault:
        weight = torch.full((6, 6), math.nan) if fault == "NaN" else torch.ones(6, 6).to(torch.float8_e4m3fn)
        net.blocks[1].q_proj.weight = nn.Parameter(weight, requires_grad=fault == "NaN")
    before = {name: (id(p), p._version, p.requires_grad) for name, p in net.named_parameters()}
    kinds = {name: type(module) for name, module in net.named_modules()}
    try:
        names = inject(net, targets, r, alpha, dropout, variant)
    except (TypeError, ValueError):
        assert {name: (id(p), p._version, p.requires_grad) for name, p in net.named_parameters()} == before
        assert {name: type(module) for name, module in net.named_modules()} == kinds
    else:
        assert names == list(lora.lora_layers(net)) and fault != "float8"


def test_a_missing_alpha_is_named(net):
    with pytest.raises(TypeError, match="lora_alpha is missing.*Take 2"):
        LoRALinear(nn.Linear(4, 4), 2)
    before = state(net)
    with pytest.raises(TypeError, match="lora_alpha is missing"):
        inject(net, ["q_proj"], 2)
    assert_unchanged(net, before)


@pytest.mark.parametrize(
    ("variant", "words"), [(lora.DoRA, r"the class DoRA: make an object of it, DoRA\(\)"), ("dora", "not 'dora'")]
)
def test_a_variant_is_an_object(net, variant, words):
    with pytest.raises(TypeError, match=words):
        LoRALinear(nn.Linear(4, 4), 2, 4, variant=variant)
    before = state(net)
    with pytest.raises(TypeError, match=words):
        inject(net, ["q_proj"], 2, 4, variant=variant)
    assert_unchanged(net, before)


def test_a_rank_above_full_rank_warns_and_still_computes_the_formula():
    with pytest.warns(UserWarning, match="r=9 is more than a 4 x 8 weight's full rank, 4"):
        layer = LoRALinear(nn.Linear(8, 4), 9, 18)
    assert layer.lora_A.shape == (9, 8) and layer.lora_B.shape == (4, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoRALinear(nn.Linear(8, 4), 4, 8)  # full rank itself is no reason to warn


def test_a_warning_made_an_error_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))  # the rank is too high for the second layer only
    before = state(model)
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        inject(model, "all-linear", 4, 8)
    assert_unchanged(model, before)


@pytest.mark.parametrize("base", [nn.Embedding(4, 4), nn.Conv1d(4, 4, 1), nn.ReLU()])
def test_only_linear_layers_are_wrapped(base):
    with pytest.raises(TypeError, match=f"wraps an nn.Linear, not {type(base).__name__}"):
        LoRALinear(base, 2, 4)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (["query"], ValueError, "'query' matches no module"),
        (["qproj"], ValueError, "Did you mean 'q_proj'"),
        (["q_proj", "k_proj"], ValueError, "'k_proj' matches no module"),
        (["proj"], ValueError, "'proj' matches no module.*called .*q_proj, v_proj"),
        ([""], ValueError, "'' matches no module"),
        ([], ValueError, "target_modules is empty"),
        ("q_proj", ValueError, "is the text 'q_proj': pass a list"),
        (["norm"], TypeError, "'norm' is a LayerNorm"),
        (["q_proj", "act"], TypeError, "'act' is a ReLU"),
        (["embed"], TypeError, "'embed' is a Embedding"),
        (["blocks"], TypeError, "'blocks' is a ModuleList"),
        (["head"], ValueError, "weight of 'head' is shared with 'embed'"),
    ],
)
def test_targets_that_cannot_be_meant(net, targets, error, words):
    before = state(net)
    with pytest.raises(error, match=words):
        inject(net, targets, 2, 4)
    assert_unchanged(net, before)


def test_a_model_without_linear_layers():
    with pytest.raises(ValueError, match="this Sequential has no linear layer"):
        inject(nn.Sequential(nn.ReLU()), "all-linear", 2, 4)


def test_a_model_that_is_one_linear_layer_is_not_half_frozen():
    model = nn.Linear(4, 4)
    before = state(model)
    with pytest.raises(TypeError, match=r"is itself one nn.Linear: use LoRALinear\("):
        inject(model, "all-linear", 2, 4)
    assert_unchanged(model, before)


def test_all_linear_refuses_a_tied_layer_that_no_one_declared_as_the_head(net, monkeypatch):
    monkeypatch.delattr(Net, "get_output_embeddings")
    before = state(net)
    with pytest.raises(ValueError, match="weight of 'head' is shared with 'embed'"):
        inject(net, "all-linear", 2, 4)
    assert_unchanged(net, before)


@pytest.mark.parametrize("targets", ["all-linear", ["0"]])
def test_one_layer_used_in_two_places_is_refused(targets):
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    before = state(model)
    with pytest.raises(ValueError, match="weight of '0' is shared with '2'"):
        inject(model, targets, 2, 4)
    assert_unchanged(model, before)


def test_wrap_changes_nothing_when_one_of_several_names_is_wrong(net):
    before = state(net)
    with pytest.raises(TypeError, match="not Embedding"):
        lora.wrap(net, ["blocks.0.q_proj", "embed"], 2, 4)
    with pytest.raises(AttributeError):
        lora.wrap(net, ["blocks.0.q_proj", "blocks.7.q_proj"], 2, 4)
    assert_unchanged(net, before)


@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj"], "all-linear"])
def test_a_second_injection_is_refused(net, targets):
    inject(net, ["q_proj"], 2, 4)
    fill(net)
    before = state(net)
    with pytest.raises(RuntimeError, match=r"LoRA on 2 layers already: call remove\(model\)"):
        inject(net, targets, 3, 6)
    assert_unchanged(net, before)


def test_merging_a_model_twice_changes_nothing(net):
    inject(net, "all-linear", 2, 4)
    lora.merge(fill(net))
    before = state(net)
    with pytest.raises(RuntimeError, match="merged already.*twice"):
        lora.merge(net)
    with pytest.raises(RuntimeError, match="unmerge first"):
        lora.remove(net)
    with pytest.raises(RuntimeError, match="unmerge first"), lora.disabled(net):
        pass
    assert_unchanged(net, before)


@pytest.mark.parametrize("which", [0, -1])
def test_a_model_merged_in_part_is_neither_merged_nor_unmerged_further(net, which):
    inject(net, "all-linear", 2, 4)
    layers = list(lora.lora_layers(fill(net)).values())
    layers[which].merge()
    before, flags = state(net), [layer.merged for layer in layers]
    with pytest.raises(RuntimeError, match="merged already"):
        lora.merge(net)
    with pytest.raises(RuntimeError, match="not merged"):
        lora.unmerge(net)
    assert_unchanged(net, before)
    assert [layer.merged for layer in layers] == flags


class Packed(nn.Linear):
    """A linear layer whose weight is codes, as quantization leaves it."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(torch.zeros_like(linear.weight, dtype=torch.uint8), requires_grad=False)


def mixed(net, which):
    """A model with LoRA in which one base is quantized."""
    inject(net, "all-linear", 2, 4)
    name = list(lora.lora_layers(fill(net)))[which]
    return name, net.get_submodule(name)


@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_base_that_is_quantized_in_part_is_not_merged_in_part(net, which):
    name, layer = mixed(net, which)
    plain = layer.base_layer
    layer.base_layer = Packed(plain)
    before = state(net)
    with pytest.raises(RuntimeError, match=f"base weight of {name} is quantized.*dequantize"):
        lora.merge(net)
    assert_unchanged(net, before)
    assert not any(layer.merged for layer in lora.lora_layers(net).values())
    layer.base_layer = plain  # and there is a way out
    lora.merge(net)
    lora.unmerge(net)
    lora.remove(net)


@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_base_that_was_quantized_after_the_merge_is_not_unmerged_in_part(net, which):
    name, layer = mixed(net, which)
    lora.merge(net)
    plain = layer.base_layer
    layer.base_layer = Packed(plain)
    before = state(net)
    with pytest.raises(RuntimeError, match=f"base weight of {name} was quantized in the meantime"):
        lora.unmerge(net)
    assert_unchanged(net, before)
    assert all(layer.merged for layer in lora.lora_layers(net).values())
    layer.base_layer = plain
    lora.unmerge(net)


@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_base_that_was_changed_and_then_quantized_is_not_taken_off_in_part(net, which):
    inject(net, "all-linear", 2, 4, variant=lora.PiSSA())
    name = list(lora.lora_layers(net))[which]
    layer = net.get_submodule(name)
    layer.base_layer = Packed(layer.base_layer)
    before = state(net)
    with pytest.raises(RuntimeError, match=f"base weight of {name} was quantized.*can't be put back"):
        lora.remove(net)
    assert_unchanged(net, before)


@pytest.mark.parametrize("which", [0, -1])
def test_plain_lora_comes_off_a_quantized_base(net, which):
    name, layer = mixed(net, which)
    layer.base_layer = Packed(layer.base_layer)
    lora.remove(net)
    assert isinstance(net.get_submodule(name), Packed)


@pytest.mark.parametrize("which", [0, -1])
def test_a_model_merged_in_part_is_neither_switched_off_nor_taken_off(net, which):
    name, layer = mixed(net, which)
    layer.merge()
    before = state(net)
    with pytest.raises(RuntimeError, match=f"1 of 5 layers are merged already.*{name} among these.*one by one"):
        lora.merge(net)
    with pytest.raises(RuntimeError, match="can't be taken off: call unmerge first"):
        lora.remove(net)
    with pytest.raises(RuntimeError, match="can't be switched off"), lora.disabled(net):
        pass
    assert_unchanged(net, before)
    assert all(layer.enabled for layer in lora.lora_layers(net).values())


# Each makes one layer of a model with LoRA, or of a merged one, unfit for what is asked.
FAULTS = {
    "quantized": lambda layer: setattr(layer, "base_layer", Packed(layer.base_layer)),
    "packed in floating point": lambda layer: setattr(
        layer.base_layer, "weight", nn.Parameter(torch.zeros(18, 1), requires_grad=False)
    ),
    "NaN in lora_A": lambda layer: layer.lora_A.data.fill_(math.nan),
    "infinity in lora_B": lambda layer: layer.lora_B.data[0].fill_(math.inf),
    "too large for float16": lambda layer: (layer.base_layer.half(), layer.lora_B.data.fill_(1e7)),
    "infinity in the base": lambda layer: layer.base_layer.weight.data[0].fill_(-math.inf),
}


@QUICK
@given(
    fault=st.sampled_from([*FAULTS, "tied"]),
    which=st.integers(0, 4),
    merged=st.booleans(),
    variant=st.sampled_from([lora.LoRA(), lora.RsLoRA(), lora.DoRA(), lora.PiSSA()]),
)
def test_what_is_refused_leaves_every_layer_as_it_was(fault, which, merged, variant):
    """merge, unmerge, remove and merge_and_unload over a model in which one layer is unfit: all of it, or nothing."""
    torch.manual_seed(3)
    net = Net()
    inject(net, "all-linear", 2, 4, variant=variant)
    fill(net)
    if merged:
        lora.merge(net)
    name = list(lora.lora_layers(net))[which]
    layer = net.get_submodule(name)
    if fault == "tied":
        net.norm_of_it = nn.Linear(6, 6)
        net.norm_of_it.weight = layer.base_layer.weight
    else:
        FAULTS[fault](layer)
    refused = 0
    for function in (lora.merge, lora.unmerge, lora.merge_and_unload, lora.remove):
        before, flags = state(net), [each.merged for each in lora.lora_layers(net).values()]
        try:
            function(net)
        except (RuntimeError, ValueError):
            refused += 1
            modules, parameters, _ = state(net)
            assert modules == before[0] and [each.merged for each in lora.lora_layers(net).values()] == flags
            for key, (grad, value) in parameters.items():
                assert grad == before[1][key][0] and torch.equal(value.nan_to_num(7), before[1][key][1].nan_to_num(7))
        else:
            break
    # DoRA's rows have the length that its magnitudes say, however large lora_B is
    assert refused or (fault == "too large for float16" and isinstance(variant, lora.DoRA))


@pytest.mark.parametrize("which", [0, 2, -1])
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("packed in floating point", RuntimeError, "is quantized"),
        ("NaN in lora_A", ValueError, "would hold nan: .*training went wrong"),
        ("infinity in lora_B", ValueError, "would hold (inf|nan)"),
        ("too large for float16", ValueError, r"would hold \d.* and torch.float16 ends at 65504: convert the base"),
        ("infinity in the base", ValueError, "would hold inf"),
    ],
)
def test_a_merge_that_one_layer_can_not_have_names_it_and_the_value(net, fault, error, words, which):
    inject(net, "all-linear", 2, 4)
    fill(net)
    name = list(lora.lora_layers(net))[which]
    FAULTS[fault](net.get_submodule(name))
    with pytest.raises(error, match=f"of {name} {words}"):
        lora.merge(net)
    with pytest.raises(error, match=f"of this layer {words}"):
        net.get_submodule(name).merge()
    assert not any(layer.merged for layer in lora.lora_layers(net).values())


def test_a_float16_base_that_is_made_wide_is_merged(net):
    inject(net, ["q_proj"], 2, 4)
    layer = net.blocks[0].q_proj
    FAULTS["too large for float16"](layer)
    with pytest.raises(ValueError, match="float16 ends"):
        lora.merge(net)
    lora.merge(net.float())  # what the message says
    assert layer.base_layer.weight.abs().max() > 65504


def test_a_weight_tied_after_injection_is_not_merged(net):
    inject(net, ["q_proj"], 2, 4)
    net.my_q_proj.weight = net.blocks[1].q_proj.base_layer.weight
    before = state(fill(net))
    with pytest.raises(ValueError, match="weight of 'blocks.1.q_proj.base_layer' is shared with 'my_q_proj'"):
        lora.merge(net)
    assert_unchanged(net, before)
    assert not any(layer.merged for layer in lora.lora_layers(net).values())


def test_wrap_refuses_a_tied_layer(net):
    before = state(net)
    with pytest.raises(ValueError, match="weight of 'head' is shared with 'embed'.*weight of its own"):
        lora.wrap(net, ["blocks.0.q_proj", "head"], 2, 4)
    assert_unchanged(net, before)
    net.head.weight = nn.Parameter(net.head.weight.detach().clone())  # what the message says
    lora.wrap(net, ["head"], 2, 4)


def test_merge_and_unload_gives_a_plain_model(net):
    names = {name: type(module) for name, module in net.named_modules()}
    inject(net, "all-linear", 2, 4)
    y = fill(net)(IDS)
    net.blocks[0].q_proj.merge()  # one is merged already: the rest is
    assert lora.merge_and_unload(net) is net
    assert {name: type(module) for name, module in net.named_modules()} == names
    torch.testing.assert_close(net(IDS), y, **F32)
    with pytest.raises(RuntimeError, match="no LoRA layers"):
        lora.merge_and_unload(net)


@pytest.mark.parametrize("function", [lora.remove, lora.merge_and_unload])
def test_a_layer_alone_is_no_model_to_take_it_out_of(function):
    layer = layer_of(4, 4, 2)
    before = state(layer)
    with pytest.raises(TypeError, match=r"itself one LoRALinear: release\(\)"):
        function(layer)
    assert_unchanged(layer, before)
    assert not layer.merged


@pytest.mark.parametrize("function", [lora.merge, lora.unmerge, lora.remove, lora.merge_and_unload])
def test_without_lora_there_is_nothing_to_do(net, function):
    with pytest.raises(RuntimeError, match="no LoRA layers: call inject"):
        function(net)
    with pytest.raises(RuntimeError, match="no LoRA layers"), lora.disabled(net):
        pass


def test_unmerging_a_model_that_is_not_merged(net):
    inject(net, ["q_proj"], 2, 4)
    before = state(fill(net))
    with pytest.raises(RuntimeError, match="not merged"):
        lora.unmerge(net)
    assert_unchanged(net, before)
