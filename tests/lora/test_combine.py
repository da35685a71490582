"""Combined adapters: equal to PEFT's for all eleven ways, the algebra of each, and what is refused.

The largest differences that we found between our corrections and PEFT's, over all layers, are 0 for the ways on
factors and for ``cat`` and 1.2e-7 for the ways with an SVD (float32, corrections of size one).
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.lora import combine as c

PEFT_TOLERANCE = {"svd": 1e-5, "factors": 1e-6}
NAMES = ["first", "second", "third"]


def _peft_model(ranks=(4, 4, 4), seed=0):
    """Two linear layers, one of them wide, with an adapter of random matrices for each rank."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    base = torch.nn.Sequential()
    base.add_module("up", torch.nn.Linear(12, 20))
    base.add_module("down", torch.nn.Linear(20, 9))
    model = None
    for name, r in zip(NAMES, ranks, strict=False):
        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["up", "down"], init_lora_weights=False)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return model


def _theirs(model, weights, how, seed=0, **options):
    """PEFT's combination of the first adapters. It draws a new adapter's matrices before DARE's masks, so the seed is
    set in between."""
    with c.mask_seed(model, seed):
        model.add_weighted_adapter(NAMES[: len(weights)], list(weights), f"new {how}", how, **options)
    return c.from_peft(model, f"new {how}")


def _options(how):
    return {} if how in ("cat", "linear", "svd") else {"density": 0.6}


def _ours(model, weights, how, seed=0, **options):
    adapters = [c.from_peft(model, name) for name in NAMES[: len(weights)]]
    return c.combine(adapters, weights, how, generator=torch.Generator().manual_seed(seed), **options)


def _size(adapter):
    return max(f.delta().abs().max().item() for f in adapter.values())


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1.0, 1.0), (1.5, -0.5), (0.0, 1.0)])
@pytest.mark.parametrize("how", c.HOW)
def test_it_is_what_peft_computes(how, weights):
    model = _peft_model()
    theirs = _theirs(model, weights, how, **_options(how))
    ours = _ours(model, weights, how, **_options(how))
    tolerance = PEFT_TOLERANCE["svd" if how.endswith("svd") else "factors"]
    assert _size(theirs) > 0.01, "an empty comparison"
    assert c.largest_difference(ours, theirs) <= tolerance * max(1.0, _size(theirs))
    assert {(f.r, f.scaling) for f in ours.values()} == {(f.r, f.scaling) for f in theirs.values()}


@pytest.mark.parametrize("how", ["ties", "dare_ties", "ties_svd", "dare_ties_svd"])
def test_the_vote_by_frequency_is_pefts_and_matters(how):
    model = _peft_model()
    theirs = _theirs(model, (1.0, 1.0, 1.0), how, density=0.8, majority_sign_method="frequency")
    ours = _ours(model, (1.0, 1.0, 1.0), how, density=0.8, sign="frequency")
    by_size = _ours(model, (1.0, 1.0, 1.0), how, density=0.8)
    assert c.largest_difference(ours, theirs) <= 1e-5 * max(1.0, _size(theirs))
    assert c.largest_difference(by_size, theirs) > 1e-3


@pytest.mark.parametrize("how", ["dare_linear", "dare_ties", "dare_linear_svd"])
def test_another_seed_is_another_combination(how):
    model = _peft_model()
    first, second = (_ours(model, (0.5, 0.5), how, seed=s, density=0.5) for s in (0, 1))
    assert c.largest_difference(first, second) > 1e-3


@pytest.mark.parametrize("how", ["cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"])
def test_unequal_ranks_are_what_peft_computes(how):
    model = _peft_model((2, 5))
    theirs = _theirs(model, (0.7, 0.3), how, **_options(how))
    ours = _ours(model, (0.7, 0.3), how, **_options(how))
    assert c.largest_difference(ours, theirs) <= 1e-5 * max(1.0, _size(theirs))
    assert {f.r for f in ours.values()} == {7 if how == "cat" else 5}


