"""Measure what a larger batch costs LoRA and full fine-tuning, the number of examples held equal, and write
assets/measurements/batch_size.json.

    python -m tools.measure_batch_size               translation (one H100: five minutes)
    python -m tools.measure_batch_size --task style  another task, into batch_size_style.json (three minutes)
    python -m tools.measure_batch_size --trial       few runs of few steps, on any machine; written to --out alone

Every run sees the same number of examples, so that a batch four times as large takes a quarter of the steps. LoRA has
alpha = 32 at every rank, as in LoRA Without Regret, whose claim is tried here. Each rank and each batch size has its
own best learning rate, chosen on the dev split out of rates a factor of two apart, once by exact match and once by
loss; the test split is reported there. The rate rises in ten steps at every batch size, as in every run of the course:
of the largest batch these are a sixth of the run. All runs are trained in stacks (tools/ensemble.py).

Attributes:
    EXAMPLES: So many a run sees, by task; a multiple of every batch size.
    GRID: So many rates are tried, from the grid's first, second or third on: more with a larger batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tools.ensemble import provenance, results_of, write
from tools.sweep_rank import FULL, HELD_OUT, TRAIN, Job, Run, complete, measured, parameters_of, rate_choices, split_up
from utils import models
from utils.tinyworld import TASKS, Task

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES: dict[Task, int] = {"translation": 15_360, "style": 5_120}
BATCHES, RANKS, ALPHA = (4, 16, 64, 256), (4, 16, 64), 32
RATES, FULL_RATES, GRID = tuple(2.5e-4 * 2**i for i in range(9)), tuple(6.25e-5 * 2**i for i in range(9)), 7
SEEDS = (0, 1, 2)


def grid(rates: Sequence[float], batch_size: int, count: int = GRID) -> tuple[float, ...]:
    """The rates that are tried with this batch size."""
    first = (batch_size > 4) + (batch_size > 64)
    return tuple(rates[first : first + count])


def jobs_of(
    task: Task, examples: int, batches: Sequence[int], ranks: Sequence[int], rates: int, seeds: Sequence[int],
    held_out: int, device: str,
) -> list[Job]:  # fmt: skip
    """The smallest batches first: they take the most steps. Raises ValueError where a batch size doesn't divide the
    number of examples, or is larger than the training set.
    """
    jobs = []
    for batch in sorted(batches):
        if examples % batch or batch > TRAIN:
            raise ValueError(f"batches of {batch} don't divide {examples} examples, or need more than {TRAIN} of them")
        runs = [Run("all-linear", r, lr, seed, ALPHA) for r, seed, lr in product(sorted(ranks), seeds, RATES[-rates:])]
        full = [Run(FULL, None, lr, seed) for seed, lr in product(seeds, grid(FULL_RATES, batch, rates))]
        for part in [*split_up(runs, batch), *split_up(full, batch)]:
            jobs.append(Job(part, task, examples // batch, batch, TRAIN, held_out, device))
    return jobs


def summarize(results: Sequence[dict], parameters: dict[tuple[str, int | None], int]) -> list[dict]:
    """One row for each rank, or full fine-tuning, and each batch size, as far as they are trained."""
    rows = []
    done = complete(results)
    settings = {(x["targets"], x["r"], x["batch_size"]) for x in done}
    for targets, r, batch in sorted(settings, key=lambda s: (s[1] or 10**6, s[2])):
        mine = [x for x in done if (x["targets"], x["r"], x["batch_size"]) == (targets, r, batch)]
        steps = mine[0]["steps"]
        about = {"targets": targets, "r": r, "alpha": mine[0]["lora_alpha"], "parameters": parameters[targets, r]}
        rows.append(about | {"batch_size": batch, "steps": steps, "examples": steps * batch} | rate_choices(mine))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--task", choices=TASKS, default="translation")
    parser.add_argument("--examples", type=int, default=None, help="that a run sees; a multiple of every batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--workers", type=int, default=10, help="processes; 0 trains in this one")
    parser.add_argument("--minutes", type=float, default=7.5, help="what isn't done then is left out")
    parser.add_argument("--out", type=Path, default=None, help="default: assets/measurements/batch_size.json")
    parser.add_argument("--trial", action="store_true", help="few runs, few steps")
    args = parser.parse_args()
    name = "batch_size" if args.task == "translation" else f"batch_size_{args.task}"
    out = args.out or (None if args.trial else ROOT / "assets" / "measurements" / f"{name}.json")
    examples = args.examples or EXAMPLES.get(args.task, EXAMPLES["style"])
    if args.trial:
        jobs = jobs_of(args.task, 16, (4, 8), (2,), 1, SEEDS[:2], 10, args.device)
    else:
        jobs = jobs_of(args.task, examples, args.batches, RANKS, GRID, SEEDS, HELD_OUT, args.device)
    model, _ = models.load_base()
    parameters = parameters_of(model, [("all-linear", r) for r in {run.r for job in jobs for run in job.runs} if r])
    record: dict[str, Any] = {
        "what": f"{args.task}: exact match on {jobs[0].held_out} test prompts and loss in nats per answer token "
        f"after {jobs[0].steps * jobs[0].batch_size} examples in batches of each size; LoRA on all linear layers with "
        f"alpha = {ALPHA} and full fine-tuning; the rate chosen on as many dev prompts",
        "tool": "python -m tools.measure_batch_size", **provenance(args.device), "task": args.task,
        "training_set": TRAIN, "rows": [],
    }  # fmt: skip
    results: list[dict] = []
    for found in results_of(measured, jobs, workers=args.workers, seconds=60 * args.minutes):
        results += found
        if out:
            write(out, record | {"rows": summarize(results, parameters)})
    print(f"{len(results)} of {sum(len(job.runs) for job in jobs)} runs")
    for row in summarize(results, parameters):
        edges = [key for key in ("lr", "lr_by_loss") if row[f"{key}_at_the_grids_edge"]]
        print(f"{row['targets']:16} r={row['r']!s:4} batch {row['batch_size']:<4} {row['steps']:5} steps "
              f"lr={row['lr']:<8} test {row['test_mean']:.3f} {row['test_by_seed']} by loss lr={row['lr_by_loss']:<8} "
              f"loss {row['test_loss_mean']} {'EDGE ' + ', '.join(edges) if edges else ''}")  # fmt: skip


if __name__ == "__main__":
    main()
