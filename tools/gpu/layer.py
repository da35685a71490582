"""One LoRA layer, forward and backward: the frozen layer's own time (the floor), full fine-tuning, PEFT, our layer.

Writes ``layer.json``. A row is one way at one size: the time of forward and backward between two CUDA events, after
the cache was overwritten, the ways in turn and several rounds; the memory that it takes beyond what is there before;
and how far its output and gradients are from float64, as the norm of the difference over the norm. "Full" trains the
weight itself, "autocast" computes under autocast to bfloat16. Other rows have the time of each product alone, with the
bytes that it can't avoid, and the machine's two ceilings. What chapter 21 reads comes first; other ranks and
torch.compile follow, where `seconds` are left.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.gpu.candidates import others
from tools.gpu.record import Record
from utils.lora import LoRALinear
from utils.lora.fused import SharedInput, use_fused
from utils.profiling.latency import spread

SEED = 0
SHAPES = ((4096, 4096), (4096, 11_008), (11_008, 4096))
TOKENS = (8192, 2048, 512)
RANKS = (16, 8, 64)
FLOOR, FULL = "frozen", "full"
WITHOUT_LORA = (FLOOR, FULL)
GRAPHED = (FLOOR, "fast", "fast, Triton", "PEFT as it comes")


class Autocast(nn.Module):
    """A layer that computes under autocast to bfloat16, as in a Trainer with ``bf16=True``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.layer(x)


class Clock:
    """Microseconds on the device: an event before and one after, and the cache overwritten before each."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(2**28 if self.cuda else 2**10, dtype=torch.int8, device=device)

    def times(self, work: Callable[[], Any], count: int, *, cold: bool = True) -> list[float]:
        if not self.cuda:
            found = []
            for _ in range(count):
                began = time.perf_counter()
                work()
                found.append(1e6 * (time.perf_counter() - began))
            return found
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in pairs:
            if cold:
                self.flush.zero_()
            start.record()
            work()
            end.record()
        torch.cuda.synchronize()
        return [1000 * start.elapsed_time(end) for start, end in pairs]


def peft_layer(base: nn.Linear, r: int, *, fp32: bool) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    holder = nn.Sequential()
    holder.add_module("lin", base)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["lin"], init_lora_weights=False)
    return get_peft_model(holder, config, autocast_adapter_dtype=fp32)


def factors(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """A layer's lora_A and lora_B, PEFT's or ours."""
    found = {name: p for name, p in layer.named_parameters() if "lora_" in name}
    (a,), (b,) = ([p for name, p in found.items() if f"lora_{side}" in name] for side in "AB")
    return a, b


def fused_layer(base: nn.Linear, r: int) -> LoRALinear:
    """The course's LoRA layer in its fused form."""
    layer = LoRALinear(base, r, 2 * r)
    use_fused(layer)
    return layer


def layers(base: nn.Linear, r: int, *, trial: bool, compiled: bool) -> dict[str, nn.Module]:
    """Every way to compute, over one base weight and with equal factors."""

    def own() -> nn.Linear:
        same = nn.Linear(base.in_features, base.out_features, bias=False, device="meta", dtype=base.weight.dtype)
        same.weight = base.weight
        return same

    trains = own()
    trains.weight = nn.Parameter(base.weight.detach().clone())
    found: dict[str, nn.Module] = {
        FLOOR: own(),
        FULL: trains,
        "PEFT as it comes": peft_layer(own(), r, fp32=True),
        "PEFT as it comes, autocast": Autocast(peft_layer(own(), r, fp32=True)),
        "PEFT, 16-bit adapters": peft_layer(own(), r, fp32=False),
        "PEFT, 16-bit adapters, autocast": Autocast(peft_layer(own(), r, fp32=False)),
        "plain": LoRALinear(own(), r, 2 * r),
        "plain, 16-bit adapters": LoRALinear(own(), r, 2 * r),
        "fast": fused_layer(own(), r),
        "fast, autocast": Autocast(fused_layer(own(), r)),
    }
    found |= others(own, r, trial=trial)
    if compiled:
        found = {FLOOR: found[FLOOR], "fast": found["fast"]}
        found["plain, compiled"] = torch.compile(LoRALinear(own(), r, 2 * r), dynamic=False)
        bf16 = LoRALinear(own(), r, 2 * r)
        bf16.lora_A.data, bf16.lora_B.data = bf16.lora_A.data.bfloat16(), bf16.lora_B.data.bfloat16()
        found["plain, 16-bit, compiled"] = torch.compile(bf16, dynamic=False)
    generator = torch.Generator(device=base.weight.device).manual_seed(SEED)
    a = torch.randn(r, base.in_features, generator=generator, device=base.weight.device) / base.in_features**0.5
    b = torch.randn(base.out_features, r, generator=generator, device=base.weight.device) / r**0.5
    for name, layer in found.items():
        if name in WITHOUT_LORA:
            continue
        lora_a, lora_b = factors(layer)
        if "16-bit" in name:
            lora_a.data, lora_b.data = lora_a.data.bfloat16(), lora_b.data.bfloat16()
        lora_a.data.copy_(a)
        lora_b.data.copy_(b)
    return found


