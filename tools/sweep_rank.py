"""Rank against targets on translation: train every setting with every rate and seed, and write
assets/measurements/rank_sweep.json.

    python -m tools.sweep_rank                 the recorded table (a GPU: some minutes)
    python -m tools.sweep_rank --trial         a few settings for a few steps, on any machine

Each setting's learning rate is chosen on the dev split and its accuracy is reported on the test split, the mean over
three seeds. Runs differ in nothing but their LoRA matrices, so many of them are trained in one stack
(tools/ensemble.py); tests/tools/test_sweep_rank.py holds a run of it against utils.train.loop.train.

Attributes:
    CONTROLS: The ranks at which these targets have, within 1.3%, the parameters of all-linear at rank 8.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from tools.ensemble import Ensemble, at_best_rate, mean_by_rate, story_rows, write
from utils import lora, models
from utils.evaluate import gates, metrics
from utils.lora import find_targets
from utils.tinyworld import task_examples
from utils.train import loop

ROOT = Path(__file__).resolve().parents[1]

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
TARGETS = {"q,v": ("q_proj", "v_proj"), "attention": ATTENTION, "MLP": MLP, "all-linear": ATTENTION + MLP}
RANKS = (1, 2, 4, 8, 16)
CONTROLS = {"q,v": 42, "attention": 21, "MLP": 13}
RATES, FULL_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SEEDS, STEPS, BATCH = (0, 1, 2), (150, 300), 16
TRAIN, HELD_OUT, WINDOWS = 4000, 200, 64


@dataclass(frozen=True)
class Run:
    """One training run: which layers, which rank, which rate, which seed. `lora_alpha` is 2 * r throughout."""

    targets: str
    r: int
    lr: float
    seed: int


def stack_of(runs: Sequence[Run], device: str, dtype: torch.dtype = torch.float32) -> Ensemble:
    """The runs in one stack, each with the very numbers that utils.lora.inject draws for it after its seed."""
    model, tokenizer = models.load_base(torch.float32)
    starts = []
    for run in runs:
        torch.manual_seed(run.seed)
        lora.inject(model, list(TARGETS[run.targets]), run.r, 2 * run.r)
        starts.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        lora.remove(model)
    widest = max(run.r for run in runs)
    lora.inject(model, "all-linear", widest, 2 * widest)
    return Ensemble(
        model.to(dtype), tokenizer, starts, [run.lr for run in runs], [run.seed for run in runs], device=device
    )  # fmt: skip


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
        "targets": "full fine-tuning",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunk", type=int, default=138, help="runs that are trained in one stack")
    parser.add_argument("--workers", type=int, default=12, help="processes for full fine-tuning")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "measurements" / "rank_sweep.json")
    parser.add_argument("--trial", action="store_true", help="few settings, few steps")
    args = parser.parse_args()
    settings = [*product(TARGETS, RANKS), *CONTROLS.items()]
    rates, full_rates, all_steps = RATES, FULL_RATES, STEPS
    if args.trial:
        settings, rates, full_rates, all_steps = [("all-linear", 2), ("q,v", 4)], RATES[:1], FULL_RATES[:1], (5,)
    model, tokenizer = models.load_base()
    parameters: dict[tuple[str, int | None], int] = {
        (name, r): sum(r * sum(model.get_submodule(m).weight.shape) for m in find_targets(model, list(TARGETS[name])))
        for name, r in settings
    }
    parameters["full fine-tuning", None] = sum(p.numel() for p in model.parameters())
    base = metrics.perplexity(model, tokenizer, gates.held_out_stories(4 * WINDOWS))
    table = []
    for steps in all_steps:
        runs = [Run(name, r, lr, seed) for (name, r), lr, seed in product(settings, rates, SEEDS)]
        results = lora_results(sorted(runs, key=lambda run: run.r), steps, args.device, args.chunk)
        jobs = [(lr, seed, steps, args.device) for lr, seed in product(full_rates, SEEDS)]
        with get_context("spawn").Pool(args.workers) as pool:
            results += list(tqdm(pool.imap(full_result, jobs), total=len(jobs), desc="full fine-tuning", mininterval=5))
        table += summarize(results, steps, parameters)
    table.sort(key=lambda row: (row["steps"], row["targets"], row["parameters"]))
    hardware = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    record = {
        "what": "translation, exact match on 200 test prompts; rate chosen on 200 dev prompts; alpha = 2r, batch 16",
        "hardware": hardware, "torch": torch.__version__, "seeds": list(SEEDS), "base_perplexity": round(base, 3),
        "rows": table,
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
