"""Measure how many random strings a LoRA of each rank learns by heart, and write assets/measurements/capacity.json.

    python -m tools.measure_capacity              everything (one H100: four minutes)
    python -m tools.measure_capacity --trial      few runs of few steps, on any machine; written only where --out says

A string is a key of two tokens, which is given, and sixteen tokens to be learned, drawn evenly from a known alphabet of
512: nine bits each, and nothing but memory can tell them. Bits remembered are the bits of all the strings less those of
the loss on them after training, 0 where that is negative. Each rank, on all linear layers with alpha = 2r, gets from 16
to 256 strings per rank, up to 4,096; full fine-tuning of the same base gets the largest sets as the control. All train
for the same number of steps, in which a string is seen 125 times or more; a few runs of half as many steps say what
more steps would bring. Of two learning rates the one with the lower loss over the seeds counts, and each seed has
strings of its own.

Attributes:
    ALPHABET: So many tokens can stand at each place; the ids are drawn once, from those that aren't special.
    PER_RANK: Numbers of strings, divided by the rank.
    RATES: By rank, found in short runs on a few hundred strings.
    HALF: Rank and strings of the runs with half the steps.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.ensemble import at_best_rate, in_parts, mean_by_rate, number, provenance, results_of, write
from tools.sweep_rank import FULL, Run, parameters_of, stack_of
from utils import models
from utils.data.chat import IGNORED
from utils.data.records import Record

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "measurements" / "capacity.json"

ALPHABET, KEY, LENGTH = 512, 2, 16
SPECIAL = 4  # the tokenizer's first ids
RANKS, PER_RANK, MOST = (1, 2, 4, 8, 16, 32), (16, 32, 64, 128, 256), 4096
FULL_STRINGS = (2048, 4096)
RATES = {1: (8e-3, 1.6e-2), 2: (8e-3, 1.6e-2), 4: (4e-3, 8e-3), 8: (3e-3, 6e-3), 16: (2e-3, 4e-3),
         32: (2e-3, 4e-3), None: (1e-3, 2e-3)}  # fmt: skip
SEEDS, STEPS = (0, 1), 2000
HALF = (4, 512)


class Job(NamedTuple):
    """Runs that one process trains in one stack, all on sets of so many strings."""

    runs: Sequence[Run]
    strings: int
    steps: int
    device: str


def random_strings(strings: int, seed: int, vocabulary: int = 1024) -> list[Record]:
    """Rows of ids and labels: a key that no other string has, and LENGTH tokens to be learned."""
    alphabet = random.Random("alphabet").sample(range(SPECIAL, vocabulary), ALPHABET)
    rng = random.Random(f"strings/{seed}")
    rows = []
    for key in rng.sample(range(ALPHABET**KEY), strings):
        given = [alphabet[key // ALPHABET], alphabet[key % ALPHABET]]
        learned = rng.choices(alphabet, k=LENGTH)
        rows.append({"input_ids": given + learned, "labels": [IGNORED] * KEY + learned})
    return rows


def string_bits(strings: int) -> float:
    """The bits of so many strings."""
    return strings * LENGTH * math.log2(ALPHABET)


def bits_remembered(strings: int, nats_per_token: float | None) -> float:
    """The bits of the strings less the bits of the loss on them, at least 0; 0 for a run that diverged (None)."""
    if nats_per_token is None:
        return 0.0
    return max(0.0, string_bits(strings) - strings * LENGTH * nats_per_token / math.log(2))


def batch_size(strings: int) -> int:
    """A sixteenth of the strings, and at least 32 where there are so many."""
    return min(strings, max(32, strings // 16))


def measured(job: Job) -> list[dict]:
    """Train a job's runs and say what each remembers of its strings. `curve` is the loss while training, in nats per
    token, the mean of each eighth of the steps.
    """

    if job.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32

    def measure(runs: Sequence[Run]) -> list[dict]:
        strings = {seed: random_strings(job.strings, seed) for seed in {run.seed for run in runs}}
        stack = stack_of(runs, job.device)
        curves = torch.zeros(0, len(runs))
        if job.steps:
            losses = stack.train(strings, steps=job.steps, batch_size=batch_size(job.strings)).cpu()
            curves = torch.stack([part.mean(0) for part in losses.chunk(8)])
        exact, loss = stack.marks(strings, chunk=max(8, 16_384 // (len(runs) * (KEY + LENGTH))))
        about = {"strings": job.strings, "steps": job.steps}
        return [
            about | asdict(run) | {"loss": number(loss[i], 4), "exact": number(exact[i], 4),
                                   "curve": [number(x, 3) for x in curves[:, i].tolist()]}
            for i, run in enumerate(runs)
        ]  # fmt: skip

    return in_parts(measure, job.runs)


def summarize(results: Sequence[dict], parameters: dict[tuple[str, int | None], int]) -> list[dict]:
    """One row for each rank and number of strings: what is remembered at the better rate, by seed and on average."""
    rows = []
    settings = dict.fromkeys((x["targets"], x["r"], x["strings"], x["steps"]) for x in results)
    for targets, r, strings, steps in sorted(settings, key=lambda s: (s[3] < STEPS, s[1] or 10**6, s[2])):
        mine = [x for x in results if (x["targets"], x["r"], x["strings"], x["steps"]) == (targets, r, strings, steps)]
        best = sorted(at_best_rate(mine, "loss", lowest=True), key=lambda x: x["seed"])
        bits, all_bits = [bits_remembered(strings, x["loss"]) for x in best], string_bits(strings)
        size = parameters[targets, r]
        rows.append({
            "targets": targets, "r": r, "parameters": size, "strings": strings, "steps": steps,
            "times_seen": round(steps * batch_size(strings) / strings), "bits": round(all_bits), "lr": best[0]["lr"],
            "bits_remembered": round(statistics.mean(bits)), "bits_remembered_by_seed": [round(b) for b in bits],
            "share_remembered": round(statistics.mean(bits) / all_bits, 4),
            "bits_per_parameter": round(statistics.mean(bits) / size, 4),
            "exact_mean": round(statistics.mean(x["exact"] or 0 for x in best), 4),
            "exact_by_seed": [x["exact"] for x in best], "loss_by_lr": mean_by_rate(mine, "loss", 4),
            "curve": best[0]["curve"],
        })  # fmt: skip
    return rows


def capacities(rows: Sequence[dict], steps: int) -> list[dict]:
    """For each rank the most bits that it remembered of any set, and the largest set of which it gives 99% exactly."""
    found = []
    for targets, r in dict.fromkeys((row["targets"], row["r"]) for row in rows):
        mine = [row for row in rows if (row["targets"], row["r"], row["steps"]) == (targets, r, steps)]
        if not mine:
            continue
        most = max(mine, key=lambda row: row["bits_remembered"])
        found.append({
            "targets": targets, "r": r, "parameters": most["parameters"], "bits_remembered": most["bits_remembered"],
            "of_strings": most["strings"], "at_the_largest_set": most["strings"] == max(row["strings"] for row in mine),
            "bits_per_parameter": most["bits_per_parameter"],
            "strings_known": max((row["strings"] for row in mine if row["exact_mean"] >= 0.99), default=0),
        })  # fmt: skip
    return found


def all_jobs(ranks: Sequence[int], per_rank: Sequence[int], full: Sequence[int], rates: int, steps: int,
             half: tuple[int, int] | None, device: str) -> list[Job]:  # fmt: skip
    """The largest sets first, since they take longest."""

    def runs(r: int | None) -> list[Run]:
        targets = "all-linear" if r else FULL
        return [Run(targets, r, lr, seed) for lr, seed in product(RATES[r][:rates], SEEDS)]

    by_strings: dict[int, list[Run]] = {}
    for r, times in product(ranks, per_rank):
        if r * times <= MOST:
            by_strings.setdefault(r * times, []).extend(runs(r))
    jobs = [Job(found, strings, steps, device) for strings, found in by_strings.items()]
    jobs += [Job(runs(None), strings, steps, device) for strings in full]
    if half:
        jobs.append(Job(runs(half[0]), half[1], steps // 2, device))
    return sorted(jobs, key=lambda job: -job.strings * len(job.runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=11, help="processes; 0 trains in this one")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=7.5, help="what isn't done then is left out")
    parser.add_argument("--out", type=Path, default=None, help=f"default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--trial", action="store_true", help="few runs, few steps")
    args = parser.parse_args()
    steps, out = args.steps, args.out or (None if args.trial else OUT)
    if args.trial:
        steps = 4
        jobs = all_jobs((1, 2), (8, 16), (16,), 1, steps, (2, 16), args.device)
    else:
        jobs = all_jobs(RANKS, PER_RANK, FULL_STRINGS, 2, steps, HALF, args.device)
    model, _ = models.load_base()
    parameters = parameters_of(model, [("all-linear", r) for r in RANKS])
    record: dict[str, Any] = {
        "what": f"random strings learned by heart: {LENGTH} tokens of an alphabet of {ALPHABET} "
        f"({math.log2(ALPHABET):g} bits each) behind a key of {KEY}; LoRA on all linear layers with alpha = 2r, and "
        "full fine-tuning, of the tiny base; bits remembered = bits of the strings less the loss on them in bits "
        f"after {steps} steps; the better of two rates, each seed its own strings",
        "tool": "python -m tools.measure_capacity", **provenance(args.device), "seeds": list(SEEDS),
        "matmul": "TF32" if args.device.startswith("cuda") else "float32",
    }  # fmt: skip
    results: list[dict] = []
    for found in results_of(measured, jobs, workers=args.workers, seconds=60 * args.minutes):
        results += found
        rows = summarize(results, parameters)
        if out:
            write(out, record | {"capacity": capacities(rows, steps), "rows": rows})
    print(f"{len(results)} of {sum(len(job.runs) for job in jobs)} runs")
    rows = summarize(results, parameters)
    for row in rows:
        print(f"{row['targets']:16} r={row['r']!s:4} {row['strings']:5} strings {row['steps']} steps lr={row['lr']:<6} "
              f"{row['bits_remembered']:7,} of {row['bits']:7,} bits {row['share_remembered']:4.0%} exact "
              f"{row['exact_mean']:4.0%} {row['bits_per_parameter']:.2f} a parameter {row['curve'][-3:]}")  # fmt: skip
    for row in capacities(rows, steps):
        print(row)


if __name__ == "__main__":
    main()