def test_a_rank_asked_for_is_pefts():
    model = _peft_model()
    theirs = _theirs(model, (0.7, 0.3), "svd", svd_rank=2)
    assert c.largest_difference(_ours(model, (0.7, 0.3), "svd", svd_rank=2), theirs) <= 1e-5 * max(1.0, _size(theirs))


def test_the_seed_of_masks_leaves_the_model_as_it_was():
    model = _peft_model()
    before = model.base_model.inject_adapter
    with pytest.raises(RuntimeError, match="stop"), c.mask_seed(model, 0):
        assert model.base_model.inject_adapter != before
        raise RuntimeError("stop")
    assert model.base_model.inject_adapter == before


# ------------------------------------------------------------------------------------------------------- the algebra


def _random_adapter(r, seed, scaling=2.0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"up": (20, 12), "down": (9, 20)}
    return {
        name: c.Factors(torch.randn(r, d_in, generator=g), torch.randn(d_out, r, generator=g), scaling)
        for name, (d_out, d_in) in shapes.items()
    }


weight = st.floats(-2, 2).map(lambda x: round(x, 3))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), weight), min_size=1, max_size=4), st.integers(0, 99))
def test_cat_is_the_weighted_sum_whatever_the_ranks(parts, seed):
    adapters = [_random_adapter(r, seed + i) for i, (r, _) in enumerate(parts)]
    weights = [w for _, w in parts]
    got = c.combine(adapters, weights, "cat")
    for layer in got:
        assert torch.allclose(got[layer].delta(), c.weighted_sum(adapters, weights, layer), atol=1e-3)
        assert got[layer].r == sum(r for r, _ in parts)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 2), st.floats(0.01, 2), st.integers(0, 99))
def test_linear_is_off_by_the_cross_terms_exactly(w1, w2, seed):
    one, two = _random_adapter(3, seed, 2.0), _random_adapter(3, seed + 1, 0.5)
    got = c.combine([one, two], [w1, w2], "linear")["up"].delta()
    exact = c.weighted_sum([one, two], [w1, w2], "up")
    root = math.sqrt(w1 * 2.0 * w2 * 0.5)
    cross = root * (one["up"].B @ two["up"].A + two["up"].B @ one["up"].A)
    assert torch.allclose(got - exact, cross, atol=1e-3)


def test_one_adapter_with_any_weight_is_that_multiple():
    one = _random_adapter(3, 0)
    for w in (1.0, -1.0, 0.3):
        for how in ("cat", "linear", "svd"):
            assert torch.allclose(c.combine([one], [w], how)["up"].delta(), w * one["up"].delta(), atol=1e-4)


def test_svd_of_a_large_enough_rank_is_exact_and_a_smaller_one_the_tail():
    adapters, weights = [_random_adapter(2, 0), _random_adapter(3, 1)], [0.7, 0.3]
    assert c.combined_error(adapters, weights, c.combine(adapters, weights, "svd", svd_rank=5)) < 1e-5
    errors = [c.combined_error(adapters, weights, c.combine(adapters, weights, "svd", svd_rank=r)) for r in range(1, 5)]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0.01
    tails = total = 0.0
    for layer in adapters[0]:
        s = torch.linalg.svdvals(c.weighted_sum(adapters, weights, layer)).square()
        tails, total = tails + s[2:].sum().item(), total + s.sum().item()
    assert errors[1] == pytest.approx(math.sqrt(tails / total), rel=1e-3)


def test_density_one_thins_nothing():
    adapters = [_random_adapter(3, 0), _random_adapter(3, 1)]
    linear = c.combine(adapters, [0.7, 0.3], "linear")
    for how in ("magnitude_prune", "dare_linear"):
        assert c.largest_difference(c.combine(adapters, [0.7, 0.3], how, density=1), linear) == 0


def test_density_one_draws_nothing():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert torch.equal(c.keep_random(torch.arange(4.0), 1, generator), torch.arange(4.0))
    assert torch.equal(generator.get_state(), before)


