"""Chapter 15's study of the tiny model on style, and what its winners are worth; writes assets/measurements/study.json.

    python -m tools.run_study                  the recorded study (16 CPU cores: about 5 minutes)
    python -m tools.run_study --trial          everything in small, on any machine (2 minutes on one core)

Four ways to search (random or TPE, pruned or not), four seeds each, every one with the same number of training steps.
Then runs with seeds that no study has seen, measured on dev and on test: each study's winner, the best five settings of
the first TPE study with pruning, and the course's recipe; the best one and the recipe also for three times the steps.
And LoRA+: three ratios of the rates, each at seven rates.

Each study is a process with one thread, which works exactly as the notebook does (utils/train/study.py). Everything is
kept in --folder as it comes; started again with the same folder, the tool goes on where it was.

Attributes:
    MAIN: The study whose best five settings are trained again.
    RECIPE: The course's recipe for the task; it was made for three times the steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.gpu.record import processor, versions
from utils import models
from utils.files import replaced_folder
from utils.tinyworld import task_examples
from utils.train import study
from utils.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements" / "study.json"
TASK = "style"


class Plan(NamedTuple):
    """The size of everything. `budget` is in trials of full length; new seeds are those of the runs afterwards."""

    steps: int = 60
    report_every: int = 15
    budget: int = 24
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    winner_seeds: tuple[int, ...] = (100, 101, 102, 103)
    top: int = 5
    top_seeds: tuple[int, ...] = (100, 101, 102, 103, 104, 105, 106, 107)
    longer: int = 3
    plus_ratios: tuple[float, ...] = (1, 4, 16)
    plus_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
    plus_seeds: tuple[int, ...] = (100, 101, 102)
    train: int = 1000
    dev: int = 100
    test: int = 200


TRIAL = Plan(6, 2, 3, (0,), (100,), 1, (100,), 3, (1, 16), (4e-3,), (100,), 60, 8, 8)
MAIN = study.Arm("TPE", True, 0)
RECIPE = study.Setting(RECIPES[TASK].r, RECIPES[TASK].lora_alpha / RECIPES[TASK].r, 0.0, RECIPES[TASK].lr, "all-linear")


class Rerun(NamedTuple):
    """One setting with one new seed. b_rate: the rate of lora_B over that of lora_A; times: length, in the study's."""

    setting: study.Setting
    seed: int
    b_rate: float = 1.0
    times: int = 1


_work: study.Work
_test: list


