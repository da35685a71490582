"""What chapter 11 says of PEFT 0.21 and many adapters beside what its cells show: a slot's stale settings, the
conditions of a mixed batch, the noise of DARE."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

from utils.lora import combine as c
from utils.lora.combine import hotswap
from utils.models import load_base
from utils.train.adapter_cache import adapter_dir

IDS = torch.tensor([[44, 86, 700]])


def _slot(seed, **fields):
    fields = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **fields}
    torch.manual_seed(seed)
    config = LoraConfig(**fields, init_lora_weights=False)
    return get_peft_model(load_base()[0], config, adapter_name="slot").eval()


@torch.no_grad()
def _apart(one, other):
    return (one(input_ids=IDS).logits - other(input_ids=IDS).logits).abs().max().item()


def _saved(slot, folder):
    slot.save_pretrained(folder, save_embedding_layers=False)
    return PeftModel.from_pretrained(load_base()[0], folder / "slot").eval()


@pytest.mark.parametrize(
    ("fields", "in_use", "saved"),
    [
        ({"lora_alpha": 64}, "right", "wrong"),
        ({"r": 4}, "right", "wrong"),
        ({"r": 16}, "right", "size mismatch"),
        ({"target_modules": ["q_proj"]}, "right", "right"),
        ({"rank_pattern": {"v_proj": 4}}, "wrong", "right"),
    ],
    ids=str,
)
def test_what_pefts_hotswap_leaves_stale(fields, in_use, saved, tmp_path):
    new, slot = _slot(1, **fields), _slot(0)
    new.save_pretrained(tmp_path / "new", save_embedding_layers=False)
    hotswap_adapter(slot, str(tmp_path / "new" / "slot"), "slot")
    assert (_apart(slot, new) < 1e-4) == (in_use == "right")
    config = slot.peft_config["slot"]
    assert (config.r, config.lora_alpha, config.target_modules) == (8, 16, {"q_proj", "v_proj"}), "as they were"
    if saved == "size mismatch":
        with pytest.raises(RuntimeError, match=saved):
            _saved(slot, tmp_path / "saved")
    else:
        assert (_apart(slot, _saved(slot, tmp_path / "saved")) < 1e-4) == (saved == "right")


@pytest.mark.parametrize(
    ("fields", "pefts", "ours"),
    [
        ({"use_rslora": True}, "use_rslora, False != True", "use_rslora"),
        ({"lora_dropout": 0.1}, "lora_dropout", None),
        ({"alpha_pattern": {"v_proj": 64}}, "alpha_pattern", "alpha_pattern"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "unexpected keys", "which the slot 'slot' doesn't have"),
    ],
    ids=str,
)
def test_what_both_refuse(fields, pefts, ours, tmp_path):
    _slot(1, **fields).save_pretrained(tmp_path, save_embedding_layers=False)
    slot = _slot(0)
    with pytest.raises((ValueError, RuntimeError), match=pefts):
        hotswap_adapter(slot, str(tmp_path / "slot"), "slot")
    with pytest.raises(ValueError, match=ours or pefts):
        hotswap(slot, "slot", tmp_path / "slot")


def test_rank_pattern_is_refused_by_ours(tmp_path):
    _slot(1, rank_pattern={"v_proj": 4}).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ValueError, match="rank_pattern"):
        hotswap(_slot(0), "slot", tmp_path / "slot")


def test_a_prepared_slot_comes_back_from_its_folder_with_half_its_scaling_until_ours_is_swapped_in(tmp_path):
    slot = _slot(0)
    prepare_model_for_compiled_hotswap(slot, target_rank=16, config=slot.peft_config)
    assert slot.peft_config["slot"].r == 16 and slot.peft_config["slot"].lora_alpha == 16
    assert _apart(slot, _saved(slot, tmp_path / "prepared")) > 1
    new = _slot(1)
    new.save_pretrained(tmp_path / "new", save_embedding_layers=False)
    hotswap(slot, "slot", tmp_path / "new" / "slot")
    assert slot.peft_config["slot"].lora_alpha == 32
    assert _apart(slot, _saved(slot, tmp_path / "saved")) < 1e-4 and _apart(slot, new) < 1e-4


def test_it_has_to_be_prepared_before_it_is_compiled():
    compiled = torch.compile(_slot(0), backend="eager")
    with pytest.raises(ValueError, match="before"):
        prepare_model_for_compiled_hotswap(compiled, target_rank=16)


def test_the_conditions_of_a_mixed_batch():
    model = _slot(0)
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS, adapter_names=["slot"]).logits, base), "disable_adapter wins"
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged adapters"):
        model(input_ids=IDS, adapter_names=["slot"])
    with pytest.raises(ValueError, match="DoRA"):
        _slot(0, use_dora=True)(input_ids=IDS, adapter_names=["slot"])


# ------------------------------------------------------------------------------------------------ combining, in numbers


@pytest.fixture(scope="module")
def pair():
    return [c.read_adapter(adapter_dir(task)) for task in ("sentiment", "summarization")]


def test_dare_is_far_by_its_noise_in_two_factors(pair):
    """Halved and doubled: the same entries, on the factors, on the updates, and on the updates cut to rank 8."""
    weights, error, total = [0.7, 0.3], 0.0, 0.0
    draw = torch.Generator().manual_seed(0)
    for name in pair[0]:
        exact = c.weighted_sum(pair, weights, name)
        deltas = [adapter[name].delta() for adapter in pair]
        thin = sum(w * c.keep_random(d, 0.5, draw) for w, d in zip(weights, deltas, strict=True))
        error += (thin - exact).square().sum().item()
        total += exact.square().sum().item()
    on_updates = (error / total) ** 0.5

    def off(how):
        masks = torch.Generator().manual_seed(0)
        return c.combined_error(pair, weights, c.combine(pair, weights, how, density=0.5, generator=masks))

    assert off("dare_linear_svd") < 0.5 < off("ties") < on_updates < off("dare_linear")
    assert on_updates == pytest.approx(1.0, abs=0.05), "the root of (1 - p) / p"


def test_the_norm_of_ties_at_weights_one_and_one(pair):
    norms = {
        (how, density): c.relative_norm(pair, [1.0, 1.0], c.combine(pair, [1.0, 1.0], how, density=density))
        for how in ("ties", "ties_svd")
        for density in (0.5, 1.0)
    }
    assert [round(norm, 2) for norm in norms.values()] == [0.73, 0.62, 0.82, 0.73]
    assert c.relative_norm(pair, [1.0, 1.0], c.combine(pair, [1.0, 1.0], "cat")) == pytest.approx(1)


def test_a_shuffled_adapter_has_the_same_numbers_and_norms_and_another_direction(pair):
    mixed = c.shuffled(pair[0])
    for name, f in pair[0].items():
        assert torch.equal(f.A.flatten().sort().values, mixed[name].A.flatten().sort().values)
        torch.testing.assert_close(mixed[name].delta().norm(), f.delta().norm(), rtol=1e-4, atol=1e-4)
        cosine = torch.nn.functional.cosine_similarity(mixed[name].delta().flatten(), f.delta().flatten(), 0)
        assert abs(cosine) < 0.1
    assert not torch.equal(c.shuffled(pair[0], 1)[name].A, mixed[name].A)


def test_two_active_adapters_are_cat_with_weights_one_and_one(pair):
    model = PeftModel.from_pretrained(load_base()[0], adapter_dir("sentiment"), "sentiment")
    model.load_adapter(adapter_dir("summarization"), adapter_name="summarization")
    model.eval().base_model.set_adapter(["sentiment", "summarization"])
    with torch.no_grad():
        both = model(input_ids=IDS).logits
        c.into_peft(model, "sum", c.combine(pair, [1.0, 1.0], "cat"))
        model.set_adapter("sum")
        torch.testing.assert_close(model(input_ids=IDS).logits, both, rtol=1e-3, atol=1e-3)


def test_what_add_weighted_adapter_lets_through():
    """rsLoRA's square root, a call that fails half-way and keeps the name, the union of other targets."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=True, init_lora_weights=False)
    rs = get_peft_model(load_base()[0], config, adapter_name="left")
    rs.add_adapter("right", config)
    rs.add_weighted_adapter(["left", "right"], [1.0, 1.0], "both", "cat")
    wrong = next(iter(c.from_peft(rs, "both").values()))
    assert (wrong.r, wrong.scaling) == (8, pytest.approx(8**0.5)), "1 was meant"
    mine = c.combine([c.from_peft(rs, name) for name in ("left", "right")], [1.0, 1.0], "cat")
    assert next(iter(mine.values())).scaling == 1

    model = PeftModel.from_pretrained(load_base()[0], adapter_dir("sentiment"), "sentiment")
    model.load_adapter(adapter_dir("summarization"), adapter_name="summarization")
    duo = ["sentiment", "summarization"]
    with pytest.raises(TypeError):
        model.add_weighted_adapter(duo, [0.5, 0.5], "mended", "ties")
    model.add_weighted_adapter(duo, [0.5, 0.5], "mended", "ties", density=0.5)
    assert max(f.delta().abs().max().item() for f in c.from_peft(model, "mended").values()) == 0, "the name was taken"

    slot = _slot(0)
    slot.add_adapter("other", LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False))
    names = ["slot", "other"]
    slot.add_weighted_adapter(names, [0.5, 0.5], "union", "cat")
    assert c.from_peft(slot, "union").keys() == c.from_peft(slot, "slot").keys()
    with pytest.raises(ValueError, match="other targets"):
        c.combine([c.from_peft(slot, name) for name in names], [0.5, 0.5], "cat")


def test_a_taken_name_keeps_its_old_alpha_and_rank_and_a_deleted_one_is_replaced_with_a_warning(tmp_path):
    louder = LoraConfig.from_pretrained(adapter_dir("style"))
    louder.lora_alpha = 64
    PeftModel.from_pretrained(load_base()[0], adapter_dir("style"), config=louder).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    model = PeftModel.from_pretrained(load_base()[0], adapter_dir("sentiment"), "sentiment")
    model.load_adapter(tmp_path, adapter_name="sentiment")
    now, meant = c.from_peft(model, "sentiment"), c.read_adapter(tmp_path)
    assert model.peft_config["sentiment"].lora_alpha == 16
    assert all(torch.equal(now[name].B, meant[name].B) for name in meant)  # the new matrices
    assert {(now[name].scaling, meant[name].scaling) for name in meant} == {(2.0, 8.0)}  # under the old alpha
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(adapter_dir("translation"), adapter_name="sentiment")
    model.load_adapter(adapter_dir("style"), adapter_name="style")
    model.set_adapter("style")
    with pytest.warns(UserWarning, match="was active"):
        model.delete_adapter("style")
    assert model.active_adapters == ["sentiment"]
