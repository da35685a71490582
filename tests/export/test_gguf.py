"""What to_gguf writes, what it refuses and says, and that nothing half-written is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from tools import export_models as made
from utils.export import ExportError, to_gguf
from utils.export.edit import edited
from utils.export.gguf import DTYPES
from utils.export.gguf_facts import gguf_facts
from utils.lora.checkpoint import CONFIG, WEIGHTS
from utils.models.device import ROOT, TINY_DIR
from utils.train.adapter_cache import adapter_dir

STYLE = Path(ROOT, "assets", "adapters", "style")


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def copied(folder: Path, source: Path = STYLE, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    shutil.copytree(source, folder)
    config = json.loads((folder / CONFIG).read_text()) | settings
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------------------------------------------------- the numbers


def test_float32_holds_every_number_of_the_model(tmp_path):
    file = to_gguf(TINY_DIR, tmp_path / "tiny.gguf", "f32")
    weights = load_file(TINY_DIR / "model.safetensors")
    found = tensors(file)
    assert len(found) == len(weights), "the tied head is the embedding"
    assert np.array_equal(found["token_embd.weight"].data, weights["model.embed_tokens.weight"].float().numpy())
    q = weights["model.layers.3.self_attn.q_proj.weight"].float()
    assert np.array_equal(found["blk.3.attn_q.weight"].data, q.reshape(6, 2, 16, 192).transpose(1, 2).reshape(192, 192))
    v = weights["model.layers.3.self_attn.v_proj.weight"].float()
    assert np.array_equal(found["blk.3.attn_v.weight"].data, v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_dequantizes_to_what_the_library_makes_of_the_weights(dtype, tmp_path):
    file = to_gguf(TINY_DIR, tmp_path / "tiny.gguf", dtype)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    weight = load_file(TINY_DIR / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float().numpy()
    stored = tensors(file)["blk.0.ffn_down.weight"]
    assert stored.tensor_type == kind
    wanted = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    assert np.array_equal(gguf.quants.dequantize(stored.data, stored.tensor_type), wanted)
    if dtype != "f32":
        error = np.abs(wanted - weight).max() / np.abs(weight).max()
        assert (
            error
            < {"f16": 1e-3, "bf16": 4e-3, "q8_0": 4e-3, "q5_1": 0.04, "q5_0": 0.05, "q4_1": 0.08, "q4_0": 0.1}[dtype]
        )


def test_below_8_bits_the_embedding_has_8_and_norms_have_32(tmp_path):
    found = tensors(to_gguf(TINY_DIR, tmp_path / "tiny.gguf", "q4_0"))
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds.pop("token_embd.weight") == "Q8_0"
    assert {name for name, kind in kinds.items() if kind == "F32"} == {n for n in kinds if "norm" in n}
    assert set(kinds.values()) == {"F32", "Q4_0"}


def test_a_matrix_whose_rows_are_no_blocks_stays_in_16_bits(tmp_path):
    config = t.LlamaConfig(**made.SMALL | {"intermediate_size": 80})
    model = t.AutoModelForCausalLM.from_config(config)
    found = tensors(to_gguf(model, tmp_path / "m.gguf", "q4_0", tokenizer=made.tiny_tokenizer()))
    assert found["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "Q4_0"


def test_an_adapter_s_file_has_its_alpha_and_pairs(tmp_path):
    file = to_gguf(STYLE, tmp_path / "style.gguf", "f32")
    facts, found = gguf_facts(file), tensors(file)
    assert (facts.kind, facts.architecture, facts.alpha) == ("adapter", "llama", 16.0)
    assert len(found) == 56
    matrices = load_file(STYLE / WEIGHTS)
    a = matrices["base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight"]
    b = matrices["base_model.model.model.layers.2.self_attn.k_proj.lora_B.weight"]
    assert np.array_equal(found["blk.2.attn_k.weight.lora_a"].data, a.float())
    assert np.array_equal(
        found["blk.2.attn_k.weight.lora_b"].data, b.float().reshape(2, 2, 16, 8).transpose(1, 2).reshape(64, 8)
    )


def test_what_one_alpha_cannot_say_is_in_lora_b_exactly(tmp_path):
    """rsLoRA of one rank has an alpha of its own; a module with twice the scaling has twice the B, bit for bit."""
    model = made.random_model("Llama")
    config = model.config
    made.random_adapter(model, tmp_path / "a", use_rslora=True, alpha_pattern={"up_proj": 16})
    file = to_gguf(tmp_path / "a", tmp_path / "a.gguf", "f32", base=config)
    matrices, found = load_file(tmp_path / "a" / WEIGHTS), tensors(file)
    assert gguf_facts(file).alpha == 8 * 2  # alpha / sqrt(4) = 16 / 4
    for module, name, factor in (("mlp.up_proj", "ffn_up", 2.0), ("mlp.down_proj", "ffn_down", 1.0)):
        b = matrices[f"base_model.model.model.layers.0.{module}.lora_B.weight"]
        assert np.array_equal(found[f"blk.0.{name}.weight.lora_b"].data, factor * b)


def test_a_folder_in_several_files_is_read(tmp_path):
    model = made.random_model("Mistral")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    files = [
        to_gguf(tmp_path / n, tmp_path / f"{n}.gguf", "f32", tokenizer=made.tiny_tokenizer())
        for n in ("whole", "parts")
    ]
    a, b = map(tensors, files)
    assert a.keys() == b.keys() and all(np.array_equal(a[name].data, b[name].data) for name in a)
    next((tmp_path / "parts").glob("*-00002-*")).unlink()
    with pytest.raises(ExportError, match="lacks model-00002"):
        to_gguf(tmp_path / "parts", tmp_path / "no.gguf", tokenizer=made.tiny_tokenizer())


# ------------------------------------------------------------------------------------------------------- refused models


@pytest.mark.parametrize("name", ["Gemma", "Phi-3", "GPT-2", "Mixtral"])
def test_another_architecture_is_refused_by_name(name, tmp_path):
    from utils.lora.target_modules import tiny_random

    model = tiny_random(name)
    with pytest.raises(ExportError, match=f"{type(model).__name__}.*convert_hf_to_gguf") as refused:
        to_gguf(model, tmp_path / "m.gguf", tokenizer=made.tiny_tokenizer())
    assert "Qwen3ForCausalLM" in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config, words",
    [
        (t.LlamaConfig(**made.SMALL, hidden_act="gelu"), "hidden_act='gelu'"),
        (t.Qwen3Config(**made.SMALL, head_dim=16, attention_bias=True), "attention_bias"),
        (t.LlamaConfig(**made.SMALL, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}), "yarn"),
    ],
)
def test_a_setting_that_llama_cpp_has_no_place_for_is_refused(config, words, tmp_path):
    model = t.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ExportError, match=words):
        to_gguf(model, tmp_path / "m.gguf", tokenizer=made.tiny_tokenizer())


def test_a_sliding_window_ends_the_context(tmp_path):
    """llama.cpp's Mistral attends to everything, as transformers' does up to its window's length."""
    for window, wanted in ((64, 64), (None, 256)):
        config = t.MistralConfig(**made.SMALL, sliding_window=window)
        file = to_gguf(t.AutoModelForCausalLM.from_config(config), tmp_path / "m.gguf", tokenizer=made.tiny_tokenizer())
        assert gguf_facts(file).context == wanted


