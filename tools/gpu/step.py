"""A whole training step of Llama-2-7B's shape: PEFT, the plain layer and the fast one, and the frozen model's own time.

Writes ``step.json``. A row is one way to train: the time of forward, backward and AdamW between two CUDA events, and
the largest memory of a step. All ways use the same base, batch, rank, optimizer and float32 adapters unless they say
16 bits. PEFT is measured before and after the others, which shows how far the machine drifted. The frozen model, with
the gradient of its embeddings' output, is the least that any adapter method on all blocks has to compute.

Attributes:
    PLAN: Checkpointing, the whole step as one CUDA graph, and the ways: the most important first.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.gpu.record import Record
from utils import lora
from utils.lora.fused import SHARE, use_fused
from utils.models.configs import real_config
from utils.profiling.activations import checkpoint_blocks
from utils.profiling.latency import once, spread

SEED, R, ALPHA = 0, 8, 16
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS: dict[str, list[str]] = {
    "q,k,v,o": ATTENTION,
    "all-linear": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
}
PEFT, PEFT_16, PLAIN, FROZEN = "PEFT as it comes", "PEFT, 16-bit adapters", "plain", "frozen"
FAST, TOGETHER = "fast", "fast, together"
PLAN: tuple[tuple[bool, bool, tuple[str, ...]], ...] = (
    (False, False, (FROZEN, PEFT, TOGETHER, FAST, f"{TOGETHER}, again", f"{PEFT}, again")),
    (True, False, (FROZEN, PEFT, TOGETHER)),
    (False, False, (PEFT_16, PLAIN)),
    (False, True, (FROZEN, PEFT, TOGETHER)),
)


def base_model(trial: bool, device: torch.device, **changes: Any) -> Any:
    """Llama-2-7B's shape with random weights in bfloat16; `changes` are of its config."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(SEED)
    tiny = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    config = tiny if trial else real_config("Llama-2-7B")
    config.update(changes)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


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


def attach(model: nn.Module, way: str, targets: list[str]) -> tuple[nn.Module, Callable[[], Any]]:
    """The model trained in this way, and how to get rid of the adapters again."""
    from peft import LoraConfig, get_peft_model

    kind = way.removesuffix(", again")
    if kind == FROZEN:
        model.requires_grad_(False)
        return model, lambda: None
    if kind in (PEFT, PEFT_16):
        config = LoraConfig(
            r=R, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=kind == PEFT)
        return wrapped, wrapped.unload
    lora.inject(model, targets, R, ALPHA)
    if kind in (FAST, TOGETHER):
        use_fused(model, share=SHARE if kind == TOGETHER else ())
    return model, lambda: lora.remove(model)


def measure(
    model: nn.Module, record: Record, way: str, name: str, *, checkpointing: bool, graph: bool, batch: int, length: int,
    steps: int, keep: dict[str, Any],
) -> None:  # fmt: skip
    """Train for two and `steps` steps and add the row. `keep` holds PEFT's first gradients to compare with."""
    key = f"{name}, checkpointing {'on' if checkpointing else 'off'}{', one CUDA graph' if graph else ''}: {way}"
    if key in record:
        return
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    trained, detach = attach(model, way, TARGETS[name])
    trained.train()
    model.config.use_cache = False
    checkpoint_blocks(model, checkpointing)
    hook = None
    if way == FROZEN or checkpointing:
        hook = model.get_input_embeddings().register_forward_hook(lambda m, i, out: out.requires_grad_(True))
    mine = factors(trained)
    if way != FROZEN:
        fill(trained)
    optimizer = torch.optim.AdamW(list(mine.values()), lr=1e-4, capturable=graph and cuda) if mine else None
    ids = torch.randint(
        0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(SEED)
    ).to(device)  # fmt: skip

    def step() -> float:
        loss = trained(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    row: dict[str, Any] = {}
    loss = trained(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    row["loss"] = round(loss.item(), 5)
    if mine:
        found = {n: p.grad.detach().float().cpu() for n, p in mine.items()}
        if way == PEFT:
            keep.clear()
            keep.update(found)
        elif keep.keys() == found.keys():
            total = sum(g.double().square().sum() for g in keep.values())
            difference = sum((found[n].double() - g.double()).square().sum() for n, g in keep.items())
            row["gradients_off_peft"] = round(float((difference / total) ** 0.5), 5)
        for parameter in mine.values():
            parameter.grad = None
    del loss
    side = torch.cuda.Stream() if graph and cuda else None
    if side:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    if side:
        torch.cuda.current_stream().wait_stream(side)
    if cuda:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        row["resting_mib"] = round(torch.cuda.memory_allocated() / 2**20, 1)
    work: Callable[[], Any] = step
    if side:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        work = captured.replay
        work()
    times = [once(device, work)[0] for _ in range(steps)]
    if cuda:
        row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    row["milliseconds"] = spread(times)._asdict()
    if hook:
        hook.remove()
    detach()
    record.add(key, targets=name, checkpointing=checkpointing, graph=graph, way=way, batch=batch, length=length, **row)
    print(
        f"  {key:50s} {row['milliseconds']['median']:8.2f} ms ({row['milliseconds']['lower']:.2f}-"
        f"{row['milliseconds']['upper']:.2f})  peak {row.get('peak_mib', 0):9.1f} MiB  loss {row['loss']}  "
        f"off {row.get('gradients_off_peft')}",
        flush=True,
    )


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``step.json`` into `out`."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() and not trial else "cpu")
    size = {"batch": 2, "length": 16, "steps": 4} if trial else {"batch": 4, "length": 512, "steps": 10}
    record = Record(
        out / "step.json",
        "a training step (forward, backward, AdamW) of Llama-2-7B's shape in bfloat16 with random weights; "
        "milliseconds; peak_mib is the largest allocation during the steps",
        seed=SEED,
        rank=R,
        lora_alpha=ALPHA,
    )
    model = base_model(trial, device)
    keep: dict[str, Any] = {}
    for checkpointing, graph, ways in PLAN:
        for name in TARGETS:
            for way in ways:
                if time.monotonic() - began > seconds:
                    print(f"  stopped after {seconds:.0f} s", flush=True)
                    return
                try:
                    measure(model, record, way, name, checkpointing=checkpointing, graph=graph, keep=keep, **size)
                except Exception as error:
                    if not graph:
                        raise
                    print(f"  no graph of {name}, {way}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                    return
