"""A model of a step's time on one to many GPUs and hosts, with constants that were measured, and what a run costs.

    python -m utils.profiling.scaling --way "FSDP2, LoRA" --gpus 16 --between 25 --tokens 1e9 --price 3.50

Three things happen at once, and the slowest sets the pace:

    GPU       the kernels of forward and backward pass, so many microseconds a token
    host      Python launches them, so many microseconds each, whatever the batch; FSDP2 adds work for every group and
              parameter. All ranks wait for the slowest host: the expected largest of N normal numbers. Both are
              assumed: a launch's time is DDP's whole step on one GPU over its operations, so that its limit is the
              host by construction, and the growth to two GPUs, each measured once, is taken for the hosts' spread,
              which repeats on another machine don't confirm
    network   a ring moves (N - 1)/N of the bytes through each GPU's link, twice for an all-reduce, in N - 1 hops.
              The forward pass hides FSDP2's gathering behind its kernels, the backward pass gathering and reducing

The forward pass is taken for half of a frozen base's time and a third of what LoRA adds, as its products are. AdamW's
step comes behind all of it, on a share of the parameters under FSDP2. Attention's quadratic part is in the time a
token for 512 tokens, which longer sequences exceed.

Where the constants come from: kernels from ``whole_step.json`` (one H200, batches that keep it busy), launches and
their spread from the rows with one and two GPUs of ``several_gpus.json``. Its rows with four are left to test the
model: tests/profiling/test_scaling.py. The link's speed is that of an all-gather of 512 MiB on two GPUs, in the record
itself or in ``several_two_gpus.json``. That record, of other machines and with repeats, is a second test and gives no
constant of the host: FSDP2 of LoRA with 4 sequences took less on its two GPUs than on one, so the growth that is taken
for waiting hosts isn't there, and its processor's launches aren't those of the machine with four.

Attributes:
    LATENCY: Seconds a hop, assumed.
    FORWARD: The forward pass's share of a frozen base's time, and of what LoRA adds to it.
    GPU_ROWS: For each kind of training the row of whole_step.json with its kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from utils.distributed.bytes import sent
from utils.lora.refusals import check_count
from utils.profiling.memory import Setup, model_of
from utils.profiling.meta_layers import FusedAttention
from utils.profiling.ranks import ENGINES, blocks_of
from utils.profiling.several import TWO_GPUS, SeveralRecord
from utils.profiling.step_costs import StepRecord

LATENCY = 5e-6
FORWARD = {"base": 1 / 2, "added": 1 / 3}
GPU_ROWS = {
    "full": ("full, no optimizer", "none"),
    "LoRA": ("PEFT as it comes", "all-linear"),
    "LoRA 16-bit": ("PEFT, 16-bit adapters", "all-linear"),
}
_SHAPE = "Llama-2-7B"


# ------------------------------------------------------------------------------------------------------- the network


def gather_seconds(size: float, n: int, speed: float, latency: float = LATENCY) -> float:
    """A ring's all-gather (or reduce-scatter) of `size` bytes in all over `n` ranks at `speed` bytes a second."""
    return sent("all_gather", size, n) / speed + (n - 1) * latency


def reduce_seconds(size: float, n: int, speed: float, latency: float = LATENCY) -> float:
    """A ring's all-reduce of `size` bytes: a reduce-scatter and an all-gather."""
    return 2 * gather_seconds(size, n, speed, latency)


@cache
def expected_largest(n: int) -> float:
    """The expected largest of `n` independent standard normal numbers: 0, 0.56, 0.85, 1.03, ... (3.04 of 512).

    The integral of 1 - F(x)**n over x > 0 less that of F(x)**n over x < 0, by the trapezoid rule.
    """
    check_count("n", n)
    step, total = 1e-3, 0.0
    for i in range(-8000, 8001):
        x = i * step
        below = (0.5 * math.erfc(-x / math.sqrt(2))) ** n
        total += ((1 - below) if x > 0 else -below if x < 0 else 0.5 - below) * step
    return total