def test_padding_changes_no_correction_and_makes_linear_possible():
    small, large = _random_adapter(2, 0), _random_adapter(5, 1)
    same = c.padded(small, 5)
    assert {f.r for f in same.values()} == {5} and c.largest_difference(small, same) < 1e-5
    with pytest.raises(ValueError, match="ranks 2, 5"):
        c.combine([small, large], [0.5, 0.5], "linear")
    assert c.combine([same, large], [0.5, 0.5], "linear")["up"].r == 5
    with pytest.raises(ValueError, match="can't be padded"):
        c.padded(large, 2)


def test_keep_largest_keeps_the_largest():
    values = torch.tensor([0.1, -3.0, 0.2, 2.0, -0.5])
    assert c.keep_largest(values, 0.5).tolist() == [0, -3, 0, 2, 0]
    assert c.keep_largest(values, 1.0) is values


def test_keep_random_keeps_the_expected_value():
    thinned = c.keep_random(torch.ones(200, 200), 0.25, torch.Generator().manual_seed(0))
    assert set(thinned.unique().tolist()) == {0.0, 4.0}
    assert thinned.mean().item() == pytest.approx(1, abs=0.05)


def test_the_vote_elects_a_sign_and_a_tie_elects_plus():
    stacked = torch.tensor([[3.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 2.0], [-1.0, 5.0, 0.0, 0.0]])
    assert c.majority_sign(stacked).tolist() == [
        [True, False, True, False],
        [False, False, False, True],
        [False, True, False, False],
    ]
    assert c.majority_sign(stacked, "frequency")[:, 0].tolist() == [False, True, True]
    mean = c.disjoint_mean(stacked, c.majority_sign(stacked))
    assert mean.tolist() == [3, 5, 1, 2]
    assert c.disjoint_mean(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool)).tolist() == [0]


# -------------------------------------------------------------------------------------------------- files and PEFT


def test_a_shipped_adapter_is_read_as_peft_reads_it():
    from peft import PeftModel

    from utils.models import load_base
    from utils.train.adapter_cache import adapter_dir

    model = PeftModel.from_pretrained(load_base()[0], adapter_dir("style"), adapter_name="style")
    ours, theirs = c.read_adapter(adapter_dir("style")), c.from_peft(model, "style")
    assert c.largest_difference(ours, theirs) == 0 and len(ours) == 28


def test_into_peft_and_back():
    model = _peft_model()
    x = torch.randn(3, 12)
    adapter = c.combine([c.from_peft(model, n) for n in NAMES[:2]], [0.7, 0.3], "cat")
    c.into_peft(model, "ours", adapter)
    assert model.active_adapters == ["first"], "the active adapter changed"
    assert c.largest_difference(c.from_peft(model, "ours"), adapter) < 1e-6
    model.set_adapter("ours")
    low = x @ (model.base_model.model.up.base_layer.weight + adapter["up"].delta()).T
    got = model.base_model.model.up(x) - model.base_model.model.up.base_layer.bias
    assert torch.allclose(got, low, atol=1e-4)
    with pytest.raises(ValueError, match="already"):
        c.into_peft(model, "ours", adapter)
    adapter["up"] = adapter["up"]._replace(scaling=3.0)
    with pytest.raises(ValueError, match="one rank"):
        c.into_peft(model, "other", adapter)
    with pytest.raises(KeyError, match="no adapter 'nobody'; it has first"):
        c.from_peft(model, "nobody")


class _Small(torch.nn.Module):
    """An embedding, two blocks of two linear layers, and a head of its own."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(6, 8), "down": torch.nn.Linear(8, 6)}) for _ in range(2)
        )
        self.head = torch.nn.Linear(6, 11)
        self.config = {"model_type": "small", "tie_word_embeddings": False}

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return self.head(x)


def _small(setting=None, name="a"):
    """Of PEFT, with every trained number drawn anew, as if it had been trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = {"r": 2, "lora_alpha": 8, "target_modules": ["up", "down"]} | (setting or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(_Small(), LoraConfig(**config), adapter_name=name).eval()
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)
    return model


