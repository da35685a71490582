"""Measure the remedies for forgetting at equal accuracy, and write assets/measurements/remedies.json.

    python -m tools.measure_remedies --work DIR     everything (one H200: about five minutes); a second call goes on
    python -m tools.measure_remedies --trial        four steps of few runs, on any machine; nothing of it is a result

Two tasks, two methods, nine seeds. Every remedy has its own knob and, besides, several learning rates. SELECT's seeds
choose a setting for each remedy: of those whose exact match on the dev prompts reaches a target, the one with the
lowest perplexity of stories. What is reported of it comes from other seeds, prompts and stories: :func:`best` does
both. Runs that differ in their trainable tensors alone are trained in one stack (tools/ensemble.py).

Attributes:
    SELECT, REPORT: The seeds that choose a setting, and those that it is judged by.
    KNOBS: The values of each remedy's knob. steps: share of the recipe's. replay: stories to one example of the task.
        kl and kl on prompts: weight of the divergence from the base, on stories or on the task's own prompts. weight
        decay: AdamW's for LoRA's A and B; for full fine-tuning a decay towards the base. scale: factor on the update.
        average: of the weights of the second half of the steps, or of seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from tools.ensemble import Ensemble, Tensors, in_parts, number, provenance, results_of, story_rows
from utils import tinyworld
from utils.data.chat import render
from utils.evaluate.forgetting import replay_examples
from utils.lora import inject
from utils.lora.layer import injected_layers
from utils.models import load_base
from utils.tinyworld import task_examples
from utils.train import loop
from utils.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "measurements" / "remedies.json"

TASKS, METHODS = ("style", "translation"), ("LoRA", "full fine-tuning")
SELECT, REPORT = (0, 1, 2), (3, 4, 5, 6, 7, 8)
SOUPS = {0: (0, 1, 2), 3: (3, 4, 5), 6: (6, 7, 8)}
RATES = {
    ("style", "LoRA"): (0.001, 0.0015, 0.002, 0.003, 0.006, 0.012),
    ("style", "full fine-tuning"): (0.00012, 0.00025, 0.00035, 0.0005, 0.001, 0.002),
    ("translation", "LoRA"): (0.0007, 0.001, 0.0014, 0.002, 0.004, 0.008),
    ("translation", "full fine-tuning"): (0.00012, 0.00025, 0.00035, 0.0005, 0.001, 0.002),
}
WITH_KNOB = {
    ("style", "LoRA"): (0.0015, 0.003, 0.006),
    ("style", "full fine-tuning"): (0.00025, 0.0005, 0.001),
    ("translation", "LoRA"): (0.001, 0.002, 0.004),
    ("translation", "full fine-tuning"): (0.00025, 0.0005, 0.001),
}
KNOBS: dict[str, tuple[float, ...]] = {
    "steps": (0.25, 0.5),
    "replay": (0.25, 1.0),
    "kl": (0.1, 0.5, 2.0),
    "kl on prompts": (0.1, 0.5, 2.0),
    "weight decay": (0.1, 1.0, 3.0),
    "scale": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
DECAY_TO_BASE = (1.0, 10.0, 30.0)
DEV, TEST, WINDOWS, COPIES = 100, 200, 24, 50
PENALTY_TEXTS, PENALTY_BATCH, PENALTY_LENGTH = 400, 3, 128
NUMBERS = ("dev", "test", "stories_dev", "stories_test", "copying")


class Run(NamedTuple):
    """One training: its learning rate, its knob (0 where the stack has none of its own), its seed."""

    lr: float
    knob: float
    seed: int


class Marks:
    """The data that every stack is measured on, as tensors."""

    def __init__(self, task: Any, tokenizer: Any, trial: bool) -> None:
        few = 6 if trial else None
        self.dev = task_examples(task, "dev", few or DEV)
        self.test = task_examples(task, "test", few or TEST)
        rows = story_rows(tokenizer, 4 if trial else 3 * WINDOWS, 64 if trial else 256)
        self.stories_dev, self.stories_test = rows[: len(rows) // 3 or 1], rows[len(rows) // 3 or 1 :]
        rng, ids = random.Random("copy/0"), []
        for _ in range(few or COPIES):
            once = tokenizer(" " + tinyworld.random_words(rng, 10), add_special_tokens=False).input_ids
            ids.append(torch.tensor(once))
        self.copies = ids

    @torch.no_grad()
    def copying(self, stack: Ensemble) -> list[float]:
        """Each run's share of right tokens where random words follow themselves, as gates.copy_accuracy counts them."""
        logits, right, total = vmap(stack._logits, in_dims=(0, 0, None)), torch.zeros(stack.count), 0
        for once in self.copies:
            ids = torch.cat([once, once])[None].to(stack.device)
            said = logits(stack.parameters, stack.fixed, ids)[:, 0, len(once) : -1].argmax(-1)
            right = right + (said == ids[0, len(once) + 1 :]).sum(1).cpu()
            total += len(once) - 1
        return (right / total).tolist()

    def of(self, stack: Ensemble) -> list[dict[str, float | None]]:
        """The five numbers of each run of a stack."""
        found = (
            stack.exact_match(self.dev),
            stack.exact_match(self.test),
            stack.perplexity(self.stories_dev),
            stack.perplexity(self.stories_test),
            self.copying(stack),
        )
        return [dict(zip(NUMBERS, (number(v, 3) for v in run), strict=True)) for run in zip(*found, strict=True)]


