"""Adapters of every kind that a preflight has a rule for, made by PEFT itself on tiny random models, and saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from torch import nn

from tests.small_llama import small
from utils.lora.target_modules import tiny_random

QV = ["q_proj", "v_proj"]


def lora(**settings) -> peft.LoraConfig:
    """A LoRA of rank 4 on q_proj and v_proj, or with other settings."""
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": QV, "task_type": "CAUSAL_LM", **settings})


KINDS: dict[str, Callable[[], tuple[nn.Module, peft.PeftConfig]]] = {
    "plain": lambda: (small(), lora()),
    "rank 16": lambda: (small(), lora(r=16)),
    "rank 24": lambda: (small(), lora(r=24)),
    "rank 600": lambda: (small(), lora(r=600)),
    "dora": lambda: (small(), lora(use_dora=True)),
    "rslora": lambda: (small(), lora(use_rslora=True)),
    "alpha_pattern": lambda: (small(), lora(alpha_pattern={"q_proj": 2})),
    "rank_pattern": lambda: (small(), lora(rank_pattern={"q_proj": 2})),
    "rank_pattern 24": lambda: (small(), lora(rank_pattern={"q_proj": 24})),
    "modules_to_save": lambda: (small(), lora(modules_to_save=["embed_tokens"])),
    "norms": lambda: (small(), lora(modules_to_save=["input_layernorm"])),
    "tokens": lambda: (small(), lora(trainable_token_indices={"embed_tokens": [3, 4]})),
    "bias": lambda: (biased(), lora(bias="lora_only")),
    "lora_bias": lambda: (small(), lora(lora_bias=True)),
    "experts": lambda: (tiny_random("Mixtral"), lora(target_parameters=["mlp.experts.down_proj"])),
    "embedding": lambda: (small(), lora(target_modules=["embed_tokens", "q_proj"])),
    "head": lambda: (untied(), lora(target_modules=["lm_head", "q_proj"])),
    "pissa": lambda: (small(), lora(init_lora_weights="pissa")),
    "pattern": lambda: (small(), lora(target_modules=r".*self_attn\.(q|v)_proj")),
    "gpt2": lambda: (tiny_random("GPT-2"), lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "repeated": lambda: (small(), lora(layer_replication=[[0, 1], [0, 1]])),
    "activated": lambda: (small(), lora(alora_invocation_tokens=[5, 6])),
    "loha": lambda: (small(), peft.LoHaConfig(r=4, alpha=4, target_modules=QV, task_type="CAUSAL_LM")),
    "vera": lambda: (small(), peft.VeraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM")),
    "ia3": lambda: (
        small(),
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    ),
}


def biased() -> nn.Module:
    """A small Qwen2, whose q_proj and v_proj have biases."""
    return tiny_random("Qwen2")


def untied() -> nn.Module:
    """A small Llama with a head of its own."""
    return tiny_random("Llama")


def saved(kind: str, folder: Path, *, name: str = "tests/base") -> Path:
    """An adapter of one of :data:`KINDS`, with random matrices, saved by PEFT to `folder`, naming its base `name`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, config = KINDS[kind]()
        wrapped = peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std={"loha": 0.3, "vera": 1.0}.get(kind, 0.05))  # they multiply several
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    settings(folder, base_model_name_or_path=name)
    return folder


def settings(folder: Path, **changed) -> Path:
    """The folder, its settings changed."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    return folder


def copied(folder: Path, to: Path, **changed) -> Path:
    """A copy of an adapter's folder, its settings changed."""
    shutil.copytree(folder, to)
    return settings(to, **changed)