HELD = [  # fields of LoraConfig that A, B and a scaling in each layer hold
    {},
    {"r": 3},
    {"lora_alpha": 3},
    {"lora_dropout": 0.3},
    {"target_modules": ["up"]},
    {"target_modules": r".*1\.(up|down)"},
    {"target_modules": ["up", "down"], "exclude_modules": ["blocks.0.down"]},
    {"layers_to_transform": [1], "layers_pattern": "blocks"},
    {"use_rslora": True},
    {"rank_pattern": {"up": 4}},
    {"alpha_pattern": {"blocks.1.down": 1}},
    {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "eva"},
]
MORE = [  # and those that they don't
    {"use_dora": True},
    {"lora_bias": True},
    {"bias": "lora_only"},
    {"modules_to_save": ["head"]},
    {"trainable_token_indices": {"embed": [1, 2]}},
    {"layer_replication": [[0, 2], [0, 2]]},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"target_parameters": ["blocks.0.up.weight"], "target_modules": ["down"]},
]


@pytest.mark.parametrize("setting", HELD, ids=str)
def test_what_is_taken_out_of_peft_computes_what_it_computed_there(setting, tmp_path):
    from utils.lora.checkpoint import load_adapter
    from utils.lora.multi_adapter import route, stack_adapters, unstack_adapters

    model, ids = _small(setting), torch.arange(8)[None]
    expected = model(ids)
    plain = model.unload()
    assert not torch.allclose(plain(ids), expected, atol=1e-2)
    stack_adapters(plain, {"a": c.from_peft(_small(setting), "a")})
    with route(plain, ["a"]):
        torch.testing.assert_close(plain(ids), expected, rtol=1e-5, atol=1e-5)
    unstack_adapters(plain)
    if not setting.keys() & set(c._IN_FACTORS):  # which one LoRALinear can't say for all layers
        _small(setting).save_pretrained(tmp_path, save_embedding_layers=False)
        load_adapter(plain, tmp_path / "a")
        torch.testing.assert_close(plain(ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", MORE, ids=str)
def test_what_factors_can_not_hold_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"'a' uses {next(iter(setting))}.*would be lost"):
        c.from_peft(_replicable(setting), "a")


def _replicable(setting):
    from peft.tuners import lora as peft_lora

    if "layer_replication" not in setting:
        return _small(setting)
    with pytest.MonkeyPatch.context() as patch:  # it knows the blocks of a few architectures
        patch.setattr(peft_lora.model.LoraModel, "_prepare_model", lambda *_: None)
        return _small(setting)


def test_an_embedding_and_a_convolution_are_refused_by_their_layer():
    with pytest.raises(ValueError, match="'a' uses embed.lora_embedding_A"):
        c.from_peft(_small({"target_modules": ["embed", "up"]}), "a")
    from peft import LoHaConfig, LoraConfig, get_peft_model

    net = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 1))
    with pytest.raises(ValueError, match="'default' uses 0.lora_A"):
        c.from_peft(get_peft_model(net, LoraConfig(r=2, target_modules=["0"])), "default")
    with pytest.raises(ValueError, match="'default' uses LOHA"):
        c.from_peft(get_peft_model(_Small(), LoHaConfig(r=2, target_modules=["up"])), "default")


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"three": c.Factors(torch.ones(1, 12), torch.ones(20, 1), 1.0)}, "corrects three.* has no such layer"),
        ({"up": c.Factors(torch.ones(1, 11), torch.ones(20, 1), 1.0)}, r"\(20, 11\), and this model has \(20, 12\)"),
    ],
)
def test_into_peft_adds_nothing_that_does_not_fit(adapter, words):
    model = _peft_model()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=words):
        c.into_peft(model, "other", adapter)
    assert list(model.peft_config) == NAMES and [name for name, _ in model.named_parameters()] == before


