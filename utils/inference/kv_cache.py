"""The key-value cache: attention that computes each token's key and value once, and what keeping them costs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def causal_attention(
    q: Float[Tensor, "heads new dim"], k: Float[Tensor, "heads all dim"], v: Float[Tensor, "heads all dim"]
) -> Float[Tensor, "heads new dim"]:
    """Attention of the *last* ``new`` positions over all of them; none looks at a later one.

    Without a cache ``new`` equals ``all``. Raises ValueError when there are more queries than keys, or keys and values
    differ in shape.
    """
    if k.shape != v.shape:
        raise ValueError(f"keys {tuple(k.shape)} and values {tuple(v.shape)} differ in shape: a token has one of each")
    new, everything = q.shape[-2], k.shape[-2]
    if new > everything:
        raise ValueError(f"{new} queries for {everything} keys: the keys of the new tokens belong to the keys")
    place = torch.arange(everything, device=q.device)
    later = place > place[everything - new :, None]
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(later, -float("inf"))
    return F.softmax(scores, dim=-1) @ v


def positions_computed(prompt: int, new: int, cache: bool) -> int:
    """How many positions go through the model to answer `prompt` tokens with `new` ones, one text.

    With the cache: the prompt once, then one for each token but the last, which nobody continues. Without: the whole
    text in every pass. Raises ValueError when either is below 1.
    """
    for name, value in (("prompt", prompt), ("new", new)):
        if value < 1:
            raise ValueError(f"{name} is a number of tokens, at least 1, not {value}")
    return prompt + new - 1 if cache else sum(prompt + i for i in range(new))


def cache_bytes(
    layers: int, key_value_heads: int, head_dim: int, tokens: int, batch: int = 1, bytes_each: int = 2
) -> int:
    """Bytes of a cache: a key and a value of ``key_value_heads * head_dim`` numbers, for every layer, token and text.

    Raises ValueError when one of the numbers is below 1.
    """
    numbers = dict(layers=layers, key_value_heads=key_value_heads, head_dim=head_dim, tokens=tokens, batch=batch)
    for name, value in (numbers | {"bytes_each": bytes_each}).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    return 2 * layers * key_value_heads * head_dim * tokens * batch * bytes_each
