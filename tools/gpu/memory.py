"""The peak memory of training steps, for profiling.memory to be held against: memory.json and memory_held_out.json.

Models of real shapes with random weights made on the GPU, PEFT's adapters, bitsandbytes' 4-bit layers and optimizers.
Each setting takes three steps; the third is measured, each of its phases on its own. A quarter of the settings, drawn
by HELD_OUT_SEED before anything was measured, goes to a file of its own: whoever builds the predictor doesn't open it,
and the log shows none of its numbers.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.gpu.record import Record
from utils.profiling.gpu_step import base_model, base_of, free, run_one
from utils.profiling.memory import Setup

HELD_OUT_SEED = 6
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
WHAT = "bytes that PyTorch's allocator gave out at most during the third training step, and in each of its phases"


def setups() -> list[Setup]:
    """What is measured, sorted so that those of one base model follow each other."""
    llama, mistral, one, small = "Llama-2-7B", "Mistral-7B", "Llama-3.2-1B", "SmolLM2-135M"
    found: list[Setup] = []

    def add(model: str, method: str, sizes: list[tuple[int, int, bool]], **more: Any) -> None:
        found.extend(Setup(model, method, b, n, checkpointing=on, **more) for b, n, on in sizes)

    short, long = (1, 512, False), (1, 2048, False)
    add(llama, "lora", [short, (4, 512, False), (4, 512, True), (8, 512, True), (4, 2048, False)], target_modules=QKVO)
    add(llama, "lora", [short, (4, 512, False), long, (4, 2048, True), (8, 2048, True)])
    add(llama, "lora", [(4, 512, False)], adapter_dtype="bfloat16")
    add(llama, "lora", [(4, 512, True)], r=64)
    add(llama, "lora", [short], lora_dropout=0.05)
    add(llama, "lora", [(4, 512, False), (1, 2048, True)], target_modules=QKVO, attention="eager")
    add(mistral, "lora", [(4, 512, False), (8, 512, True)], target_modules=QKVO)
    add(mistral, "lora", [short, long, (4, 512, True), (8, 2048, True)])
    add(llama, "qlora", [short, (4, 512, False), (4, 512, True), (8, 2048, True)], target_modules=QKVO)
    add(llama, "qlora", [short, long, (8, 512, True), (4, 2048, True)])
    add(llama, "qlora", [(4, 512, True)], optimizer="adamw-paged-8bit", r=64)
    add(llama, "qlora", [short, (4, 512, True)], double=False)
    add(mistral, "qlora", [short, (4, 512, False), (8, 512, True), (4, 2048, True)])
    add(one, "full", [short, (4, 512, False), (8, 512, True), (4, 2048, True)])
    add(one, "full", [(4, 512, True)], optimizer="adamw-8bit")
    add(one, "full", [short], optimizer="adamw-paged-8bit")
    add(one, "full", [(1, 512, True)], dtype="float32")
    add(one, "lora", [(4, 512, False), (8, 512, False), (4, 2048, False), (8, 2048, True)])
    add(one, "qlora", [(1, 512, True), (8, 512, False)], target_modules=QKVO)
    add(small, "full", [short, (8, 512, False), (8, 2048, False), (4, 2048, True)])
    add(small, "full", [(8, 512, False)], attention="eager")
    add(small, "full", [(4, 512, False)], dtype="float32", optimizer="adamw-fused")
    add(small, "lora", [(8, 512, False), (1, 2048, True)])
    return found


def name_of(setup: Setup) -> str:
    """A setting's key in the record: what differs from the defaults."""
    default = Setup()
    parts = [str(setup.model), setup.method, f"{setup.batch}x{setup.length}"]
    for field in dataclasses.fields(Setup):
        value = getattr(setup, field.name)
        if field.name not in ("model", "method", "batch", "length") and value != getattr(default, field.name):
            parts.append("q,k,v,o" if value == QKVO else f"{field.name}={value}")
    return " ".join(parts)


def held_out() -> set[str]:
    """The keys of a quarter of the settings: they are for judging the predictor, not for building it."""
    keys = sorted(map(name_of, setups()))
    return set(random.Random(HELD_OUT_SEED).sample(keys, len(keys) // 4))


def attention_kernel(device: str) -> str:
    """The kernel that PyTorch chooses for the attention of a 16-bit Llama here."""
    query = torch.zeros(1, 32, 512, 128, dtype=torch.bfloat16, device=device, requires_grad=True)
    return type(nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).grad_fn).__name__


def _in_order(wanted: list[Setup]) -> Iterator[list[Setup]]:
    groups: dict[tuple[Any, ...], list[Setup]] = {}
    for setup in wanted:
        groups.setdefault(base_of(setup), []).append(setup)
    yield from groups.values()


def run(out: Path, trial: bool, seconds: float) -> None:
    """Measure all settings that the records don't have, until `seconds` are over."""
    start = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = {"seed": 0, "held_out_seed": HELD_OUT_SEED, "attention_kernel": attention_kernel(device)}
    files = {
        False: Record(out / "memory.json", WHAT, **head),
        True: Record(out / "memory_held_out.json", WHAT + "; not looked at while the predictor was built", **head),
    }
    apart = held_out()
    record_of = {name_of(setup): files[name_of(setup) in apart] for setup in setups()}
    for group in _in_order([s for s in setups() if name_of(s) not in record_of[name_of(s)]]):
        if time.monotonic() - start > seconds:
            print("out of time: run it again to go on")
            return
        model = base_model(group[0], device, trial)
        for setup in group:
            if time.monotonic() - start > seconds:
                break
            key = name_of(setup)
            print(key, end="", flush=True)
            row = run_one(model, setup, device, trial)
            record_of[key].add(key, setup=dataclasses.asdict(setup), **row)
            loss = f"  loss {row['loss']:.2f}" if "loss" in row else ""
            shown = loss + ("  held out" if key in apart else f"  {row.get('peak', 0) / 2**30:.2f} GiB")
            print(f"{shown}  {row['seconds']} s", flush=True)
        del model
        free()
