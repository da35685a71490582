"""The fused form: derivatives by finite differences, equality with the plain layer and PEFT, bytes kept, failures."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils import lora, models
from utils.lora import LoRALinear, fused
from utils.lora.fused import SHARE, use_fused
from utils.profiling.activations import saved_activation_bytes
from utils.profiling.traffic import operations

torch.set_num_threads(1)
QUICK = settings(deadline=None, derandomize=True, max_examples=60)
F64 = {"rtol": 1e-12, "atol": 1e-12}
"""float64 rounds at 1.1e-16; sums of a few hundred products of numbers near 1 stay four orders below this."""
F32 = {"rtol": 1e-5, "atol": 1e-5}
"""float32 rounds at 6e-8; sums of a few hundred products of numbers near 1 stay an order below this."""
ROUNDING = 2.0**-9
"""bf16 has 8 significant bits: rounding moves a number by at most 2**-8 of itself, and a tensor, whose many roundings
spread evenly, by less than half of that in its norm: 2**-9 (a test below). Roundings are as good as random, so a
product with a rounded factor moves by no larger share than the factor did. float32 sums add 2**-24 each: nothing."""

shapes = st.lists(st.integers(1, 4), max_size=3)


def fused_linear(*arguments):
    """A LoRALinear that computes as one operation."""
    layer = LoRALinear(*arguments)
    use_fused(layer)
    return layer


def layer_of(kind, d_in=12, d_out=10, r=3, alpha=5.0, *, dtype=torch.float64, bias=True, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    layer = kind(nn.Linear(d_in, d_out, bias=bias, dtype=dtype), r, alpha, dropout)
    nn.init.normal_(layer.lora_B)
    return layer


def pair(**options):
    """The fast layer and the plain one, with equal parameters."""
    fast, plain = layer_of(fused_linear, **options), layer_of(LoRALinear, **options)
    plain.load_state_dict(fast.state_dict(), strict=True)
    return fast, plain


def results(layer, x, grad=None, context=None):
    """Output, and gradients of x, lora_A and lora_B for the upstream gradient `grad`."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    with context or torch.autocast("cpu", enabled=False):
        y = layer(x)
    y.backward(torch.ones_like(y) if grad is None else grad.to(y.dtype))
    return y.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad


# -------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 2, 5)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_derivatives_are_those_of_finite_differences(shape, bias, dropout):
    layer = layer_of(fused_linear, d_in=5, d_out=4, r=2, bias=bias, dropout=dropout)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def computed(x, lora_A, lora_B):
        torch.manual_seed(1)  # the same mask every time
        return torch.func.functional_call(layer, {"lora_A": lora_A, "lora_B": lora_B}, (x,))

    assert torch.autograd.gradcheck(computed, (x, layer.lora_A, layer.lora_B))


