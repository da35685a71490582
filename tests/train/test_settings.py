"""utils.train.settings: what no run can have is refused, and defaults fit the file, the profile and the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.course.advice import CHOICES
from utils.models import PROFILES, TINY_DIR, load_config
from utils.models.configs import real_config
from utils.train.recipes import BY_PROFILE, recipe
from utils.train.settings import (
    MOST_SCALE,
    SCALE,
    STEP,
    WIDTH_POWER,
    WIDTHS,
    Settings,
    usual_alpha,
    usual_epochs,
    usual_rate,
)

CONFIG = load_config(TINY_DIR)


@pytest.mark.parametrize("name", ["r", "steps", "batch_size", "max_length", "accumulation"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is a number of 1 or more, not {value}"):
        Settings(**{name: value}).checked()


@pytest.mark.parametrize("name, said", [("lr", "the learning rate"), ("alpha", "alpha"), ("epochs", "epochs")])
@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan"), float("inf")])
def test_what_isnt_a_number_above_zero_is_refused(name, said, value):
    with pytest.raises(ValueError, match=f"{said} is a number above 0"):
        Settings(**{name: value}).checked()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"epochs": 3, "steps": 40}, "epochs=3 and steps=40 both say how long"),
        ({"seed": -1}, "seed is a number from 0 to .*, not -1"),
        ({"seed": 2**32}, "seed is a number from 0 to .*, not 4294967296"),
        ({"held_out": 0}, "held_out is a share between 0 and 1"),
        ({"held_out": 1.5}, "not 1.5"),
        ({"held_out": -0.1}, "not -0.1"),
        ({"targets": []}, "targets are names of layers"),
        ({"targets": ["q_proj", " "]}, "targets are names of layers"),
        ({"target_parameters": []}, "target_parameters holds names, at least one"),
        ({"weight_decay": -1}, "weight_decay is a number of 0 or more"),
        ({"weight_decay": math.nan}, "weight_decay is a number of 0 or more"),
        ({"exclude": [" "]}, "exclude holds names, at least one"),
        ({"r": 64, "rslora": True, "alpha": 128}, r"alpha / sqrt\(r\) = 16, and above 8 .*: take alpha=16, which"),
        ({"r": 8, "alpha": 128}, "alpha / r = 16, .* take alpha=16"),
    ],
)
def test_settings_that_contradict_or_break_a_run_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Settings(**given).checked()


@given(st.integers(1, 512), st.booleans())
def test_the_usual_alpha_never_makes_a_large_scale(r, rslora):
    settings = Settings(r=r, rslora=rslora).checked()
    assert 0.8 * SCALE <= settings.scale <= 1.5 * SCALE < MOST_SCALE
    assert settings.scale == usual_alpha(r, rslora) / (math.sqrt(r) if rslora else r)


def test_the_scale_is_pefts():
    import torch
    from peft import LoraConfig, get_peft_model

    for settings in (Settings(), Settings(r=64, rslora=True), Settings(r=4, alpha=4)):
        config = LoraConfig(
            r=settings.r, use_rslora=settings.rslora, target_modules=["0"],
            lora_alpha=usual_alpha(settings.r, settings.rslora) if settings.alpha is None else settings.alpha,
        )  # fmt: skip
        layer = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), config).base_model.model[0]
        assert layer.scaling["default"] == pytest.approx(settings.scale)


def test_the_length_follows_the_records():
    """30 and 50,000 records: three passes and one. Before, both got 180 steps: 53 passes, and 3% of one."""
    timed = {n: Settings().filled("tiny", CONFIG).timed(n) for n in (30, 405, 50_000)}
    assert {n: (s.epochs, s.steps) for n, s in timed.items()} == {30: (3, 12), 405: (3, 153), 50_000: (1, 6250)}
    said = timed[30].sentence(30, 0)
    assert said.startswith("30 records to train on, 3 epochs, 12 steps of 8; learning rate 0.004, r=8, alpha=16")
    assert "the loss of 40 more every 16 steps chooses the checkpoint" in timed[405].sentence(405, 40)
    assert Settings(steps=4, batch_size=8, accumulation=2).timed(64).epochs == 1
    assert Settings(epochs=0.5, batch_size=8).timed(160).steps == 10
    with pytest.raises(ValueError, match="no records"):
        Settings().timed(0)


@given(st.integers(1, 200_000))
def test_the_usual_epochs_are_between_one_and_twentyfive(records):
    assert 1 <= usual_epochs(records) <= 25 and usual_epochs(records) >= usual_epochs(records + 1)


def test_the_rate_is_the_profiles_and_follows_the_width_of_another_model():
    assert [usual_rate(name, WIDTHS[name]) for name in PROFILES] == [4e-3, 1e-3, 2e-4]
    assert usual_rate("small", 2048) == 4e-4 and usual_rate("7b", 5120) == 2e-4 and usual_rate("7b", 1024) == 5e-4
    assert WIDTHS["tiny"] == CONFIG.hidden_size
    assert WIDTHS["small"] == real_config("SmolLM2-135M").hidden_size
    assert set(WIDTHS) == set(PROFILES) and {BY_PROFILE[p].lr for p in ("small", "7b")} == {1e-3, 2e-4}


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_filled_in_can_be_used_and_forgets_no_more_than_the_style_tasks(name):
    filled = Settings().filled(name, CONFIG)
    assert filled.checked() == filled and usual_rate(name, WIDTHS[name]) <= recipe("style", name).lr
    assert filled.checkpointing == (name == "7b"), "a 7B model's activations fill a card of 16 GB, a small one's don't"
    assert (filled.max_length, filled.positions, filled.alpha) == (512, 512, 16)
    given = Settings(lr=1e-2, batch_size=3, max_length=100, checkpointing=False, alpha=4)
    kept = given.filled(name, CONFIG)
    assert all(getattr(kept, field) == getattr(given, field) for field in ("lr", "batch_size", "max_length", "alpha"))
    assert kept.checkpointing is False


def test_a_7b_model_fits_the_card_that_its_profile_asks_for():
    """By the estimator, with its margin: Qwen2.5-7B in 4 bits on 16 GB; four records of 1,024 tokens at once don't."""
    from transformers import Qwen2Config

    from utils.profiling import GB, Setup, needed, predict

    config = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4,
    )  # fmt: skip
    filled = Settings().filled("7b", config)
    assert (filled.batch_size, filled.accumulation, filled.max_length) == (2, 4, 1024)
    assert (Settings(batch_size=4).filled("7b", config).accumulation, filled.lr) == (1, 2e-4)
    setup = Setup(config, "qlora", filled.batch_size, filled.max_length, r=filled.r, checkpointing=filled.checkpointing)
    assert needed(predict(setup).peak) < 16 * GB
    assert WIDTHS["7b"] == config.hidden_size


