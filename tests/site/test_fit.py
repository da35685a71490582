"""The figure "Will it fit?": its JavaScript says what `utils.profiling.predict` says, and what GPUs allocated."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from transformers import GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.site.nodes import needs_node, run
from tools.site import fit_data
from utils.lora import count_parameters
from utils.models.configs import SHAPES, real_config
from utils.profiling.fit import needed
from utils.profiling.memory import ATTENTION, METHODS, OPTIMIZERS, Setup, model_of, predict

KINDS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
TARGETS = (
    "all-linear", ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"), ("o_proj",),
    ("gate_proj", "up_proj", "down_proj"), ("k_proj", "down_proj"),
)  # fmt: skip
GENERATED, SEED = 500, 22
DATA = json.loads(fit_data.FILE.read_text(encoding="utf-8"))


def generated(count: int = GENERATED, seed: int = SEED) -> list[Setup]:
    """Models of every kind and settings of every field, by chance."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        kind, heads = chance.choice(list(KINDS)), chance.choice((2, 4, 6, 8))
        size = chance.choice((32, 64, 128))
        hidden = heads * size if chance.random() < 0.8 else heads * size + 64 * heads
        sizes = {
            "hidden_size": hidden, "num_attention_heads": heads, "head_dim": size,
            "num_key_value_heads": chance.choice([n for n in range(1, heads + 1) if heads % n == 0]),
            "num_hidden_layers": chance.randint(1, 4), "intermediate_size": 32 * chance.randint(4, 90),
            "vocab_size": chance.randint(100, 20_000), "tie_word_embeddings": chance.random() < 0.5,
        }  # fmt: skip
        if kind in ("llama", "qwen3"):
            sizes["attention_bias"] = chance.random() < 0.3
        dtype = chance.choice(("bfloat16", "float16", "float32"))
        adapters = ("float32", "bfloat16" if dtype == "float32" else dtype)  # 16-bit kinds aren't mixed
        found.append(
            Setup(
                KINDS[kind](**sizes), chance.choice(METHODS), chance.randint(1, 8),
                chance.choice((16, 64, 100, 128, 256, 333, 512)), dtype,
                chance.choice(TARGETS), chance.choice((1, 4, 8, 16, 64, 256)), chance.choice((0.0, 0.0, 0.1)),
                chance.choice(adapters), chance.random() < 0.5, chance.random() < 0.3,
                chance.choice(OPTIMIZERS), chance.random() < 0.5, chance.choice((*ATTENTION, "sdpa")),
                chance.random() < 0.5,
            )
        )  # fmt: skip
    return found


def asked(cases: list[tuple[dict, dict]], folder) -> list[dict]:
    """What the JavaScript says of each configuration and setting."""
    file = folder / "cases.json"
    file.write_text(json.dumps([{"config": c, "setup": s} for c, s in cases], default=str), encoding="utf-8")
    return run("fit_check.js", file)


def fields(setup: Setup) -> dict:
    """The settings without the model."""
    return {f.name: getattr(setup, f.name) for f in dataclasses.fields(setup) if f.name != "model"}


@needs_node
@pytest.mark.slow
def test_five_hundred_settings_are_within_one_percent_of_the_python(tmp_path):
    """In fact they are far nearer, so a change of one tensor of a block is seen."""
    setups = generated()
    found = asked([(setup.model.to_dict(), fields(setup)) for setup in setups], tmp_path)
    errors = {}
    for number, (setup, mine) in enumerate(zip(setups, found, strict=True)):
        theirs = predict(setup)
        assert "refused" not in mine, (number, mine)
        assert mine["resident"] == theirs.resident, (number, setup)
        assert sum(mine["parts"].values()) == mine["peak"]
        assert mine["needed"] == needed(mine["peak"])
        errors[number] = mine["peak"] / theirs.peak - 1
    worst = max(errors, key=lambda n: abs(errors[n]))
    print(f"{len(setups)} settings: exact {sum(e == 0 for e in errors.values())}, worst {errors[worst]:+.4%}")
    assert abs(errors[worst]) < 0.01, (worst, setups[worst])


def test_the_file_is_what_its_tool_writes():
    assert fit_data.FILE.read_text(encoding="utf-8") == fit_data.text(), "python -m tools.site.fit_data"
    assert list(DATA["models"]) == list(SHAPES) and len(DATA["measured"]) >= 70


@needs_node
@pytest.mark.slow
def test_measured_steps_are_predicted_within_two_percent(tmp_path):
    """Every record's step, 1.2% off at worst as in Python, from which the figure is 0.1% away at most."""
    rows = DATA["measured"]
    found = asked([(DATA["models"][row["model"]], row["setup"]) for row in rows], tmp_path)
    errors = [mine["peak"] / row["peak"] - 1 for mine, row in zip(found, rows, strict=True)]
    worst = max(range(len(rows)), key=lambda n: abs(errors[n]))
    print(f"{len(rows)} measured steps, worst {errors[worst]:+.2%}: {rows[worst]}")
    assert max(map(abs, errors)) < 0.02
    for row, mine in list(zip(rows, found, strict=True))[::8]:
        setup = {k: tuple(v) if isinstance(v, list) else v for k, v in row["setup"].items()}
        theirs = predict(Setup(row["model"], **setup))
        assert mine["peak"] == pytest.approx(theirs.peak, rel=1e-3)
        assert mine["phase"] == theirs.phase
        assert mine["parts"] == pytest.approx(theirs.parts, rel=0.01, abs=1e7)


@needs_node
def test_parameters_are_counted_and_other_models_refused(tmp_path):
    names = list(SHAPES)
    configs = [real_config(name).to_dict() for name in names]
    bad = [
        GemmaConfig().to_dict(), {}, {"model_type": "llama", "hidden_size": 8},
        configs[0] | {"quantization_config": {}}, configs[0] | {"num_key_value_heads": 2},
    ]  # fmt: skip
    found = asked([(c, {"length": 16}) for c in (*configs, *bad)], tmp_path)
    assert [mine["counts"]["base"] for mine in found[: len(names)]] == list(SHAPES.values())
    assert found[names.index("Llama-2-7B")]["counts"]["lora"] == 19_988_480
    model = model_of(Setup("SmolLM2-135M", length=16))
    assert found[0]["counts"]["lora"] == count_parameters(model)[0]
    said = ["gemma", "no model_type", "num_attention_heads", "quantized already", "can't share"]
    assert all(words in mine["refused"] for words, mine in zip(said, found[len(names) :], strict=True)), found[-5:]