@QUICK
@given(
    batch=shapes, d_in=st.integers(1, 9), d_out=st.integers(1, 9), r=st.integers(1, 5), alpha=st.floats(0.5, 64),
    bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:r=")
def test_output_and_gradients_are_the_plain_layers(batch, d_in, d_out, r, alpha, bias, seed):
    fast, plain = pair(d_in=d_in, d_out=d_out, r=r, alpha=alpha, bias=bias, seed=seed)
    x, grad = torch.randn(*batch, d_in, dtype=torch.float64), torch.randn(*batch, d_out, dtype=torch.float64)
    for ours, theirs in zip(results(fast, x, grad), results(plain, x, grad), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        scale = 1 + theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, **F64)


def test_they_are_the_plain_layers_in_float32_too():
    fast, plain = pair(d_in=192, d_out=64, r=8, alpha=16, dtype=torch.float32)
    x, grad = torch.randn(3, 7, 192), torch.randn(3, 7, 64)
    for ours, theirs in zip(results(fast, x, grad), results(plain, x, grad), strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, **F32)


def test_no_tokens_give_no_output_and_zero_gradients():
    fast = layer_of(fused_linear)
    y, dx, da, db = results(fast, torch.randn(2, 0, 12, dtype=torch.float64))
    assert y.shape == (2, 0, 10) and dx.shape == (2, 0, 12)
    assert not da.any() and not db.any()


def test_inputs_and_gradients_may_lie_across_memory():
    fast, plain = pair()
    x = torch.randn(12, 5, 3, dtype=torch.float64).permute(2, 1, 0)
    grad = torch.randn(1, 1, 10, dtype=torch.float64).expand(3, 5, 10)
    for ours, theirs in zip(results(fast, x, grad), results(plain, x, grad), strict=True):
        torch.testing.assert_close(ours, theirs, **F64)


def test_with_dropout_the_gradients_belong_to_the_mask_that_was_drawn(monkeypatch):
    fast, plain = pair(dropout=0.5)
    x, grad = torch.randn(6, 12, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    masks = []
    real = torch.native_dropout

    def watched(*arguments):
        dropped, mask = real(*arguments)
        masks.append(mask)
        return dropped, mask

    monkeypatch.setattr(torch, "native_dropout", watched)
    ours = results(fast, x, grad)
    (mask,) = masks
    assert 0 < mask.sum() < mask.numel()
    plain.lora_dropout = nn.Module()
    plain.lora_dropout.forward = lambda value: value * mask * 2
    for got, expected in zip(ours, results(plain, x, grad), strict=True):
        torch.testing.assert_close(got, expected, **F64)
    masks.clear()
    fast.eval()
    fast(x)
    assert not masks


# ------------------------------------------------------------------------------------------------------- in 16 bits


ROUNDINGS = (5, 5, 3, 3)
"""How often something is rounded on the way to the output, dx, dA and dB. Output: A, h, B, their product, the sum. dx:
B, q, A, their product, the sum. dA: B, q, itself. dB: A, h, itself."""


def exact(layer, x, grad):
    """Output and the three gradients of the layer in float64, from its stored parameters, without a bias."""
    x, g = x.double(), grad.double()
    w, a, b = (t.detach().double() for t in (layer.base_layer.weight, layer.lora_A, layer.lora_B))
    s = layer.scaling
    return x @ w.T + s * x @ a.T @ b.T, g @ w + s * g @ b @ a, s * (g @ b).T @ x, g.T @ (s * x @ a.T)


def off(found, expected):
    """The norm of the difference over the norm of what was expected."""
    return float((found.double().reshape(expected.shape) - expected).norm() / expected.norm())


def test_rounding_to_bf16_moves_a_number_by_up_to_half_a_last_bit_and_a_tensor_by_less():
    between = torch.linspace(1, 2, 100_001, dtype=torch.float64)
    worst = ((between.bfloat16().double() - between).abs() / between).max().item()
    assert 2**-9 < 0.99 * 2**-8 < worst <= 2**-8
    drawn = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert 0.8 * ROUNDING < off(drawn.bfloat16(), drawn) < ROUNDING


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
def test_in_bf16_each_number_is_within_its_roundings_of_the_exact_one(adapters):
    fast = layer_of(fused_linear, d_in=256, d_out=192, r=8, alpha=16, dtype=torch.bfloat16, bias=False)
    fast.lora_A.data, fast.lora_B.data = fast.lora_A.data.to(adapters), fast.lora_B.data.to(adapters)
    x, grad = torch.randn(2, 50, 256, dtype=torch.bfloat16), torch.randn(2, 50, 192, dtype=torch.bfloat16)
    found = results(fast, x, grad)
    expected = exact(fast, x.flatten(0, 1), grad.flatten(0, 1))
    assert [value.dtype for value in found] == [torch.bfloat16] * 2 + [adapters] * 2
    for value, true, roundings in zip(found, expected, ROUNDINGS, strict=True):
        assert off(value, true) <= roundings * ROUNDING


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_in_bf16_it_is_peft_within_both_ones_roundings(autocast_adapter_dtype):
    torch.manual_seed(0)
    holder = nn.Sequential()
    holder.add_module("lin", nn.Linear(256, 192, bias=False, dtype=torch.bfloat16))
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["lin"], init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(holder), config, autocast_adapter_dtype=autocast_adapter_dtype)
    (inner,) = [module for module in theirs.modules() if isinstance(module, peft.tuners.lora.Linear)]
    a, b = inner.lora_A["default"].weight, inner.lora_B["default"].weight
    ours = fused_linear(holder.lin, 8, 16)
    ours.lora_A.data, ours.lora_B.data = a.detach().clone(), b.detach().clone()
    x, grad = torch.randn(50, 256, dtype=torch.bfloat16), torch.randn(50, 192, dtype=torch.bfloat16)
    x_theirs = x.clone().requires_grad_()
    y = theirs(x_theirs)
    y.backward(grad)
    found = (y.detach(), x_theirs.grad, a.grad, b.grad)
    for mine, other, roundings in zip(results(ours, x, grad), found, ROUNDINGS, strict=True):
        assert mine.dtype == other.dtype
        assert off(mine, other.double()) <= 2 * roundings * ROUNDING


def test_under_autocast_it_computes_in_its_dtype_and_the_gradients_are_float32():
    fast, plain = pair(d_in=256, d_out=192, r=8, alpha=16, dtype=torch.float32, bias=True)
    x = torch.randn(50, 256).bfloat16().float()
    grad = torch.randn(50, 192).bfloat16().float()
    rounded = copy.deepcopy(fast)
    rounded.base_layer.weight.data = rounded.base_layer.weight.data.bfloat16().float()
    rounded.base_layer.bias.data.zero_()
    fast.load_state_dict(rounded.state_dict())
    plain.load_state_dict(rounded.state_dict())
    ours = results(fast, x, grad, torch.autocast("cpu", torch.bfloat16))
    theirs = results(plain, x, grad, torch.autocast("cpu", torch.bfloat16))
    assert [v.dtype for v in ours] == [v.dtype for v in theirs] == [torch.bfloat16] + [torch.float32] * 3
    for mine, other, true, roundings in zip(ours, theirs, exact(fast, x, grad), ROUNDINGS, strict=True):
        assert off(mine, true) <= roundings * ROUNDING
        assert off(mine, other.double()) <= 2 * roundings * ROUNDING


# --------------------------------------------------------------------------------------------------- what is kept


def kept(layer, x, **autocast):
    with torch.autocast("cpu", **autocast) if autocast else torch.autocast("cpu", enabled=False):
        return saved_activation_bytes(layer, lambda: layer(x))


def test_it_keeps_x_and_h_and_the_rounded_adapters():
    n, d_in, d_out, r = 40, 256, 192, 8
    fast, plain = pair(d_in=d_in, d_out=d_out, r=r, dtype=torch.bfloat16)
    x = torch.randn(n, d_in, dtype=torch.bfloat16, requires_grad=True)
    assert kept(fast, x) == 2 * (n * d_in + n * r + r * (d_in + d_out))
    # The plain layer: x in float32, h in float32, and the output of lora_B isn't kept; it has no use for x in bf16.
    assert kept(plain, x) >= 4 * n * d_in + 4 * n * r
    fast.lora_A.data, fast.lora_B.data = fast.lora_A.data.bfloat16(), fast.lora_B.data.bfloat16()
    assert kept(fast, x) == 2 * (n * d_in + n * r)
    assert kept(copy.deepcopy(fast).requires_grad_(False), x) == 0  # only dx is asked for: parameters are enough


def test_what_no_gradient_asks_for_is_neither_kept_nor_computed():
    n, d_in, d_out, r = 40, 16, 12, 3
    large, thin = 2 * n * d_in * d_out, 2 * n * r * (d_in + d_out)
    for for_x in (False, True):
        for for_a in (False, True):
            for for_b in (False, True):
                fast, plain = pair(d_in=d_in, d_out=d_out, r=r)
                x = torch.randn(n, d_in, dtype=torch.float64)
                for layer in (fast, plain):
                    layer.lora_A.requires_grad_(for_a)
                    layer.lora_B.requires_grad_(for_b)
                expected = 8 * (n * d_in * for_a + n * r * for_b)
                assert kept(fast, x.requires_grad_(for_x)) == expected
                if not (for_x or for_a or for_b):
                    assert not fast(x).requires_grad
                    continue
                flops = sum(op.flops for op in operations(lambda layer=fast, x=x: layer(x).sum().backward()))
                down, own = 2 * n * d_out * r * (for_x or for_a), 2 * n * r * (d_in * (for_x + for_a) + d_out * for_b)
                assert flops == large * (1 + for_x) + thin + down + own
                fast.zero_grad()
                gradients = []
                for layer in (fast, plain):
                    x.grad = None
                    layer(x).sum().backward()
                    gradients.append((x.grad, layer.lora_A.grad, layer.lora_B.grad))
                for ours, theirs in zip(*gradients, strict=True):
                    assert (ours is None) == (theirs is None)
                    if ours is not None:
                        torch.testing.assert_close(ours, theirs, **F64)


def test_dropout_keeps_a_byte_for_each_number():
    fast = layer_of(fused_linear, d_in=16, r=3, dropout=0.1)
    x = torch.randn(40, 16, dtype=torch.float64, requires_grad=True)
    assert kept(fast, x) == 8 * (40 * 16 + 40 * 3) + 40 * 16
    assert kept(fast.eval(), x) == 8 * (40 * 16 + 40 * 3)


# ------------------------------------------------------------------------------------------ several layers, one x


class Attention(nn.Module):
    """What reads one x in a block: k and v may be narrower than q, as with grouped queries."""

    def __init__(self, d_in=12, widths=(10, 6, 6), dtype=torch.float64):
        super().__init__()
        for name, width in zip(("q_proj", "k_proj", "v_proj"), widths, strict=True):
            setattr(self, name, nn.Linear(d_in, width, bias=name == "q_proj", dtype=dtype))

    def forward(self, x, parts=(0, 1, 2)):
        outputs = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return torch.cat([outputs[i] for i in parts], dim=-1)


def attention_pair(dropout=0.0, **options):
    """Two equal models with LoRA: computed together, and plainly."""
    models_ = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Attention(**options)
        lora.inject(model, ["q_proj", "k_proj", "v_proj"], 2, 5.0, dropout)
        for layer in lora.lora_layers(model).values():
            nn.init.normal_(layer.lora_B)
        models_.append(model)
    use_fused(models_[0], share=SHARE)
    return models_


def all_gradients(model, x, parts=(0, 1, 2)):
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = model(x, parts)
    y.backward(torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)))
    return {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def counted(monkeypatch):
    """How many layers each call computed."""
    calls, real = [], fused.product_of
    monkeypatch.setattr(fused, "product_of", lambda layers, x: calls.append(len(layers)) or real(layers, x))
    return calls


@pytest.mark.parametrize("parts", [(0, 1, 2), (0, 2), (1,)])
def test_together_they_compute_what_each_computes_alone(parts, counted):
    together, plain = attention_pair()
    x = torch.randn(4, 7, 12, dtype=torch.float64)
    ours, theirs = all_gradients(together, x, parts), all_gradients(plain, x, parts)
    assert counted == [3]
    for name, expected in theirs.items():
        got = ours[name]
        if expected is None:  # the output was not used: a zero gradient says the same
            assert got is None or not got.any(), name
        else:
            torch.testing.assert_close(got, expected, **F64, msg=name)


def test_together_they_pass_gradcheck():
    together, _ = attention_pair(d_in=4, widths=(3, 2, 2))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, p in together.named_parameters() if p.requires_grad]

    def computed(x, *values):
        return torch.func.functional_call(together, dict(zip(names, values, strict=True)), (x,))

    values = [together.get_parameter(name) for name in names]
    assert torch.autograd.gradcheck(computed, (x, *values))


