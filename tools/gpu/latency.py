"""What adapters cost when a model answers: unmerged, merge_adapter, merged and base; many in one batch, or in turns.

Writes ``latency_gpu.json``. Llama-2-7B's shape in bfloat16 with random weights, prompts of 512 tokens, PEFT's adapters
of r=8. All forms lie on the GPU at once, those that compute with the same weights sharing them, and are measured in
turns; "base again" is the base a second time in each round, which shows what a difference has to exceed. Three ways to
decode: eager, with the whole step as one CUDA graph, which costs the CPU one launch a token, and with torch.compile,
this one on a model of the same shape with fewer blocks. A second kind of row is one batch of eight texts for several
adapters: in one forward pass or one pass for each.

Attributes:
    Step: A decoding step over a cache of fixed size, and what takes the cache back to the end of the prompt.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.gpu.record import Record
from tools.gpu.step import TARGETS, base_model
from utils.lora.combine import Factors
from utils.lora.multi_adapter import route, stack_adapters
from utils.profiling.adapter_forms import R, forms, shared, with_adapters
from utils.profiling.latency import as_json, each_in_turn, in_turns, once, one_round, prompts, spread

SEED = 0
BATCHES = (1, 8, 32)
TEXTS, ADAPTERS = 8, (1, 2, 4, 8)
ROUNDS, WARM_UP = 8, 2
BLOCKS = 8
COMPILED = ("base", "adapter", "adapter in 16 bits", "merge_and_unload")


Step = tuple[Callable[[], Any], Callable[[], None]]


def fixed_cache(model: Any, ids: Tensor, new_tokens: int) -> Any:
    """An empty cache of fixed size for the prompt and `new_tokens` more. All forms use one: 32 texts fill 9 GB."""
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=ids.shape[1] + new_tokens)


def static_step(model: Any, ids: Tensor, cache: Any) -> Step:
    """A step on `model` behind the prompt `ids`, the same token again and again."""

    def rewind(length: int = ids.shape[1]) -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)

    rewind(0)
    token = model(input_ids=ids, use_cache=True, logits_to_keep=1, cache=cache).logits[:, -1:].argmax(dim=-1)

    def step() -> Any:
        return model(input_ids=token, use_cache=True, cache=cache).logits

    return step, rewind


def graphed(model: Any, ids: Tensor, cache: Any) -> Step:
    """The same step as one CUDA graph; on a CPU the step as it is."""
    step, rewind = static_step(model, ids, cache)
    if ids.device.type != "cuda":
        return step, rewind
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    rewind()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay, rewind


def compiled(model: Any, ids: Tensor, cache: Any) -> Step:
    """The same step through torch.compile, with CUDA graphs where there is CUDA."""
    step, rewind = static_step(model, ids, cache)
    if ids.device.type == "cuda":
        return torch.compile(step, mode="reduce-overhead", dynamic=False), rewind
    return torch.compile(step, backend="eager"), rewind


def decode_round(step: Callable[[], Any], rewind: Callable[[], None], device: torch.device, new_tokens: int) -> float:
    """Milliseconds of a step, the mean of `new_tokens`."""

    def many() -> None:
        for _ in range(new_tokens):
            step()

    rewind()
    return once(device, many)[0] / new_tokens


def note(record: Record, key: str, times: dict[str, Any], **more: Any) -> None:
    """Add a row and print its medians."""
    record.add(key, times=times, **more)
    shown = {
        name: "/".join(f"{part['median']:.2f}" for part in ([found] if "median" in found else found.values()))
        for name, found in times.items()
    }
    print(f"  {key}: " + ", ".join(f"{name} {told}" for name, told in shown.items()), flush=True)


def eager_row(found: dict[str, Any], batch: int, length: int, new_tokens: int) -> dict[str, Any]:
    """Prefill and decode of each form, eager, with the cache that grows."""
    ids = prompts(next(iter(found.values())), batch, length)
    works = {form: partial(one_round, model, ids, new_tokens) for form, model in found.items()}
    return as_json(in_turns(works, rounds=ROUNDS, warm_up=WARM_UP))


@torch.inference_mode()
def decode_row(
    make: Callable[..., Any], found: dict[str, Any], batch: int, length: int, new_tokens: int
) -> dict[str, Any]:
    """Decode of each form by the step that `make` gives, in turns."""
    base = next(iter(found.values()))
    ids = prompts(base, batch, length)
    cache = fixed_cache(base, ids, new_tokens)
    steps = {
        form: partial(decode_round, *make(model, ids, cache), ids.device, new_tokens) for form, model in found.items()
    }
    taken = each_in_turn(steps, rounds=ROUNDS, warm_up=WARM_UP)
    return {form: spread(times)._asdict() for form, times in taken.items()}


def stacked(model: Any, wrapped: Any, names: tuple[str, ...]) -> Any:
    """The base with the adapters of `wrapped` in one layer each, the course's own (utils.lora.multi_adapter)."""
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A") and len(module.lora_A)
    }
    adapters = {
        adapter: {
            name: Factors(
                m.lora_A[adapter].weight.detach(), m.lora_B[adapter].weight.detach(), float(m.scaling[adapter])
            )
            for name, m in layers.items()
        }
        for adapter in names
    }
    own = shared(model)
    stack_adapters(own, adapters)
    return own.eval()


