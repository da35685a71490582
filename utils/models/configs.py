"""Real models without their weights: built from their configurations on PyTorch's meta device, to be counted.

A module on the meta device has shapes and no data, so even GPT-3 takes no memory. Nothing is downloaded: the
configurations are those that the papers and the models' own `config.json` give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.lora.layer import find_targets

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REAL_MODELS = ("Llama-2-7B", "Mistral-7B", "GPT-3-175B")
SMALL_MODELS = ("Llama-3.2-1B", "SmolLM2-135M")


def real_config(name: str) -> PretrainedConfig:
    """The configuration of one of :data:`REAL_MODELS` or :data:`SMALL_MODELS`. Raises ValueError for another name.

    Llama-2-7B: Touvron et al., 2023 (https://arxiv.org/abs/2307.09288). Mistral-7B: Jiang et al., 2023
    (https://arxiv.org/abs/2310.06825); transformers' defaults are this model. GPT-3-175B: Brown et al., 2020, table 2.1
    (https://arxiv.org/abs/2005.14165), in the architecture of GPT-2, which it shares but for sparse attention patterns.
    Llama-3.2-1B and SmolLM2-135M: their `config.json` on the Hub, less the scaling of positions, which has no weights.
    """
    from transformers import GPT2Config, LlamaConfig, MistralConfig

    if name == "Llama-2-7B":
        return LlamaConfig(
            vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, tie_word_embeddings=False,
        )  # fmt: skip
    if name == "Mistral-7B":
        return MistralConfig()
    if name == "GPT-3-175B":
        return GPT2Config(vocab_size=50_257, n_positions=2048, n_embd=12_288, n_layer=96, n_head=96)
    if name == "Llama-3.2-1B":
        return LlamaConfig(
            vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
        )  # fmt: skip
    if name == "SmolLM2-135M":
        return LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True,
        )  # fmt: skip
    known = ", ".join((*REAL_MODELS, *SMALL_MODELS))
    raise ValueError(f"no configuration of {name!r} here: choose one of {known}")


def llama_config(
    *, hidden: int, layers: int, heads: int, intermediate: int, vocabulary: int, kv_heads: int = 0, tied: int = 0
) -> PretrainedConfig:
    """The configuration of a Llama of any size. `kv_heads` 0 means as many as `heads`; `tied` 1 lets the output head be
    the embedding. Raises ValueError for sizes below 1 or heads that don't divide.
    """
    from transformers import LlamaConfig

    if min(hidden, layers, heads, intermediate, vocabulary) < 1 or hidden % heads or heads % (kv_heads or heads):
        raise ValueError(
            f"no Llama has {layers} layers of {hidden} with {heads} heads and {kv_heads or heads} for keys: sizes are "
            "at least 1, the heads divide the width, and the heads for keys divide the heads"
        )
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads or heads, tie_word_embeddings=bool(tied),
    )  # fmt: skip


def meta_model(name: str) -> PreTrainedModel:
    """One of :data:`REAL_MODELS` on the meta device: every shape, no data."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(real_config(name))


def lora_parameter_count(model: nn.Module, target_modules: list[str], r: int) -> int:
    """How many parameters LoRA of rank `r` adds: ``r * (in + out)`` for every linear layer that a name of the list
    means.

    Raises what :func:`utils.lora.layer.find_targets` raises, and ValueError for a rank below 1.
    """
    if r < 1:
        raise ValueError(f"the rank r must be at least 1, not {r}")
    return sum(r * sum(model.get_parameter(f"{name}.weight").shape) for name in find_targets(model, target_modules))
