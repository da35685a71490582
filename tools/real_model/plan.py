"""What each section trains, for either model.

Attributes:
    PLANS: By model. The tiny model's rates are those of its own records.
    AIM: The accuracy at which settings are best told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

from tools.sweep_rank import CONTROLS, FULL, RULES, TARGETS, Run
from utils.tinyworld import TASKS
from utils.tinyworld.verified import VERIFIED

Job = dict[str, Any]


class Plan(NamedTuple):
    """A model's settings. The learning rates are grids, each twice the one before.

    tokens: in one step of a stack at the most. steps: of each task. short: of the sections that compare settings, where
    nothing may be at 100%, as an earlier pilot found it; :func:`calibrated` takes it from the section `pilot`, which
    tries `lengths`, where `work` has that. held_out:
    prompts of dev, and of test.
    """

    profile: str
    rates: tuple[float, ...]
    full_rates: tuple[float, ...]
    steps: dict[str, int]
    short: dict[str, int]
    lengths: dict[str, tuple[int, ...]]
    batch: int
    tokens: int
    held_out: int
    general: str


def _grid(first: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{first * 2**i:.3g}") for i in range(count))


PLANS = {
    "tiny": Plan(
        "tiny", _grid(1e-3, 6), _grid(2.5e-4, 5), dict.fromkeys(TASKS, 200) | {"translation": 400},
        {"translation": 300, "style": 60}, {"translation": (150, 300, 600), "style": (20, 40, 80)},
        batch=16, tokens=30_000, held_out=200, general="stories",
    ),
    "small": Plan(
        "small", _grid(2.5e-4, 6), _grid(2.4e-5, 6), dict.fromkeys((*TASKS, *VERIFIED), 120) | {"style": 60},
        {"translation": 80, "style": 40}, {"translation": (20, 40, 80), "style": (20, 40, 80)},
        batch=8, tokens=12_000, held_out=100, general="topics",
    ),
}  # fmt: skip
AIM = 0.8


def calibrated(plan: Plan, pilot_rows: Sequence[Job]) -> Plan:
    """The plan with `short` as the pilot found it: of each task the number of steps after which the best rate's
    exact match on dev is the nearest to AIM. A task without rows, or whose runs all stand nearer to 0 than to AIM,
    keeps its own: no length of the pilot tells its settings apart.
    """
    short = dict(plan.short)
    for task in short:
        best: dict[int, float] = {}
        for row in pilot_rows:
            if row["task"] == task and row["dev"] is not None:
                best[row["steps"]] = max(best.get(row["steps"], 0.0), row["dev"])
        if max(best.values(), default=0.0) > AIM / 2:
            short[task] = min(sorted(best), key=lambda steps: abs(best[steps] - AIM))
    return plan._replace(short=short)


TRIAL = {"rates": 1, "seeds": 2, "steps": 4, "held_out": 4, "windows": 2}

SEEDS = (0, 1, 2)
SEEDS_5 = (0, 1, 2, 3, 4)


def _stack(section: str, name: str, runs: Sequence[Run], task: str, plan: Plan, **more: Any) -> Job:
    return {
        "section": section, "name": name, "kind": "sweep", "runs": [list(r.__dict__.values()) for r in runs],
        "task": task, "batch": plan.batch, "steps": plan.steps[task], **more,
    }  # fmt: skip


def tasks(plan: Plan) -> list[Job]:
    """Every task with LoRA and with full fine-tuning, and what the base says to it without either."""
    jobs = []
    for task in plan.steps:
        lora = [Run("all-linear", 16, lr, seed) for lr, seed in product(plan.rates[1:-1], SEEDS)]
        full = [Run(FULL, None, lr, seed) for lr, seed in product(plan.full_rates[1:], SEEDS)]
        jobs.append({"section": "tasks", "name": f"base-{task}", "kind": "base", "task": task})
        jobs += [_stack("tasks", f"lora-{task}", lora, task, plan), _stack("tasks", f"full-{task}", full, task, plan)]
    return jobs


def pilot(plan: Plan) -> list[Job]:
    """One seed, every rate, some lengths: after how many steps a task is neither begun nor done."""
    runs = [Run("all-linear", 16, lr, 0) for lr in plan.rates]
    return [
        _stack("pilot", f"{task}-{steps}", runs, task, plan, steps=steps)
        for task in plan.short
        for steps in plan.lengths[task]
    ]


def _above(rates: Sequence[float], more: int) -> list[float]:
    """So many rates above the highest, each twice the one before."""
    return [rates[-1] * 2**i for i in range(1, more + 1)]


def _wider(plan: Plan, first: int, more: int) -> list[float]:
    """The learning rates from the one at `first` on, and `more` above the highest."""
    return [*plan.rates[first:], *_above(plan.rates, more)]


def _by_rank(section: str, name: str, runs: Sequence[Run], plan: Plan, steps: int) -> list[Job]:
    """Runs of several ranks: one job of the model that costs little, of the other a job for each rank."""
    runs = sorted(runs, key=lambda run: run.r or 0)
    if plan.profile == "tiny":
        return [_stack(section, name, runs, "translation", plan, steps=steps)]
    return [
        _stack(section, f"{name}-{r}", [run for run in runs if run.r == r], "translation", plan, steps=steps)
        for r in dict.fromkeys(run.r for run in runs)
    ]


def ranks(plan: Plan) -> list[Job]:
    """Five ranks, four targets, and three targets at the parameters of all linear layers with r=8."""
    settings = [*product(TARGETS, (1, 2, 4, 8, 16)), *CONTROLS.items()]
    rates = plan.rates[1:] if plan.profile == "tiny" else _wider(plan, 3, 2)
    runs = [Run(targets, r, lr, seed) for (targets, r), lr, seed in product(settings, rates, SEEDS)]
    full = [Run(FULL, None, lr, seed) for lr, seed in product(plan.full_rates, SEEDS)]
    steps = plan.short["translation"]
    return [
        *_by_rank("ranks", "lora", runs, plan, steps),
        _stack("ranks", "full", full, "translation", plan, steps=steps),
    ]


def rules(plan: Plan) -> list[Job]:
    """The best learning rate against the rank, with alpha = 2r and with alpha = 32 at every rank."""
    settings = dict.fromkeys((r, rule(r)) for r, rule in product((1, 4, 16, 64), RULES.values()))
    wider = (
        *([plan.rates[0] / 2, plan.rates[0]] if plan.profile == "tiny" else []),
        *plan.rates[1:],
        2 * plan.rates[-1],
    )
    seeds = SEEDS if plan.profile == "tiny" else SEEDS_5
    runs = [Run("all-linear", r, lr, seed, alpha) for (r, alpha), lr, seed in product(settings, wider, seeds)]
    return _by_rank("rules", "all", runs, plan, plan.short["translation"])


def batch(plan: Plan) -> list[Job]:
    """A small batch and larger ones, up to 16 or 64 times, the number of examples held equal. The model that costs more
    has two higher rates at its large batch, where the best of the others was the highest.
    """
    tiny, jobs = plan.profile == "tiny", []
    sizes, examples, lowest = ((4, 16, 64, 256), 5120, 1) if tiny else ((8, 128), 2048, 2)

    def both(size: int, more: str, rates: Sequence[float], full_rates: Sequence[float]) -> None:
        lora = [Run("all-linear", 64, lr, seed, 32) for lr, seed in product(rates, SEEDS)]
        full = [Run(FULL, None, lr, seed) for lr, seed in product(full_rates, SEEDS)]
        for name, runs in (("lora", lora), ("full", full)):
            named = f"{name}-{size}{more}"
            jobs.append(_stack("batch", named, runs, "translation", plan, steps=examples // size, batch=size))

    for size in sizes:
        both(size, "", plan.rates[lowest:], plan.full_rates[lowest:])
    if not tiny:
        both(sizes[-1], "-higher", _above(plan.rates, 2), _above(plan.full_rates, 2))
    return jobs


REMEDIES: dict[str, tuple[float, ...]] = {
    "rate": (0.0,), "replay": (0.25, 1.0), "kl": (0.1, 0.5, 2.0), "weight decay": (0.1, 1.0, 3.0), "steps": (0.5,),
}  # fmt: skip
FEWER = {"rate": (0.0,), "replay": (1.0,), "kl": (0.5, 2.0), "weight decay": (1.0, 3.0)}  # for the one that costs more
OWN_ANSWERS = {"kl on answers": (0.5, 2.0)}  # of that one, and on a task that takes little
FULL_REMEDIES = {"rate": (0.0,), "replay": (1.0,)}


def remedies(plan: Plan) -> list[Job]:
    """What keeps the general text and the questions while two tasks are learned: LoRA and, of two remedies, full
    fine-tuning; and what the base has of both.
    """
    tiny = plan.profile == "tiny"
    jobs: list[Job] = [{"section": "remedies", "name": "base", "kind": "before"}]
    for task, method in product(("style", "translation"), ("lora", "full")):
        kinds = FULL_REMEDIES if method == "full" else REMEDIES if tiny else FEWER
        if (task, method, tiny) == ("style", "lora", False):
            kinds = kinds | OWN_ANSWERS
        for remedy, knob in ((remedy, knob) for remedy, knobs in kinds.items() for knob in knobs):
            for more, rates in _rates_of(plan, task, method, remedy).items():
                runs = [
                    Run("all-linear" if method == "lora" else FULL, 8 if method == "lora" else None, lr, seed)
                    for lr, seed in product(rates, SEEDS)
                ]
                steps = round(plan.steps[task] * (knob if remedy == "steps" else 1))
                name = f"{task}-{method}-{remedy}-{knob:g}{more}"
                about = {"steps": steps, "remedy": remedy, "knob": knob, "kind": "remedy"}
                jobs.append(_stack("remedies", name, runs, task, plan, **about))
    return jobs


def _rates_of(plan: Plan, task: str, method: str, remedy: str) -> dict[str, Sequence[float]]:
    """The learning rates that a remedy is tried with, by what is added to the job's name.

    The model that costs more has a job for each rate of full fine-tuning, and two higher rates where translation's best
    was the highest.
    """
    tiny, own = plan.profile == "tiny", remedy in ("rate", "steps")
    every = plan.rates if method == "lora" else plan.full_rates
    if tiny:
        return {"": every[:-1] if own else every[1:4]}
    if method == "full":
        rates = every[:-1] if task == "style" else every
        near = slice(1, 3) if task == "style" else slice(3, 6)
        return {f"-{lr:g}": [lr] for lr in (rates if own else every[near])}
    if task == "style":
        return {"": every[:-1] if own else every[1:3]}
    higher = {"-higher": [every[-1], *_above(every, 1)]} if remedy in ("rate", "replay") else {}
    return {"": every[:-1] if own else every[3:5], **higher}


def formats(plan: Plan) -> list[Job]:
    """The base in 4 and in 8 bits: what it predicts, and what LoRA learns on it."""
    tiny, jobs = plan.profile == "tiny", []
    rates = plan.rates[1:-1] if tiny else _wider(plan, 2, 1)
    seeds = {"": SEEDS} if tiny else {"": SEEDS, "-more": SEEDS_5[3:]}  # three left most of it open
    for (more, some), form, task in product(seeds.items(), ("bf16", "int8", "nf4", "mxfp4", "nvfp4"), plan.short):
        runs = [Run("all-linear", 16, lr, seed) for lr, seed in product(rates, some)]
        about = {"steps": plan.short[task], "form": form, "kind": "form"}
        jobs.append(_stack("formats", f"{form}-{task}{more}", runs, task, plan, **about))
    return jobs


def updates(plan: Plan) -> list[Job]:
    """What full fine-tuning changed, cut to a rank; and the intruders of both methods."""
    return [
        {
            "section": "updates", "name": f"{method}-{task}", "kind": "update", "task": task, "method": method,
            "steps": plan.steps[task], "batch": plan.batch,
            "rates": list(plan.rates[1:] if method == "lora" else plan.full_rates[1:]),
            "seeds": list(SEEDS_5 if (plan.profile, task, method) == ("small", "translation", "full") else SEEDS),
        }
        for task, method in product(("style", "translation"), ("lora", "full"))
    ]  # fmt: skip


def combining(plan: Plan) -> list[Job]:
    """Two adapters in one: how much of each task is left, by the way of combining."""
    return [{
        "section": "combining", "name": "style+translation", "kind": "combine", "tasks": ["style", "translation"],
        "batch": plan.batch, "rates": list(plan.rates), "steps": [plan.steps["style"], plan.steps["translation"]],
        "seeds": list(SEEDS_5),
    }]  # fmt: skip


def overfitting(plan: Plan) -> list[Job]:
    """Few examples, many epochs: the loss and the accuracy on dev, by epoch."""
    jobs = []
    for task in plan.short if plan.profile == "tiny" else ["translation"]:
        runs = [Run("all-linear", 16, lr, seed) for lr, seed in product(plan.rates[2:5], SEEDS_5)]
        jobs.append(
            _stack("overfitting", task, runs, task, plan, kind="overfit", train=64, epochs=[1, 2, 4, 8, 16, 32])
        )
    return jobs


def capacity(plan: Plan) -> list[Job]:
    """Random strings learned by heart, by rank."""
    tiny = plan.profile == "tiny"
    by_strings: dict[int, list[Run]] = {}
    for r, strings in product((1, 2), (32, 64, 128)) if tiny else ((1, 512), (1, 1024)):
        by_strings.setdefault(r * strings if tiny else strings, []).extend(
            Run("all-linear", r, lr, seed) for lr, seed in product(plan.rates[3:5] if tiny else plan.rates[2:], (0, 1))
        )
    steps = 2000 if tiny else 800
    return [
        {"section": "capacity", "name": str(strings), "kind": "strings", "strings": strings, "steps": steps,
         "runs": [list(run.__dict__.values()) for run in runs]}
        for strings, runs in by_strings.items()
    ]  # fmt: skip


def variants(plan: Plan) -> list[Job]:
    """Six variants, each with its own learning rates; chosen by three seeds, reported on five others."""
    middle = {"LoRA": 1, "DoRA": 1, "rsLoRA": 0.7, "LoRA+": 0.35, "PiSSA": 1, "VeRA r=256": 23}
    low, which = plan.rates[0], range(6) if plan.profile == "tiny" else range(2, 8)
    return [
        {"section": "variants", "name": f"{name}-{task}", "kind": "variant", "entry": name, "task": task,
         "steps": plan.short[task], "batch": plan.batch, "rates": [float(f"{low * k * 2**i:.2g}") for i in which],
         "choose": list(SEEDS), "report": [10, 11, 12, 13, 14]}
        for task in plan.short for name, k in middle.items()
    ]  # fmt: skip


def merging(plan: Plan) -> list[Job]:
    """An adapter trained beside the base in NF4, put into service in several ways."""
    return [
        {"section": "merging", "name": f"style-{steps}-{seed}", "kind": "merge", "task": "style", "steps": steps,
         "seed": seed, "lr": 4e-3 if plan.profile == "tiny" else 1e-3}
        for steps, seed in product((60, 180) if plan.profile == "tiny" else (20, 80), SEEDS)
    ]  # fmt: skip


SECTIONS: dict[str, Callable[[Plan], list[Job]]] = {
    f.__name__: f
    for f in (
        pilot, rules, ranks, formats, combining, merging, overfitting, tasks, updates, variants, remedies, capacity,
        batch,
    )
}  # fmt: skip