def test_an_adapter_beside_the_weights_and_a_quantized_model_are_refused(tmp_path):
    model = made.random_model("Llama")
    adapted = made.random_adapter(model, tmp_path / "a")
    for one in (adapted, model):
        with pytest.raises(ExportError, match="merge_and_unload"):
            to_gguf(one, tmp_path / "m.gguf", tokenizer=made.tiny_tokenizer())
    plain = made.random_model("Llama")
    plain.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(ExportError, match="dequantized"):
        to_gguf(plain, tmp_path / "m.gguf", tokenizer=made.tiny_tokenizer())


def test_a_head_that_was_merged_into_a_tied_model_is_refused(tmp_path):
    """PEFT merges an adapter on lm_head into a tied model, and saves two matrices that are one again after loading."""
    model = made.random_model("Llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1.0)
    with pytest.raises(ExportError, match="tie_word_embeddings = False"):
        to_gguf(model, tmp_path / "m.gguf", tokenizer=made.tiny_tokenizer())


def damaged(folder: Path, how: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    if how == "missing":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif how == "shape":
        weights["model.norm.weight"] = torch.ones(7)
    elif how == "nan":
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    elif how == "large":
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 7e4
    elif how == "more":
        weights["model.layers.0.mlp.experts.weight"] = torch.ones(2, 2)
    save_file(weights, file, {"format": "pt"})
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "how, error, words",
    [
        ("missing", ExportError, "has no tensor model.layers.1.mlp.up_proj.weight"),
        ("shape", ExportError, r"model.norm.weight of shape \(7,\)"),
        ("nan", ExportError, "blk.1.ffn_up.weight holds NaN"),
        ("large", ExportError, "float16 ends at 65504"),
        ("more", ExportError, "mlp.experts.weight, which this architecture has no place for"),
        ("cut", ValueError, "truncated or damaged"),
    ],
)
def test_a_damaged_model_is_refused_and_leaves_what_was_there(how, error, words, tmp_path):
    folder = made.saved(made.random_model("Qwen2"), tmp_path / "model")
    damaged(folder, how)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.gguf").write_bytes(b"an older file")
    with pytest.raises(error, match=words):
        to_gguf(folder, tmp_path / "out" / "m.gguf", "f16", tokenizer=made.tiny_tokenizer())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["m.gguf"]
    assert (tmp_path / "out" / "m.gguf").read_bytes() == b"an older file"


def test_what_is_no_folder_or_no_dtype_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        to_gguf(tmp_path / "none", tmp_path / "m.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither adapter_config.json nor config.json"):
        to_gguf(tmp_path / "empty", tmp_path / "m.gguf")
    with pytest.raises(ExportError, match="llama-quantize"):
        to_gguf(TINY_DIR, tmp_path / "m.gguf", "q4_k_m")
    with pytest.raises(ExportError, match="rows are too short"):
        to_gguf(STYLE, tmp_path / "m.gguf", "q8_0")
    with pytest.raises(ExportError, match="is a folder: name a new file, such as empty.gguf"):
        to_gguf(STYLE, tmp_path / "empty")
    model = made.random_model("Llama")
    with pytest.raises(ExportError, match="no tokenizer"):
        to_gguf(model, tmp_path / "m.gguf")


# ----------------------------------------------------------------------------------------------------- refused adapters


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole trained modules"),
        ({"trainable_token_indices": [1, 2]}, "token embeddings"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "fused experts"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "bias in lora_B"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "repeat layers"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"peft_type": "VERA"}, "save_as_lora"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused_with_what_to_do(settings, words, tmp_path):
    folder = copied(tmp_path / "adapter", **settings)
    with pytest.raises(ExportError, match=words) as refused:
        to_gguf(folder, tmp_path / "a.gguf")
    assert "merge" in str(refused.value)
    assert not (tmp_path / "a.gguf").exists()


def test_peft_s_own_folders_of_what_is_refused_are_refused(tmp_path):
    """Not by settings that a test wrote: PEFT saves them, and for some the tensors alone tell."""

    def save(name: str, config: Any, **more: Any) -> Path:
        model = peft.get_peft_model(made.random_model("Llama, untied, wide heads"), config)
        model.save_pretrained(str(tmp_path / name), **more)
        return tmp_path / name

    base = made.CONFIGS["Llama, untied, wide heads"]
    cases = {
        "dora": (peft.LoraConfig(use_dora=True, target_modules=["q_proj"]), {}, "DoRA"),
        "saved": (peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), {}, "whole trained"),
        "embedding": (peft.LoraConfig(target_modules=["embed_tokens"]), {}, "adapts the embedding model.embed_tokens"),
        "resized": (peft.LoraConfig(target_modules=["q_proj"]), {"save_embedding_layers": True}, "resized"),
        "loha": (peft.LoHaConfig(target_modules=["q_proj"]), {}, "LOHA"),
        "tokens": (peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3]), {}, "token embeddings"),
    }
    for name, (config, more, words) in cases.items():
        folder = save(name, config, **more)
        with pytest.raises(ExportError, match=words):
            to_gguf(folder, tmp_path / "a.gguf", base=base)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    with pytest.raises(ExportError, match="base has no such layer|another base"):
        to_gguf(STYLE, tmp_path / "a.gguf", base=made.random_model("Llama"))
    tied = copied(tmp_path / "head")
    matrices = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(8, 192),
        "base_model.model.lm_head.lora_B.weight": torch.ones(1024, 8),
    }
    save_file(matrices, tied / WEIGHTS)
    copied(tmp_path / "head2", tied, target_modules=["lm_head"])
    with pytest.raises(ExportError, match="tied to the embedding"):
        to_gguf(tmp_path / "head2", tmp_path / "a.gguf")
    nameless = copied(tmp_path / "nameless", base_model_name_or_path=None)
    with pytest.raises(ExportError, match="pass base="):
        to_gguf(nameless, tmp_path / "a.gguf")


