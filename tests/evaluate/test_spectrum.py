"""The spectrum of an update: soft ranks, shared directions, and the properties that intruder dimensions must have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import lora, models
from utils.evaluate import spectrum

SHAPES = st.sampled_from([(24, 24), (16, 40), (40, 16)])
SEEDS = st.integers(0, 10_000)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def orthogonal(n, seed):
    return torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64)).Q


def spread_matrix(rows, columns, seed):
    """A matrix whose singular values are far apart, so that each of its singular vectors is well determined."""
    n = min(rows, columns)
    values = 2.0 ** -torch.arange(n, dtype=torch.float64).clamp(max=30)
    return orthogonal(rows, seed)[:, :n] * values @ orthogonal(columns, seed + 1)[:n]


def unit(n, seed):
    vector = torch.randn(n, generator=generator(seed), dtype=torch.float64)
    return vector / vector.norm()


# ------------------------------------------------------------------------------------------------------- soft ranks


@given(st.integers(1, 8), st.floats(0.1, 10), SEEDS)
@settings(max_examples=25, deadline=None)
def test_k_equal_directions_have_both_ranks_k(k, size, seed):
    W = size * orthogonal(12, seed)[:, :k] @ orthogonal(9, seed + 1)[:k]
    assert spectrum.stable_rank(W) == pytest.approx(k, rel=1e-9)
    assert spectrum.effective_rank(W) == pytest.approx(k, rel=1e-6)


@given(SHAPES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_soft_ranks_lie_between_one_and_the_rank_and_stable_is_the_smaller(shape, seed):
    W = torch.randn(shape, generator=generator(seed))
    stable, effective = spectrum.stable_rank(W), spectrum.effective_rank(W)
    assert 1 <= stable <= effective <= min(shape)


def test_soft_ranks_by_hand():
    W = torch.diag(torch.tensor([2.0, 1.0]))
    assert spectrum.stable_rank(W) == pytest.approx(1.25)
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert spectrum.effective_rank(W) == pytest.approx(math.exp(entropy))


# ------------------------------------------------------------------------------------------------ shared directions


# ------------------------------------------------------------------------------------------------ intruder dimensions


@given(SHAPES, SEEDS, st.floats(0.0, 0.999))
@settings(max_examples=25, deadline=None)
def test_an_untouched_matrix_has_no_intruder(shape, seed, threshold):
    W = torch.randn(shape, generator=generator(seed))
    assert spectrum.intruders(W, W.clone(), threshold) == 0
    assert spectrum.intruders(W, 3 * W, threshold) == 0


@given(st.sampled_from([(128, 128), (128, 200), (200, 96)]), SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_large_random_direction_is_exactly_one_intruder(shape, seed):
    base = spread_matrix(*shape, seed)
    x, y = unit(shape[0], seed + 2), unit(shape[1], seed + 3)
    planted = base + 1000 * torch.outer(x, y)
    assert spectrum.intruders(base, planted, 0.6) == 1
    basis = torch.linalg.svd(base, full_matrices=False).U
    largest = (basis.T @ x).abs().max().item()
    assert spectrum.closest_cosines(base, planted)[0].item() == pytest.approx(largest, abs=1e-2)


@given(SHAPES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_signs_and_order_of_rows_and_columns_change_nothing(shape, seed):
    base = spread_matrix(*shape, seed)
    tuned = base + 0.2 * torch.outer(unit(shape[0], seed + 2), unit(shape[1], seed + 3))
    expected = spectrum.closest_cosines(base, tuned, 5)
    rows = torch.randperm(shape[0], generator=generator(seed))
    columns = torch.randperm(shape[1], generator=generator(seed))
    turn = orthogonal(shape[0], seed + 4)
    for other_base, other in (
        (-base, tuned), (base, -tuned), (base[rows], tuned[rows]), (base[:, columns], tuned[:, columns]),
        (turn @ base, turn @ tuned),
    ):  # fmt: skip
        assert torch.allclose(spectrum.closest_cosines(other_base, other, 5), expected, atol=1e-6)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_higher_threshold_never_counts_fewer(seed):
    base = torch.randn(20, 30, generator=generator(seed))
    tuned = base + torch.randn(20, 30, generator=generator(seed + 1))
    counts = [spectrum.intruders(base, tuned, t / 10) for t in range(11)]
    assert counts == sorted(counts)
    assert counts[0] == 0


# ---------------------------------------------------------------------------------------------------- whole models


def test_tuned_weights_are_what_a_merge_gives():
    model, _ = models.load_base()
    names = lora.inject(model, ["q_proj", "down_proj"], 2, 4)
    for i, layer in enumerate(lora.lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=generator(i))
    tuned = spectrum.tuned_weights(model)
    assert list(tuned) == names
    lora.merge(model)
    for name, layer in lora.lora_layers(model).items():
        assert torch.equal(tuned[name], layer.base_layer.weight)
    assert torch.equal(spectrum.tuned_weights(model)[names[0]], tuned[names[0]])


def test_tuned_weights_of_a_model_without_lora_are_copies():
    model, _ = models.load_base()
    name = "model.layers.0.mlp.up_proj"
    weights = spectrum.tuned_weights(model, [name])
    assert torch.equal(weights[name], model.get_submodule(name).weight)
    weights[name].zero_()
    assert model.get_submodule(name).weight.abs().sum() > 0


def test_all_matrices_one_behind_the_other():
    base = {"a": torch.eye(12), "b": torch.diag(torch.arange(1.0, 13))}
    assert spectrum.all_closest_cosines(base, base, 3).tolist() == pytest.approx([1.0] * 6)
    with pytest.raises(ValueError, match="different layers"):
        spectrum.all_closest_cosines(base, {"a": base["a"]})


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: spectrum.stable_rank(torch.zeros(3, 3)), "matrix of zeros"),
        (lambda: spectrum.effective_rank(torch.zeros(3, 3)), "matrix of zeros"),
        (lambda: spectrum.stable_rank(torch.ones(3)), "expected a matrix"),
        (lambda: spectrum.stable_rank(torch.full((2, 2), math.nan)), "diverge"),
        (lambda: spectrum.closest_cosines(torch.eye(3), torch.eye(4), 1), "not the same one"),
        (lambda: spectrum.closest_cosines(torch.eye(3), torch.eye(3), 4), "has 1 to 3 singular vectors"),
        (lambda: spectrum.intruders(torch.eye(3), torch.eye(3), 1.5, 1), "between 0 and 1"),
        (lambda: spectrum.tuned_weights(torch.nn.Linear(2, 2)), "no LoRA layers"),
    ],
)
def test_bad_input_is_refused_in_words(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# ----------------------------------------------------------------------------------------- intruders and their controls


def test_damped_multiplies_the_chosen_singular_values_alone():
    W = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, after = torch.linalg.svdvals(W), torch.linalg.svdvals(spectrum.damped(W, [0, 4], 0.5))
    wanted = before * torch.tensor([0.5, 1, 1, 1, 0.5, 1], dtype=torch.float64)
    assert torch.allclose(after, wanted.sort(descending=True).values)
    assert torch.equal(spectrum.damped(W, [], 0.5), W)


def test_changes_are_of_equal_size_and_along_what_they_say():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(24, 16, generator=g)
    new = 20 * torch.outer(torch.randn(24, generator=g), torch.randn(16, generator=g)) / 20
    update = new + 0.3 * torch.randn(24, 16, generator=g)
    changed = spectrum.equal_changes(base, base + update, 0.75, threshold=0.7)
    sizes = {name: (weight - base - update).norm().item() for name, weight in changed.items()}
    assert sizes["intruders"] > 0
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    rest = (u[:, 1:] * s[1:] @ vh[1:]).norm().item()
    for name, size in sizes.items():
        wanted = min(sizes["intruders"], rest) if name == "without its first" else sizes["intruders"]
        assert size == pytest.approx(wanted, rel=1e-4)
    whole = changed["whole update"] - base
    assert torch.nn.functional.cosine_similarity(whole.flatten(), update.flatten(), 0) > 0.9999
    alone = torch.linalg.svdvals(changed["first alone"] - base - update)
    assert alone[1] < 1e-4 * alone[0]


def test_where_nothing_is_new_nothing_changes():
    base = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    for weight in spectrum.equal_changes(base, base.clone(), 0.5).values():
        assert torch.allclose(weight, base, atol=1e-6)


def test_the_intruders_and_their_damping_are_pefts():
    from peft import PeftModel
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    from utils.train import trained_adapter

    folder = trained_adapter("style", models.profile())
    theirs, said = PeftModel.from_pretrained(models.load_base()[0], folder), []
    reduce_intruder_dimension(theirs, top_k=10, threshold_epsilon=0.5, mitigation_lambda=0.75, logging_sink=said.append)
    tuned, _ = models.load_base()
    lora.load_adapter(tuned, folder)
    weights = spectrum.tuned_weights(tuned)
    base = spectrum.tuned_weights(models.load_base()[0], list(weights))
    counted = sum(int(line.rpartition(" ")[2]) for line in said if "Intruders:" in line)
    assert counted == sum(spectrum.intruders(base[n], weights[n], 0.5, 10) for n in weights) > 0
    for name, weight in weights.items():
        module = theirs.base_model.model.get_submodule(name)
        rank = module.r["default"]
        u, s, vh = torch.linalg.svd(spectrum.equal_changes(base[name], weight, 0.75)["intruders"] - base[name])
        found = module.get_delta_weight("intruder_reduced").detach()
        assert (u[:, :rank] * s[:rank] @ vh[:rank] - found).norm() < 1e-3 * found.norm()
