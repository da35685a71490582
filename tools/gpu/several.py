"""Training steps on one, two and four GPUs: DDP and FSDP2 of LoRA, QLoRA and everything, weak and strong scaling.

Writes ``several_gpus.json``. A row is one way to train Llama-2-7B's shape (random weights, bfloat16, LoRA r=16 on all
linear layers, torch's fused AdamW, 512 tokens a sequence) on so many GPUs with so many sequences on each: the time of a
whole step between two barriers, the largest allocation of each rank, how long Python took to launch a step (`host_ms`),
and for the first repeat what the profiler saw: milliseconds of NCCL's kernels and of all others, and the bytes of each
collective. NCCL's kernels wait for the slowest rank, so their time is not the link's alone. Further rows are single
collectives. Everything is measured REPEATS times on models made anew.

    python -m tools.measure_gpu several                     (all counts up to the machine's GPUs, largest first)
    COURSE_GPUS=4 python -m tools.measure_gpu several       (four only)

Processes are started for each number of GPUs and measure all that is missing there. One that dies takes the others with
it: what was being measured becomes a row with "failed", and the rest goes on. A machine with two GPUs and one with four
of the same kind and versions write into one record.

Attributes:
    COUNTS: How many GPUs, as far as the machine has them.
    SIZES: Sequences on each GPU, and whether blocks are recomputed. With 16, 8 and 4 on 1, 2 and 4 GPUs the total is
        the same: strong scaling.
    WAYS: The ways; the first three at every size, FEW of them at the first size only. COMPILED ones come last and have
        every block compiled by itself; AUTOCAST is float32 adapters under autocast to bfloat16, as SFTTrainer has them.
    MIB: Sizes of the single collectives.
    PATIENCE: Seconds after which a collective that waits for a dead rank gives up.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tools.gpu.record import Record, hardware
from utils.lora import inject
from utils.lora.fused import SHARE, use_fused
from utils.profiling.activations import checkpoint_blocks
from utils.profiling.gpu_step import base_model, config_of, optimizer_of
from utils.profiling.latency import spread
from utils.profiling.memory import FLOATS, Setup
from utils.profiling.ranks import blocks_of
from utils.profiling.several import WAYS as NAMES
from utils.profiling.several import key_of

SEED, R, LENGTH, REPEATS, WARM_UP, STEPS = 0, 16, 512, 3, 3, 8
COUNTS = (4, 2, 1)
PATIENCE = 120
SIZES = ((4, False), (16, True), (1, False), (16, False))
STRONG = ((8, False), (2, False))
WAYS = (
    "DDP, LoRA", "FSDP2, LoRA", "FSDP2, full", "DDP, LoRA fused", "FSDP2, QLoRA", "DDP, LoRA 16-bit",
    "FSDP2, LoRA fused", "DDP, LoRA autocast", "DDP, full", "DDP, LoRA compiled", "DDP, LoRA CUDA graphs",
)  # fmt: skip
COMPILED = ("DDP, LoRA compiled", "DDP, LoRA CUDA graphs")
FEW = ("DDP, full", *COMPILED)
AUTOCAST = "DDP, LoRA autocast"
MIB = (1, 16, 128, 512)


class Plan(NamedTuple):
    """One row."""

    way: str
    gpus: int
    batch: int
    checkpointing: bool
    repeat: int

    @property
    def key(self) -> str:
        """The row's name in the record."""
        return key_of(self.way, self.gpus, self.batch, LENGTH, self.checkpointing, self.repeat)

    @property
    def setup(self) -> Setup:
        """The same as a step of one rank, as :mod:`utils.profiling.ranks` predicts it."""
        method = {"full": "full", "QLoRA": "qlora"}.get(self.way.partition(", ")[2], "lora")
        wide = self.way.startswith("DDP") and "16-bit" not in self.way
        return Setup(
            "Llama-2-7B", method, self.batch, LENGTH, r=R, adapter_dtype="float32" if wide else "bfloat16",
            optimizer="adamw-fused", checkpointing=self.checkpointing, double=False,
        )  # fmt: skip


def plans(gpus: int, repeat: int) -> Iterator[Plan]:
    """One repeat on `gpus` GPUs, the sizes of a way together: the first has everything, the others what is compared."""
    for way in WAYS:
        sizes = SIZES[:1] if way in FEW else (*SIZES, *STRONG) if way in WAYS[:3] else SIZES[:3]
        if repeat:
            sizes = sizes[:2]
        for batch, checkpointing in sizes:
            yield Plan(way, gpus, batch, checkpointing, repeat)