def many_row(model: Any, targets: list[str], count: int, length: int, new_tokens: int) -> dict[str, Any]:
    """TEXTS texts for `count` adapters: one forward for all of them (PEFT's and ours), and one for each adapter."""
    names = tuple(f"a{number}" for number in range(count))
    wrapped = with_adapters(shared(model), targets, names)
    own = stacked(model, wrapped, names)
    ids, rows = prompts(model, TEXTS, length), [names[i % count] for i in range(TEXTS)]

    def switching() -> tuple[float, float]:
        total = [0.0, 0.0]
        for adapter in names:
            wrapped.set_adapter(adapter)
            mine = ids[[i for i, row in enumerate(rows) if row == adapter]]
            for place, took in enumerate(one_round(wrapped, mine, new_tokens)):
                total[place] += took
        return total[0], total[1]

    def ours() -> tuple[float, float]:
        with route(own, rows):
            return one_round(own, ids, new_tokens)

    works: dict[str, Callable[[], tuple[float, float]]] = {
        "base": lambda: one_round(model, ids, new_tokens),
        "one forward, PEFT": lambda: one_round(partial(wrapped, adapter_names=rows), ids, new_tokens),
        "one forward, stacked": ours,
        "switching": switching,
    }
    return as_json(in_turns(works, rounds=ROUNDS // 2, warm_up=1))  # with eight adapters a round takes seconds


def plan(
    model: Any, length: int, new_tokens: int
) -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Every row's key, what it is and how to measure it, the most important first."""
    kept: dict[str, dict[str, Any]] = {}

    def in_forms(name: str) -> dict[str, Any]:
        if name not in kept:
            kept.clear()  # two sets of forms would be four copies of the weights
            kept[name] = forms(model, TARGETS[name])
        return kept[name]

    for name in TARGETS:
        for batch in BATCHES:
            size = {"targets": name, "batch": batch}
            yield (
                f"{name}, batch {batch}, eager",
                size | {"way": "eager"},
                lambda n=name, b=batch: eager_row(in_forms(n), b, length, new_tokens),
            )
            yield (
                f"{name}, batch {batch}, graph",
                size | {"way": "graph"},
                lambda n=name, b=batch: decode_row(graphed, in_forms(n), b, length, new_tokens),
            )
    for count in ADAPTERS:
        yield (
            f"{TEXTS} texts, {count} adapters",
            {"targets": "q,k,v,o", "batch": TEXTS, "adapters": count, "way": "many"},
            lambda c=count: many_row(model, TARGETS["q,k,v,o"], c, length, new_tokens),
        )


def short_plan(
    trial: bool, device: torch.device, length: int, new_tokens: int
) -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]]:
    """The same for a model with a few blocks, which torch.compile is done with in seconds."""

    @functools.cache
    def found() -> dict[str, Any]:
        model = base_model(trial, device, num_hidden_layers=2 if trial else BLOCKS).eval().requires_grad_(False)
        return {form: one for form, one in forms(model, TARGETS["q,k,v,o"]).items() if form in COMPILED}

    for way, make in (("graph", graphed), ("compiled", compiled)):
        yield (
            f"{BLOCKS} blocks, q,k,v,o, batch 1, {way}",
            {"targets": "q,k,v,o", "batch": 1, "blocks": BLOCKS, "way": way},
            lambda make=make: decode_row(make, found(), 1, length, new_tokens),
        )


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``latency_gpu.json`` into `out`, until `seconds` are over."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() and not trial else "cpu")
    length, new_tokens = (16, 2) if trial else (512, 16)
    record = Record(
        out / "latency_gpu.json",
        "answering with Llama-2-7B's shape in bfloat16, random weights and adapters; milliseconds of reading the "
        "prompts (prefill) and of a decoding step, which makes a token for every text: medians and quartiles",
        seed=SEED,
        rank=R,
        prompt=length,
        new_tokens=new_tokens,
    )
    model = base_model(trial, device).eval().requires_grad_(False)
    rows = itertools.chain(short_plan(trial, device, length, new_tokens), plan(model, length, new_tokens))
    for key, what, work in rows:
        if key in record:
            continue
        if time.monotonic() - began > seconds:
            print(f"  stopped after {seconds:.0f} s: run it again to go on", flush=True)
            return
        try:
            note(record, key, work(), **what)
        except Exception as error:  # what doesn't run with these versions is worth a line, not the whole run
            if what["way"] not in ("graph", "compiled"):
                raise
            print(f"  {key} failed: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