def quiet() -> None:
    """Have Optuna report errors alone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _begin(plan: Plan, device: str) -> None:
    """What a process does first: load the base and the data."""
    global _work, _test
    torch.set_num_threads(1)
    quiet()
    model, tokenizer = models.load_base()
    train, dev, _test = (
        task_examples(TASK, split, n) for split, n in (("train", plan.train), ("dev", plan.dev), ("test", plan.test))
    )
    _work = study.Work(model.to(device), tokenizer, train, dev, plan.steps, plan.report_every)


def _study(job: tuple[study.Arm, Plan, Path]) -> None:
    """Run one study to its budget."""
    arm, plan, folder = job
    one = study.open_study(arm, _journal(folder, arm))
    budget = plan.budget * plan.steps
    study.go_on(one, arm, lambda t: study.objective(t, _work), budget=budget, longest=plan.steps)


def _rerun(job: Rerun) -> tuple[Rerun, list[study.Measured]]:
    """Train one setting with a new seed and measure it on dev and test."""
    try:
        work = dataclasses.replace(_work, steps=job.times * _work.steps)
        return job, work.run(job.setting, seed=job.seed, b_rate=job.b_rate, examine=[work.dev, _test])
    except study.loop.Diverged:
        return job, 2 * [study.Measured(math.inf, 0.0)]


def _any(job: Any) -> Any:
    return _rerun(job) if isinstance(job, Rerun) else _study(job)


def _journal(folder: Path, arm: study.Arm) -> Path:
    return folder / f"{arm.name.replace(', ', '-')}-{arm.seed}.journal"


class Reruns:
    """The finished reruns, kept in a file, a line for each."""

    def __init__(self, file: Path) -> None:
        self.file, self.found = file, {}
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                setting, *rest, measured = json.loads(line)
            except json.JSONDecodeError:  # cut off by an interruption: that run is made again
                continue
            self.found[Rerun(study.Setting(*setting), *rest)] = [study.Measured(*m) for m in measured]

    def add(self, rerun: Rerun, measured: list[study.Measured]) -> None:
        self.found[rerun] = measured
        with self.file.open("a") as file:
            print("\n" + json.dumps([*rerun, measured]), file=file)

    def missing(self, wanted: list[Rerun]) -> list[Rerun]:
        return [rerun for rerun in dict.fromkeys(wanted) if rerun not in self.found]


def by_value(one: Any) -> list[Any]:
    """The trials that ran to their end, the best first."""
    complete = [trial for trial in study.finished(one) if trial.state.name == "COMPLETE"]
    return sorted(complete, key=lambda trial: (trial.value, trial.number))


def by_state(trial: Any) -> str:
    return "diverged" if trial.user_attrs.get("diverged") else trial.state.name.lower()


def trial_row(trial: Any) -> dict[str, Any]:
    """One trial as the record keeps it; `dev_loss` maps the step to what was reported there."""
    setting = study.setting_of(trial.params)
    return {
        "state": by_state(trial),
        "steps": trial.user_attrs["steps"],
        **setting._asdict(),
        "dev_loss": {str(step): rounded(value) for step, value in trial.intermediate_values.items()},
        "dev_exact": trial.user_attrs.get("exact", 0.0),
    }


def rerun_rows(wanted: list[Rerun], found: dict[Rerun, list[study.Measured]]) -> list[dict[str, Any]]:
    """The reruns of one setting as rows of the record."""
    return [
        {
            "seed": rerun.seed,
            **{f"{split}_loss": rounded(m.loss) for split, m in zip(("dev", "test"), found[rerun], strict=True)},
            **{f"{split}_exact": m.exact for split, m in zip(("dev", "test"), found[rerun], strict=True)},
        }
        for rerun in wanted
    ]


def rounded(loss: float) -> float | None:
    """A loss to five digits behind the point; None, which JSON has, for one that isn't finite."""
    return round(loss, 5) if math.isfinite(loss) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the record to write")
    parser.add_argument("--folder", type=Path, required=True, help="where studies in progress are kept")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="the tiny model is as fast on a CPU core as on a GPU")
    parser.add_argument("--trial", action="store_true", help="everything in small")
    arguments = parser.parse_args()
    quiet()
    plan = TRIAL if arguments.trial else Plan()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)

    arms = [study.Arm(s, p, seed) for s, p, seed in product(("random", "TPE"), (False, True), plan.seeds)]
    reruns = Reruns(folder / "reruns.jsonl")
    plus = {
        (ratio, rate): [Rerun(RECIPE._replace(lr=rate), seed, ratio) for seed in plan.plus_seeds]
        for ratio, rate in product(plan.plus_ratios, plan.plus_rates)
    }
    recipe = [Rerun(RECIPE, seed) for seed in plan.top_seeds]

    def finish(pool: Any, jobs: list[Any]) -> None:
        for number, result in enumerate(pool.imap_unordered(_any, jobs), 1):
            if result:
                reruns.add(*result)
            print(f"{number} of {len(jobs)}", flush=True)

    with get_context("spawn").Pool(arguments.workers, _begin, (plan, arguments.device)) as pool:
        wanted = [run for runs in plus.values() for run in runs]
        finish(pool, [(arm, plan, folder) for arm in arms] + reruns.missing(recipe + wanted))
        studies = {arm: study.open_study(arm, _journal(folder, arm)) for arm in arms}

        def settings(arm: study.Arm, count: int) -> list[study.Setting]:
            return [study.setting_of(trial.params) for trial in by_value(studies[arm])[:count]]

        winners = {arm: [Rerun(settings(arm, 1)[0], seed) for seed in plan.winner_seeds] for arm in arms}
        top = [[Rerun(setting, seed) for seed in plan.top_seeds] for setting in settings(MAIN, plan.top)]
        longer = {
            name: [run._replace(times=plan.longer) for run in runs]
            for name, runs in {"top": top[0], "recipe": recipe}.items()
        }
        finish(pool, reruns.missing([run for runs in [*winners.values(), *top, *longer.values()] for run in runs]))
        pool.close()
        pool.join()

    measured_on = {
        "hardware": processor() if arguments.device == "cpu" else torch.cuda.get_device_name(),
        "threads": "one a study",
        "versions": versions() | {"optuna": __import__("optuna").__version__},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    record = {
        "what": f"{TASK}, {plan.steps} steps with batch 8; loss in nats per answer token; exact match: teacher-forced",
        "tool": "python -m tools.run_study",
        **measured_on,
        "plan": plan._asdict(),
        "studies": [
            {
                "sampler": arm.sampler,
                "pruning": arm.pruning,
                "seed": arm.seed,
                "trials": [trial_row(trial) for trial in study.finished(one)],
                "winner": study.finished(one).index(by_value(one)[0]),
                "winner_again": rerun_rows(winners[arm], reruns.found),
            }
            for arm, one in studies.items()
        ],
        "top": [
            {"setting": runs[0].setting._asdict(), "in_the_study": rounded(trial.value)}
            | {"again": rerun_rows(runs, reruns.found)}
            for runs, trial in zip(top, by_value(studies[MAIN]), strict=False)
        ],
        "recipe": {"setting": RECIPE._asdict(), "again": rerun_rows(recipe, reruns.found)},
        "longer": {
            "steps": plan.longer * plan.steps,
            **measured_on,
            **{name: rerun_rows(runs, reruns.found) for name, runs in longer.items()},
        },
        "lora_plus": [
            {"b_rate": ratio, "lr": rate, "again": rerun_rows(runs, reruns.found)}
            for (ratio, rate), runs in plus.items()
        ],
    }
    with replaced_folder(arguments.out.resolve().parent) as scratch:
        (scratch / arguments.out.name).write_text(readable(record))


def readable(record: dict[str, Any]) -> str:
    """The record as JSON with a line for each trial and each rerun."""
    text = json.dumps(record, allow_nan=False)
    rows = ('{"state"', '{"sampler"', '{"seed"', '{"setting"', '{"b_rate"')
    for key in (*rows, '"studies"', '"top"', '"longer"', '"lora_plus"'):
        text = text.replace(f" {key}", f"\n {key}").replace(f"[{key}", f"[\n {key}")
    return text + "\n"


if __name__ == "__main__":
    main()
