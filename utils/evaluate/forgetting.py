"""What a trained model still knows: the base's stories, copying, and the ways that keep more of them.

A model forgets what its training no longer asks for, LoRA or not. Here are the three numbers that the course compares,
the two ways to turn an update down after the training, and the stories that can be mixed in during it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from utils import tinyworld
from utils.data.chat import Example
from utils.evaluate.gates import copy_accuracy
from utils.evaluate.metrics import exact_match, perplexity
from utils.lora.layer import LoRALinear, lora_layers


class Kept(NamedTuple):
    """What a model can do. task: exact match, 0 to 1; stories: their perplexity; copying: share of right tokens."""

    task: float
    stories: float
    copying: float


def measure_forgetting(
    model: Any, tokenizer: Any, test: Sequence[Example], stories: Sequence[str], copies: int = 50
) -> Kept:
    """The new task on `test`, and two things that the base could do: predict `stories`, repeat `copies` random texts.

    Raises what :func:`utils.evaluate.metrics.exact_match` and :func:`utils.evaluate.metrics.perplexity` raise.
    """
    return Kept(
        exact_match(model, tokenizer, test),
        perplexity(model, tokenizer, stories),
        copy_accuracy(model, tokenizer, n=copies),
    )


@contextmanager
def scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Inside the block every LoRA correction counts `factor` times: 0 is the base, 1 the adapter as it was trained.

    PEFT's is ``peft.helpers.rescale_adapter_scale``. Raises RuntimeError when the model has no LoRA layers or one is
    merged, and TypeError for a variant whose update isn't in proportion to its scaling.
    """
    named = lora_layers(model)
    layers = named.values()
    if not layers:
        raise RuntimeError("this model has no LoRA layers whose correction could be scaled")
    if any(layer.merged for layer in layers):
        raise RuntimeError("the corrections are merged into the weights and can't be scaled: call unmerge first")
    for layer in layers:
        if layer.variant.changes_base or not layer.variant.is_product:
            raise TypeError(
                f"the scaling of {type(layer.variant).__name__} doesn't say how much its update counts: with 0 it "
                "wouldn't be the base, with 2 not twice the update. Take LoRA or rsLoRA"
            )
    before = [(cast(LoRALinear, model.get_submodule(name)), layer.scaling) for name, layer in named.items()]
    for layer, scaling in before:
        layer.scaling = scaling * factor
    try:
        yield
    finally:
        for layer, scaling in before:
            layer.scaling = scaling


@contextmanager
def interpolated(model: nn.Module, base: Mapping[str, Tensor], factor: float) -> Iterator[None]:
    """Inside the block the model's weights are ``base + factor * (own - base)``; afterwards they are its own again.

    `base` is the base's ``state_dict``. For full fine-tuning this is what :func:`scaled` is for LoRA (Wortsman et al.,
    2021, https://arxiv.org/abs/2109.01903). Raises ValueError when a parameter is missing in `base` or has another
    shape; nothing is changed then.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name not in base or base[name].shape != parameter.shape:
            raise ValueError(f"the base has no {name} of shape {tuple(parameter.shape)}: is it this model's base?")
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(base[name] + factor * (own[name] - base[name]))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(own[name])


def replay_examples(n: int, seed: int = 0) -> list[Example]:
    """`n` requests for a story, each with a story, as the base has read them: none is a held-out one.

    Raises ValueError for an `n` below 1.
    """
    if n < 1:
        raise ValueError(f"n is the number of stories and must be at least 1, not {n}")
    rng, examples = random.Random(f"replay/{seed}"), []
    while len(examples) < n:
        cast = tinyworld.new_cast(rng)
        example = Example(tinyworld.story_request(rng, cast), tinyworld.story(rng, cast))
        if tinyworld.split_of(example.answer) == "train":
            examples.append(example)
    return examples