def test_together_they_keep_one_x():
    together, _ = attention_pair()
    x = torch.randn(40, 12, dtype=torch.float64, requires_grad=True)
    concatenated = 3 * 12  # the three lora_A below each other, a copy
    kept_ = saved_activation_bytes(together, lambda: [together.q_proj(x), together.k_proj(x), together.v_proj(x)])
    assert kept_ == 8 * (40 * 12 + 40 * 3 * 2 + 2 * concatenated)


def test_another_x_or_another_order_and_each_computes_alone(counted):
    together, plain = attention_pair()
    x, other = torch.randn(2, 5, 12, dtype=torch.float64).unbind()
    torch.testing.assert_close(together.q_proj(x), plain.q_proj(x), **F64)
    torch.testing.assert_close(together.k_proj(other), plain.k_proj(other), **F64)  # not what was prepared for x
    torch.testing.assert_close(together.v_proj(x), plain.v_proj(x), **F64)
    assert counted == [3, 1, 1]
    counted.clear()
    x.mul_(2)  # changed in place between two calls: the same object with other numbers
    q = together.q_proj(x)
    x.add_(1)
    torch.testing.assert_close(together.k_proj(x), plain.k_proj(x), **F64)
    assert q is not None and counted == [3, 1]


def test_in_inference_mode_each_computes_alone(counted):
    together, plain = attention_pair()
    with torch.inference_mode():
        x = torch.randn(4, 12, dtype=torch.float64)
        torch.testing.assert_close(together(x), plain(x), **F64)
    assert counted == [1, 1, 1]


