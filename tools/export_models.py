"""Small random models of each architecture that is exported, and random adapters of PEFT's, to compare engines on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers as t
from peft import LoraConfig, get_peft_model

from utils.models.device import TINY_DIR

SMALL: dict[str, Any] = dict(
    vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    architectures=None,
)  # fmt: skip

CONFIGS: dict[str, t.PretrainedConfig] = {
    "Llama": t.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "Llama, untied, wide heads": t.LlamaConfig(**SMALL, tie_word_embeddings=False, head_dim=24),
    "Llama with biases": t.LlamaConfig(**SMALL, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "Llama, linear": t.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    ),
    "Llama 3.1": t.LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "Mistral": t.MistralConfig(**SMALL, tie_word_embeddings=False, sliding_window=None, head_dim=16),
    "Qwen2": t.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "Qwen3": t.Qwen3Config(**SMALL, tie_word_embeddings=False, head_dim=16),
}  # fmt: skip


def random_model(name: str, seed: int = 0, std: float = 0.2) -> t.PreTrainedModel:
    """The model in float32 with weights, norms and biases drawn so that its predictions are far from uniform."""
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(0.0, std)
            if "norm" in key:
                parameter.add_(1.0)
    return model


def saved(model: t.PreTrainedModel, folder: Path) -> Path:
    """The model in `folder`, without a tokenizer."""
    model.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> Any:
    """The tiny model's tokenizer; not by way of a Qwen2 folder, which transformers gives a tokenizer of its own."""
    return t.AutoTokenizer.from_pretrained(TINY_DIR)


def random_adapter(model: t.PreTrainedModel, folder: Path, seed: int = 1, **settings: Any) -> Any:
    """A PEFT model over `model` with random A and B on all linear layers, saved in `folder`."""
    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given)).eval()
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted


def prompts(count: int, length: int = 24, seed: int = 0) -> list[list[int]]:
    """Token ids of ordinary tokens; the first prompt is one token long, the others as long as `length` or shorter."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = [1, *torch.randint(2, length + 1, (count - 1,), generator=drawn).tolist()]
    return [torch.randint(4, 1024, (n,), generator=drawn).tolist() for n in lengths]


@torch.inference_mode()
def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    """transformers' log-probabilities of the next token."""
    return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


@torch.inference_mode()
def greedy(model: Any, ids: list[int], count: int = 12) -> list[int]:
    """transformers' greedy continuation, without the EOS token."""
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False)
    new = out[0, len(ids) :].tolist()
    return new[: new.index(1)] if 1 in new else new
