"""Small configurations of architectures with experts, and models on the meta device, for comparing with PEFT."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

SMALL: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip

EXPERTS = {
    "Mixtral": t.MixtralConfig(**SMALL, num_local_experts=4),
    "Qwen2Moe": t.Qwen2MoeConfig(
        **SMALL, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts_per_tok=2
    ),
    "Qwen3Moe": t.Qwen3MoeConfig(
        **SMALL, num_experts=4, moe_intermediate_size=24, num_experts_per_tok=2, head_dim=8
    ),
    "DeepseekV3": t.DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8,
        qk_nope_head_dim=8, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=24, first_k_dense_replace=1,
    ),
    "GptOss": t.GptOssConfig(**SMALL, num_local_experts=4, head_dim=8),
}  # fmt: skip


def on_meta(config: t.PretrainedConfig, auto: str = "AutoModelForCausalLM", **settings: Any) -> t.PreTrainedModel:
    """A model of the configuration without data, made by one of transformers' auto classes."""
    with torch.device("meta"):
        return getattr(t, auto).from_config(config, **settings)


def peft_adapts(
    model: t.PreTrainedModel, targets: str | list[str], task: str = "CAUSAL_LM", r: int = 4
) -> tuple[set[str], int]:
    """The modules and parameters that PEFT adapts by their names, and how many parameters it makes."""
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        made = get_peft_model(model, LoraConfig(r=r, target_modules=targets, task_type=task))
    count = sum(p.numel() for n, p in made.named_parameters() if "lora_" in n)
    return {*made.targeted_module_names, *made.targeted_parameter_names}, count