def test_the_fingerprint_of_the_base_is_looked_at(tmp_path):
    from utils.lora.checkpoint import save_adapter
    from utils.lora.layer import inject
    from utils.models.loading import load_tiny

    model = load_tiny()[0]
    inject(model, ["q_proj"], r=2, lora_alpha=4)
    save_adapter(model, tmp_path / "a", base_model="tiny-llama")
    assert to_gguf(tmp_path / "a", tmp_path / "a.gguf").is_file()
    other = load_tiny()[0]
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises(ExportError, match="trained on another base"):
        to_gguf(tmp_path / "a", tmp_path / "b.gguf", base=other)


@pytest.mark.parametrize(
    "settings, words",
    [({"r": 4}, "r=4|rank 4"), ({"lora_alpha": 0}, "lora_alpha"), ({"lora_alpha": "x"}, "lora_alpha")],
)
def test_settings_that_do_not_belong_to_the_matrices_are_refused(settings, words, tmp_path):
    folder = copied(tmp_path / "adapter", **settings)
    with pytest.raises(ValueError, match=words):
        to_gguf(folder, tmp_path / "a.gguf")


def test_a_rank_that_the_pattern_does_not_say_is_refused(tmp_path):
    folder = copied(tmp_path / "adapter", rank_pattern={"q_proj": 4})
    with pytest.raises(ValueError, match="says rank 4 for model.layers.0.self_attn.q_proj"):
        to_gguf(folder, tmp_path / "a.gguf")