def counts_here(trial: bool) -> list[int]:
    """How many GPUs are asked for: COURSE_GPUS (numbers with commas between) where it is set, else COUNTS; of these
    what the machine has. A trial takes two and one.

    Raises ValueError when none is left.
    """
    here = 2 if trial else torch.cuda.device_count()
    asked = [int(n) for n in os.environ["COURSE_GPUS"].split(",")] if os.environ.get("COURSE_GPUS") else COUNTS
    if not (found := [n for n in asked if 1 <= n <= here]):
        raise ValueError(f"this machine has {here} GPUs and COURSE_GPUS asks for {os.environ.get('COURSE_GPUS')}")
    return found


def open_record(out: Path, trial: bool) -> Record:
    """The record, new or read back."""
    return Record(
        out / "several_gpus.json",
        ("TRIAL: tiny shapes on a CPU, no measurement of anything. " if trial else "")
        + "training steps of Llama-2-7B's shape with random weights in bfloat16 on several GPUs, LoRA r=16 on all "
        "linear layers, float32 adapters under DDP unless they say 16-bit, bfloat16 ones under FSDP2, fused AdamW, "
        "batch of each GPU; milliseconds, and the bytes that each rank's allocator gave out at most",
        seed=SEED,
        tool="tools/gpu/several.py",
    )


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``several_gpus.json`` into `out`, until `seconds` are over."""
    until = time.time() + seconds
    repeats = range(1 if trial else REPEATS)
    rounds = list(itertools.product((False, True), repeats, counts_here(trial)))
    for compiled, repeat, gpus in rounds:
        while (missing := _missing(out, trial, gpus, repeat, compiled)) and time.time() < until:
            _all_ranks(gpus, missing, out, trial, until)
    left = sum(len(_missing(out, trial, gpus, repeat, compiled)) for compiled, repeat, gpus in rounds)
    print(f"  {left} rows are missing: run it again to go on" if left else "  all of it is there", flush=True)


def _missing(out: Path, trial: bool, gpus: int, repeat: int, compiled: bool) -> list[Plan]:
    """What the record lacks of one repeat; what torch compiles, which can take minutes, apart from the rest."""
    record = open_record(out, trial)
    return [plan for plan in plans(gpus, repeat) if plan.key not in record and (plan.way in COMPILED) == compiled]


def _all_ranks(gpus: int, missing: list[Plan], out: Path, trial: bool, until: float) -> None:
    """Start the processes for `gpus` GPUs. Where one dies, what was measured then is written down as failed: that size
    where memory ran out, else all sizes of that way. Raises what it raised when nothing was being measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        now = Path(folder) / "now"
        try:
            mp.spawn(_rank, (gpus, missing, str(out), trial, until, folder), nprocs=gpus)
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            record = open_record(out, trial)
            plan = Plan(*json.loads(now.read_text(encoding="utf-8"))) if now.exists() else None
            if plan is None or plan.key in record:
                raise
            said = [line for line in str(error).strip().splitlines() if line.strip()][-1][:300]
            failed = [plan] if "OutOfMemory" in said else [p for p in missing if p.way == plan.way]
            for one in failed:
                if one.key not in record:
                    record.add(one.key, **one._asdict(), length=LENGTH, machine=machine(), failed=said)
            print(f"  {plan.key:60s} failed: {said[:160]}", flush=True)


def _rank(rank: int, gpus: int, missing: list[Plan], out: str, trial: bool, until: float, folder: str) -> None:
    """One process: everything that is missing, a model for each way and repeat."""
    device = torch.device("cpu" if trial else f"cuda:{rank}")
    if not trial:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if trial else "nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=gpus,
        timeout=datetime.timedelta(seconds=PATIENCE), device_id=None if trial else device,
    )  # fmt: skip
    record = open_record(Path(out), trial) if rank == 0 else None
    collectives(record, gpus, device, trial)
    built: Built | None = None
    for plan in missing:
        if not _agreed(time.time() < until, device):
            break
        if rank == 0:
            (Path(folder) / "now").write_text(json.dumps(plan), encoding="utf-8")
        if built is None or (built.plan.way, built.plan.repeat) != (plan.way, plan.repeat):
            built = None
            gc.collect()
            if not trial:
                torch.cuda.empty_cache()
            built = Built(plan, device, trial)
        row = built.measure(plan, trial)
        if record is not None:
            today = datetime.date.today().isoformat()
            record.add(plan.key, **plan._asdict(), length=LENGTH, machine=machine(), day=today, **row)
            took, peak = row["milliseconds"]["median"], max(row["peaks"]) / 1e9
            print(f"  {plan.key:60s} {took:8.1f} ms (host {row['host_ms']:.1f})  {peak:6.2f} GB", flush=True)
    dist.destroy_process_group()