def test_a_member_that_is_merged_off_or_different_ends_the_sharing(counted):
    x = torch.randn(4, 12, dtype=torch.float64)
    for change in (
        lambda m: m.k_proj.merge(),
        lambda m: setattr(m.v_proj, "enabled", False),
        lambda m: setattr(m.v_proj, "scaling", 9.0),
        lambda m: m.q_proj.lora_A.requires_grad_(False),
        lambda m: m.k_proj.base_layer.requires_grad_(True),
    ):
        together, plain = attention_pair()
        change(together)
        change(plain)
        torch.testing.assert_close(together(x), plain(x), **F64)
    assert 3 not in counted


def test_what_was_prepared_and_not_called_for_goes_with_its_x():
    together, _ = attention_pair()
    shared = together.q_proj.compute
    with torch.no_grad():
        x = torch.randn(4, 12, dtype=torch.float64)
        together.q_proj(x)  # and nobody asks k and v
        assert set(shared.waiting) == {together.k_proj, together.v_proj}
        del x
    assert not shared.waiting
    x = torch.randn(4, 12, dtype=torch.float64)
    y = together.q_proj(x)
    y.sum().backward()
    del x, y
    assert not shared.waiting, "with gradients it goes when the backward pass lets go of x"


def test_a_copy_of_the_model_shares_among_its_own_layers_and_begins_with_nothing(counted):
    together, plain = attention_pair()
    x = torch.randn(4, 12, dtype=torch.float64)
    together.q_proj(x)
    copied = copy.deepcopy(together)
    counted.clear()
    with torch.no_grad():
        copied.q_proj.lora_B.zero_()
        torch.testing.assert_close(copied.k_proj(x), plain.k_proj(x), **F64)
        assert counted == [1], "not what the original had ready"
        assert torch.equal(copied.q_proj(x), copied.q_proj.base_layer(x))
    assert not torch.equal(together(x), copied(x))
    assert counted[1:] == [3, 3, 3]