# ---------------------------------------------------------------------------------------------------------- counting


class Counts(NamedTuple):
    """What a model and a way to train it cost, whatever the batch: operations that launch a kernel, groups and
    parameters that FSDP2 looks after, parameters in all, and those that are trained.
    """

    operations: int
    groups: int
    tensors: int
    parameters: int
    trainable: int


class _Launches(TorchDispatchMode):
    """Counts operations that make or change data; views and empty tensors launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        views = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        self.count += not views and "empty" not in func.__name__ and "detach" not in func.__name__
        return func(*args, **(kwargs or {}))


@cache
def counts(model: str, kind: str, checkpointing: bool, r: int = 16) -> Counts:
    """Forward and backward pass of one of :data:`GPU_ROWS` on the meta device, counted once and remembered."""
    dtype = "float32" if kind == "LoRA" else "bfloat16"
    setup = Setup(model, "full" if kind == "full" else "lora", 1, 16, r=r, adapter_dtype=dtype)
    whole = model_of(dataclasses.replace(setup, checkpointing=checkpointing))
    ids = torch.zeros(1, 16, dtype=torch.long, device="meta")
    with FusedAttention(), _Launches() as launches:
        whole(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    parameters = list(whole.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    blocks = len(blocks_of(whole))
    return Counts(launches.count, blocks + 1, len(parameters), sum(p.numel() for p in parameters), trained)


# --------------------------------------------------------------------------------------------------------- constants


@dataclasses.dataclass(frozen=True)
class Constants:
    """What was measured. token: microseconds of kernels for each kind and token; frozen: the same without anything
    trained; both for Llama-2-7B, others in proportion to their parameters. adamw: nanoseconds for each trained
    parameter. operation: microseconds of a launch. group, parameter: microseconds of FSDP2's work on each, a step.
    spread: a host's standard deviation as a share of its time. link: bytes a second within a host.
    """

    token: dict[str, float]
    frozen: float
    adamw: float
    operation: float
    group: float
    parameter: float
    spread: float
    link: float


def measured_constants(record: SeveralRecord | None = None, steps: StepRecord | None = None) -> Constants:
    """The constants from the records, four GPUs' rows left out.

    Raises ValueError when a row that is needed wasn't measured: DDP and FSDP2 of LoRA on one and two GPUs, FSDP2 of
    full fine-tuning on two.
    """
    record, steps = record or SeveralRecord(), steps or StepRecord()
    tokens = 8 * 512
    medians = {kind: steps.row(*row)["milliseconds"]["median"] for kind, row in GPU_ROWS.items()}
    whole, frozen = (steps.row(way)["milliseconds"]["median"] for way in ("full", "frozen"))
    full, lora, lora_16 = (counts(_SHAPE, kind, False) for kind in GPU_ROWS)
    ddp, sharded = record.milliseconds("DDP, LoRA", 1), record.milliseconds("FSDP2, LoRA", 1)
    grown = [record.milliseconds(way, 2) / record.milliseconds(way, 1) - 1 for way in ("DDP, LoRA", "FSDP2, LoRA")]
    spread = max(0.0, statistics.mean(grown)) / expected_largest(2)
    operation = ddp / lora.operations
    adamw = (whole - medians["full"]) / full.trainable
    two = (record.milliseconds("FSDP2, full", 2) - adamw * full.trainable / 2) / (1 + spread * expected_largest(2))
    # Two equations, FSDP2's work beside the launches: groups * g + tensors * p, for LoRA and for full fine-tuning.
    left, right = sharded - operation * lora_16.operations, two - operation * full.operations
    parameter = max(0.0, (left - right) / (lora_16.tensors - full.tensors))
    links = record if record.collectives else SeveralRecord(TWO_GPUS)
    return Constants(
        token={kind: 1000 * ms / tokens for kind, ms in medians.items()},
        frozen=1000 * frozen / tokens,
        adamw=1e6 * adamw,
        operation=1000 * operation,
        group=1000 * max(0.0, left - parameter * lora_16.tensors) / lora_16.groups,
        parameter=1000 * parameter,
        spread=spread,
        link=links.speed("all_gather"),
    )


# ----------------------------------------------------------------------------------------------------------- a step


@dataclasses.dataclass(frozen=True)
class Run:
    """A step on several GPUs. way: engine and kind, such as "FSDP2, full", kinds as in :data:`GPU_ROWS`. batch, length:
    of each GPU. per_host: GPUs in a host. between: Gb/s between two hosts, of a whole host.
    """

    way: str
    gpus: int
    batch: int = 4
    length: int = 512
    checkpointing: bool = False
    per_host: int = 8
    between: float = 400.0
    model: str = _SHAPE
    r: int = 16

    def __post_init__(self) -> None:
        if self.engine not in ENGINES or self.kind not in GPU_ROWS:
            known = [f"{engine}, {kind}" for engine in ENGINES for kind in GPU_ROWS]
            raise ValueError(f"no constants for the way {self.way!r}: choose one of {'; '.join(known)}")
        for field in ("gpus", "batch", "length", "per_host"):
            check_count(field, getattr(self, field))
        if not 0 < self.between < math.inf:
            raise ValueError(f"hosts are joined by more than 0 Gb/s, not {self.between}")

    @property
    def engine(self) -> str:
        """DDP or FSDP2."""
        return self.way.partition(", ")[0]

    @property
    def kind(self) -> str:
        """What is trained. FSDP2's LoRA has 16-bit adapters, since it gathers base and adapters in one dtype."""
        kind = self.way.partition(", ")[2]
        return "LoRA 16-bit" if kind == "LoRA" and self.engine == "FSDP2" else kind

    @property
    def tokens(self) -> int:
        """Tokens a step, of all GPUs."""
        return self.gpus * self.batch * self.length


