"""How long a model takes to read a prompt (prefill) and to write a token (decode)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

T = TypeVar("T")


class Spread(NamedTuple):
    """The median of `runs` measurements and their quartiles, in the measurements' unit."""

    median: float
    lower: float
    upper: float
    runs: int


class Latency(NamedTuple):
    """Milliseconds of one prefill of the whole batch, and of one decoding step, which makes a token for each text."""

    prefill: Spread
    decode: Spread


def spread(milliseconds: list[float]) -> Spread:
    """Median and quartiles, to a thousandth. Raises ValueError for fewer than four measurements."""
    if len(milliseconds) < 4:
        raise ValueError(f"{len(milliseconds)} measurements have no quartiles to speak of: make at least 4")
    lower, median, upper = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Spread(round(median, 3), round(lower, 3), round(upper, 3), len(milliseconds))


def once(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that `work` took: on CUDA between two events, from an idle GPU, elsewhere by the clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        result = work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), result
    if device.type == "mps":
        torch.mps.synchronize()
    began = time.perf_counter()
    result = work()
    if device.type == "mps":
        torch.mps.synchronize()
    return 1000 * (time.perf_counter() - began), result


def timed(device: torch.device, work: Callable[[], Any], *, rounds: int = 12, warm_up: int = 3) -> Spread:
    """Milliseconds that `work` takes on `device`, over `rounds` measurements after `warm_up` ones that don't count.

    Raises ValueError for fewer than 4 rounds.
    """
    for _ in range(warm_up):
        work()
    return spread([once(device, work)[0] for _ in range(rounds)])


@torch.inference_mode()
def one_round(model: Callable[..., Any], ids: Int[Tensor, "batch length"], new_tokens: int) -> tuple[float, float]:
    """Milliseconds of the prefill of `ids` and of a decoding step, the mean of `new_tokens` greedy ones with cache."""

    def decode_all(token: Tensor, cache: Any) -> None:
        for _ in range(new_tokens):
            output = model(input_ids=token, use_cache=True, cache=cache)
            token, cache = output.logits[:, -1:].argmax(dim=-1), output.cache

    took, output = once(ids.device, lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
    token = output.logits[:, -1:].argmax(dim=-1)
    steps, _ = once(ids.device, lambda: decode_all(token, output.cache))
    return took, steps / new_tokens


def each_in_turn(works: Mapping[str, Callable[[], T]], *, rounds: int, warm_up: int) -> dict[str, list[T]]:
    """What each function returned in `rounds` rounds, all of them called in every round: a busy moment of the machine
    then hits all. The first `warm_up` rounds don't count.
    """
    taken: dict[str, list[T]] = {name: [] for name in works}
    for number in range(warm_up + rounds):
        for name, work in works.items():
            result = work()
            if number >= warm_up:
                taken[name].append(result)
    return taken


def in_turns(
    works: Mapping[str, Callable[[], tuple[float, float]]], *, rounds: int, warm_up: int
) -> dict[str, Latency]:
    """Several ways to prefill and decode, each a function that gives both times, by :func:`each_in_turn`.

    Raises ValueError for fewer than 4 rounds.
    """
    if rounds < 4:
        raise ValueError(f"{rounds} rounds have no quartiles to speak of: make at least 4")
    taken = each_in_turn(works, rounds=rounds, warm_up=warm_up)
    return {name: Latency(*(spread(list(times)) for times in zip(*took, strict=True))) for name, took in taken.items()}


def prompts(model: Any, batch: int, length: int) -> Int[Tensor, "batch length"]:
    """Random tokens on the model's device, the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, model.config.vocab_size, (batch, length), generator=generator)
    return ids.to(next(model.parameters()).device)


def as_json(found: Mapping[str, Latency]) -> dict[str, dict[str, dict[str, float]]]:
    """The same as dictionaries, for a record."""
    return {name: {part: s._asdict() for part, s in both._asdict().items()} for name, both in found.items()}


def latency_on_this_gpu(*, batch: int = 8, prompt: int = 512, new_tokens: int = 16, rounds: int = 8) -> str:
    """A table: what an adapter costs on the CUDA GPU that is here, for SmolLM2-135M's shape with random weights.

    A line for each form of :mod:`utils.profiling.adapter_forms`, its milliseconds and its ratio to the base. Without a
    GPU, a sentence that says so.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA GPU here to measure"
    from transformers import AutoModelForCausalLM

    from utils.models.configs import real_config
    from utils.models.device import compute_dtype
    from utils.profiling.adapter_forms import forms

    torch.manual_seed(0)
    with torch.device("cuda"):
        config = real_config("SmolLM2-135M")
        model = AutoModelForCausalLM.from_config(config, dtype=compute_dtype("cuda")).eval().requires_grad_(False)
        ids = torch.randint(2, config.vocab_size, (batch, prompt))
    works = {form: partial(one_round, one, ids, new_tokens) for form, one in forms(model, "all-linear").items()}
    return latency_table(in_turns(works, rounds=rounds, warm_up=2), torch.cuda.get_device_name())


def latency_table(found: Mapping[str, Latency], title: str) -> str:
    """The medians of several forms as lines of text, with their ratios to the form "base"."""
    lines = [f"{title:24} prefill, ms   ratio   decode, ms   ratio"]
    for form, (prefill, decode) in found.items():
        ratios = [part.median / base.median for part, base in zip((prefill, decode), found["base"], strict=True)]
        lines.append(f"{form:24} {prefill.median:11.2f} {ratios[0]:7.2f} {decode.median:12.2f} {ratios[1]:7.2f}")
    return "\n".join(lines)
