"""What the tiny base model must be able to do before anything is taught to it.

A base that can't copy learns the form of a task and not its content, so copying is measured first, on words that the
corpus doesn't hold in this order, then holding on to a hero through a whole story, then perplexity.
"""

from __future__ import annotations

import random
import re
from typing import Any

import torch

from utils import tinyworld
from utils.evaluate.metrics import complete
from utils.train.loop import in_mode, seeded


def held_out_stories(n: int, seed: int = 0) -> list[str]:
    """`n` stories of the test split, which training never reads."""
    rng, stories = random.Random(f"held out stories/{seed}"), []
    while len(stories) < n:
        text = tinyworld.story(rng)
        if tinyworld.split_of(text) == "test":
            stories.append(text)
    return stories


@torch.inference_mode()
def copy_accuracy(model: Any, tokenizer: Any, n: int = 100, words: int = 10, seed: int = 0) -> float:
    """How well the model repeats `n` random word sequences that follow themselves once: the share of right tokens.

    The first token of the repetition isn't counted, since nothing says yet that a repetition begins.
    """
    rng, right, total = random.Random(f"copy/{seed}"), 0, 0
    with in_mode(model, False):
        for _ in range(n):
            text = " " + tinyworld.random_words(rng, words)
            once = tokenizer(text, add_special_tokens=False).input_ids
            ids = torch.tensor([once + once], device=model.device)
            predicted = model(input_ids=ids).logits[0, len(once) : -1].argmax(-1)
            right += int((predicted == ids[0, len(once) + 1 :]).sum())
            total += len(once) - 1
    return right / total


def story_requests(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` requests for a story about a named hero, each with the name."""
    rng, requests = random.Random(f"heroes/{seed}"), []
    for _ in range(n):
        cast = tinyworld.new_cast(rng)
        wording = rng.choice(
            ("Tell me a story about {a_trait} {animal} named {name}.", "Write a story about {name} the {animal}.")
        )
        requests.append((wording.format(**cast), cast["name"]))
    return requests


def keeps_hero(story: str, name: str) -> bool:
    """Whether the name appears in each third of the story's sentences."""
    sentences = re.split(r"(?<=[.!?])\"? ", story)
    third = max(1, len(sentences) // 3)
    parts = sentences[:third], sentences[third:-third], sentences[-third:]
    return all(any(re.search(rf"\b{re.escape(name)}\b", s) for s in part) for part in parts)


def tell_stories(
    model: Any, tokenizer: Any, requests: list[str], *, temperature: float = 0.7, seed: int = 0
) -> list[str]:
    """One sampled story for each request, at most 200 tokens long, the same for the same seed on the same machine."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    with seeded(seed, model):
        return complete(model, tokenizer, requests, max_new_tokens=200, **sampling)


def hero_accuracy(model: Any, tokenizer: Any, n: int = 200, seed: int = 0) -> float:
    """The share of `n` requested stories in which the hero asked for appears from the beginning to the end."""
    requests = story_requests(n, seed)
    stories = tell_stories(model, tokenizer, [r for r, _ in requests], seed=seed)
    return sum(keeps_hero(story, name) for story, (_, name) in zip(stories, requests, strict=True)) / n