class Divergence:
    """The mean KL divergence per token, in nats, of a run from the base on texts that every run of the stack sees.

    texts: lists of token ids. Each step draws PENALTY_BATCH of them; the base's own predictions are computed once.
    """

    def __init__(self, stack: Ensemble, texts: Sequence[Sequence[int]]) -> None:
        self.stack, length = stack, min(PENALTY_LENGTH, max(map(len, texts)))
        self.ids = torch.zeros(len(texts), length, dtype=torch.long, device=stack.device)
        self.real = torch.zeros(len(texts), length, dtype=torch.bool, device=stack.device)
        for i, text in enumerate(texts):
            cut = torch.tensor(text[:length])
            self.ids[i, : len(cut)], self.real[i, : len(cut)] = cut.to(stack.device), True
        base, _ = load_base(torch.float32)
        base.to(stack.device).eval()
        with torch.no_grad():
            self.base = torch.cat([base(input_ids=part).logits.log_softmax(-1) for part in self.ids.split(32)])
        self.random = random.Random(0)

    def __call__(self, parameters: Tensors) -> Tensor:
        chosen = self.random.sample(range(len(self.ids)), PENALTY_BATCH)
        own = self.stack._logits(parameters, {}, self.ids[chosen]).log_softmax(-1)
        base, real = self.base[chosen], self.real[chosen]
        each = (base.exp() * (base - own)).sum(-1)
        return parameters["penalty"].detach()[0] * (each * real).sum() / real.sum()


def stack_of(task: Any, method: str, runs: Sequence[Run], device: str) -> Ensemble:
    """The runs in one stack, each at its start; `penalty` is a tensor that isn't trained and holds the run's knob."""
    starts: dict[int, Tensors] = {}
    recipe = RECIPES[task]
    for seed in sorted({run.seed for run in runs}):
        model, tokenizer = load_base(torch.float32)
        torch.manual_seed(seed)
        if method == "LoRA":
            inject(model, recipe.target_modules, recipe.r, recipe.lora_alpha)
        else:
            model.requires_grad_(True)
        starts[seed] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    model.register_parameter("penalty", nn.Parameter(torch.zeros(1)))
    each = [starts[run.seed] | {"penalty": torch.tensor([float(run.knob)])} for run in runs]
    return Ensemble(
        model, tokenizer, each, [run.lr for run in runs], [run.seed for run in runs], device=device,
        factors={"penalty": 0.0},
    )  # fmt: skip