# ------------------------------------------------------------------------------------------------------ failure cases


def test_a_second_derivative_is_refused():
    fast = layer_of(fused_linear)
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivative only.*compute to utils.lora.layer.plain"):
        torch.autograd.grad(fast(x).sum(), x, create_graph=True)
    fast.compute = lora.layer.plain  # what the message says
    torch.autograd.grad(fast(x).sum(), x, create_graph=True)


def test_a_backward_pass_inside_autocast_computes_in_the_dtype_of_the_forward_pass():
    fast, plain = pair(dtype=torch.float32)
    x = torch.randn(6, 12, requires_grad=True)
    expected = results(plain, x)
    y = fast(x)
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
    for ours, theirs in zip((x.grad, fast.lora_A.grad, fast.lora_B.grad), expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # bf16 would be off by 1e-2


@pytest.mark.parametrize("dropout", [0.0, 0.3])  # the operation for one layer, and the one for all else
def test_a_weight_changed_between_forward_and_backward_is_noticed(dropout):
    fast = layer_of(fused_linear, dropout=dropout)
    y = fast(torch.randn(2, 12, dtype=torch.float64, requires_grad=True))
    fast.merge()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_weight_changed_under_layers_that_were_computed_together_is_noticed():
    together, _ = attention_pair()
    y = together(torch.randn(4, 12, dtype=torch.float64, requires_grad=True))
    together.v_proj.merge()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_wrong_inputs_are_named():
    fast = layer_of(fused_linear, dtype=torch.float32)
    with pytest.raises(ValueError, match="takes 12 numbers, and the input's last dimension is 7"):
        fast(torch.randn(2, 7))
    with pytest.raises(TypeError, match="the input is torch.bfloat16 and the base weight torch.float32"):
        fast(torch.randn(2, 12, dtype=torch.bfloat16))


def test_where_one_operation_would_leave_something_out_the_plain_layer_computes(monkeypatch):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for function in (fused._OneProduct, fused._LoRAProduct):
        monkeypatch.setattr(function, "apply", lambda *a: pytest.fail("not the one operation"))
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)

    trained = layer_of(fused_linear)
    trained.base_layer.requires_grad_(True)
    trained(x).sum().backward()
    assert trained.base_layer.weight.grad is not None and "trains" in fused.falls_back(trained)

    hooked, seen = layer_of(fused_linear), []
    hooked.base_layer.register_forward_hook(lambda *a: seen.append(1))
    hooked(x)
    assert seen and "hooks" in fused.falls_back(hooked)

    other = fused_linear(Doubled(12, 10, dtype=torch.float64), 3, 5.0)
    torch.testing.assert_close(other(x), other.base_layer(x), **F64)
    assert "Doubled" in fused.falls_back(other)


def test_merged_and_switched_off_it_is_its_base():
    fast = layer_of(fused_linear)
    x = torch.randn(2, 12, dtype=torch.float64)
    before = fast(x)
    fast.enabled = False
    assert torch.equal(fast(x), fast.base_layer(x)) and not torch.allclose(fast(x), before)
    fast.enabled = True
    fast.merge()
    assert torch.equal(fast(x), fast.base_layer(x))
    torch.testing.assert_close(fast(x), before, **F64)