class StepTime(NamedTuple):
    """Milliseconds of a step, and of what is in it. gather, reduce: the network's, hidden or not. bound: the slowest of
    "GPU", "host" and "network".
    """

    total: float
    kernels: float
    host: float
    gather: float
    reduce: float
    optimizer: float
    bound: str


def step_time(run: Run, constants: Constants) -> StepTime:
    """The time of a step, in milliseconds."""
    counted = counts(run.model, run.kind, run.checkpointing, run.r)
    size = counted.parameters / counts(_SHAPE, run.kind, False).parameters
    tokens = run.batch * run.length
    trains_all = run.kind == "full"
    frozen, each = constants.frozen, constants.token[run.kind]
    forward = frozen * FORWARD["base"] + (0 if trains_all else (each - frozen) * FORWARD["added"])
    ahead = forward * tokens * size / 1000
    behind = (each - forward + run.checkpointing * forward) * tokens * size / 1000
    shared = run.engine == "FSDP2"
    host = constants.operation * counted.operations / 1000
    if shared:
        host += (constants.group * counted.groups + constants.parameter * counted.tensors) / 1000
    host *= 1 + constants.spread * expected_largest(run.gpus)
    speed = constants.link if run.gpus <= run.per_host else min(constants.link, run.between * 1e9 / 8)
    gather, reduce = 0.0, 0.0
    if shared:
        hops = (counted.groups - 1) * gather_seconds(0, run.gpus, speed)
        gather = 1000 * (gather_seconds(2 * counted.parameters, run.gpus, speed) + hops)
        reduce = 1000 * (gather_seconds(2 * counted.trainable, run.gpus, speed) + hops)
    else:
        reduce = 1000 * reduce_seconds((4 if run.kind == "LoRA" else 2) * counted.trainable, run.gpus, speed)
    optimizer = constants.adamw * counted.trainable / 1e6 / (run.gpus if shared else 1)
    kernels = ahead + behind
    streams = max(ahead, gather) + max(behind, gather + reduce)
    network = 2 * gather + reduce
    total = max(streams, host) + optimizer
    bound = "host" if host > streams else "network" if streams > 1.05 * kernels else "GPU"
    return StepTime(total, kernels, host, gather * 2, network - gather * 2, optimizer, bound)