def machine() -> str:
    """The machine's GPUs."""
    return f"{max(1, torch.cuda.device_count())} x {hardware()}"


def _agreed(mine: bool, device: torch.device) -> bool:
    """Whether all ranks say yes, so that all stop at the same moment."""
    vote = torch.tensor(float(mine), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())


def adapted(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with what trains: all of it, PEFT's adapters or our fused layers, in the setup's dtype."""
    setup = plan.setup
    if setup.method == "full":
        return model.requires_grad_(True)
    if "fused" in plan.way:
        inject(model, "all-linear", R, 2 * R)
        use_fused(model, share=SHARE)
        trained = model
    else:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=R, lora_alpha=2 * R, target_modules="all-linear", task_type="CAUSAL_LM")
        trained = get_peft_model(model, config, autocast_adapter_dtype=setup.adapter_dtype == "float32")
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(FLOATS[setup.adapter_dtype])
    return trained


def built_model(plan: Plan, device: torch.device, trial: bool) -> nn.Module:
    """The model of one rank: whole under DDP; under FSDP2 made without data, sharded, then filled, but for QLoRA, whose
    4-bit weights have to be there before they are shared out.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    setup = plan.setup
    if plan.way not in WAYS:
        raise ValueError(f"no way is called {plan.way!r}: {'; '.join(WAYS)}")
    sharded = plan.way.startswith("FSDP2")
    if not sharded or setup.method == "qlora":
        model = adapted(base_model(setup, str(device), trial), plan) if not sharded else _four_bit(plan, device, trial)
        return shard(model, device) if sharded else model
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config_of("Llama-2-7B", trial), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        model = adapted(base, plan)
    shard(model, device)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # pyright: ignore
        fan = 0.02 if "lora_B" not in name else 0.0
        local.detach().normal_(0, fan) if parameter.ndim > 1 else local.detach().fill_(1)
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):  # its buffers were made without data
            with device:
                fresh = type(module)(config=config_of("Llama-2-7B", trial))  # pyright: ignore
            for name, buffer in fresh.named_buffers():
                module.register_buffer(name, buffer, persistent=False)
    return model