def test_a_graph_may_be_used_twice_and_a_checkpoint_gives_the_same():
    fast = layer_of(fused_linear, dropout=0.3)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    y = fast(x)
    first = torch.autograd.grad(y.sum(), (x, fast.lora_A, fast.lora_B), retain_graph=True)
    second = torch.autograd.grad(y.sum(), (x, fast.lora_A, fast.lora_B))
    torch.manual_seed(5)
    again = torch.autograd.grad(checkpoint(fast, x, use_reentrant=False).sum(), (x, fast.lora_A, fast.lora_B))
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


# ------------------------------------------------------------------------------------------------------ in 4 bits


def four_bit(d_in=128, d_out=64, dtype=torch.float32):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    base = bnb.nn.Linear4bit(d_in, d_out, bias=True, compute_dtype=dtype, quant_type="nf4")
    base = base.to("cpu")
    base.support_avx512bf16_for_cpu = False
    base.weight.requires_grad_(False)
    return base


def test_over_4_bits_it_is_the_plain_layer_and_dequantizes_once_per_use(monkeypatch):
    base = four_bit()
    fast, plain = fused_linear(base, 4, 8.0), LoRALinear(base, 4, 8.0)
    nn.init.normal_(fast.lora_B)
    plain.load_state_dict(fast.state_dict(), strict=False)
    plain.lora_A.data, plain.lora_B.data = fast.lora_A.data.clone(), fast.lora_B.data.clone()
    x, grad = torch.randn(5, 128), torch.randn(5, 64)
    for ours, theirs in zip(results(fast, x, grad), results(plain, x, grad), strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, **F32)

    calls = []
    real = fused.dense_weight
    monkeypatch.setattr(fused, "dense_weight", lambda *a: calls.append(1) or real(*a))
    y = fast(x.requires_grad_())
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2
    assert kept(fast, x) == 4 * (5 * 128 + 5 * 4)  # x and h: neither the codes, a parameter, nor the restored weight


def test_over_4_bits_the_layer_computes_in_its_compute_dtype_and_answers_in_the_inputs():
    fast = fused_linear(four_bit(dtype=torch.bfloat16), 4, 8.0)
    x = torch.randn(5, 128, requires_grad=True)
    y = fast(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == fast.lora_A.grad.dtype == torch.float32
    assert torch.equal(y, y.bfloat16().float())


def test_nothing_is_merged_into_codes():
    with pytest.raises(RuntimeError, match="quantized"):
        fused_linear(four_bit(), 4, 8.0).merge()


# ------------------------------------------------------------------------------------------------------ in a model


def test_use_fused_changes_how_the_layers_compute_and_nothing_else():
    model, tokenizer = models.load_base()
    with pytest.raises(RuntimeError, match="no LoRA layers"):
        use_fused(model)
    names = lora.inject(model, "all-linear", 8, 16)
    for layer in lora.lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.05)
    before = {name: id(p) for name, p in model.named_parameters()}
    ids = torch.randint(5, len(tokenizer), (2, 24), generator=torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain_bytes = saved_activation_bytes(model, lambda: model(input_ids=ids, labels=ids).loss)
    expected = gradients()
    assert use_fused(model) == names
    assert {name: id(p) for name, p in model.named_parameters()} == before
    found = gradients()
    assert saved_activation_bytes(model, lambda: model(input_ids=ids, labels=ids).loss) <= plain_bytes
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=1e-4, atol=2e-5, msg=name)
    use_fused(model, share=SHARE)
    for name, gradient in gradients().items():
        scale = expected[name].abs().max()
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=1e-4, atol=2e-5, msg=name)
    assert all(type(layer) is LoRALinear for layer in lora.lora_layers(model).values())


def test_the_fused_form_is_saved_as_the_plain_lora_that_it_is(fresh_base, tmp_path):
    from utils.lora.checkpoint import load_adapter, save_adapter

    model, other, ids = fresh_base(), fresh_base(), torch.arange(5, 25)[None]
    lora.inject(model, "all-linear", 4, 8)
    use_fused(model, share=SHARE)
    for layer in lora.lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.05)
    save_adapter(model, tmp_path)
    load_adapter(other, tmp_path)
    assert (model(ids).logits - other(ids).logits).abs().max() < 1e-3
