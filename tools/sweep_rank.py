"""Rank against targets on translation: train every setting with every rate and seed, and write
assets/measurements/rank_sweep.json.

    python -m tools.sweep_rank                 the recorded table (a GPU: some minutes)
    python -m tools.sweep_rank --rules         learning rate against rank, with alpha = 2r and with alpha = 32 at every
                                               rank: assets/measurements/alpha_rule.json (one H100: three minutes)
    python -m tools.sweep_rank --trial         a few settings for a few steps, on any machine; with --rules nothing is
                                               written but to --out

Each setting's learning rate is chosen on the dev split and its accuracy is reported on the test split, the mean over
three seeds, five with --rules. Runs differ in nothing but their LoRA matrices, so many of them are trained in one stack
(tools/ensemble.py); tests/tools/test_sweep_rank.py holds a run of it against utils.train.loop.train.

Attributes:
    CONTROLS: The ranks at which these targets have, within 1.3%, the parameters of all-linear at rank 8.
    FULL: What stands in the place of the targets where every weight is trained.
    RULES: How alpha follows from the rank. alpha = 32 is what LoRA Without Regret holds, so that alpha / r falls.
    TOKENS: So many are in one step of a stack at the most, where runs are spread over processes: 6 GB or so.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tools.ensemble import (
    Ensemble,
    at_best_rate,
    in_parts,
    mean_by_rate,
    number,
    provenance,
    results_of,
    scaling_buffers,
    story_rows,
    write,
)
from utils import lora, models
from utils.evaluate import gates, metrics
from utils.lora import find_targets
from utils.tinyworld import Task, task_examples
from utils.train import loop

ROOT = Path(__file__).resolve().parents[1]

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
TARGETS = {"q,v": ("q_proj", "v_proj"), "attention": ATTENTION, "MLP": MLP, "all-linear": ATTENTION + MLP}
RANKS = (1, 2, 4, 8, 16)
CONTROLS = {"q,v": 42, "attention": 21, "MLP": 13}
RATES, FULL_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SEEDS, STEPS, BATCH = (0, 1, 2), (150, 300), 16
TRAIN, HELD_OUT, WINDOWS = 4000, 200, 64
FULL = "full fine-tuning"

RULES: dict[str, Callable[[int], float]] = {"alpha = 2r": lambda r: 2 * r, "alpha = 32": lambda r: 32}
RULE_RANKS, RULE_RATES = (1, 2, 4, 8, 16, 32, 64), tuple(2.5e-4 * 2**i for i in range(9))
RULE_SEEDS = ((0, 1, 2), (3, 4))  # the second part is trained when the first is done
TOKENS = 45_000


@dataclass(frozen=True)
class Run:
    """One training run: which layers, which rank, which rate, which seed. `lora_alpha` is 2 * r where it isn't given.

    Full fine-tuning has :data:`FULL` for targets and no rank.
    """

    targets: str
    r: int | None
    lr: float
    seed: int
    lora_alpha: float | None = None

    @property
    def scaling(self) -> float:
        """What the product of B and A is multiplied by."""
        assert self.r, "full fine-tuning has no scaling"
        return (2 * self.r if self.lora_alpha is None else self.lora_alpha) / self.r


def stack_of(runs: Sequence[Run], device: str, dtype: torch.dtype = torch.float32) -> Ensemble:
    """The runs in one stack, each with the very numbers that utils.lora.inject draws for it after its seed, and with
    its own scaling. Runs of full fine-tuning have a stack of their own.
    """
    model, tokenizer = models.load_base(torch.float32)
    rates, seeds = [run.lr for run in runs], [run.seed for run in runs]
    ranks = [run.r for run in runs if run.r]
    if not ranks:
        start = {n: p.detach() for n, p in model.requires_grad_(True).named_parameters()}
        return Ensemble(model.to(dtype), tokenizer, [start] * len(runs), rates, seeds, device=device)
    if len(ranks) < len(runs):
        raise ValueError("runs of LoRA and of full fine-tuning train different tensors: put them in two stacks")
    drawn: dict[tuple[str, int | None, int], dict[str, Tensor]] = {}
    for run in runs:
        if (key := (run.targets, run.r, run.seed)) not in drawn:
            torch.manual_seed(run.seed)
            lora.inject(model, list(TARGETS[run.targets]), run.r or 0, 1.0)
            drawn[key] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            lora.remove(model)
    lora.inject(model, "all-linear", max(ranks), 1.0)
    names = scaling_buffers(model)
    return Ensemble(
        model.to(dtype), tokenizer, [drawn[run.targets, run.r, run.seed] for run in runs], rates, seeds, device=device,
        fixed=[{name: torch.tensor(run.scaling, dtype=dtype) for name in names} for run in runs],
    )  # fmt: skip


class Job(NamedTuple):
    """Runs that one process trains in one stack, and on what."""

    runs: Sequence[Run]
    task: Task
    steps: int
    batch_size: int
    train: int
    held_out: int
    device: str


def measured(job: Job) -> list[dict]:
    """Train a job's runs and mark each: exact match and loss (nats per token of the answers) on dev and on test, and
    the loss of the last tenth of the training steps.
    """
    train = task_examples(job.task, "train", job.train)

    def measure(runs: Sequence[Run]) -> list[dict]:
        stack = stack_of(runs, job.device)
        losses = stack.train(train, steps=job.steps, batch_size=job.batch_size)
        found = {"train_loss": losses[-max(1, job.steps // 10) :].mean(0).tolist()}
        for split in ("dev", "test"):
            found[split], found[f"{split}_loss"] = stack.marks(task_examples(job.task, split, job.held_out), chunk=20)
        about = {"task": job.task, "batch_size": job.batch_size, "steps": job.steps}
        return [
            about | asdict(run) | {key: number(values[i], 4) for key, values in found.items()}
            for i, run in enumerate(runs)
        ]

    return in_parts(measure, job.runs)


def split_up(runs: Sequence[Run], batch_size: int, length: int = 49) -> list[Sequence[Run]]:
    """The runs in lists that are each small enough for a stack, nearly even. `length`: a batch of translations'."""
    each = max(1, TOKENS // (batch_size * length))
    lists = math.ceil(len(runs) / each)
    return [runs[i * len(runs) // lists : (i + 1) * len(runs) // lists] for i in range(lists)]


def lora_results(runs: list[Run], steps: int, device: str, chunk: int) -> list[dict]:
    """Train the runs, `chunk` at a time, and measure each."""
    train, dev, test = (
        task_examples("translation", s, n) for s, n in (("train", TRAIN), ("dev", HELD_OUT), ("test", HELD_OUT))
    )
    results = []
    for start in range(0, len(runs), chunk):
        part = runs[start : start + chunk]
        stack = stack_of(part, device)
        stack.train(train, steps=steps, batch_size=BATCH, progress=True)
        rows = story_rows(stack.tokenizer, WINDOWS)
        measured = stack.exact_match(dev, chunk=20), stack.exact_match(test, chunk=20), stack.perplexity(rows)
        for run, d, t, p in zip(part, *measured, strict=True):
            results.append(asdict(run) | {"dev": d, "test": t, "perplexity": p if math.isfinite(p) else None})
    return results


def full_result(job: tuple[float, int, int, str]) -> dict:
    """One run of full fine-tuning."""
    lr, seed, steps, device = job
    torch.set_num_threads(1)
    model, tokenizer = models.load_base()
    model.to(device)
    train, dev, test = (
        task_examples("translation", s, n) for s, n in (("train", TRAIN), ("dev", HELD_OUT), ("test", HELD_OUT))
    )
    loop.train(model, tokenizer, train, steps=steps, lr=lr, batch_size=BATCH, seed=seed, progress=False)
    d, t = (metrics.exact_match(model, tokenizer, part) for part in (dev, test))
    with torch.inference_mode():
        rows = story_rows(tokenizer, WINDOWS).to(device)
        loss = torch.stack([model(input_ids=part, labels=part).loss for part in rows.split(16)]).mean()
    return {
        "targets": FULL,
        "r": None,
        "lr": lr,
        "seed": seed,
        "dev": d,
        "test": t,
        "perplexity": math.exp(loss),
    }


def summarize(results: list[dict], steps: int, parameters: dict[tuple[str, int | None], int]) -> list[dict]:
    """One row a setting: the rate that was best on dev, and what it gave on test, mean and spread over the seeds."""
    rows = []
    for targets, r in dict.fromkeys((x["targets"], x["r"]) for x in results):
        mine = [x for x in results if (x["targets"], x["r"]) == (targets, r)]
        best = at_best_rate(mine)
        tests = [x["test"] for x in best]
        rows.append({
            "steps": steps, "targets": targets, "r": r, "parameters": parameters[targets, r], "lr": best[0]["lr"],
            "test_mean": round(statistics.mean(tests), 4), "test_by_seed": [round(t, 4) for t in tests],
            "dev_by_lr": mean_by_rate(mine, "dev", 4),
            "test_by_lr": mean_by_rate(mine, "test", 4),
            "perplexity_by_lr": mean_by_rate(mine, "perplexity", 3),
        })  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------------ the rules of alpha


def rule_runs(ranks: Sequence[int], rates: Sequence[float], seeds: Sequence[int]) -> list[Run]:
    """Every rank under every rule with every rate and seed; what two rules have in common is there once."""
    settings = [(r, rule(r)) for r, rule in product(ranks, RULES.values())]
    return [
        Run("all-linear", r, lr, seed, alpha) for (r, alpha), seed, lr in product(dict.fromkeys(settings), seeds, rates)
    ]


def rate_choices(mine: Sequence[dict]) -> dict[str, Any]:
    """Of one setting: the rate that is best on dev, by accuracy and by loss, over the seeds and for each; the accuracy
    and the loss on test there; and both at every rate, for each seed too (in the order of `seeds`).
    """
    rates, seeds = sorted({x["lr"] for x in mine}), sorted({x["seed"] for x in mine})
    ends = (rates[0], rates[-1])
    best, by_loss = at_best_rate(mine), at_best_rate(mine, "dev_loss", lowest=True)
    by_seed = [[x for x in mine if x["seed"] == seed] for seed in seeds]
    table = {(x["lr"], x["seed"]): x for x in mine}
    tests, losses = ([table[chosen[0]["lr"], seed] for seed in seeds] for chosen in (best, by_loss))
    return {
        "seeds": seeds,
        "lr": best[0]["lr"], "lr_at_the_grids_edge": best[0]["lr"] in ends,
        "lr_by_seed": [at_best_rate(xs)[0]["lr"] for xs in by_seed],
        "test_mean": round(statistics.mean(x["test"] for x in tests), 4), "test_by_seed": [x["test"] for x in tests],
        "lr_by_loss": by_loss[0]["lr"], "lr_by_loss_at_the_grids_edge": by_loss[0]["lr"] in ends,
        "lr_by_loss_by_seed": [at_best_rate(xs, "dev_loss", lowest=True)[0]["lr"] for xs in by_seed],
        "test_loss_mean": None if any(x["test_loss"] is None for x in losses)
        else round(statistics.mean(x["test_loss"] for x in losses), 4),
        "test_loss_by_seed": [x["test_loss"] for x in losses], "test_at_lr_by_loss": [x["test"] for x in losses],
        **{f"{what}_by_lr": mean_by_rate(mine, what, 4) for what in ("dev", "test", "dev_loss", "test_loss")},
        **{f"{what}_by_lr_and_seed": {str(lr): [table[lr, seed][what] for seed in seeds] for lr in rates}
           for what in ("test", "test_loss")},
    }  # fmt: skip


def rule_rows(results: Sequence[dict], parameters: dict[tuple[str, int | None], int]) -> list[dict]:
    """One row for each rule and rank, as far as they are trained."""
    rows = []
    for (name, rule), r in product(RULES.items(), sorted({x["r"] for x in results})):
        mine = [x for x in results if (x["r"], x["lora_alpha"]) == (r, rule(r))]
        if mine:
            about = {"rule": name, "r": r, "alpha": rule(r), "scaling": rule(r) / r}
            rows.append(about | {"parameters": parameters["all-linear", r]} | rate_choices(mine))
    return rows


def compare_rules(args: argparse.Namespace) -> None:
    """The learning rate against the rank under each rule, into alpha_rule.json."""
    ranks, rates, parts, steps, held_out = RULE_RANKS, RULE_RATES, RULE_SEEDS, STEPS[-1], HELD_OUT
    if args.trial:
        ranks, rates, parts, steps, held_out = (2, 16), RULE_RATES[5:6], ((0,), (1,)), 3, 10
    jobs = [
        Job(part, "translation", steps, BATCH, TRAIN, held_out, args.device)
        for seeds, r in product(parts, ranks)
        for part in split_up(rule_runs([r], rates, seeds), BATCH)
    ]
    model, _ = models.load_base()
    parameters = parameters_of(model, [("all-linear", r) for r in ranks])
    record = {
        "what": f"translation, all linear layers, {steps} steps of batch {BATCH}: exact match on {held_out} test "
        "prompts and loss in nats per token of the answers, by learning rate and rank, with alpha = 2r and with "
        "alpha = 32 at every rank (r = 16 is one run under both); the rate chosen on as many dev prompts",
        "tool": "python -m tools.sweep_rank --rules", **provenance(args.device), "rates": list(rates), "rows": [],
    }  # fmt: skip
    results: list[dict] = []
    for found in results_of(measured, jobs, workers=args.workers, seconds=60 * args.minutes):
        results += found
        if args.out:
            write(args.out, record | {"rows": rule_rows(complete(results), parameters)})
    wanted = sum(len(job.runs) for job in jobs)
    print(f"{len(results)} of {wanted} runs")
    for row in rule_rows(complete(results), parameters):
        edge = "  EDGE" if row["lr_at_the_grids_edge"] else ""
        print(f"{row['rule']} r={row['r']:<3} lr={row['lr']:<8} {row['lr_by_seed']} test {row['test_mean']:.3f}",
              row["test_by_seed"], f"by loss lr={row['lr_by_loss']:<8} loss {row['test_loss_mean']}{edge}")  # fmt: skip


def complete(results: Sequence[dict]) -> list[dict]:
    """The results without those of a seed and setting for which not every rate is there yet."""
    rates: dict[tuple, set[float]] = {}
    for x in results:
        rates.setdefault((x["targets"], x["batch_size"]), set()).add(x["lr"])

    def setting(x: dict) -> tuple:
        return x["task"], x["batch_size"], x["targets"], x["r"], x["lora_alpha"], x["seed"]

    there: dict[tuple, set[float]] = {}
    for x in results:
        there.setdefault(setting(x), set()).add(x["lr"])
    return [x for x in results if there[setting(x)] == rates[x["targets"], x["batch_size"]]]


def parameters_of(model: torch.nn.Module, settings: Iterable[tuple[str, int]]) -> dict[tuple[str, int | None], int]:
    """How many parameters each setting trains, and full fine-tuning."""
    found: dict[tuple[str, int | None], int] = {
        (name, r): sum(r * sum(model.get_submodule(m).weight.shape) for m in find_targets(model, list(TARGETS[name])))
        for name, r in settings
    }
    found[FULL, None] = sum(p.numel() for p in model.parameters())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunk", type=int, default=138, help="runs that are trained in one stack")
    parser.add_argument("--workers", type=int, default=None, help="processes: 12 for full fine-tuning, 7 with --rules")
    parser.add_argument("--rules", action="store_true", help="compare the rules of alpha instead")
    parser.add_argument("--minutes", type=float, default=8.0, help="with --rules: what isn't done then is left out")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--trial", action="store_true", help="few settings, few steps")
    args = parser.parse_args()
    args.workers = (7 if args.rules else 12) if args.workers is None else args.workers
    if args.out is None and not (args.rules and args.trial):
        args.out = ROOT / "assets" / "measurements" / f"{'alpha_rule' if args.rules else 'rank_sweep'}.json"
    if args.rules:
        return compare_rules(args)
    settings = [*product(TARGETS, RANKS), *CONTROLS.items()]
    rates, full_rates, all_steps = RATES, FULL_RATES, STEPS
    if args.trial:
        settings, rates, full_rates, all_steps = [("all-linear", 2), ("q,v", 4)], RATES[:1], FULL_RATES[:1], (5,)
    model, tokenizer = models.load_base()
    parameters = parameters_of(model, settings)
    base = metrics.perplexity(model, tokenizer, gates.held_out_stories(4 * WINDOWS))
    table = []
    for steps in all_steps:
        runs = [Run(name, r, lr, seed) for (name, r), lr, seed in product(settings, rates, SEEDS)]
        results = lora_results(sorted(runs, key=lambda run: run.r or 0), steps, args.device, args.chunk)
        jobs = [(lr, seed, steps, args.device) for lr, seed in product(full_rates, SEEDS)]
        with get_context("spawn").Pool(args.workers) as pool:
            results += list(tqdm(pool.imap(full_result, jobs), total=len(jobs), desc="full fine-tuning", mininterval=5))
        table += summarize(results, steps, parameters)
    table.sort(key=lambda row: (row["steps"], row["targets"], row["parameters"]))
    record = {
        "what": "translation, exact match on 200 test prompts; rate chosen on 200 dev prompts; alpha = 2r, batch 16",
        "tool": "python -m tools.sweep_rank", **provenance(args.device), "seeds": list(SEEDS),
        "base_perplexity": round(base, 3), "rows": table,
    }  # fmt: skip
    write(args.out, record)
    for row in table:
        setting = f"{row['steps']:4} {row['targets']:17} r={row['r']!s:5} {row['parameters']:9,} lr={row['lr']:<7}"
        print(
            setting,
            f"test {row['test_mean']:.3f} {row['test_by_seed']}",
            f"ppl {row['perplexity_by_lr'][str(row['lr'])]}",
        )


if __name__ == "__main__":
    main()