def _four_bit(plan: Plan, device: torch.device, trial: bool) -> nn.Module:
    """QLoRA for FSDP2: NF4 codes stored as bfloat16 numbers, as ``bnb_4bit_quant_storage`` does."""
    import bitsandbytes as bnb

    setup = plan.setup
    model: Any = base_model(dataclasses.replace(setup, method="lora"), str(device), trial)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            settings: dict[str, Any] = {
                "compress_statistics": setup.double, "quant_type": "nf4", "quant_storage": torch.bfloat16,
            }  # fmt: skip
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta",
                **settings,
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, **settings)
            model.set_submodule(name, layer.to(device))
            layer.quant_state = layer.weight.quant_state  # pyright: ignore
            module.register_parameter("weight", None)
    model.is_loaded_in_4bit = True
    return adapted(model, plan)


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """FSDP2: every block a group of its own, and the model around them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # pyright: ignore


class Built:
    """A model on this rank, its optimizer and its engine, for all sizes of a way."""

    def __init__(self, plan: Plan, device: torch.device, trial: bool) -> None:
        self.plan, self.device = plan, device
        self.model = built_model(plan, device, trial).train()
        if plan.way in COMPILED:
            for block in blocks_of(self.model):
                block.compile(mode="reduce-overhead" if plan.way.endswith("CUDA graphs") else None)
        ddp = nn.parallel.DistributedDataParallel
        where = [device.index] if device.type == "cuda" else None
        self.runs = self.model if plan.way.startswith("FSDP2") else ddp(self.model, device_ids=where)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in trained)
        self.optimizer = optimizer_of(plan.setup, trained)

    def measure(self, plan: Plan, trial: bool) -> dict[str, Any]:
        """A row at one size, with all ranks' peaks. Raises CUDA's error on the rank that runs out of memory."""
        checkpoint_blocks(self.model, plan.checkpointing)
        batch, length = plan.batch, 16 if trial else LENGTH
        drawn = torch.Generator().manual_seed(SEED + dist.get_rank())
        vocabulary = config_of("Llama-2-7B", trial).vocab_size
        ids = torch.randint(0, vocabulary, (batch, length), generator=drawn).to(self.device)
        losses: list[float] = []

        def step() -> Any:
            if plan.way.endswith("CUDA graphs"):
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=plan.way == AUTOCAST):
                loss = self.runs(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss.detach()

        steps, warm_up = (4, 1) if trial else (STEPS, 12 if plan.way in COMPILED else WARM_UP)
        for _ in range(warm_up):
            losses.append(step().item())
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        whole, host = [], []
        for _ in range(steps):
            dist.barrier()
            self._wait()
            began = time.perf_counter()
            step()
            launched = time.perf_counter()
            self._wait()
            whole.append(1000 * (time.perf_counter() - began))
            host.append(1000 * (launched - began))
        mine = float(torch.cuda.max_memory_allocated() if cuda else 0)
        peak = torch.tensor(mine, dtype=torch.float64, device=self.device)
        peaks = [torch.zeros_like(peak) for _ in range(dist.get_world_size())]
        dist.all_gather(peaks, peak)
        row: dict[str, Any] = {
            "milliseconds": spread(whole)._asdict(), "host_ms": round(statistics.median(host), 3),
            "peaks": [int(p.item()) for p in peaks], "trainable": self.trainable,
            "loss": round(losses[0], 4),
        }  # fmt: skip
        if plan.repeat == 0 and (plan.batch, plan.checkpointing) in SIZES[:2]:
            row["profile"] = profiled(step, self._wait)
        checkpoint_blocks(self.model, False)
        base: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # pyright: ignore
        base.disable_input_require_grads()  # PEFT's checkpointing switched it on, and nothing else switches it off
        return row

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def profiled(step: Any, wait: Any) -> dict[str, Any]:
    """One step under the profiler on every rank: what :func:`communication` finds in rank 0's trace, else {}."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=kinds) as profiler:
        step()
        wait()
    if dist.get_rank():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return communication(json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"])


def communication(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A trace's kernels: milliseconds of NCCL's and of the others, and for each collective calls, bytes, milliseconds.

    The bytes are the larger of what goes in and comes out on this rank: what is gathered, reduced or scattered in all.
    """
    sizes = {"BFloat16": 2, "Half": 2, "Float": 4, "Double": 8, "Byte": 1, "Char": 1, "Int": 4, "Long": 8, "Bool": 1}
    nccl, other, kernels = 0.0, 0.0, 0
    calls: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    took: Counter[str] = Counter()
    for event in events:
        if event.get("cat") != "kernel":
            continue
        if "nccl" not in event["name"].lower():
            other, kernels = other + event["dur"], kernels + 1
            continue
        nccl += event["dur"]
        about = event.get("args", {})
        name = str(about.get("Collective name", "unknown"))
        numbers = max(int(about.get("In msg nelems", 0)), int(about.get("Out msg nelems", 0)))
        calls[name] += 1
        moved[name] += numbers * sizes.get(str(about.get("dtype", "")), 0)
        took[name] += event["dur"] / 1000
    each = {name: {"calls": calls[name], "bytes": moved[name], "milliseconds": round(took[name], 3)} for name in calls}
    return {
        "nccl_ms": round(nccl / 1000, 3), "other_ms": round(other / 1000, 3), "other_kernels": kernels,
        "collectives": each,
    }  # fmt: skip


def collectives(record: Record | None, gpus: int, device: torch.device, trial: bool) -> None:
    """Rows of single collectives in bfloat16, for the model of time: an all-reduce and an all-gather at each size."""
    if gpus == 1:
        return
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name since torch 2.13
    for mib in MIB[:1] if trial else MIB:
        whole = torch.zeros(mib * 2**19 // gpus * gpus, dtype=torch.bfloat16, device=device)
        part = whole[: len(whole) // gpus].clone()
        for name, work in (
            ("all_reduce", lambda w=whole: dist.all_reduce(w)),
            ("all_gather", lambda w=whole, p=part: gather(w, p)),
        ):
            key = f"{name}: {gpus} GPUs, {mib} MiB"
            if not _agreed(record is None or key not in record, device):
                continue
            times = []
            for _ in range(4 + (4 if trial else 12)):
                dist.barrier()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(1000 * (time.perf_counter() - began))
            if record is not None:
                size = whole.numel() * 2
                record.add(key, collective=name, gpus=gpus, bytes=size, milliseconds=spread(times[4:])._asdict())


assert set(WAYS) == set(NAMES)