def decays(stack: Ensemble, weights: Sequence[float], steps: int, anchor: Tensors) -> Callable[..., None]:
    """An `after_step` that decays what is trained towards `anchor`, decoupled from the gradient as AdamW does it; each
    run by its own weight.
    """
    weight = torch.tensor(weights, device=stack.device)

    def after(step: int, parameters: Tensors, gradients: Tensors) -> None:
        factor = loop.learning_rate_factor(step, steps)
        for name, p in parameters.items():
            if name != "penalty":
                p.sub_(stack.rates[name] * factor * stack._each(weight, p) * (p - anchor[name]))

    return after


def averages(steps: int, kept: Tensors) -> Callable[..., None]:
    """An `after_step` that puts the mean of the weights of the second half of the steps into `kept`."""
    half = steps // 2

    def after(step: int, parameters: Tensors, gradients: Tensors) -> None:
        if step >= half:
            for name, p in parameters.items():
                kept[name] = kept[name].lerp_(p, 1 / (step - half + 1)) if name in kept else p.clone()

    return after


def soups(task: Any, method: str, runs: Sequence[Run], stack: Ensemble, marks: Marks, device: str) -> list[dict]:
    """The rows of the mean over three seeds of what they changed, measured as plain models: for each rate and SOUPS.

    A group of seeds that isn't whole among the runs has none.
    """
    base, tokenizer = load_base(torch.float32)
    base.requires_grad_(True)
    own = {n: p.detach().cpu().clone() for n, p in base.named_parameters()}
    layers = injected_layers(stack.model) if method == "LoRA" else {}
    scaling = {n: layer.scaling for n, layer in layers.items()}
    mixed, starts = [], []
    for lr, (first, seeds) in product(sorted({r.lr for r in runs}), SOUPS.items()):
        places = [i for i, r in enumerate(runs) if r.lr == lr and r.seed in seeds]
        if len(places) < len(seeds):
            continue
        if method == "LoRA":
            start = dict(own)
            for name, scale in scaling.items():
                A, B = (stack.parameters[f"{name}.lora_{m}"][places] for m in "AB")
                start[f"{name}.weight"] = own[f"{name}.weight"] + scale * (B @ A).mean(0).cpu()
        else:
            start = {n: stack.parameters[n][places].mean(0) for n in own}
        mixed.append(Run(lr, 3.0, first))
        starts.append(start)
    if not mixed:
        return []
    seeds = [run.seed for run in mixed]
    mixture = Ensemble(base, tokenizer, starts, [0.0] * len(mixed), seeds, device=device)
    return rows_of(task, method, "average of seeds", mixed, marks.of(mixture))


def rows_of(task: str, method: str, remedy: str, runs: Sequence[Run], marks: Sequence[dict]) -> list[dict]:
    head = {"task": task, "method": method, "remedy": remedy}
    return [{**head, **run._asdict(), **found} for run, found in zip(runs, marks, strict=True)]


def texts_for(kind: str, task: Any, tokenizer: Any) -> list[list[int]]:
    """What the base is to be kept on: stories as it has read them, or the task's prompts without an answer."""
    if kind == "kl":
        return [tokenizer(e.answer, add_special_tokens=False).input_ids for e in replay_examples(PENALTY_TEXTS)]
    prompts = [e.prompt for e in task_examples(task, "train", PENALTY_TEXTS)]
    return [tokenizer(render(tokenizer, p), add_special_tokens=False).input_ids for p in prompts]


