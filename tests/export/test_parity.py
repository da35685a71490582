"""llama.cpp computes what transformers and PEFT compute: every architecture, base, adapter and merged model.

The tolerance is of log-probabilities in float32 whose sizes go up to 14: sums of 64 to 96 products in another order.
Measured: at most 6e-5. A forgotten rotation, alpha or bias moves them by more than 0.1 (the controls).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tools import export_models as made
from utils.export import LlamaCpp, to_gguf

pytest.importorskip("xllamacpp")
TOLERANCE = 5e-4
PROMPTS = [*made.prompts(6), made.prompts(2, length=200, seed=5)[1]]


def furthest(server: LlamaCpp, model: Any, **asked: Any) -> float:
    """The largest difference of a log-probability over the prompts."""
    differences = [
        (server.log_probabilities(ids, **asked) - made.log_probabilities(model, ids)).abs().max().item()
        for ids in PROMPTS
    ]
    return max(differences)


def assert_equal(server: LlamaCpp, model: Any, **asked: Any) -> None:
    assert furthest(server, model, **asked) < TOLERANCE
    assert [server.new_ids(ids, 12, **asked) for ids in PROMPTS] == [made.greedy(model, ids) for ids in PROMPTS]


@pytest.mark.parametrize("name", made.CONFIGS)
def test_base_adapter_and_merged_model_compute_the_same(name, tmp_path):
    tokenizer, model = made.tiny_tokenizer(), made.random_model(name)
    folder = made.saved(model, tmp_path / "base")
    base = to_gguf(folder, tmp_path / "base.gguf", "f32", tokenizer=tokenizer)
    adapted = made.random_adapter(model, tmp_path / "adapter")
    adapter = to_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", "f32", base=folder)
    with LlamaCpp(base, {"a": adapter}) as server:
        assert_equal(server, adapted, adapter="a")
        with adapted.disable_adapter():
            assert_equal(server, adapted)
            assert_equal(server, adapted, adapter="a", scale=0.0)
        assert furthest(server, adapted) > 0.1, "the adapter changes nothing, so it proves nothing"
    merged = adapted.merge_and_unload()
    with LlamaCpp(to_gguf(merged, tmp_path / "merged.gguf", "f32", tokenizer=tokenizer)) as server:
        assert_equal(server, merged)


@pytest.mark.parametrize("scale", [0.25, 2.0, -1.0])
def test_a_request_s_scale_multiplies_peft_s_scaling(scale, tmp_path):
    model = made.random_model("Llama")
    base = to_gguf(model, tmp_path / "base.gguf", "f32", tokenizer=made.tiny_tokenizer())
    config = model.config
    adapted = made.random_adapter(model, tmp_path / "adapter")
    adapter = to_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", "f32", base=config)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {key: value * scale for key, value in module.scaling.items()}
    with LlamaCpp(base, {"a": adapter}) as server:
        assert_equal(server, adapted, adapter="a", scale=scale)


def test_two_adapters_are_switched_and_mixed_per_request(tmp_path):
    model = made.random_model("Mistral")
    base = to_gguf(model, tmp_path / "base.gguf", "f32", tokenizer=made.tiny_tokenizer())
    config, files = model.config, {}
    for seed, name in enumerate(("a", "b"), 1):
        made.random_adapter(made.random_model("Mistral"), tmp_path / name, seed=seed)
        files[name] = to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "f32", base=config)
    both: Any = PeftModel.from_pretrained(model, str(tmp_path / "a"), adapter_name="a").eval()
    both.load_adapter(str(tmp_path / "b"), adapter_name="b")
    with LlamaCpp(base, files) as server:
        for name in ("a", "b", "a"):
            both.set_adapter(name)
            assert_equal(server, both, adapter=name)
        both.base_model.set_adapter(["a", "b"])
        for module in both.modules():
            if isinstance(module, LoraLayer):
                module.scaling["b"] *= 0.5
        assert_equal(server, both, adapter={"a": 1.0, "b": 0.5})


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"r": 8, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
        {"alpha_pattern": {"k_proj": 1, "down_proj": 30}, "rank_pattern": {"v_proj": 16}},
        {"alpha_pattern": {"^model.layers.0.self_attn.o_proj": 5}, "use_rslora": True, "r": 3},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["k_proj"], "layers_to_transform": [1]},
    ],
)
def test_every_scaling_of_peft_comes_out_right(settings, tmp_path):
    model = made.random_model("Llama, untied, wide heads")
    base = to_gguf(model, tmp_path / "base.gguf", "f32", tokenizer=made.tiny_tokenizer())
    config = model.config
    adapted = made.random_adapter(model, tmp_path / "adapter", **settings)
    adapter = to_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", "f32", base=config)
    with LlamaCpp(base, {"a": adapter}) as server:
        assert_equal(server, adapted, adapter="a")
        assert furthest(server, adapted) > 0.1


@pytest.mark.parametrize("dtype, error", [("f16", 2**-11), ("bf16", 2**-8)])
def test_an_adapter_in_16_bits_differs_by_its_rounding_alone(dtype, error, tmp_path):
    model = made.random_model("Qwen3")
    base = to_gguf(model, tmp_path / "base.gguf", "f32", tokenizer=made.tiny_tokenizer())
    config = model.config
    adapted = made.random_adapter(model, tmp_path / "adapter")
    adapter = to_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", dtype, base=config)
    with (
        torch.no_grad()
    ):  # the same rounding in PEFT: llama.cpp rounds the inputs of 16-bit products too, once a product
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(parameter.to({"f16": torch.float16, "bf16": torch.bfloat16}[dtype]).float())
    with LlamaCpp(base, {"a": adapter}) as server:
        assert furthest(server, adapted, adapter="a") < 100 * error


def shipped() -> list[str]:
    return ["style", "translation", "sentiment", "summarization"]


@pytest.mark.parametrize("task", shipped())
def test_the_shipped_adapters_answer_as_with_peft(task, tmp_path):
    from utils.evaluate.metrics import answer
    from utils.models.device import ROOT, TINY_DIR
    from utils.models.loading import load_tiny
    from utils.tinyworld import task_examples

    folder = Path(ROOT, "assets", "adapters", task)
    base, adapter = to_gguf(TINY_DIR, tmp_path / "tiny.gguf", "f32"), to_gguf(folder, tmp_path / "a.gguf", "f32")
    asked = [example.prompt for example in task_examples(task, "test", 20)]
    model, tokenizer = load_tiny()
    plain = answer(model, tokenizer, asked, batch_size=1)  # in a batch, one token with a lead of 1e-6 becomes another
    adapted: Any = PeftModel.from_pretrained(model, str(folder)).eval()
    wanted = answer(adapted, tokenizer, asked, batch_size=1)
    assert wanted != plain
    merged = adapted.merge_and_unload()
    with LlamaCpp(base, {task: adapter}) as server:
        assert server.answer(asked) == plain
        assert server.answer(asked, adapter=task) == wanted
    with LlamaCpp(to_gguf(merged, tmp_path / "merged.gguf", "f32", tokenizer=tokenizer)) as server:
        assert server.answer(asked) == wanted