@pytest.mark.parametrize("name", PROFILES)
def test_a_step_has_as_many_records_as_the_guide_advises(name):
    """It was 4 under small and 7b, where the guide said 8 to 32."""
    filled = Settings().filled(name, CONFIG)
    assert filled.batch_size * filled.accumulation == STEP == 8
    assert CHOICES["How many sequences in one optimizer step?"]["small"].answer.startswith(f"{STEP} to 32")
    assert Settings(accumulation=3).filled(name, CONFIG).batch_size == filled.batch_size
    assert Settings(batch_size=4).filled(name, CONFIG).accumulation == 1


def test_it_is_said_when_no_dev_set_chooses():
    timed = Settings().filled("tiny", CONFIG).timed(50)
    assert timed.sentence(50, 0).endswith("(that takes 100 records to train on): the weights of the last step are kept")
    assert timed.sentence(500, 0).endswith("(too few different prompts): the weights of the last step are kept")
    assert "No dev set" not in timed.sentence(500, 50)


def test_every_step_is_said_without_a_number():
    timed = Settings(steps=5).filled("tiny", CONFIG).timed(400)
    assert "the loss of 40 more after every step chooses" in timed.sentence(400, 40)


def test_the_rate_stays_near_the_cookbooks_also_for_qwen():
    """tinker-cookbook's get_lr: 5e-4 (2000 / width) ** p, p = 0.781 for Llama and 0.0775 for Qwen."""
    for width in (896, 1536, 2048, 2560, 3584, 4096, 5120):
        for power in (WIDTH_POWER, 0.0775):
            theirs = 5e-4 * (2000 / width) ** power
            assert 1 / 2.5 <= usual_rate("7b", width) / theirs <= 2.5


def test_a_cut_beyond_the_models_positions_is_refused():
    with pytest.raises(ValueError, match="max_length=1300, and the model has 512 positions"):
        Settings(max_length=1300).filled("tiny", CONFIG)


def test_a_short_run_warms_up_for_a_tenth_and_looks_ten_times():
    assert [Settings(steps=n).warmup for n in (1, 12, 93, 500)] == [0, 1, 9, 10]
    assert [Settings(steps=n).look_every for n in (1, 12, 93, 500)] == [1, 2, 10, 50]


def test_the_table_has_what_a_card_needs():
    table = replace(Settings(rslora=True, r=16, targets=["q_proj", "v_proj"], accumulation=4)).filled("tiny", CONFIG)
    shown = table.timed(100).table()
    assert shown["lora_alpha"] == "8" and shown["scale"] == "2 (alpha / sqrt(r), rsLoRA)"
    assert shown["target_modules"] == "q_proj, v_proj" and shown["batch size"] == "8 x 4" and shown["seed"] == 0


def test_one_of_a_thing_is_said_in_the_singular():
    said = Settings(steps=1, batch_size=4, lr=1e-3).filled("tiny", load_config(TINY_DIR)).timed(1).sentence(1, 0)
    assert said.startswith("1 record to train on, ") and ", 1 step of 4" in said