def one_stack(job: dict, runs: Sequence[Run]) -> list[dict]:
    """Train and measure the runs of a job in one stack. Returns a row for every run and remedy."""
    task, method, remedy, device, trial = (job[k] for k in ("task", "method", "remedy", "device", "trial"))
    recipe = RECIPES[task]
    stack = stack_of(task, method, runs, device)
    data, batch, steps = task_examples(task, "train", recipe.examples), recipe.batch_size, recipe.steps
    knob, hooks, kept = job["knob"], {}, {}
    if remedy == "steps":
        steps = round(steps * knob)
    elif remedy == "replay":
        data, batch = data + replay_examples(round(len(data) * knob)), round(batch * (1 + knob))
    steps = 4 if trial else steps
    zero = {n: torch.zeros_like(p) if method == "LoRA" else p.clone() for n, p in stack.parameters.items()}
    if remedy.startswith("kl"):
        hooks["extra_loss"] = Divergence(stack, texts_for(remedy, task, stack.tokenizer))
    elif remedy == "weight decay":
        hooks["after_step"] = decays(stack, [run.knob for run in runs], steps, zero)
    elif remedy == "rate":
        hooks["after_step"] = averages(steps, kept)
    stack.train(data, steps=steps, batch_size=batch, **hooks)
    marks = Marks(task, stack.tokenizer, trial)
    rows = rows_of(task, method, remedy, runs, marks.of(stack))
    if remedy != "rate":
        return rows
    trained = dict(stack.parameters)
    stack.parameters = {**trained, **kept}
    rows += rows_of(task, method, "average of steps", runs, marks.of(stack))
    for factor in KNOBS["scale"][:1] if trial else KNOBS["scale"]:
        stack.parameters = {
            n: p * factor if n.endswith("lora_B") else p if method == "LoRA" else zero[n] + factor * (p - zero[n])
            for n, p in trained.items()
        }
        rows += rows_of(task, method, "scale", [r._replace(knob=factor) for r in runs], marks.of(stack))
    stack.parameters = trained
    return rows + soups(task, method, runs, stack, marks, device)


def one_job(job: dict) -> list[dict]:
    """All rows of a job; from its part's file where an earlier call has written them."""
    file = Path(job["file"])
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    began = time.perf_counter()
    runs = [Run(lr, knob, s) for lr, knob, s in product(job["rates"], job["knobs"], job["seeds"])]
    rows = in_parts(lambda part: one_stack(job, part), runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rows), encoding="utf-8")
    os.replace(partial, file)
    print(f"{file.stem}: {time.perf_counter() - began:.0f} s", flush=True)
    return rows


def jobs_of(work: Path, device: str, trial: bool) -> list[dict]:
    """Every stack that is to be trained, the long ones first."""
    jobs = []
    for task, method in product(TASKS[::-1], METHODS):
        rates, fewer = RATES[task, method], WITH_KNOB[task, method]
        decay = KNOBS["weight decay"] if method == "LoRA" else DECAY_TO_BASE
        kinds: list[tuple[str, float, Sequence[float], Sequence[float]]] = [("rate", 0, rates, (0.0,))]
        kinds += [("replay", k, fewer, (k,)) for k in KNOBS["replay"]]
        kinds += [(kind, 0, fewer, KNOBS[kind]) for kind in ("kl", "kl on prompts")]
        kinds += [("weight decay", 0, fewer, decay)]
        kinds += [("steps", k, rates, (k,)) for k in KNOBS["steps"]]
        for remedy, knob, lrs, knobs in kinds:
            name = "-".join((task, method, remedy, str(knob))).replace(" ", "_")
            jobs.append({
                "task": task, "method": method, "remedy": remedy, "knob": knob, "device": device, "trial": trial,
                "rates": lrs[-1:] if trial else lrs, "knobs": knobs[:1] if trial else knobs,
                "seeds": SELECT if trial else SELECT + REPORT, "file": str(work / f"{name}.json"),
            })  # fmt: skip
    return jobs


# ------------------------------------------------------------------------------------------------------ the record


