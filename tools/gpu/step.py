"""A whole training step of Llama-2-7B's shape: the frozen floor, full fine-tuning, PEFT, and our fused layers.

Writes ``whole_step.json``; ``step.json``, of which chapter 1 quotes two rows, is an earlier run at rank 8. A row is one
way to train at one batch: the time of forward, backward and AdamW (torch's fused one, transformers' default) between
two CUDA events, and the largest memory of a step. All ways use the same base in bfloat16, batch, rank and float32
adapters unless they say 16 bits. "Autocast" is what a Trainer with ``bf16=True`` adds. The frozen model, with the
gradient of its embeddings' output, is the least that any adapter method on all blocks has to compute. "Full" trains all
weights, in bfloat16 unless it says float32. "Again" is a second measurement after all others of that size, which shows
how far the machine drifted. About three minutes on an H200.

Attributes:
    SIZES: Batch and length.
    WHOLE: Ways without LoRA. The full ones move the base a little; all LoRA ways of a size get the same one.
    WAYS: Ways of LoRA, by the layers that have it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tools.gpu.record import Record
from utils import lora
from utils.lora.fused import SHARE, use_fused
from utils.models.configs import real_config
from utils.profiling.latency import once, spread

SEED, R, ALPHA = 0, 16, 32
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS: dict[str, list[str]] = {
    "q,k,v,o": ATTENTION,
    "all-linear": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
}
NO_TARGETS = "none"
PEFT, PEFT_16, FROZEN, FULL = "PEFT as it comes", "PEFT, 16-bit adapters", "frozen", "full"
FAST, TOGETHER = "fast", "fast, together"
NO_OPTIMIZER, IN_FLOAT32, AUTOCAST, REPEATED = ", no optimizer", ", float32", ", autocast", ", again"
SIZES = ((4, 512), (8, 512))
WHOLE = (FROZEN, FULL + NO_OPTIMIZER, FULL, FULL + AUTOCAST)
_WAYS = (PEFT, PEFT + AUTOCAST, PEFT_16, PEFT_16 + AUTOCAST, TOGETHER, TOGETHER + AUTOCAST)
WAYS = {"q,k,v,o": _WAYS, "all-linear": (*_WAYS, FAST, PEFT + REPEATED, TOGETHER + REPEATED)}


class Plan(NamedTuple):
    """One row: batch and length, the layers with LoRA, and the way."""

    batch: int
    length: int
    targets: str
    way: str

    @property
    def key(self) -> str:
        """The row's name in the record."""
        return f"{self.batch} x {self.length}, {self.targets}: {self.way}"

    @property
    def kind(self) -> str:
        """What is built, whatever the computation around it."""
        return (
            self.way.removesuffix(REPEATED).removesuffix(AUTOCAST).removesuffix(NO_OPTIMIZER).removesuffix(IN_FLOAT32)
        )


def plans(sizes: tuple[tuple[int, int], ...] = SIZES) -> Iterator[Plan]:
    """Every row, in the order in which it is measured: float32 last, since it needs a base of its own."""
    for batch, length in sizes:
        yield from (Plan(batch, length, NO_TARGETS, way) for way in WHOLE)
        for targets, ways in WAYS.items():
            yield from (Plan(batch, length, targets, way) for way in ways)
        yield Plan(batch, length, NO_TARGETS, FROZEN + REPEATED)
    yield Plan(*sizes[0], NO_TARGETS, FULL + IN_FLOAT32 + AUTOCAST)


def base_model(trial: bool, device: torch.device, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """Llama-2-7B's shape with random weights in `dtype`; `changes` are of its config."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(SEED)
    tiny = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    config = tiny if trial else real_config("Llama-2-7B")
    config.update(changes)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """lora_A and lora_B of all layers, under one name whoever made them, in the model's order."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".default"): p
        for name, p in model.named_parameters()
        if "lora_" in name
    }


