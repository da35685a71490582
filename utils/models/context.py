"""How many positions a model has, and what of them a prompt leaves for the answer.

Beyond the positions that it was trained on a model writes gibberish, slowly, and nothing in transformers stops it.
"""

from __future__ import annotations

from typing import Any


def positions(model: Any) -> int | None:
    """The most tokens, prompt and answer together, that the model was made for; None when its config doesn't say."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None)


def room_for_answer(prompt: int, wanted: int, context: int | None) -> int:
    """How many tokens an answer behind a prompt of `prompt` tokens can have: `wanted`, or what the `context` leaves.

    `context` None is no limit. Raises ValueError when the prompt leaves no room.

    >>> room_for_answer(500, 64, 512)
    12
    """
    if context is None:
        return wanted
    if prompt >= context:
        raise ValueError(
            f"a prompt has {prompt:,} tokens and the model {context:,} positions, so there is no room for an answer: "
            "shorten the prompt, or take a model with more"
        )
    return min(wanted, context - prompt)