def settings_of(rows: Sequence[dict]) -> list[dict]:
    """One entry for each setting, its seeds' numbers in lists: what the record holds."""
    found: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda r: (r["task"], r["method"], r["remedy"], r["knob"], r["lr"], r["seed"])):
        key = tuple(row[k] for k in ("task", "method", "remedy", "knob", "lr"))
        one = found.setdefault(key, {**{k: row[k] for k in ("task", "method", "remedy", "knob", "lr")}, "seeds": []})
        one["seeds"].append(row["seed"])
        for name in NUMBERS:
            one.setdefault(name, []).append(row[name])
    return list(found.values())


def best(settings: Sequence[dict], target: float) -> dict | None:
    """Of one task's, method's and remedy's settings: the one that SELECT's seeds would choose, as REPORT's have it.

    Chosen is the lowest mean perplexity of the dev stories among those whose mean exact match on the dev prompts
    reaches `target`; None where none does. The numbers that come back are REPORT's: lists, one number a seed, and the
    mean perplexity.
    """

    def over(setting: dict, name: str, seeds: Sequence[int]) -> list[float]:
        pairs = zip(setting["seeds"], setting[name], strict=True)
        return [float("inf") if v is None else v for s, v in pairs if s in seeds]

    reached = [s for s in settings if statistics.mean(over(s, "dev", SELECT)) >= target]
    if not reached:
        return None
    chosen = min(reached, key=lambda s: statistics.mean(over(s, "stories_dev", SELECT)))
    head = {k: chosen[k] for k in ("task", "method", "remedy", "knob", "lr")}
    found = {name: over(chosen, name, REPORT) for name in ("test", "stories_test", "copying")}
    return head | {"stories_mean": round(statistics.mean(found["stories_test"]), 4)} | found


def record_of(rows: Sequence[dict], device: str, trial: bool) -> dict[str, Any]:
    stack_free = {}
    for task in TASKS:
        model, tokenizer = load_base(torch.float32)
        stack = Ensemble(model.requires_grad_(True), tokenizer, [dict(model.named_parameters())], [0.0], [0],
                         device=device)  # fmt: skip
        stack_free[task] = Marks(task, tokenizer, trial).of(stack)[0]
    settings = settings_of(rows)
    chosen = [
        found
        for task, method, target in product(TASKS, METHODS, (0.95, 0.99))
        for remedy in dict.fromkeys(s["remedy"] for s in settings)
        for found in [
            best([s for s in settings if (s["task"], s["method"], s["remedy"]) == (task, method, remedy)], target)
        ]
        if found
        for found in [{"target": target, **found}]
    ]
    return {
        "what": ("TRIAL, four steps: no result. " if trial else "")
        + f"remedies for forgetting: recipes of style and translation, {DEV} dev and {TEST} test prompts, perplexity "
        f"of held-out stories in windows of 256 tokens ({WINDOWS} dev, {2 * WINDOWS} test), copying of {COPIES} random "
        "texts; settings chosen by the seeds in select, chosen holds what the seeds in report then gave; matrix "
        "products in TF32",
        "tool": "python -m tools.measure_remedies",
        **provenance(device),
        "select": list(SELECT),
        "report": list(REPORT),
        "base": stack_free,
        "chosen": chosen,
        "settings": settings,
    }


def written(record: dict[str, Any]) -> str:
    """The record as JSON with one setting a line."""
    head = {k: v for k, v in record.items() if k not in ("chosen", "settings")}
    text = json.dumps(head, indent=1)[:-2]
    for name in ("chosen", "settings"):
        text += f',\n "{name}": [\n  ' + ",\n  ".join(json.dumps(row) for row in record[name]) + "\n ]"
    return text + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".remedies", help="where finished parts are kept")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=5, help="processes on the card; 0: this one alone")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="give up what isn't done after so long")
    parser.add_argument("--trial", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs = jobs_of(arguments.work, device, arguments.trial)
    rows = [
        row for part in results_of(one_job, jobs, workers=arguments.workers, seconds=arguments.seconds) for row in part
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(written(record_of(rows, device, arguments.trial)), encoding="utf-8")
    print(f"{len(rows)} runs, wrote {arguments.out.name}")


if __name__ == "__main__":
    main()
