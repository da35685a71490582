"""Measure whether distillation brings back what an adapter forgot, against replay at equal cost: distillation.json.

    python -m tools.measure_distillation --work DIR     everything; a second call goes on with what DIR lacks
    python -m tools.measure_distillation --trial        two steps of one run on any machine; nothing of it is a result

An adapter is trained on a task by the course's recipe, and forgets stories (chapter 17). Then it is trained for STEPS
more steps in each of four ways, from the same weights: distillation with the base as teacher on requests for a story,
or replay of stories as the base has read them; each alone, or with ROWS examples of the task in every step, whose mean
loss is added. Each way has RATES; :func:`chosen` takes one on the dev prompts and dev stories and reports test's.

Cost is counted in passes of one token position, padding included, through the model: one for each position forward and
one backward (of LoRA: the base's weights need no gradient). An answer's position is sampled, read by the teacher, and
goes forward and backward through the student: 4 passes. Replay's take 2, so it gets about twice the positions: so many
stories a step that its passes are nearest to the mean of the same seed's distillation. The task's rows cost both alike.

Written to assets/measurements/distillation.json. One core takes 11 to 15 minutes for each of the ten pairs of task and
seed, which `--workers` spreads over processes, on the GPU where there is one.

Attributes:
    KEPT: A rate is chosen among those that keep so much of the exact match on dev that the adapter had before.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.ensemble import provenance, results_of, write
from tools.gpu.record import Record
from utils import tinyworld
from utils.data.chat import Example, encode
from utils.data.labels import batches
from utils.evaluate.forgetting import measure_forgetting, replay_examples
from utils.evaluate.gates import held_out_stories, hero_accuracy
from utils.evaluate.metrics import exact_match, perplexity
from utils.lora import inject
from utils.models import load_base
from utils.preferences.distill import train_distillation
from utils.tinyworld import task_examples
from utils.train.loop import train
from utils.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "measurements" / "distillation.json"

TASKS, SEEDS = ("translation", "style"), (0, 1, 2, 3, 4)
RATES = (0.002, 0.004, 0.008)
STEPS, ANSWERS, LIMIT, ROWS, REQUESTS = 60, 8, 128, 16, 400
DEV, TEST, STORIES, COPIES, HEROES = 100, 200, 60, 50, 100
KEPT = 0.98
BEFORE, WAYS, TASK_KEPT = "none", ("distillation", "replay"), " with the task"
NUMBERS = ("dev", "test", "stories_dev", "stories_test", "copying", "heroes", "passes")


def story_prompts(n: int, seed: int) -> list[str]:
    """`n` requests for a story, such as the base has read."""
    rng = random.Random(f"distillation/{seed}")
    return [tinyworld.story_request(rng, tinyworld.new_cast(rng)) for _ in range(n)]


class Bench:
    """One task and seed: the adapter after its training, and what each way makes of it."""

    def __init__(self, task: Any, seed: int, device: str, trial: bool) -> None:
        self.task, self.seed, self.trial = task, seed, trial
        self.steps = 2 if trial else STEPS
        few = 4 if trial else None
        self.dev, self.test = (task_examples(task, "dev", few or DEV), task_examples(task, "test", few or TEST))
        self.stories = {name: held_out_stories(few or STORIES, seed=i) for i, name in enumerate(("test", "dev"))}
        self.prompts, self.replayed = story_prompts(REQUESTS, seed), replay_examples(REQUESTS, seed)
        recipe = RECIPES[task]
        self.data = task_examples(task, "train", recipe.examples)
        model, self.tokenizer = load_base(torch.float32)
        self.model = model.to(device)
        torch.manual_seed(seed)
        inject(self.model, recipe.target_modules, recipe.r, recipe.lora_alpha)
        train(
            self.model, self.tokenizer, self.data, steps=2 if trial else recipe.steps, lr=recipe.lr,
            batch_size=recipe.batch_size, seed=seed, progress=False,
        )  # fmt: skip
        self.after = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def restore(self) -> None:
        """The adapter as it was after the task's training."""
        for name, value in self.after.items():
            self.model.get_parameter(name).copy_(value)

    def marks(self) -> dict[str, float]:
        """The model as it is now, on dev and test."""
        model, tokenizer = self.model, self.tokenizer
        few = 2 if self.trial else None
        test = measure_forgetting(model, tokenizer, self.test, self.stories["test"], few or COPIES)
        found = {
            "dev": exact_match(model, tokenizer, self.dev),
            "test": test.task,
            "stories_dev": perplexity(model, tokenizer, self.stories["dev"]),
            "stories_test": test.stories,
            "copying": test.copying,
            "heroes": hero_accuracy(model, tokenizer, few or HEROES),
        }
        return {name: round(value, 4) for name, value in found.items()}

    def distil(self, lr: float, rows: Sequence[Example]) -> dict[str, float]:
        """Distil, and count the passes of a step: all of them, and those that the answers took."""
        history = train_distillation(
            self.model, self.tokenizer, self.prompts, steps=self.steps, lr=lr, batch_size=2 if self.trial else ANSWERS,
            max_new_tokens=8 if self.trial else LIMIT, rows=rows, rows_per_step=ROWS, seed=self.seed, progress=False,
        )  # fmt: skip
        passes = statistics.mean(one["sampled"] + one["taught"] + 2 * one["trained"] for one in history)
        answers = statistics.mean(one["sampled"] + 3 * one["taught"] for one in history)
        last = statistics.mean(one["kl"] for one in history[-10:])
        return {"passes": round(passes), "answer_passes": round(answers), "kl": round(last, 4)}

    def stories_for(self, passes: float) -> int:
        """How many replayed stories a step, padded to the longest, take about so many passes."""
        lengths = [len(prompt) + len(answer) for prompt, answer in encode(self.tokenizer, self.replayed)]
        rng = random.Random(0)

        def cost(n: int) -> float:
            return statistics.mean(2 * n * max(rng.sample(lengths, n)) for _ in range(50))

        return min(range(1, 65), key=lambda n: abs(cost(n) - passes))

    def replay(self, lr: float, rows: Sequence[Example], stories: int) -> dict[str, float]:
        """Train on so many stories a step, and count the passes of a step."""
        device, trained = self.model.device, 0
        more = batches(self.tokenizer, rows or self.data, steps=self.steps, batch_size=ROWS, seed=self.seed)

        def task_loss() -> Tensor:
            nonlocal trained
            batch = {name: tensor.to(device) for name, tensor in next(more).items()}
            trained += batch["input_ids"].numel()
            return self.model(**batch).loss

        drawn = batches(self.tokenizer, self.replayed, steps=self.steps, batch_size=stories, seed=self.seed)
        seen = sum(batch["input_ids"].numel() for batch in drawn)
        train(
            self.model, self.tokenizer, self.replayed, steps=self.steps, lr=lr, batch_size=stories, seed=self.seed,
            progress=False, extra_loss=task_loss if rows else None,
        )  # fmt: skip
        return {"passes": round(2 * (seen + trained) / self.steps), "stories": stories}


