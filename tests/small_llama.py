"""An untrained Llama of one narrow layer with the course's vocabulary: quick to train for a few steps."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small(seed: int = 0) -> LlamaForCausalLM:
    """The model, in float32 and in training mode; its weights are drawn by `seed`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=None, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)
