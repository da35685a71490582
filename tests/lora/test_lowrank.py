"""Best approximations, spectra, counts, and the forward and backward mathematics of a LoRA layer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.lora import lowrank

torch.set_num_threads(1)

QUICK = settings(deadline=None, derandomize=True, max_examples=50)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def matrices_with_rank(make):
    rows, columns = make(sizes), make(sizes)
    return draw(rows, columns, seed=make(seeds)), make(st.integers(1, min(rows, columns)))


# --------------------------------------------------------------------------------------- best rank-r approximation


@QUICK
@given(matrices_with_rank())
def test_the_error_is_the_tail_of_the_singular_values(case):
    W, r = case
    best = lowrank.best_rank_r(W, r)
    S = torch.linalg.svdvals(W)
    assert best.shape == W.shape and best.dtype == W.dtype
    assert torch.linalg.matrix_rank(best) <= r
    assert torch.linalg.norm(W - best).item() == pytest.approx(S[r:].norm().item(), abs=1e-10)
    next_value = S[r].item() if r < len(S) else 0.0
    assert torch.linalg.matrix_norm(W - best, 2).item() == pytest.approx(next_value, abs=1e-10)


@QUICK
@given(matrices_with_rank(), seeds)
def test_no_rival_of_the_same_rank_is_nearer(case, seed):
    """Random row spaces with the best B for each, and neighbours of the best factors."""
    W, r = case
    ours = torch.linalg.norm(W - lowrank.best_rank_r(W, r)).item()
    A = draw(r, W.shape[1], seed=seed)
    B, nearby = lowrank.best_factors(W, r)
    neighbour = (B + 0.05 * draw(*B.shape, seed=seed)) @ nearby
    for rival in (W @ torch.linalg.pinv(A) @ A, neighbour):
        assert torch.linalg.norm(W - rival).item() >= ours - 1e-10


@QUICK
@given(matrices_with_rank())
def test_the_factors_have_loras_shapes_and_multiply_to_the_approximation(case):
    W, r = case
    B, A = lowrank.best_factors(W, r)
    assert B.shape == (W.shape[0], r) and A.shape == (r, W.shape[1])
    assert B.is_contiguous() and A.is_contiguous()  # else PiSSA's products round otherwise than PEFT's
    torch.testing.assert_close(B @ A, lowrank.best_rank_r(W, r))


def test_a_matrix_of_rank_r_is_its_own_approximation():
    W = draw(6, 2) @ draw(2, 8, seed=1)
    torch.testing.assert_close(lowrank.best_rank_r(W, 2), W)
    assert not torch.allclose(lowrank.best_rank_r(W, 1), W)


@pytest.mark.parametrize("function", [lowrank.best_rank_r, lowrank.best_factors, lowrank.energy_captured])
@pytest.mark.parametrize("r", [0, -1, 4])
def test_a_rank_that_the_matrix_cannot_have_is_refused(function, r):
    with pytest.raises(ValueError, match=rf"r is {r}, but a 3 x 5 matrix has ranks 1 to 3"):
        function(draw(3, 5), r)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 3)])
def test_what_is_no_matrix_is_refused(shape):
    for function in (lowrank.relative_spectrum, lowrank.noise_like, lambda W: lowrank.best_rank_r(W, 1)):
        with pytest.raises(ValueError, match="expected a matrix"):
            function(draw(*shape))


# ----------------------------------------------------------------------------------------------------- spectra


def test_energy_is_of_squares():
    W = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0]))
    assert lowrank.energy_captured(W, 1) == pytest.approx(16 / 25)
    assert lowrank.energy_captured(W, 3) == pytest.approx(24 / 25)
    assert lowrank.energy_captured(W, 4) == 1.0
    assert lowrank.energy_captured(torch.zeros(3, 4), 1) == 1.0


def test_the_relative_spectrum_begins_at_one_and_falls():
    values = lowrank.relative_spectrum(torch.diag(torch.tensor([2.0, 8.0, 4.0])))
    assert values == pytest.approx([1.0, 0.5, 0.25])
    with pytest.raises(ValueError, match="zeros"):
        lowrank.relative_spectrum(torch.zeros(2, 3))


def test_noise_has_the_size_of_its_model_and_none_of_its_structure():
    W = 3 * draw(64, 2) @ draw(2, 48, seed=1)
    noise = lowrank.noise_like(W, torch.Generator().manual_seed(0))
    assert noise.shape == W.shape and noise.dtype == W.dtype
    assert noise.norm().item() == pytest.approx(W.norm().item())
    assert lowrank.energy_captured(W, 2) > 0.999 > 0.2 > lowrank.energy_captured(noise, 2)
    assert torch.equal(noise, lowrank.noise_like(W, torch.Generator().manual_seed(0)))


def test_the_fox_is_a_picture_that_mirrors_itself():
    fox = lowrank.fox()
    assert fox.shape == (18, 22) and fox.min() == 0 and fox.max() == 1
    assert torch.equal(fox, fox.flip(1))
    assert torch.linalg.matrix_rank(fox) == 10


# ---------------------------------------------------------------------------------------------------- counting


def test_c05_the_savings_of_known_layers():
    assert lowrank.saving(4096, 4096, 8) == 256
    assert lowrank.saving(4096, 1024, 8) == pytest.approx(102.4)
    assert lowrank.saving(4096, 11008, 8) == pytest.approx(373.15, abs=0.01)
    assert lowrank.lora_parameters(4096, 4096, 8) == 65_536


@QUICK
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_break_even_rank_is_the_last_that_saves(d_in, d_out):
    r = lowrank.break_even_rank(d_in, d_out)
    assert r * (d_in + d_out) < d_in * d_out <= (r + 1) * (d_in + d_out)
    assert r == lowrank.break_even_rank(d_out, d_in)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lowrank.saving(0, 4, 1),
        lambda: lowrank.lora_parameters(4, 4, 0),
        lambda: lowrank.break_even_rank(4, -1),
        lambda: lowrank.forward_flops(4, 4, 2, 0),
    ],
)
def test_sizes_below_one_are_refused(call):
    with pytest.raises(ValueError, match="must be at least 1, not"):
        call()


def test_flops_of_the_three_orders():
    for n in (1, 64, 4096):
        narrow, middle, merged = lowrank.forward_flops(4096, 4096, 8, n).values()
        assert narrow >= 2 * n * 4096 * 4096
        assert middle > narrow and middle > merged
        assert (merged < narrow) == (n > 2110)  # about the break-even rank, 2048
    narrow, middle, merged = lowrank.forward_flops(2, 3, 1, 1).values()
    assert (narrow, middle, merged) == (12 + 4 + 6 + 3, 12 + 12 + 12 + 3, 12 + 6 + 12)


# ----------------------------------------------------------------------------------------- forward and backward


@st.composite
def layers(make):
    n, d_in, d_out, r = (make(st.integers(1, 6)) for _ in range(4))
    seed = make(seeds)
    shapes = ((n, d_in), (d_out, d_in), (r, d_in), (d_out, r))
    return [draw(*shape, seed=seed + i) for i, shape in enumerate(shapes)], make(st.floats(0.1, 8))


@QUICK
@given(layers())
def test_the_forward_pass_is_that_of_the_summed_weight(case):
    (x, W0, A, B), s = case
    torch.testing.assert_close(lowrank.lora_forward(x, W0, A, B, s), x @ (W0 + s * B @ A).T)


@QUICK
@given(layers())
def test_c07_the_gradients_are_autograds(case):
    (x, W0, A, B), s = case
    A.requires_grad_(), B.requires_grad_()
    h = lowrank.lora_forward(x, W0, A, B, s)
    h.retain_grad()
    torch.tanh(h).square().mean().backward()
    dA, dB = lowrank.lora_gradients(x, h.grad, A.detach(), B.detach(), s)
    torch.testing.assert_close(dA, A.grad)
    torch.testing.assert_close(dB, B.grad)
    at_start, _ = lowrank.lora_gradients(x, h.grad, A.detach(), torch.zeros_like(B), s)
    assert (at_start == 0).all()


def trajectory(optimizer: str, s: float, b_factor: float, steps: int = 30) -> torch.Tensor:
    x, W0, target = draw(32, 7), draw(5, 7, seed=1), draw(32, 5, seed=2)
    A = (draw(3, 7, seed=3) / 5).requires_grad_()
    B = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [A], "lr": 0.01}, {"params": [B], "lr": 0.01 * b_factor}]
    opt = torch.optim.Adam(groups, eps=1e-30) if optimizer == "adam" else torch.optim.SGD(groups)
    path = []
    for _ in range(steps):
        opt.zero_grad()
        (lowrank.lora_forward(x, W0, A, B, s) - target).square().mean().backward()
        opt.step()
        path.append((s * B @ A).detach())
    return torch.stack(path)


@pytest.mark.parametrize("c", [0.5, 3.0])
def test_c08_a_scale_times_c_is_bs_rate_times_c_under_adam_and_c_squared_under_sgd(c):
    for optimizer, right, wrong in (("adam", c, c * c), ("sgd", c * c, c)):
        scaled = trajectory(optimizer, 2 * c, 1.0)
        torch.testing.assert_close(trajectory(optimizer, 2.0, right), scaled, rtol=0, atol=1e-10)
        assert (trajectory(optimizer, 2.0, wrong) - scaled).abs().max() > 1e-3


def test_c06_pefts_a_is_uniform_with_std_one_over_root_three_d_in():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1024, 64, bias=False))
    parameters = dict(get_peft_model(net, LoraConfig(r=16, target_modules=["0"])).named_parameters())
    A = next(p for name, p in parameters.items() if "lora_A" in name)
    B = next(p for name, p in parameters.items() if "lora_B" in name)
    bound = 1 / math.sqrt(1024)
    assert A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert 0.99 * bound < A.abs().max() <= bound
    assert (B == 0).all()