class Cost(NamedTuple):
    """What a run takes: hours on the clock, hours of all GPUs together, and money in the price's currency."""

    hours: float
    gpu_hours: float
    money: float


def cost_of(tokens: float, run: Run, constants: Constants, price: float) -> Cost:
    """A training on `tokens` tokens, every one of which is seen once, at `price` for an hour of one GPU.

    Starting, saving, evaluating and failing are not in it. Raises ValueError for fewer tokens than one or a price
    below 0.
    """
    if tokens < 1 or price < 0:
        raise ValueError(f"a run has at least one token and a price of 0 or more, not {tokens} and {price}")
    hours = tokens / run.tokens * step_time(run, constants).total / 1000 / 3600
    return Cost(hours, hours * run.gpus, hours * run.gpus * price)


def weak(run: Run, constants: Constants, gpus: Sequence[int]) -> list[StepTime]:
    """Weak scaling: the same batch on each of more and more GPUs."""
    return [step_time(dataclasses.replace(run, gpus=n), constants) for n in gpus]


def strong(run: Run, constants: Constants, gpus: Sequence[int], total: int) -> list[StepTime]:
    """Strong scaling: `total` sequences dealt out. Raises ValueError where the GPUs don't divide them."""
    if uneven := [n for n in gpus if total % n]:
        raise ValueError(f"{total} sequences can't be dealt out evenly to {', '.join(map(str, uneven))} GPUs")
    return [step_time(dataclasses.replace(run, gpus=n, batch=total // n), constants) for n in gpus]


def report(run: Run, constants: Constants, tokens: float | None = None, price: float = 0.0) -> str:
    """A step's time, what sets its pace and what it assumes, as text; with `tokens` the hours, with `price` the money.

    Raises what :func:`cost_of` raises.
    """
    step = step_time(run, constants)
    lines = [
        f"{run.way}, {run.gpus} GPUs, {run.batch} x {run.length} tokens each: {step.total:.0f} ms a step, "
        f"{run.tokens / step.total * 1000:,.0f} tokens/s; the pace is the {step.bound}'s",
        f"  kernels {step.kernels:.0f} ms, launches {step.host:.0f} ms, gathering {step.gather:.0f} ms, reducing "
        f"{step.reduce:.0f} ms, AdamW {step.optimizer:.1f} ms; link {constants.link / 1e9:.0f} GB/s",
    ]
    if tokens is not None:
        cost = cost_of(tokens, run, constants, price)
        money = f", {cost.money:,.2f} at {price:g} for a GPU's hour" if price else ""
        lines.append(f"  {tokens:,.0f} tokens: {cost.hours:,.2f} hours, {cost.gpu_hours:,.1f} GPU hours{money}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Settings that make no sense end it with a line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m utils.profiling.scaling", description=str(__doc__).splitlines()[0])
    ways = "; ".join(f"{engine}, {kind}" for engine in ENGINES for kind in GPU_ROWS)
    parser.add_argument("--way", default="DDP, LoRA", help=f"engine and what is trained: {ways} (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="sequences on each GPU (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--per-host", type=int, default=8, help="GPUs in a host (default: %(default)s)")
    parser.add_argument("--between", type=float, default=400.0, help="Gb/s between hosts (default: %(default)s)")
    parser.add_argument("--model", default=_SHAPE, help="a name of utils.models.configs (default: %(default)s)")
    parser.add_argument("--tokens", type=float, help="of the whole training, for its cost")
    parser.add_argument("--price", type=float, default=0.0, help="of one GPU's hour")
    given = vars(parser.parse_args(argv))
    tokens, price = given.pop("tokens"), given.pop("price")
    try:
        print(report(Run(**given), measured_constants(), tokens, price))
    except (ValueError, TypeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
