"""Turning an update down and replay: the ends are the base and the trained model, and nothing held out is replayed."""

import json

import pytest
import torch

from utils import lora, models
from utils.evaluate import forgetting, gates
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

RECORD = json.loads((models.ASSETS / "measurements" / "forgetting.json").read_text())
IDS = torch.randint(5, 1000, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


@pytest.fixture
def adapted():
    model, _ = models.load_base()
    lora.inject(model, "all-linear", 2, 4)
    for i, layer in enumerate(lora.lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B, std=0.05, generator=torch.Generator().manual_seed(i))
    return model


def test_scaled_to_zero_is_the_base_and_afterwards_all_is_as_it_was(adapted):
    base, before = logits(models.load_base()[0]), logits(adapted)
    assert not torch.equal(base, before)
    with forgetting.scaled(adapted, 0):
        assert torch.equal(logits(adapted), base)
    with pytest.raises(KeyError), forgetting.scaled(adapted, 0.5):
        assert not torch.equal(logits(adapted), before)
        raise KeyError
    assert torch.equal(logits(adapted), before)


def test_scaling_the_correction_is_interpolating_the_weights(adapted):
    base = models.load_base()[0]
    merged, _ = models.load_base()
    for name, layer in lora.lora_layers(adapted).items():
        merged.get_submodule(name).weight.data += layer.delta_weight().detach()
    own = logits(merged)
    with forgetting.scaled(adapted, 0.3), forgetting.interpolated(merged, base.state_dict(), 0.3):
        # float32 through four blocks, logits of the size of ten
        assert torch.allclose(logits(adapted), logits(merged), atol=1e-4)
    assert torch.equal(logits(merged), own)


def test_scaled_is_pefts_rescale_adapter_scale():
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale

    from utils.lora.checkpoint import load_adapter

    theirs = PeftModel.from_pretrained(models.load_base()[0], adapter_dir("style")).eval()
    ours, _ = models.load_base()
    load_adapter(ours, adapter_dir("style"))
    with rescale_adapter_scale(theirs, 0.4), forgetting.scaled(ours, 0.4):
        assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)  # float32 logits of the size of ten
        assert not torch.allclose(logits(ours), logits(models.load_base()[0]), atol=0.1)


def test_interpolated_to_zero_is_the_base_to_the_bit():
    base, (other, _) = models.load_base()[0], models.load_base()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.01
    with forgetting.interpolated(other, base.state_dict(), 0):
        assert torch.equal(logits(other), logits(base))
    assert not torch.equal(logits(other), logits(base))


def test_what_is_refused(adapted):
    model, _ = models.load_base()
    with pytest.raises(RuntimeError, match="no LoRA layers"), forgetting.scaled(model, 0.5):
        pass
    for variant in (lora.DoRA(), lora.PiSSA()):
        other = models.load_base()[0]
        lora.inject(other, ["q_proj"], 2, 4, variant=variant)
        with pytest.raises(TypeError, match=f"the scaling of {type(variant).__name__}"), forgetting.scaled(other, 0):
            pass
    lora.merge(adapted)
    with pytest.raises(RuntimeError, match="unmerge first"), forgetting.scaled(adapted, 0.5):
        pass
    wrong = {**model.state_dict(), "model.norm.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"no model\.norm\.weight of shape"):
        with forgetting.interpolated(model, wrong, 0.5):
            pass
    with pytest.raises(ValueError, match="at least 1"):
        forgetting.replay_examples(0)


def test_no_replayed_story_is_held_out_and_the_seed_decides():
    replayed = forgetting.replay_examples(300)
    assert replayed == forgetting.replay_examples(300) != forgetting.replay_examples(300, seed=1)
    assert not {e.answer for e in replayed} & set(gates.held_out_stories(300))


def test_measure_gives_the_three_numbers_of_the_base():
    model, tokenizer = models.load_base()
    kept = forgetting.measure_forgetting(
        model, tokenizer, task_examples("style", "test", 4), gates.held_out_stories(8), copies=10
    )
    assert kept.task == 0
    assert kept.copying > 0.9
    assert 1.4 < kept.stories < 1.8  # 1.61 on more of them


# ------------------------------------------------------------------------------------------------------- the record


def rows(section, **wanted):
    return [r for r in RECORD[section] if all(r[k] == v for k, v in wanted.items())]


def mean(section, key, **wanted):
    found = [r[key] for r in rows(section, **wanted)]
    return sum(found) / len(found)


BASE = RECORD["base"]["stories"]
METHODS = ("LoRA", "full fine-tuning")


@pytest.mark.parametrize("section", ["rates", "steps", "replay"])
def test_every_setting_has_every_seed(section):
    for method, lr in {(r["method"], r["lr"]) for r in RECORD[section]}:
        assert [r["seed"] for r in rows(section, method=method, lr=lr)] == RECORD["seeds"]


@pytest.mark.parametrize("method", METHODS)
def test_forgetting_grows_with_the_rate_and_the_last_doubling_costs_most(method):
    rates = sorted({r["lr"] for r in rows("rates", method=method)})
    read = [mean("rates", "stories", method=method, lr=lr) for lr in rates]
    assert read == sorted(read)
    assert read[-1] - read[-2] > read[-2] - BASE
    news = [sum(r["intruders"]["0.7"] for r in rows("rates", method=method, lr=lr)) for lr in rates]
    assert news == sorted(news)


def test_a_fifth_of_every_update_that_learnt_the_task_was_surplus_and_dear():
    for row in RECORD["rates"]:
        if row["lr"] > min(r["lr"] for r in rows("rates", method=row["method"])):
            assert row["by_factor"]["0.8"]["task"] >= 0.95 > row["by_factor"]["0.6"]["task"]
            assert row["by_factor"]["0.8"]["stories"] - BASE < 0.5 * (row["stories"] - BASE)


@pytest.mark.parametrize("method", METHODS)
def test_half_the_steps_and_replay_forget_less(method):
    (lr,) = {r["lr"] for r in rows("replay", method=method)}
    full = mean("rates", "stories", method=method, lr=lr)
    assert mean("steps", "stories", method=method, lr=lr) < full
    assert mean("replay", "stories", method=method, lr=lr) < 1.05 * BASE < full
    assert mean("replay", "task", method=method, lr=lr) > 0.95


def test_intruders_are_not_the_same_as_forgetting():
    def intruders(section, **wanted):
        return sum(r["intruders"]["0.5"] for r in rows(section, **wanted)) / len(RECORD["seeds"])

    lora, full = {"method": "LoRA", "lr": 0.003}, {"method": "full fine-tuning", "lr": 0.001}
    assert mean("rates", "stories", **full) > mean("rates", "stories", **lora)
    assert intruders("rates", **full) < 1 < 10 < intruders("rates", **lora)
    fast = {"method": "LoRA", "lr": 0.006}
    assert intruders("replay", **fast) > 0.75 * intruders("rates", **fast)
