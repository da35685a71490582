"""What the key-value cache saves, in positions that go through the model, and what it takes, in bytes."""

from __future__ import annotations


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
