"""The peak memory of training steps, for utils.memory to be held against: memory.json and memory_held_out.json.

Models of real shapes with random weights made on the GPU, PEFT's adapters, bitsandbytes' 4-bit layers and optimizers.
Each setting takes three steps; the third is measured, each of its phases on its own. A quarter of the settings, drawn
by HELD_OUT_SEED before anything was measured, goes to a file of its own: whoever builds the predictor doesn't open it,
and the log shows none of its numbers.
"""

from __future__ import annotations

import dataclasses
import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu.record import Record
from utils.activations import checkpoint_blocks
from utils.architectures import real_config
from utils.memory import FLOATS, Setup

MINUTES = 4
SEED, HELD_OUT_SEED, STEPS = 0, 6, 3
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


def base_of(setup: Setup) -> tuple[Any, ...]:
    """What two settings share when they can share a base model."""
    return setup.model, setup.method == "qlora", setup.double, setup.dtype, setup.attention


def config_of(setup: Setup, trial: bool) -> Any:
    config = real_config(str(setup.model))
    if trial:
        config.update(
            {
                "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            }
        )  # fmt: skip
    return config


def base_model(setup: Setup, device: str, trial: bool) -> nn.Module:
    """A model of the setting's shape with random weights, made where it is used, in 4-bit layer by layer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(FLOATS[setup.dtype])
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config_of(setup, trial), dtype=FLOATS[setup.dtype], attn_implementation=setup.attention
            )
    finally:
        torch.set_default_dtype(before)
    if setup.method == "qlora":
        quantize(model, setup, device)
    return model.train()


def quantize(model: nn.Module, setup: Setup, device: str) -> None:
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            settings = {"compress_statistics": setup.double, "quant_type": "nf4"}
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=FLOATS[setup.dtype], **settings,
                device="meta",
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, **settings)
            model.set_submodule(name, layer.to(device))
            module.weight = None
    model.is_loaded_in_4bit = True  # so PEFT takes its 4-bit layer, as for a model from from_pretrained


def adapted(model: nn.Module, setup: Setup) -> nn.Module:
    """The model with what trains."""
    if setup.method == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    targets = setup.target_modules if isinstance(setup.target_modules, str) else list(setup.target_modules)
    config = LoraConfig(
        r=setup.r, lora_alpha=2 * setup.r, lora_dropout=setup.lora_dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(FLOATS[setup.adapter_dtype])
    return wrapped


def optimizer_of(setup: Setup, trainable: list[nn.Parameter]) -> Any:
    if setup.optimizer in ("adamw", "adamw-fused"):
        return torch.optim.AdamW(trainable, lr=1e-5, **({"fused": True} if "fused" in setup.optimizer else {}))
    import bitsandbytes as bnb

    kinds = {
        "adamw-8bit": bnb.optim.AdamW8bit,
        "adamw-paged": bnb.optim.PagedAdamW32bit,
        "adamw-paged-8bit": bnb.optim.PagedAdamW8bit,
    }
    return kinds[setup.optimizer](trainable, lr=1e-5)


def free() -> int:
    """Let go of what is cached, and say how many bytes are allocated."""
    gc.collect()
    if torch.cuda.is_available():
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    return allocated()


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak() -> dict[str, int]:
    """The largest number of bytes given out, asked for and taken from the GPU since the last call; start again."""
    if not torch.cuda.is_available():
        return {"peak": 0, "requested": 0, "reserved": 0}
    torch.cuda.synchronize()
    found = {
        "peak": torch.cuda.max_memory_allocated(),
        "requested": torch.cuda.memory_stats()["requested_bytes.all.peak"],
        "reserved": torch.cuda.max_memory_reserved(),
    }
    torch.cuda.reset_peak_memory_stats()
    return found


def outside() -> int:
    """Bytes of the GPU that are taken and are not PyTorch's allocator's: CUDA's context and its kernels."""
    if not torch.cuda.is_available():
        return 0
    left, total = torch.cuda.mem_get_info()
    return total - left - torch.cuda.memory_reserved()


def measure(model: nn.Module, setup: Setup, device: str, vocabulary: int) -> dict[str, Any]:
    """Peaks of a step in its phases, and what is held between two steps."""
    checkpoint_blocks(model, setup.checkpointing)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(setup, trainable)
    ids = torch.randint(0, vocabulary, (setup.batch, setup.length), device=device)
    phases: dict[str, dict[str, int]] = {}
    resident = 0
    for step in range(STEPS):
        resident = allocated()
        peak()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        phases["forward"] = peak()
        if step == 0:
            print(f"  loss {loss.item():.2f}", end="", flush=True)
        loss.backward()
        phases["backward"] = peak()
        optimizer.step()
        phases["optimizer"] = peak()
        optimizer.zero_grad()
        del loss
    largest = max(phases, key=lambda name: phases[name]["peak"])
    return {
        "peak": phases[largest]["peak"],
        "phase": largest,
        "phases": phases,
        "resident": resident,
        "outside": outside(),
    }


def run_one(model: nn.Module, setup: Setup, device: str, trial: bool) -> dict[str, Any]:
    """One setting's row; the base model is afterwards as it was."""
    torch.manual_seed(SEED)
    before = free()
    if trial:
        setup = dataclasses.replace(setup, batch=1, length=16, optimizer="adamw")
    start = time.monotonic()
    wrapped = adapted(model, setup)
    try:
        row = measure(wrapped, setup, device, model.config.vocab_size)
    except torch.cuda.OutOfMemoryError as error:
        row = {"out_of_memory": str(error).splitlines()[0]}
    model.disable_input_require_grads()  # PEFT's checkpointing switched it on, and nothing else switches it off
    if setup.method != "full":
        wrapped.unload()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return {"weights": before, **row, "seconds": round(time.monotonic() - start, 1)}


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
    head = {"seed": SEED, "held_out_seed": HELD_OUT_SEED, "attention_kernel": attention_kernel(device)}
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
            shown = "held out" if key in apart else f"{row.get('peak', 0) / 2**30:.2f} GiB"
            print(f"  {shown}  {row['seconds']} s", flush=True)
        del model
        free()