# -------------------------------------------------------------------------------------------------------------- editing


def test_an_edited_file_differs_by_what_was_asked(tmp_path):
    file = to_gguf(TINY_DIR, tmp_path / "tiny.gguf", "f32")
    changed = edited(
        file,
        tmp_path / "changed.gguf",
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": None, "general.note": "mine"},
        lambda name, tensor: tensor + 1 if name == "output_norm.weight" else tensor,
    )
    before, after = gguf.GGUFReader(file), gguf.GGUFReader(changed)
    fields = [
        {k: v.contents() for k, v in reader.fields.items() if not k.startswith("GGUF.")} for reader in (before, after)
    ]
    assert {k for k in fields[0] | fields[1] if fields[0].get(k) != fields[1].get(k)} == {
        "tokenizer.ggml.add_bos_token", "tokenizer.chat_template", "general.note",
    }  # fmt: skip
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert one.name == other.name and one.tensor_type == other.tensor_type
        assert np.array_equal(one.data + (one.name == "output_norm.weight"), other.data)
    with pytest.raises(ExportError, match=r"output_norm.weight is \(192,\)"):
        edited(
            file, tmp_path / "no.gguf", tensors=lambda name, tensor: tensor[:-1] if "output_norm" in name else tensor
        )
    assert not (tmp_path / "no.gguf").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors"])
def test_the_source_is_not_written_over(tmp_path, name):
    folder = tmp_path / "here"
    shutil.copytree(adapter_dir("style") if name.startswith("adapter") else TINY_DIR, folder)
    before = (folder / name).read_bytes()
    with pytest.raises(ExportError, match="called like a file of weights"):
        to_gguf(folder, folder / name)
    assert (folder / name).read_bytes() == before
    with pytest.raises(ExportError, match="is a folder: name a new file"):
        to_gguf(folder, tmp_path)
