"""Race the variants of LoRA, at equal parameter budgets and each at its own best learning rate, and write
assets/measurements/variants.json.

    python -m tools.race_variants              everything (one H200: seven minutes)
    python -m tools.race_variants --trial      few runs of few steps, on any machine
    python -m tools.race_variants --work DIR   keep finished parts there; a second call trains only what they lack

Each entry of utils.train.sweep.ENTRIES learns each task with every rate of its grid and every seed of CHOOSE. The rate
is chosen by the mean over these seeds on the dev split. Then it trains anew with the seeds of REPORT at that rate, and
what is reported is their test split: a rate that was lucky with its seeds has to be good with others. Each entry is
compared with plain LoRA seed by seed, and the p values are corrected for the number of comparisons. Runs of one entry
and task differ in their trainable tensors alone, so they are trained together in stacks (tools/ensemble.py);
tests/train/test_sweep.py holds such a run against the same run alone. Entries are spread over processes. At the end,
one process alone measures time and memory of a single run of each.

Attributes:
    CHOOSE, REPORT: The seeds that choose an entry's learning rate, and those that it is judged by.
    CHUNK: Runs that are trained in one stack, where a GPU of 80 GB can't hold all of them beside the other processes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
import warnings
from collections.abc import Sequence
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.ensemble import Ensemble, at_best_rate, in_parts, mean_by_rate, number, story_rows, write
from utils import models
from utils.data import labels
from utils.data.chat import Example
from utils.evaluate.seeds import holm, interval, paired
from utils.lora import adalora, nf4_linear
from utils.profiling.activations import saved_activation_bytes
from utils.tinyworld import task_examples
from utils.train import loop, sweep

ROOT = Path(__file__).resolve().parents[1]

CHOOSE, REPORT = tuple(range(5)), tuple(range(10, 22))
HELD_OUT, WINDOWS = 200, 32
CHUNK = {"VeRA r=3630": 15}
YARDSTICK = "LoRA"
OUT = ROOT / "assets" / "measurements" / "variants.json"


def stack_of(
    entry: sweep.SweepEntry, runs: Sequence[tuple[float, int]], device: str, dtype: torch.dtype = torch.float32
) -> Ensemble:
    """Runs of one entry, each a rate and a seed, in one stack. Each starts where :func:`sweep.build` lets it start."""
    seeds = [seed for _, seed in runs]
    trained: dict[int, dict[str, Tensor]] = {}
    fixed: dict[int, dict[str, Tensor]] = {}
    for seed in sorted(set(seeds)):
        model, tokenizer = models.load_base(torch.float32)
        sweep.build(entry, model, seed)
        nf4_linear.dequantize_layers(model)  # the same numbers, which vmap can differentiate
        trained[seed] = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        fixed[seed] = {n: b for n, b in model.named_buffers() if ".projection." in n}
    names = trained[seeds[0]]
    factors = {n: sweep.LORA_PLUS_RATIO for n in names if entry.variant == "LoRA+" and "lora_B" in n}
    return Ensemble(
        model.to(dtype), tokenizer, [trained[s] for s in seeds], [lr for lr, _ in runs], seeds, device=device,
        factors=factors, fixed=[fixed[s] for s in seeds],
    )  # fmt: skip


class StackedPruning:
    """AdaLoRA's pruning of every run of a stack, as RankAllocator does it for one; to be called after each step."""

    def __init__(self, schedule: adalora.Schedule, names: Sequence[str]) -> None:
        self.schedule, self.layers = schedule, sorted({name.rpartition(".")[0] for name in names})
        self.importance = adalora.Importance()
        self.kept: dict[str, Tensor] = {}

    def __call__(self, step: int, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        plan = self.schedule
        if step < plan.total_step - plan.tfinal:
            self.importance.update(parameters, gradients)
        if plan.prunes(step):
            scores = {layer: self.importance.triplets(layer) for layer in self.layers}
            self.kept = adalora.survivors(scores, plan.budget(step, len(self.layers)))
        if plan.masks(step):
            for layer, mask in self.kept.items():
                parameters[f"{layer}.lora_E"].masked_fill_(~mask[..., None], 0.0)


def train_stack(
    entry: sweep.SweepEntry, stack: Ensemble, examples: Sequence[Example], *, steps: int, batch_size: int
) -> Tensor:
    """Train a stack of an entry's runs as :func:`sweep.train` trains each alone; the losses (steps, runs)."""
    hooks: dict[str, Any] = {}
    if entry.variant == "AdaLoRA":
        hooks["extra_loss"] = lambda parameters: adalora.ORTHOGONALITY_WEIGHT * adalora.orthogonality(parameters)
        hooks["after_step"] = StackedPruning(sweep.schedule(entry, steps), list(stack.parameters))
    return stack.train(examples, steps=steps, batch_size=batch_size, **hooks)


def done_already(job: dict) -> tuple[list[dict], list[dict]]:
    """The runs of a part that an earlier call finished, as far as this one wants them: choosing, and reported."""
    file = Path(job["file"])
    if not file.exists():
        return [], []
    part = json.loads(file.read_text(encoding="utf-8"))
    if part["steps"] != job["steps"]:
        return [], []
    chosen = [r for r in part["choosing"] if r["lr"] in job["rates"] and r["seed"] in job["choose"]]
    return chosen, [r for r in part["reported"] if r["seed"] in job["report"]]


def finished(job: dict) -> bool:
    """Whether a part has all its runs, the reported ones at the rate that its own seeds choose."""
    choosing, reported = done_already(job)
    return len(choosing) == len(job["rates"]) * len(job["choose"]) and _reported(job, choosing, reported)[1] == []


def _reported(job: dict, choosing: Sequence[dict], reported: Sequence[dict]) -> tuple[list[dict], list[tuple]]:
    """Of the reported runs those at the chosen rate, and the runs that are missing there."""
    lr = at_best_rate(choosing)[0]["lr"]
    kept = [r for r in reported if r["lr"] == lr]
    return kept, [(lr, seed) for seed in job["report"] if seed not in {r["seed"] for r in kept}]


def one_part(job: dict) -> str:
    """Train and measure all runs of an entry on a task, and write them to the part's file."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*performance drop.*")
    began = time.perf_counter()
    choosing, reported = done_already(job)
    there = {(r["lr"], r["seed"]) for r in choosing}
    choosing += _measured(job, [run for run in product(job["rates"], job["choose"]) if run not in there])
    reported, missing = _reported(job, choosing, reported)
    reported += _measured(job, missing)
    part = {key: job[key] for key in ("entry", "task", "steps", "rates", "choose", "report", "device")}
    for name, runs in (("choosing", choosing), ("reported", reported)):
        part[name] = sorted(runs, key=lambda r: (r["lr"], r["seed"]))
    write(Path(job["file"]), part)
    return f"{job['entry']}, {job['task']}: {time.perf_counter() - began:.0f} s"


def _measured(job: dict, runs: Sequence[tuple[float, int]]) -> list[dict]:
    """Train runs, each a rate and a seed, and measure them."""
    name, task = job["entry"], job["task"]
    entry, course = sweep.ENTRIES[name], sweep.COURSES[task]
    train, dev, test = (
        task_examples(task, s, n)
        for s, n in (("train", course.examples), ("dev", job["held_out"]), ("test", job["held_out"]))
    )

    def stacked(some: Sequence[tuple[float, int]]) -> list[dict]:
        stack = stack_of(entry, some, job["device"])
        losses = train_stack(entry, stack, train, steps=job["steps"], batch_size=course.batch_size)
        last = losses[-20:].mean(0).tolist()
        marks = stack.exact_match(dev), stack.exact_match(test), stack.perplexity(story_rows(stack.tokenizer, WINDOWS))
        return [
            {"lr": lr, "seed": seed, "dev": number(d, 4), "test": number(t, 4), "loss": number(loss, 4),
             "perplexity": number(p, 3)}
            for (lr, seed), loss, d, t, p in zip(some, last, *marks, strict=True)
        ]  # fmt: skip

    results, size = [], CHUNK.get(name, max(1, len(runs)))
    for start in range(0, len(runs), size):
        results += in_parts(stacked, runs[start : start + size])
    return results


def summarize(part: dict) -> dict:
    """The rate that was best on dev, and what other seeds score on the test split there: mean, interval, every seed."""
    best = part["reported"]
    lr, tests = best[0]["lr"], [r["test"] for r in best]
    low, high = interval(tests)
    perplexities = [r["perplexity"] for r in best if r["perplexity"] is not None]
    return {
        "entry": part["entry"], "task": part["task"], "steps": part["steps"], "lr": lr,
        "lr_at_the_grids_edge": lr in (part["rates"][0], part["rates"][-1]),
        "test_mean": round(statistics.mean(tests), 4), "test_low": round(low, 4), "test_high": round(high, 4),
        "test_by_seed": tests, "perplexity": round(statistics.mean(perplexities), 3) if perplexities else None,
        "dev_by_lr": mean_by_rate(part["choosing"], "dev", 4),
    }  # fmt: skip


def compared(results: Sequence[dict]) -> list[dict]:
    """Each entry against plain LoRA on the same task: difference by seed, exact p, p by Holm over all of them."""
    by_name = {(row["entry"], row["task"]): row["test_by_seed"] for row in results}
    pairs = [(name, task) for name, task in by_name if name != YARDSTICK and (YARDSTICK, task) in by_name]
    found = [paired(by_name[pair], by_name[YARDSTICK, pair[1]]) for pair in pairs]
    return [
        {"entry": name, "task": task, "difference": round(d.mean, 4), "low": round(d.low, 4), "high": round(d.high, 4),
         "p": round(d.p, 5), "p_holm": round(p, 5)}
        for (name, task), d, p in zip(pairs, found, holm([d.p for d in found]), strict=True)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- time and memory


class Timed:
    """One entry's model on one device, ready to take training steps on a batch of translation."""

    def __init__(self, name: str, device: str) -> None:
        entry, course = sweep.ENTRIES[name], sweep.COURSES["translation"]
        self.device, self.name = device, name
        self.model, tokenizer = models.load_base(torch.float32)
        sweep.build(entry, self.model, 0)
        self.model.to(device).train()
        self.stepper = loop.Stepper(self.model, lr=1e-4)
        examples = task_examples("translation", "train", 200)
        batch = next(labels.batches(tokenizer, examples, steps=1, batch_size=course.batch_size, seed=0))
        self.batch = {key: value.to(device) for key, value in batch.items()}
        self.allocator, self.parameters = None, dict(self.model.named_parameters())
        if entry.variant == "AdaLoRA":  # prunes from the first step on, as often as in the race
            self.allocator = adalora.RankAllocator(self.model, sweep.schedule(entry, 900)._replace(tinit=0))

    def loss(self) -> Tensor:
        loss = self.model(**self.batch).loss
        if self.allocator:
            loss = loss + adalora.ORTHOGONALITY_WEIGHT * adalora.orthogonality(self.parameters)
        return loss

    def step(self) -> float:
        """Take a step and return its milliseconds."""
        began = time.perf_counter()
        self.stepper.step(self.loss())
        if self.allocator:
            self.allocator.step(self.stepper.count - 1)
        self.stepper.clear()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)

    def memory(self) -> dict[str, int]:
        """Trainable parameters, and the bytes of weights, optimizer state and what autograd keeps."""
        kept = {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}.values()
        state = [t for s in self.stepper.optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.ndim]
        return {
            "trainable": sum(p.numel() for p in self.stepper.trainable),
            "bytes_of_weights": sum(t.nbytes for t in kept),
            "bytes_of_optimizer_state": sum(t.nbytes for t in state),
            "bytes_of_saved_activations": saved_activation_bytes(self.model, self.loss),
        }  # fmt: skip