def fill(model: nn.Module) -> None:
    """The same factors for everyone, as large as the base's own contribution."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(SEED)
    for name, parameter in factors(model).items():
        fan_in = parameter.shape[1] if name.endswith("lora_A") else R
        numbers = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        parameter.data.copy_(numbers / (2 * fan_in**0.5))


def attach(model: nn.Module, plan: Plan) -> tuple[nn.Module, Callable[[], Any]]:
    """The model trained in this way, and how to get rid of what was added."""
    from peft import LoraConfig, get_peft_model

    if plan.kind in (FROZEN, FULL):
        model.requires_grad_(plan.kind == FULL)
        return model, lambda: model.requires_grad_(False)
    targets = TARGETS[plan.targets]
    if plan.kind in (PEFT, PEFT_16):
        config = LoraConfig(
            r=R, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=plan.kind == PEFT)
        return wrapped, wrapped.unload
    lora.inject(model, targets, R, ALPHA)
    use_fused(model, share=SHARE if plan.kind == TOGETHER else ())
    return model, lambda: lora.remove(model)


def stepper(model: nn.Module, trained: nn.Module, plan: Plan, keep: dict[str, Any], row: dict[str, Any]) -> Any:
    """A function that makes one step, after one step of which `row` gets the loss and how far the gradients are from
    PEFT's, which `keep` holds.
    """
    device = next(model.parameters()).device
    mine = [p for p in trained.parameters() if p.requires_grad]
    drawn = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, model.config.vocab_size, (plan.batch, plan.length), generator=drawn).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16) if AUTOCAST in plan.way else nullcontext()
    optimizer = torch.optim.AdamW(mine, lr=1e-5, fused=True) if mine and NO_OPTIMIZER not in plan.way else None

    def gradients() -> Any:
        with autocast:
            loss = trained(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss

    def step() -> None:
        gradients()
        if optimizer:
            optimizer.step()
        for parameter in mine:
            parameter.grad = None

    row["loss"] = round(gradients().item(), 5)
    if plan.kind not in (FROZEN, FULL):
        found = {n: p.grad.detach().float() for n, p in factors(trained).items()}
        if plan.way == PEFT:
            keep.clear()
            keep.update(found)
        elif keep.keys() == found.keys():
            total = sum(g.square().sum() for g in keep.values())
            difference = sum((found[n] - g).square().sum() for n, g in keep.items())
            row["gradients_off_peft"] = round(float((difference / total) ** 0.5), 5)
    for parameter in mine:
        parameter.grad = None
    return step


def measure(model: nn.Module, record: Record, plan: Plan, *, steps: int, keep: dict[str, Any]) -> None:
    """Train for two and `steps` steps and add the row. Running out of memory is a row as well."""
    cuda = next(model.parameters()).is_cuda
    trained, detach = attach(model, plan)
    trained.train()
    hook = None
    if plan.kind == FROZEN:
        hook = model.get_input_embeddings().register_forward_hook(lambda m, i, out: out.requires_grad_(True))
    elif plan.kind != FULL:
        fill(trained)
    row: dict[str, Any] = {}
    try:
        step = stepper(model, trained, plan, keep, row)
        for _ in range(2):
            step()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            row["resting_mib"] = round(torch.cuda.memory_allocated() / 2**20, 1)
        device = next(model.parameters()).device
        times = [once(device, step)[0] for _ in range(steps)]
        if cuda:
            row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        row["milliseconds"] = spread(times)._asdict()
    except torch.cuda.OutOfMemoryError as error:
        row = {"out_of_memory": str(error).splitlines()[0]}
    finally:
        step = None  # it holds the optimizer's states
        if hook:
            hook.remove()
        detach()
        for parameter in model.parameters():
            parameter.grad = None
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    record.add(plan.key, targets=plan.targets, way=plan.way, batch=plan.batch, length=plan.length, **row)
    took = row.get("milliseconds", {"median": 0, "lower": 0, "upper": 0})
    print(
        f"  {plan.key:62s} {took['median']:8.2f} ms ({took['lower']:.2f}-{took['upper']:.2f})  "
        f"peak {row.get('peak_mib', 0):9.1f} MiB  loss {row.get('loss')}  off {row.get('gradients_off_peft')}",
        flush=True,
    )


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``whole_step.json`` into `out`."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() and not trial else "cpu")
    record = Record(
        out / "whole_step.json",
        ("TRIAL: tiny shapes on a CPU, no measurement of anything. " if trial else "")
        + "a training step (forward, backward, fused AdamW) of Llama-2-7B's shape with random weights, in bfloat16 "
        "unless a way says float32; milliseconds; peak_mib is the largest allocation during the steps",
        seed=SEED,
        rank=R,
        lora_alpha=ALPHA,
    )
    model, dtype, keep = None, None, {}
    for plan in plans(((2, 16), (4, 16)) if trial else SIZES):
        if plan.key in record:
            continue
        if time.monotonic() - began > seconds:
            print(f"  stopped after {seconds:.0f} s: run it again to go on", flush=True)
            return
        wanted = torch.float32 if IN_FLOAT32 in plan.way else torch.bfloat16
        if model is None or dtype != wanted:
            model = None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            model, dtype = base_model(trial, device, wanted), wanted
            model.requires_grad_(False)
            print(f"  a model in {wanted} after {time.monotonic() - began:.0f} s", flush=True)
        measure(model, record, plan, steps=4 if trial else 8, keep=keep)
    print(f"  all of it in {time.monotonic() - began:.0f} s", flush=True)