def one_job(job: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of a task and seed; those that an earlier call has measured are read from the job's file."""
    torch.set_num_threads(1)
    task, seed, rates = job["task"], job["seed"], job["rates"]
    record = Record(Path(job["file"]), "a part of distillation.json", seed=seed)
    wanted = [BEFORE] + [f"{way}{kept}, {lr}" for way, kept, lr in product(WAYS, ("", TASK_KEPT), rates)]
    if all(key in record for key in wanted):
        return record.rows
    began = time.perf_counter()
    bench = Bench(task, seed, job["device"], job["trial"])

    def add(key: str, way: str, lr: float, training: Callable[[], dict[str, float]]) -> None:
        if key not in record:
            bench.restore()
            found = training()
            record.add(key, task=task, seed=seed, way=way, lr=lr, **found, **bench.marks())

    add(BEFORE, BEFORE, 0.0, lambda: {"passes": 0})
    for kept, lr in product(("", TASK_KEPT), rates):
        way = f"distillation{kept}"
        add(f"{way}, {lr}", way, lr, lambda kept=kept, lr=lr: bench.distil(lr, bench.data if kept else ()))
    for kept in ("", TASK_KEPT):
        passes = statistics.mean(r["answer_passes"] for r in record.rows if r["way"] == f"distillation{kept}")
        stories = bench.stories_for(passes)
        for lr in rates:
            rows = bench.data if kept else ()
            add(
                f"replay{kept}, {lr}", f"replay{kept}", lr,
                lambda lr=lr, rows=rows, stories=stories: bench.replay(lr, rows, stories),
            )  # fmt: skip
    print(f"{task}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    return record.rows


def jobs_of(
    work: Path, device: str, trial: bool, tasks: Sequence[str] = TASKS, seeds: Sequence[int] = SEEDS
) -> list[dict[str, Any]]:
    """A job for each task and seed, the long task first."""
    pairs = list(product(tasks, seeds))
    rates = RATES[1:2] if trial else RATES
    return [
        {"task": task, "seed": seed, "rates": rates, "device": device, "trial": trial,
         "file": str(work / f"{task}-{seed}.json")}
        for task, seed in (pairs[-1:] if trial else pairs)
    ]  # fmt: skip


def chosen(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each task and way the rate that dev chooses, and what it gives on test, a number for each seed.

    Of the rates that keep KEPT of the mean exact match on dev before, the one with the lowest mean perplexity of the
    dev stories; where none does, `reached` is False and the one with the highest exact match on dev is taken.
    """
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        had = statistics.mean(row["dev"] for row in own if row["way"] == BEFORE)
        for way in dict.fromkeys(row["way"] for row in own):
            by_rate = {
                lr: sorted((r for r in own if (r["way"], r["lr"]) == (way, lr)), key=lambda r: r["seed"])
                for lr in sorted({row["lr"] for row in own if row["way"] == way})
            }
            mean = {
                lr: {name: statistics.mean(r[name] for r in part) for name in NUMBERS} for lr, part in by_rate.items()
            }
            reached = [lr for lr in mean if mean[lr]["dev"] >= KEPT * had]
            best = (
                min(reached, key=lambda lr: mean[lr]["stories_dev"])
                if reached
                else max(mean, key=lambda lr: mean[lr]["dev"])
            )
            found.append({
                "task": task, "way": way, "lr": best, "reached": bool(reached),
                "seeds": [r["seed"] for r in by_rate[best]],
                **{name: [r[name] for r in by_rate[best]] for name in NUMBERS},
                "mean": {name: round(mean[best][name], 4) for name in NUMBERS},
            })  # fmt: skip
    return found


def base_marks(trial: bool) -> dict[str, float]:
    """Stories, copying and heroes of the base itself."""
    model, tokenizer = load_base(torch.float32)
    few = 2 if trial else None
    test = measure_forgetting(
        model, tokenizer, task_examples("style", "test", 4), held_out_stories(4 if trial else STORIES), few or COPIES
    )
    heroes = hero_accuracy(model, tokenizer, few or HEROES)
    return {"stories_test": round(test.stories, 4), "copying": round(test.copying, 4), "heroes": round(heroes, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".distillation", help="where finished parts are kept")
    parser.add_argument("--out", type=Path, help="where the record goes; a trial writes none without it")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: this one alone")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="give up what isn't done after so long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--trial", action="store_true")
    asked = parser.parse_args(arguments)
    jobs = jobs_of(
        asked.work / "trial" if asked.trial else asked.work, asked.device, asked.trial, asked.tasks, asked.seeds
    )
    parts = results_of(one_job, jobs, workers=asked.workers, seconds=asked.seconds)
    rows = sorted((row for part in parts for row in part), key=lambda r: (r["task"], r["way"], r["lr"], r["seed"]))
    for one in chosen(rows):
        print({k: one[k] for k in ("task", "way", "lr", "reached")}, one["mean"])
    out = asked.out or (None if asked.trial else OUT)
    if out is None:
        return
    write(out, {
        "what": ("TRIAL: no result. " if asked.trial else "")
        + f"an adapter trained by its task's recipe, then {STEPS} steps of distillation from the base ({ANSWERS} "
        f"answers of at most {LIMIT} tokens to story requests) or of replayed stories at as many passes, alone or with "
        f"{ROWS} examples of the task a step; exact match on {DEV} dev and {TEST} test prompts, perplexity of "
        f"{STORIES} held-out stories, copying of {COPIES} random texts, heroes kept in {HEROES} sampled stories; "
        "passes: token positions through the model in a step, backward counted as one; chosen on dev",
        "tool": "python -m tools.measure_distillation",
        **provenance(asked.device),
        "seeds": sorted({row["seed"] for row in rows}),
        "base": base_marks(asked.trial),
        "chosen": chosen(rows),
        "rows": [{k: v for k, v in row.items() if k != "key"} for row in rows],
    })  # fmt: skip
    print(f"{len(rows)} rows, wrote {out.name}")


if __name__ == "__main__":
    main()
