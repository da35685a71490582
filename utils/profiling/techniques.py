"""A training step with one thing changed: its peak memory and its time, on random weights of a model's shape."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from utils.lora import inject, remove
from utils.lora.fused import SHARE, use_fused
from utils.models.device import compute_dtype
from utils.profiling.activations import checkpoint_blocks
from utils.profiling.gpu_step import adapted, allocated, base_model, base_of, free, optimizer_of, peak
from utils.profiling.latency import once, spread
from utils.profiling.memory import GB, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED, WARM_UP, STEPS = 0, 3, 10


class Technique(NamedTuple):
    """A way to train: the settings, whether 16-bit autocast is on, in how many pieces a step is computed, and whether
    the adapters are our fused layers in the place of PEFT's.
    """

    name: str
    setup: Setup
    autocast: bool = False
    pieces: int = 1
    fused: bool = False


def step_of(model: nn.Module, technique: Technique, vocabulary: int, device: str) -> Any:
    """A whole training step as a function: every piece forward and backward, then the optimizer."""
    setup, pieces = technique.setup, technique.pieces
    optimizer = optimizer_of(setup, [p for p in model.parameters() if p.requires_grad])
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, vocabulary, (setup.batch, setup.length), generator=generator).to(device)
    autocast = torch.autocast(device, torch.bfloat16) if technique.autocast else nullcontext()

    def step() -> None:
        for piece in ids.chunk(pieces):
            with autocast:
                loss = model(input_ids=piece, labels=piece, use_cache=False).loss / pieces
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_technique(model: PreTrainedModel, technique: Technique, device: str, trial: bool = False) -> dict[str, Any]:
    """One technique's row; the base model is afterwards as it was, but for the steps of a full one. Out of memory is a
    row as well.
    """
    setup = technique.setup
    if trial:
        setup = dataclasses.replace(setup, batch=4, length=16, optimizer="adamw")
        technique = technique._replace(setup=setup)
    torch.manual_seed(SEED)
    weights = free()
    wrapped = _fused(model, setup) if technique.fused else adapted(model, setup)
    checkpoint_blocks(wrapped, setup.checkpointing)
    torch.backends.cuda.matmul.allow_tf32 = "TF32" in technique.name
    try:
        step = step_of(wrapped, technique, model.config.vocab_size, device)
        for _ in range(WARM_UP):
            step()
        peak()
        times = [once(torch.device(device), step)[0] for _ in range(4 if trial else STEPS)]
        row: dict[str, Any] = {"peak": peak()["peak"], "resident": allocated(), "milliseconds": spread(times)._asdict()}
    except torch.cuda.OutOfMemoryError as error:
        row = {"out_of_memory": str(error).splitlines()[0]}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    checkpoint_blocks(wrapped, False)
    model.disable_input_require_grads()  # PEFT's checkpointing switched it on, and nothing else switches it off
    if technique.fused:
        remove(model)
    elif setup.method != "full":
        cast(Any, wrapped).unload()
    model.requires_grad_(False)
    return {"weights": weights, **row}


def _fused(model: PreTrainedModel, setup: Setup) -> PreTrainedModel:
    inject(model, setup.target_modules, setup.r, 2 * setup.r)
    use_fused(model, share=SHARE)
    return model


def each(
    techniques: Iterable[Technique], device: str, trial: bool = False
) -> Iterator[tuple[Technique, dict[str, Any]]]:
    """Every technique with its row of :func:`measure`. Those that follow each other on one base share a model."""
    for _, group in itertools.groupby(techniques, lambda technique: base_of(technique.setup)):
        model = None
        for technique in group:
            if model is None:
                model = base_model(technique.setup, device, trial)
            yield technique, measure_technique(model, technique, device, trial)
        model = None
        free()


def techniques_on_this_gpu() -> str:
    """A table: a step of SmolLM2-135M's shape, 8 sequences of 512 tokens, on the CUDA GPU that is here.

    One thing is changed in each line, which has the peak memory and the time. Without a GPU, a sentence that says so.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA GPU here to measure"
    dtype = str(compute_dtype("cuda")).removeprefix("torch.")
    usual = Setup("SmolLM2-135M", "lora", 8, 512, dtype)
    techniques = (
        Technique("unchanged", usual),
        Technique("checkpointing", dataclasses.replace(usual, checkpointing=True)),
        Technique("accumulation, 4 pieces", usual, pieces=4),
        Technique("adapters in 16 bits", dataclasses.replace(usual, adapter_dtype=dtype)),
        Technique("eager attention", dataclasses.replace(usual, attention="eager")),
        Technique("NF4, double", dataclasses.replace(usual, method="qlora")),
    )
    elsewhere = free()
    rows = {technique.name: row for technique, row in each(techniques, "cuda")}
    return techniques_table(rows, torch.cuda.get_device_name(), elsewhere)


def techniques_table(rows: dict[str, dict[str, Any]], title: str, elsewhere: int = 0) -> str:
    """Rows of :func:`measure` as lines of text; the first one is what the others are compared with.

    `elsewhere` are bytes that others held on the GPU, which are taken off each peak.
    """
    lines = [f"{title:24}  peak, GB          ms   times the first"]
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if "out_of_memory" in row:
            lines.append(f"{name:24}  ran out of memory")
            continue
        took = row["milliseconds"]["median"]
        ratio = f"{took / first['milliseconds']['median']:17.2f}" if "milliseconds" in first else ""
        lines.append(f"{name:24} {(row['peak'] - elsewhere) / GB:9.2f} {took:11.1f} {ratio}")
    return "\n".join(lines)
