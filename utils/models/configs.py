"""Real models without their weights: built from their configurations on PyTorch's meta device, to be counted.

A module on the meta device has shapes and no data, so even GPT-3 takes no memory. Nothing is downloaded: the
configurations are those that the papers and the models' own `config.json` give.

Attributes:
    SHAPES: Models of Llama's architecture, smallest first, and the parameters of each.
    KNOWN_MODELS: Every name that :func:`real_config` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.lora.target_modules import find_targets

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REAL_MODELS = ("Llama-2-7B", "Mistral-7B", "GPT-3-175B")
SHAPES = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "Llama-3.2-1B": 1_235_814_400,
    "SmolLM2-1.7B": 1_711_376_384,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-2-7B": 6_738_415_616,
    "Mistral-7B": 7_241_732_096,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-2-13B": 13_015_864_320,
    "CodeLlama-34B": 33_743_970_304,
    "Llama-2-70B": 68_976_648_192,
}
KNOWN_MODELS = (*SHAPES, "GPT-3-175B")

# Vocabulary, width, MLP's width, blocks, heads, heads for keys and values, size of a head, whether the head is tied.
_LLAMAS = {
    "SmolLM2-135M": (49_152, 576, 1536, 30, 9, 3, 64, True),
    "SmolLM2-360M": (49_152, 960, 2560, 32, 15, 5, 64, True),
    "Llama-3.2-1B": (128_256, 2048, 8192, 16, 32, 8, 64, True),
    "SmolLM2-1.7B": (49_152, 2048, 8192, 24, 32, 32, 64, True),
    "Llama-3.2-3B": (128_256, 3072, 8192, 28, 24, 8, 128, True),
    "Llama-2-7B": (32_000, 4096, 11_008, 32, 32, 32, 128, False),
    "Llama-3.1-8B": (128_256, 4096, 14_336, 32, 32, 8, 128, False),
    "Llama-2-13B": (32_000, 5120, 13_824, 40, 40, 40, 128, False),
    "CodeLlama-34B": (32_000, 8192, 22_016, 48, 64, 8, 128, False),
    "Llama-2-70B": (32_000, 8192, 28_672, 80, 64, 8, 128, False),
}


def real_config(name: str) -> PretrainedConfig:
    """The configuration of one of :data:`KNOWN_MODELS`. Raises ValueError for another name.

    Llama 2: Touvron et al., 2023 (https://arxiv.org/abs/2307.09288). Mistral-7B: Jiang et al., 2023
    (https://arxiv.org/abs/2310.06825); transformers' defaults are this model. GPT-3-175B: Brown et al., 2020, table 2.1
    (https://arxiv.org/abs/2005.14165), in the architecture of GPT-2, which it shares but for sparse attention patterns.
    The others: their `config.json` on the Hub, less the scaling of positions, which has no weights.
    """
    from transformers import GPT2Config, LlamaConfig, MistralConfig

    if name == "Mistral-7B":
        return MistralConfig()
    if name == "GPT-3-175B":
        return GPT2Config(vocab_size=50_257, n_positions=2048, n_embd=12_288, n_layer=96, n_head=96)
    if name not in _LLAMAS:
        raise ValueError(f"no configuration of {name!r} here: choose one of {', '.join(KNOWN_MODELS)}")
    vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim, tied = _LLAMAS[name]
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, tie_word_embeddings=tied,
    )  # fmt: skip


def shape_of(billions: float) -> str:
    """The name of a known shape for a model of which one knows only that it has so many billion parameters.

    It is the smallest of :data:`SHAPES` that isn't more than 5% below: what is called "7B" often has 6.7, and a shape
    that is clearly smaller would promise too much. Raises ValueError for a size that isn't positive, and for one above
    the largest shape.

    >>> shape_of(7), shape_of(1)
    ('Llama-2-7B', 'Llama-3.2-1B')
    """
    if not billions > 0:
        raise ValueError(f"a model has more than 0 parameters, not {billions} billion")
    for name, parameters in SHAPES.items():
        if parameters >= 0.95e9 * billions:
            return name
    raise ValueError(
        f"the largest shape that is known here is {name}, and {billions:g} billion parameters are more: pass the "
        "model's configuration"
    )


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
    """One of :data:`KNOWN_MODELS` on the meta device: every shape, no data."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(real_config(name))


def lora_parameter_count(model: nn.Module, target_modules: list[str], r: int) -> int:
    """How many parameters LoRA of rank `r` adds: ``r * (in + out)`` for every linear layer that a name of the list
    means.

    Raises what :func:`utils.lora.target_modules.find_targets` raises, and ValueError for a rank below 1.
    """
    if r < 1:
        raise ValueError(f"the rank r must be at least 1, not {r}")
    return sum(r * sum(model.get_parameter(f"{name}.weight").shape) for name in find_targets(model, target_modules))