# -------------------------------------------------------------------------------------------------------- hot-swapping


@pytest.mark.parametrize(
    "setting", [{}, {"lora_alpha": 3}, {"target_modules": ["up"]}, {"r": 1}, {"r": 1, "lora_alpha": 32}], ids=str
)
def test_a_swapped_adapter_is_saved_as_what_it_is(setting, tmp_path):
    from peft import PeftModel

    ids = torch.arange(8)[None]
    other = _small(setting)
    for p in other.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    other.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    model = _small(name="slot")
    before = model(ids)
    c.hotswap(model, "slot", tmp_path / "other" / "a")
    expected = PeftModel.from_pretrained(_small().unload(), tmp_path / "other" / "a")(ids)
    torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, before, atol=0.1)
    model.save_pretrained(tmp_path / "slot", save_embedding_layers=False)
    again = PeftModel.from_pretrained(_small().unload(), tmp_path / "slot" / "slot")
    torch.testing.assert_close(again(ids), expected, rtol=1e-5, atol=1e-5)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("slot", 1)  # computes with the alpha and the rank that each layer holds
    torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)


def _compilations(model):
    """The model compiled by a backend that compiles nothing, and a list that grows with every compilation."""
    made = []

    def backend(graph, _):
        made.append(graph)
        return graph.forward

    return torch.compile(model, backend=backend), made


@pytest.mark.parametrize("setting", [{"lora_alpha": 3}, {"r": 1}, {"r": 4}, {"target_modules": ["up"]}], ids=str)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_prepared_slot_is_compiled_once(prepared, setting, tmp_path):
    from peft import PeftModel
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    torch._dynamo.reset()
    other, ids = _small(setting), torch.arange(8)[None]
    for p in other.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    other.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    slot = _small({"r": 4} if not prepared else {}, name="slot").eval()
    if prepared:
        prepare_model_for_compiled_hotswap(slot, target_rank=4)
    compiled, made = _compilations(slot)
    compiled(ids)
    before = len(made)
    c.hotswap(compiled, "slot", tmp_path / "other" / "a")
    expected = PeftModel.from_pretrained(_small().unload(), tmp_path / "other" / "a").eval()(ids)
    torch.testing.assert_close(compiled(ids), expected, rtol=1e-5, atol=1e-5)
    scaling = (setting.get("lora_alpha", 8)) / setting.get("r", 2)
    assert len(made) - before == (0 if prepared or scaling == 2 else 1), "another scaling is a constant in the graph"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"target_modules": ["up", "head"]}, "corrects head, which the slot 'slot' doesn't have"),
        ({"r": 4}, "rank 4, and the slot 'slot' holds 2: .*target_rank=4"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
    ],
)
def test_what_can_not_be_swapped_changes_nothing(setting, words, tmp_path):
    _small(setting).save_pretrained(tmp_path, save_embedding_layers=False)
    model, ids = _small(name="slot"), torch.arange(8)[None]
    before, config = model(ids), model.peft_config["slot"].to_dict()
    with pytest.raises(ValueError, match=words):
        c.hotswap(model, "slot", tmp_path / "a")
    assert torch.equal(model(ids), before) and model.peft_config["slot"].to_dict() == config
    with pytest.raises(KeyError, match="no adapter 'slut'"):
        c.hotswap(model, "slut", tmp_path / "a")


def test_a_slot_of_several_ranks_and_an_adapter_of_another_base_are_not_swapped(tmp_path):
    from peft import LoraConfig, get_peft_model

    _small().save_pretrained(tmp_path / "small", save_embedding_layers=False)
    uneven = _small({"rank_pattern": {"blocks.0.up": 4}}, name="slot")
    with pytest.raises(ValueError, match="rank 2, and the slot 'slot' holds 2, 4"):
        c.hotswap(uneven, "slot", tmp_path / "small" / "a")
    wide = torch.nn.Module()
    wide.blocks = torch.nn.ModuleList(
        torch.nn.ModuleDict({"up": torch.nn.Linear(6, 9), "down": torch.nn.Linear(9, 6)}) for _ in range(2)
    )
    model = get_peft_model(wide, LoraConfig(r=2, target_modules=["up", "down"]), adapter_name="slot")
    with pytest.raises(ValueError, match="doesn't fit blocks.0.* another base"):
        c.hotswap(model, "slot", tmp_path / "small" / "a")