def costs(names: Sequence[str], device: str, rounds: int, steps: int) -> dict[str, dict]:
    """Memory, and milliseconds a step: the entries take turns, and each one's fastest round (its median) counts, so
    that a disturbance doesn't fall on one of them.
    """
    timed = [Timed(name, device) for name in names]
    for one in timed:
        for _ in range(2):
            one.step()
    medians: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for one in timed:
            few = 1 if device == "cpu" and one.name == "VeRA r=3630" else steps
            medians[one.name].append(statistics.median(one.step() for _ in range(few)))
    return {
        one.name: one.memory()
        | {"ms_per_step": round(min(medians[one.name]), 2), "ms_by_round": [round(m, 2) for m in medians[one.name]]}
        for one in timed
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=6, help="processes that train")
    parser.add_argument("--entries", nargs="+", choices=sweep.ENTRIES, default=list(sweep.ENTRIES))
    parser.add_argument("--work", type=Path, default=ROOT / "assets" / "measurements" / ".variants")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--trial", action="store_true", help="few entries, rates, seeds and steps")
    args = parser.parse_args()
    jobs = []
    for name, (task, course) in product(args.entries, sweep.COURSES.items()):
        rates, choose, report, steps, held_out = sweep.ENTRIES[name].rates, CHOOSE, REPORT, course.steps, HELD_OUT
        if args.trial:
            rates, choose, report, steps, held_out = rates[1:3], CHOOSE[:2], REPORT[:2], 12, 10
        file = args.work / f"{name.replace(' ', '_').replace('=', '')}-{task}.json"
        job = {"entry": name, "task": task, "rates": list(rates), "choose": list(choose), "report": list(report),
               "steps": steps, "held_out": held_out, "device": args.device, "file": str(file)}  # fmt: skip
        jobs.append(job)

    waiting = [job for job in jobs if not finished(job)]
    print(f"{len(jobs)} parts, {len(jobs) - len(waiting)} of them done", flush=True)
    slow = {"VeRA r=3630": 0, "full fine-tuning": 1, "DoRA": 2, "AdaLoRA": 3}
    waiting.sort(key=lambda job: (job["task"] != "translation", slow.get(job["entry"], 9)))
    if waiting:
        with get_context("spawn").Pool(min(args.workers, len(waiting)), maxtasksperchild=None) as pool:
            for line in pool.imap_unordered(one_part, waiting):
                print(line, flush=True)
    torch.set_num_threads(1)
    rounds, steps = (1, 2) if args.trial else (5, 8)
    cost = {device: costs(args.entries, device, rounds, steps if device == "cuda" else 3)
            for device in dict.fromkeys(("cpu", args.device))}  # fmt: skip
    for device, of in cost.items():
        print(device, {name: c["ms_per_step"] for name, c in of.items()}, "ms a step", flush=True)
    import transformers

    parts = [json.loads(Path(job["file"]).read_text(encoding="utf-8")) for job in jobs]
    results = [summarize(part) for part in parts]
    record = {
        "what": "the variants of LoRA on all linear layers of the tiny base, exact match on 200 test prompts; the rate "
        "chosen on 200 dev prompts by the mean over the seeds of `choose`, what is reported trained with the seeds of "
        "`report`; differences to LoRA by seed; perplexity of held-out stories with the adapter on",
        "tool": "tools/race_variants.py", "date": datetime.date.today().isoformat(),
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else "CPU", "cpu": platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "choose": jobs[0]["choose"], "report": jobs[0]["report"],
        "entries": {n: {"variant": sweep.ENTRIES[n].variant, "r": sweep.ENTRIES[n].r} for n in args.entries},
        "costs": cost, "results": results, "against_lora": compared(results), "parts": parts,
    }  # fmt: skip
    write(args.out, record)
    for row in results:
        edge = "  EDGE" if row["lr_at_the_grids_edge"] else ""
        print(f"{row['entry']:17} {row['task']:12} lr={row['lr']:<8} test {row['test_mean']:.3f} "
              f"({row['test_low']:.3f} to {row['test_high']:.3f}) ppl {row['perplexity']}{edge}")  # fmt: skip
    for row in record["against_lora"]:
        print(f"{row['entry']:17} {row['task']:12} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}) "
              f"p {row['p']:.4f}, corrected {row['p_holm']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
