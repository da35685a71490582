"""One KV cache of the base for several adapters: what is read once, and how much is read.

An activated LoRA (aLoRA; Greenewald et al., 2025, https://arxiv.org/abs/2504.12397) leaves the tokens before its
invocation to the base, so that the base's keys and values of them are its own. PEFT has it
(``LoraConfig(alora_invocation_tokens=...)``); here is what reuses the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

T = TypeVar("T")


def tokens_read(model: Any, call: Callable[[], T]) -> tuple[T, list[int]]:
    """What `call` returns, and how many tokens each forward pass of `model` read meanwhile, padding included."""
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    try:
        return call(), read
    finally:
        hook.remove()


def apart_by_position(cache: Any, other: Any) -> Float[Tensor, " length"]:
    """The largest difference of two caches' keys and values at each position, over layers, heads and rows.

    Raises ValueError when they hold another number of layers or positions.
    """
    if len(cache.layers) != len(other.layers) or cache.get_seq_length() != other.get_seq_length():
        raise ValueError(
            f"the caches hold {len(cache.layers)} layers of {cache.get_seq_length()} positions and "
            f"{len(other.layers)} of {other.get_seq_length()}: compare caches of one model and one text"
        )
    pairs = [
        (getattr(layer, part), getattr(same, part))
        for layer, same in zip(cache.layers, other.layers, strict=True)
        for part in ("keys", "values")
    ]
    return torch.stack([(a - b).abs().amax(dim=(0, 1, 3)) for a, b in pairs]).amax(0)


@torch.no_grad()
def read_by_base(model: Any, ids: Int[Tensor, "1 length"], until: int, cache: Any = None) -> Any:
    """The cache of ``ids[:, :until]``, as the base of a PEFT model reads it; what `cache` holds isn't read again.

    `cache` is extended in place. Raises ValueError when it holds more than `until` positions.
    """
    had = cache.get_seq_length() if cache is not None else 0
    if had > until:
        raise ValueError(f"the cache holds {had} positions, and only {until} are to be read: start a new one")
    if had == until:
        return cache
    with model.disable_adapter():
        return model(input_ids=ids[:, had:until], cache=cache, use_cache=True).cache


def answer_from(
    model: Any, name: str, ids: Int[Tensor, "1 length"], cache: Any = None, max_new_tokens: int = 24
) -> list[int]:
    """The greedy answer of the adapter `name` of a PEFT model to one prompt, as token ids.

    With a `cache` of the prompt's beginning that part isn't read again; the cache itself stays as it is.
    """
    model.set_adapter(name)
    kept = {} if cache is None else {"cache": copy.deepcopy(cache)}
    pad = model.generation_config.pad_token_id
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0 if pad is None else pad}
    return model.generate(input_ids=ids, **settings, **kept)[0, ids.shape[1] :].tolist()
