"""What a GGUF file calls the weights of a model, which of them it must hold, and in which shapes.

The names are the `gguf` library's own (``get_tensor_name_map``). What is here is which architectures this course can
write, and what of each one a file would not say: whether q and k are reordered, where biases are, and settings that
llama.cpp has no place for.

Attributes:
    ARCHITECTURES: By the name that config.json has under "architectures".
    CONVERTER: What to use for every other model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from utils.export.errors import ExportError

CONVERTER = "llama.cpp's own convert_hf_to_gguf.py"


class Architecture(NamedTuple):
    """How llama.cpp names an architecture, and what of it differs from the others.

    name: ``general.architecture`` in the file. rotated: whether the rows of q and k are reordered
    (:mod:`utils.export.rope`). head_norms: whether q and k are normed, head by head. attention_bias: which of the
    attention's projections have a bias, from the configuration.
    """

    name: str
    rotated: bool
    head_norms: bool
    attention_bias: Callable[[Any], str]


ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", True, False, lambda c: "qkvo" if c.attention_bias else ""),
    "MistralForCausalLM": Architecture("llama", True, False, lambda _: ""),
    "Qwen2ForCausalLM": Architecture("qwen2", False, False, lambda _: "qkv"),
    "Qwen3ForCausalLM": Architecture("qwen3", False, True, lambda _: ""),
}


def architecture(config: Any) -> Architecture:
    """The architecture of a transformers configuration. Raises ExportError for one that isn't written here, by name,
    and for a setting that llama.cpp's form of the architecture has no place for.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config.model_type)
    names: list[str] = getattr(config, "architectures", None) or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind)]
    if names[0] not in ARCHITECTURES:
        raise ExportError(
            f"{names[0]} isn't written here, only {', '.join(ARCHITECTURES)}: use {CONVERTER}, and "
            "convert_lora_to_gguf.py beside it for an adapter"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise ExportError(f"hidden_act={config.hidden_act!r}, and llama.cpp computes silu here: use {CONVERTER}")
    if names[0] == "Qwen3ForCausalLM" and config.attention_bias:
        raise ExportError("llama.cpp's Qwen3 has no biases in its attention, and this model has (attention_bias=true)")
    return ARCHITECTURES[names[0]]


def head_dim(config: Any) -> int:
    """How many numbers a head has."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context_length(config: Any) -> int:
    """For how many positions llama.cpp computes what transformers does: those of the model, or of its sliding window,
    where that is shorter, since llama.cpp's form of these architectures attends to everything.
    """
    window = getattr(config, "sliding_window", None)
    slides = window and getattr(config, "use_sliding_window", True)
    return min(config.max_position_embeddings, window) if slides else config.max_position_embeddings


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """(out, in) of every matrix that LoRA can go on, by its module's name in transformers."""
    hidden, inner, size = config.hidden_size, config.intermediate_size, head_dim(config)
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    of_a_layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(config.num_hidden_layers)
        for name, shape in of_a_layer.items()
    }
    return found if config.tie_word_embeddings else found | {"lm_head": (config.vocab_size, hidden)}


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model, by its name in transformers. Raises what :func:`architecture` raises."""
    kind, hidden = architecture(config), config.hidden_size
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    found |= {f"{name}.weight": shape for name, shape in linear_shapes(config).items()}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        if kind.head_norms:
            found |= {f"{prefix}self_attn.{one}_norm.weight": (head_dim(config),) for one in "qk"}
        biased = [f"{prefix}self_attn.{one}_proj" for one in kind.attention_bias(config)]
        if getattr(config, "mlp_bias", False):
            biased += [f"{prefix}mlp.{one}_proj" for one in ("gate", "up", "down")]
        found |= {f"{name}.bias": found[f"{name}.weight"][:1] for name in biased}
    return found | {"model.norm.weight": (hidden,)}


def gguf_names(config: Any) -> dict[str, str]:
    """What the file calls each tensor of :func:`expected_shapes`, by the `gguf` library."""
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture(config).name)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in expected_shapes(config)}
    return {name: new for name, new in found.items() if new is not None}


def heads_to_rotate(config: Any, module: str) -> int:
    """How many heads the rows of a module's weight are, where llama.cpp wants them reordered; 0 where it doesn't."""
    if not architecture(config).rotated:
        return 0
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1], 0)


def check_tensors(config: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ExportError when a model's tensors aren't those of its configuration, naming the first that isn't."""
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in shapes:
            raise ExportError(f"{where} has no tensor {name}: a file is missing, or config.json is another model's")
        if tuple(shapes[name]) != shape:
            raise ExportError(f"{where} has {name} of shape {tuple(shapes[name])}; its configuration says {shape}")
    if more := [name for name in shapes if name not in expected]:
        raise ExportError(
            f"{where} holds {more[0]}, which this architecture has no place for: is an adapter still beside the "
            "weights (merge it), or are they quantized (dequantize them)?"
        )