def reference(x: Tensor, grad: Tensor, base: nn.Linear, layer: nn.Module, s: float) -> tuple[Tensor, ...]:
    """Output, dx, dA, dB in float64."""
    x, g = x.detach().flatten(0, 1).double(), grad.flatten(0, 1).double()
    w = base.weight.detach().double()
    a, b = (f.detach().double() for f in factors(layer))
    y, dx = x @ w.T + s * (x @ a.T) @ b.T, g @ w + s * (g @ b) @ a
    return y, dx, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


def off(found: Tensor, true: Tensor) -> float:
    return round(float((found.double().reshape(true.shape) - true).norm() / true.norm()), 6)


def step_of(layer: nn.Module, x: Tensor, grad: Tensor, *, clean: bool = True) -> Callable[[], None]:
    """Forward and backward. Unless `clean`, gradients add up, which reads and writes dx once more: inside a network
    nothing does that.
    """
    held = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def step() -> None:
        if clean:
            for tensor in held:
                tensor.grad = None
        layer(x).backward(grad)

    return step


def clear(layer: nn.Module, x: Tensor) -> None:
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


def graphed(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward as one CUDA graph, replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            layer(x).backward(grad)
    torch.cuda.current_stream().wait_stream(side)
    clear(layer, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(x).backward(grad)
    return graph.replay


def measure(
    record: Record, clock: Clock, device: torch.device, shape: tuple[int, int], tokens: int, r: int, *, trial: bool,
    compiled: bool, rounds: int = 4, each: int = 8,
) -> None:  # fmt: skip
    """All ways at one size, in turn."""
    d_in, d_out = shape
    key = f"{d_in}x{d_out}, {tokens} tokens, r={r}" + (", compiled" if compiled else "")
    if f"{key}: done" in record:
        return
    torch.manual_seed(SEED)
    dtype = torch.bfloat16
    x = torch.randn(4, tokens // 4, d_in, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(4, tokens // 4, d_out, device=device, dtype=dtype)
    base = nn.Linear(d_in, d_out, bias=False, device=device, dtype=dtype).requires_grad_(False)
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], None]] = {}
    modules = layers(base, r, trial=trial, compiled=compiled)
    true = reference(x, grad, base, modules["fast"], 2.0)
    for name, layer in modules.items():
        try:
            clear(layer, x)
            step = step_of(layer, x, grad)
            for _ in range(2):
                step()
            clear(layer, x)
            row: dict[str, Any] = {}
            if device.type == "cuda":
                gc.collect()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step()
                torch.cuda.synchronize()
                row["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
                clear(layer, x)
            y = layer(x)
            y.backward(grad)
            if name not in WITHOUT_LORA:
                a, b = factors(layer)
                values = (y.detach(), x.grad, a.grad, b.grad)
                row["off"] = dict(zip(("y", "dx", "dA", "dB"), map(off, values, true), strict=True))
            del y
            found[name], steps[name] = row, step
            if name in GRAPHED and device.type == "cuda" and not compiled:
                clear(layer, x)
                found[f"{name}, graph"], steps[f"{name}, graph"] = {}, graphed(layer, x, grad)
                clear(layer, x)
        except Exception as error:  # a candidate that doesn't run is worth a line, not the whole run
            print(f"  {key}: {name} failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    del true
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            times = clock.times(step, each if number else 2)
            if number:
                taken[name] += times
    floor = statistics.median(taken[FLOOR])
    for name, row in found.items():
        if name in taken:
            row["microseconds"] = spread(taken[name])._asdict()
            warm = clock.times(steps[name], each, cold=False)  # one behind the other, launches and all
            row["warm"] = spread(warm)._asdict()
            least = floor if "graph" not in name else statistics.median(taken[f"{FLOOR}, graph"])
            row["ratio"] = round(row["microseconds"]["median"] / least, 3)
            if tokens >= 8192 and name in GRAPHED:
                adding = step_of(modules[name], x, grad, clean=False)
                row["adding_up"] = spread(clock.times(adding, 2 * each))._asdict()
            print(
                f"  {key:34s} {name:26s} {row['microseconds']['median']:8.1f} us {row['ratio']:6.3f} "
                f"warm {row['warm']['median']:8.1f}  {row.get('peak_mib', 0):7.1f} MiB  "
                f"{max(row.get('off', {'': 0}).values()):.4f}",
                flush=True,
            )
        record.add(f"{key}: {name}", d_in=d_in, d_out=d_out, tokens=tokens, r=r, compiled=compiled, way=name, **row)
    record.add(f"{key}: done")


def parts(
    record: Record, clock: Clock, device: torch.device, n: int, d_in: int, d_out: int, r: int, *, trial: bool
) -> None:
    """Each product of the layer alone, and the bytes it must move: every input read once, every output written once."""
    if "parts: done" in record:
        return
    torch.manual_seed(SEED)
    new = lambda *shape: torch.randn(*shape, device=device, dtype=torch.bfloat16)  # noqa: E731
    x, g, w, a, b = new(n, d_in), new(n, d_out), new(d_out, d_in), new(r, d_in), new(d_out, r)
    h, q, y, dx = new(n, r), new(n, r), new(n, d_out), new(n, d_in)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "x W^T": (lambda: x @ w.t(), n * d_in + d_in * d_out + n * d_out),
        "g W": (lambda: g @ w, n * d_in + d_in * d_out + n * d_out),
        "y += x W^T": (lambda: y.addmm_(x, w.t()), n * d_in + d_in * d_out + 2 * n * d_out),
        "dx += g W": (lambda: dx.addmm_(g, w), n * d_out + d_in * d_out + 2 * n * d_in),
        "h = x A^T": (lambda: x @ a.t(), n * d_in),
        "q = g B": (lambda: g @ b, n * d_out),
        "y = h B^T": (lambda: h @ b.t(), n * d_out),
        "y += h B^T": (lambda: y.addmm_(h, b.t()), 2 * n * d_out),
        "dx = q A": (lambda: q @ a, n * d_in),
        "dx += q A": (lambda: dx.addmm_(q, a), 2 * n * d_in),
        "dB = g^T h": (lambda: g.t() @ h, n * d_out),
        "dA = q^T x": (lambda: q.t() @ x, n * d_in),
    }
    if device.type == "cuda":
        from tools.gpu.triton_lora import expand, outer

        works |= {
            "dB = g^T h, float32": (lambda: torch.mm(g.t(), h, out_dtype=torch.float32), n * d_out),
            "dA = q^T x, float32": (lambda: torch.mm(q.t(), x, out_dtype=torch.float32), n * d_in),
            "Triton: h = x A^T, y = h B^T": (lambda: expand(x, a.t(), b.t(), 2.0), n * (d_in + d_out)),
            "Triton: q = g B, dx = q A": (lambda: expand(g, b, a, 2.0), n * (d_in + d_out)),
            "Triton: dB = g^T h": (lambda: outer(g, h, ranks_first=False), n * d_out),
            "Triton: dA = q^T x": (lambda: outer(x, q, ranks_first=True), n * d_in),
        }
        size = 8192
        one, two = new(size, size), new(size, size)
        works["ceiling: 8192^3 product"] = (lambda: one @ two, 3 * size * size)
        big = torch.empty(2**30, device=device, dtype=torch.int8)
        other = torch.empty_like(big)
        works["ceiling: copy of 1 GiB"] = (lambda: other.copy_(big), 2**30)
    for name, (work, numbers) in works.items():
        if f"part: {name}" in record:
            continue
        try:
            clock.times(work, 3)
            took = spread(clock.times(work, 4 if trial else 20))._asdict()
        except Exception as error:
            print(f"  part {name} failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        print(f"  part {name:40s} {took['median']:8.1f} us  {2 * numbers / took['median'] / 1e3:7.0f} GB/s", flush=True)
        record.add(f"part: {name}", tokens=n, d_in=d_in, d_out=d_out, r=r, bytes=2 * numbers, microseconds=took)
    record.add("parts: done")


def three(record: Record, clock: Clock, device: torch.device, tokens: int, d: int, r: int) -> None:
    """q_proj, k_proj and v_proj: three layers that read one x, each alone or computed together."""
    key = f"three {d}x{d}, {tokens} tokens, r={r}"
    if f"{key}: done" in record:
        return
    torch.manual_seed(SEED)
    dtype = torch.bfloat16
    x = torch.randn(4, tokens // 4, d, device=device, dtype=dtype, requires_grad=True)
    grads = [torch.randn(4, tokens // 4, d, device=device, dtype=dtype) for _ in range(3)]
    bases = [nn.Linear(d, d, bias=False, device=device, dtype=dtype).requires_grad_(False) for _ in range(3)]
    together = [LoRALinear(base, r, 2 * r) for base in bases]
    shared = SharedInput(together)
    for layer in together:
        layer.compute = shared
    sets = {
        FLOOR: bases,
        FULL: [nn.Linear(d, d, bias=False, device=device, dtype=dtype) for _ in range(3)],
        "PEFT as it comes": [peft_layer(base, r, fp32=True) for base in bases],
        "PEFT as it comes, autocast": [Autocast(peft_layer(base, r, fp32=True)) for base in bases],
        "PEFT, 16-bit adapters": [peft_layer(base, r, fp32=False) for base in bases],
        "fast": [fused_layer(base, r) for base in bases],
        "fast, together": together,
    }
    for layers_of_one in sets.values():  # equal factors, so that the gradients of x can be compared
        for number, layer in enumerate(layers_of_one):
            if isinstance(layer, nn.Linear):
                continue
            generator = torch.Generator(device=device).manual_seed(number)
            for factor in factors(layer):
                factor.data.copy_(
                    torch.randn(factor.shape, generator=generator, device=device) / factor.shape[1] ** 0.5
                )

    def step_of_three(layers_of_one: list[nn.Module]) -> Callable[[], None]:
        held = [x, *(p for layer in layers_of_one for p in layer.parameters() if p.requires_grad)]

        def step() -> None:
            for tensor in held:
                tensor.grad = None
            torch.autograd.backward([layer(x) for layer in layers_of_one], grads)

        return step

    steps = {name: step_of_three(layers_of_one) for name, layers_of_one in sets.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    dx: dict[str, Tensor] = {}
    for number in range(4):
        for name, step in steps.items():
            times = clock.times(step, 8 if number else 2)
            dx[name] = x.grad
            if number:
                taken[name] += times
    for name, times in taken.items():
        ratio = round(statistics.median(times) / statistics.median(taken[FLOOR]), 3)
        row: dict[str, Any] = {"microseconds": spread(times)._asdict(), "ratio": ratio}
        if name not in WITHOUT_LORA:
            row["dx_off_peft"] = off(dx[name], dx["PEFT as it comes"].double())
        print(
            f"  {key:34s} {name:26s} {row['microseconds']['median']:8.1f} us {ratio:6.3f} {row.get('dx_off_peft')}",
            flush=True,
        )
        record.add(f"{key}: {name}", three=True, d=d, tokens=tokens, r=r, way=name, **row)
    record.add(f"{key}: done")


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``layer.json`` into `out`."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() and not trial else "cpu")
    shapes, all_tokens, ranks = ((((64, 96),), (16,), (4,))) if trial else (SHAPES, TOKENS, RANKS)
    record = Record(
        out / "layer.json",
        ("TRIAL: tiny shapes on a CPU, no measurement of anything. " if trial else "")
        + "forward and backward of one LoRA layer in bfloat16, random numbers, lora_alpha = 2 r; microseconds",
        seed=SEED,
        tf32=torch.backends.cuda.matmul.allow_tf32,
    )
    clock = Clock(device)
    parts(record, clock, device, *((16, 64, 96, 4) if trial else (8192, 4096, 4096, 16)), trial=trial)
    first, others_ = all_tokens[0], all_tokens[1:]
    sizes = [(shape, first, ranks[0], False) for shape in shapes]
    sizes += [(shape, tokens, ranks[0], False) for shape in shapes for tokens in others_]
    sizes += [(shape, first, r, False) for r in ranks[1:] for shape in shapes]
    if not trial:
        sizes += [(shapes[0], tokens, ranks[0], True) for tokens in all_tokens]
    for number, (shape, tokens, r, compiled) in enumerate(sizes):
        if time.monotonic() - began > seconds:
            print(f"  stopped after {seconds:.0f} s: {len(sizes) - number} sizes are left for the next run", flush=True)
            return
        measure(record, clock, device, shape, tokens, r, trial=trial, compiled=compiled)
        if number < len(all_tokens) * len(shapes) and shape == shapes[0]:
            three(record, clock, device, tokens, shape[0], r)
