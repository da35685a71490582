"""Rotary embeddings between two layouts: which numbers of a head rotate together, and how their frequencies are scaled.

A head of d numbers is rotated in d/2 pairs. transformers pairs number i with number i + d/2; llama.cpp pairs 2i with
2i + 1 in the architectures that came to it from Meta's own files (Llama, and Mistral with it). The rows of the q and k
projections are therefore in another order in a GGUF file. The scores don't change: q and k are reordered alike.
(llama.cpp, ``LlamaModel.permute`` in convert_hf_to_gguf.py; RoPE: https://arxiv.org/abs/2104.09864)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from utils.export.errors import ExportError


def rotate(weight: Shaped[Tensor, " rows *columns"], heads: int) -> Shaped[Tensor, " rows *columns"]:
    """The rows of a q or k projection, or of its bias, or of its lora_B, in llama.cpp's order for Llama.

    `heads` is the number of query heads for q_proj and of key-value heads for k_proj. Of a head's d rows, row i goes to
    place 2i and row i + d/2 to place 2i + 1. lora_A has the inputs' columns and stays as it is. Raises ExportError when
    the rows don't divide into `heads` heads of an even size.
    """
    rows = weight.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise ExportError(
            f"{rows} rows are no {heads} heads of an even number of rows: is it the right number of heads?"
        )
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def unrotate(weight: Shaped[Tensor, " rows *columns"], heads: int) -> Shaped[Tensor, " rows *columns"]:
    """The rows back in transformers' order: what :func:`rotate` does, undone. Raises what :func:`rotate` raises."""
    order = rotate(torch.arange(weight.shape[0]), heads)
    return weight[order.argsort()]


def rope_fields(config: Any) -> tuple[float, dict[str, Any], Float[Tensor, " half"] | None]:
    """How a model's positions are rotated: the base frequency, a GGUF file's fields for its scaling, and its factors.

    `config` is a transformers configuration. The fields are the names of ``gguf.GGUFWriter``'s methods and what they
    are given; the factors, float32, one for each pair of a head, are Llama 3.1's, which a file holds as the tensor
    ``rope_freqs.weight``. Raises ExportError for a kind of scaling that isn't "default", "linear" or "llama3".
    """
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    base = float(rope.get("rope_theta", 10000.0))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ExportError(
            f"this model rotates a part of each head only (partial_rotary_factor={rope['partial_rotary_factor']}): "
            "write it with llama.cpp's convert_hf_to_gguf.py"
        )
    if kind == "default":
        return base, {}, None
    if kind == "linear":
        return base, {"add_rope_scaling_type": "linear", "add_rope_scaling_factor": float(rope["factor"])}, None
    if kind == "llama3":
        return base, {}, llama3_factors(base, config.head_dim, rope)
    raise ExportError(
        f"this model scales its positions by rope_type={kind!r}, which isn't written here: use llama.cpp's "
        "convert_hf_to_gguf.py"
    )


def llama3_factors(base: float, head_dim: int, rope: Mapping[str, Any]) -> Float[Tensor, " half"]:
    """By what Llama 3.1 divides the frequency of each pair: 1 for fast ones, `factor` for slow ones.

    `rope` holds factor, low_freq_factor, high_freq_factor and original_max_position_embeddings. (transformers,
    ``_compute_llama3_parameters`` in modeling_rope_utils.py)
    """
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    frequency = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)  # within the original context
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 / ((1 - smooth) / factor + smooth)).to(torch.float32)