def test_a_merged_slot_is_not_swapped(tmp_path):
    _small({"lora_alpha": 3}).save_pretrained(tmp_path, save_embedding_layers=False)
    model, ids = _small(name="slot"), torch.arange(8)[None]
    model.merge_adapter()
    before = model(ids)
    with pytest.raises(ValueError, match="merged"):
        c.hotswap(model, "slot", tmp_path / "a")
    assert torch.equal(model(ids), before) and model.peft_config["slot"].lora_alpha == 8


# ------------------------------------------------------------------------------------------------------ what is refused


def _refused(words, adapters=None, weights=(0.5, 0.5), how="cat", **options):
    adapters = [_random_adapter(3, 0), _random_adapter(3, 1)] if adapters is None else adapters
    with pytest.raises(ValueError, match=words):
        c.combine(adapters, weights, how, **options)


def test_what_combine_refuses():
    one = _random_adapter(3, 0)
    _refused("2 adapters and 1 weights", weights=[0.5])
    _refused("2 adapters and 3 weights", weights=[0.5] * 3)
    _refused("no adapters", adapters=[], weights=[])
    _refused("no combination 'sum'.*cat, linear", how="sum")
    _refused("finite number, not nan", weights=[0.5, math.nan])
    _refused("at least 1, not 0", how="svd", svd_rank=0)
    for density in (None, 0, 1.5, -0.1):
        _refused("density", how="ties", density=density)
        _refused("density", how="dare_linear_svd", density=density)
    _refused("density", how="ties", density=math.nan)
    _refused("choose 'total'", how="ties", density=0.5, sign="most")
    _refused("adapters 1 and 2 have other targets: down is in one", [one, {"up": one["up"]}])
    other = {**one, "up": c.Factors(torch.ones(3, 13), torch.ones(20, 3), 1.0)}
    _refused(r"different bases: the weight of up is \(20, 12\) in one and \(20, 13\)", [one, other])
    with pytest.raises(ValueError, match="different layers: down"):
        c.largest_difference(one, {"up": one["up"]})


@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(part, value):
    wrong = _random_adapter(3, 1)
    name = list(wrong)[-1]
    getattr(wrong[name], part)[0, 0] = value
    for how in ("cat", "svd"):
        _refused(f"adapter 2 holds NaN or infinity for {name}", [_random_adapter(3, 0), wrong], how=how)


def test_a_weighted_sum_of_nothing_is_refused():
    """It was the number 0, and what is wrong came to light where a matrix was needed."""
    with pytest.raises(ValueError, match="no adapters"):
        c.weighted_sum([], [], "up")
    with pytest.raises(ValueError, match="1 adapters and 2 weights"):
        c.weighted_sum([_random_adapter(3, 0)], [0.5, 0.5], "up")


def test_what_peft_lets_through():
    """PEFT's own behaviour, which the lesson shows: a weight too few drops an adapter, density 0 gives NaN."""
    model = _peft_model()
    model.add_weighted_adapter(NAMES[:2], [0.7], "short", "cat")
    only = c.combine([c.from_peft(model, "first")], [0.7], "cat")
    assert c.largest_difference(c.from_peft(model, "short"), only) < 1e-6
    model.add_weighted_adapter(NAMES[:2], [0.5, 0.5], "short", "cat")
    assert c.largest_difference(c.from_peft(model, "short"), only) < 1e-6, "a taken name is passed over in silence"
    model.add_weighted_adapter(NAMES[:2], [0.7, 0.3], "empty", "dare_linear", density=0.0)
    assert c.from_peft(model, "empty")["up"].delta().isnan().all()
