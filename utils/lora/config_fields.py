"""Every field of PEFT's LoraConfig, and where the course shows what it does.

Attributes:
    FIELDS: The fields of LoraConfig in PEFT 0.21. A test says which ones a newer release adds or drops.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Where = Literal["here", "later", "not here", "bookkeeping"]


class Field(NamedTuple):
    """Where a field is dealt with, and what it is for in a few words."""

    where: Where
    what: str


FIELDS: dict[str, Field] = {
    "r": Field("here", "the rank"),
    "lora_alpha": Field("here", "the update is multiplied by lora_alpha / r"),
    "target_modules": Field("here", "which layers: names, a regular expression, or all-linear"),
    "exclude_modules": Field("here", "which of these not"),
    "layers_to_transform": Field("here", "which blocks, by number"),
    "layers_pattern": Field("here", "what the list of blocks is called, for a model with several"),
    "rank_pattern": Field("here", "another rank for some layers"),
    "alpha_pattern": Field("here", "another lora_alpha for some layers"),
    "lora_dropout": Field("here", "drops parts of lora_A's input while training"),
    "bias": Field("here", "which biases train as well"),
    "modules_to_save": Field("here", "modules that train whole and are saved whole"),
    "trainable_token_indices": Field("here", "rows of the embedding that train"),
    "use_rslora": Field("here", "scales by lora_alpha / sqrt(r)"),
    "use_dora": Field("later", "a trained length for each output besides"),
    "init_lora_weights": Field("here", "how lora_A and lora_B begin"),
    "fan_in_fan_out": Field("here", "True for weights stored as (in, out), such as Conv1D's"),
    "task_type": Field("here", "which wrapper, and for a classifier that its head trains"),
    "ensure_weight_tying": Field("here", "a tied head follows the trained embedding"),
    "lora_bias": Field("not here", "a bias on lora_B, for adapters taken out of a full fine-tuning"),
    "target_parameters": Field("here", "bare parameters instead of layers, for mixtures of experts"),
    "layer_replication": Field("not here", "makes a deeper model by repeating blocks"),
    "alora_invocation_tokens": Field("later", "an adapter that switches on at a given text"),
    "loftq_config": Field("not here", "begin where quantization erred"),
    "eva_config": Field("not here", "begin from the data's activations"),
    "corda_config": Field("not here", "begin from the activations' covariance"),
    "lora_ga_config": Field("not here", "begin from the full gradient"),
    "use_qalora": Field("not here", "LoRA on pooled inputs, for quantized bases"),
    "qalora_group_size": Field("not here", "its group size"),
    "velora_config": Field("not here", "compresses the activations that LoRA keeps"),
    "monteclora_config": Field("not here", "a distribution over adapters"),
    "kasa_config": Field("not here", "singular values as the adapter"),
    "arrow_config": Field("not here", "chooses among many adapters, token by token"),
    "use_bdlora": Field("not here", "block-diagonal matrices, for serving on several GPUs"),
    "megatron_config": Field("not here", "for Megatron's parallel layers"),
    "megatron_core": Field("not here", "for Megatron's parallel layers"),
    "runtime_config": Field("bookkeeping", "settings that are not saved"),
    "peft_type": Field("bookkeeping", "LORA"),
    "auto_mapping": Field("bookkeeping", "which class the base is of"),
    "peft_version": Field("bookkeeping", "who wrote the file"),
    "base_model_name_or_path": Field("later", "the base that the adapter belongs to"),
    "revision": Field("bookkeeping", "the base's revision"),
    "inference_mode": Field("later", "True in a saved file, which therefore loads frozen"),
}
