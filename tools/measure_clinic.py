"""Measure common cures on the clinic's sick runs, and write assets/measurements/clinic.json.

    .venv/bin/python -m tools.measure_clinic [--trial]

Every row is one cure on one failure, on the sentiment task of the tiny model: accuracy and stop rate on held-out
prompts and the loss on their answers, for three seeds. It takes eight minutes on one CPU core. `--trial` does two rows
of ten steps and writes nothing.

Attributes:
    ROWS: (failure, cure, what differs from a healthy run).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.data.labels import batches
from utils.evaluate.diagnose import watched
from utils.evaluate.diagnose_cases import labels_on_everything, without_eos
from utils.evaluate.report import evaluate
from utils.files import replaced_folder
from utils.lora import inject
from utils.models import ASSETS, load_base
from utils.tinyworld import task_examples

ROOT = Path(__file__).resolve().parents[1]


OUT = ASSETS / "measurements" / "clinic.json"
SEEDS = (0, 1, 2)
HEALTHY: dict[str, Any] = {"lr": 6e-3, "steps": 80, "warmup": 10, "clip": 1.0, "r": 8, "targets": "all-linear"}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DIVERGED = {"lr": 0.1, "warmup": 0, "clip": None}
NEARLY = {"lr": 0.02, "warmup": 0, "clip": None}
SMALL = {"targets": ["q_proj", "v_proj"], "steps": 40}

ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("healthy", "none", {}),
    ("diverged", "none", DIVERGED),
    ("diverged", "clipping 0.3", DIVERGED | {"clip": 0.3}),
    ("diverged", "warm-up 20 steps", DIVERGED | {"warmup": 20}),
    ("diverged", "lower rate", DIVERGED | {"lr": 6e-3}),
    ("diverged", "lower rate and warm-up", DIVERGED | {"lr": 6e-3, "warmup": 20}),
    ("diverged", "lower rate and clipping 1", DIVERGED | {"lr": 6e-3, "clip": 1.0}),
    ("diverged", "warm-up 20, clipping 1", DIVERGED | {"warmup": 20, "clip": 1.0}),
    ("diverged", "warm-up, clip, rate / 3", DIVERGED | {"lr": 0.033, "warmup": 20, "clip": 1.0}),
    ("diverged", "warm-up, clip, rate / 10", DIVERGED | {"lr": 0.01, "warmup": 20, "clip": 1.0}),
    ("nearly diverged", "none", NEARLY),
    ("nearly diverged", "clipping 0.3", NEARLY | {"clip": 0.3}),
    ("nearly diverged", "warm-up 20 steps", NEARLY | {"warmup": 20}),
    ("no EOS", "rank 16", {"sick": "eos", "r": 16}),
    ("no EOS", "twice the steps", {"sick": "eos", "steps": 160}),
    ("labels on everything", "none", {"sick": "all"}),
    ("labels on everything", "twice the steps", {"sick": "all", "steps": 160}),
    ("too small", "none", SMALL),
    ("too small", "rank 16", SMALL | {"r": 16}),
    ("too small", "all of attention", SMALL | {"targets": ATTENTION}),
    ("too small", "all linear layers", SMALL | {"targets": "all-linear"}),
    ("too small", "three times the steps", SMALL | {"steps": 120}),
]


def run(settings: dict[str, Any], seed: int, held_out: int = 100) -> dict[str, float]:
    s = HEALTHY | settings
    model, tokenizer = load_base()
    torch.manual_seed(seed)
    inject(model, s["targets"], r=s["r"], lora_alpha=2 * s["r"])
    drawn: Iterator = batches(
        tokenizer, task_examples("sentiment", "train", 4000), steps=s["steps"], batch_size=8, seed=seed
    )
    if s.get("sick") == "eos":
        drawn = (without_eos(b, tokenizer.eos_token_id) for b in drawn)
    elif s.get("sick") == "all":
        drawn = (labels_on_everything(b, tokenizer.pad_token_id) for b in drawn)
    chart = watched(model, drawn, lr=s["lr"], steps=s["steps"], warmup=s["warmup"], max_grad_norm=s["clip"], seed=seed)
    records = [{"instruction": e.prompt, "output": e.answer} for e in task_examples("sentiment", "test", held_out)]
    found = evaluate(model, tokenizer, records)
    return {
        "seed": seed, "exact": round(found.exact, 4), "stops": round(found.stop_rate, 4),
        "answer_loss": round(found.loss, 4), "last_loss": round(sum(chart.losses[-5:]) / 5, 4),
        "peak_loss": round(max(chart.losses), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trial", action="store_true", help="two rows of ten steps; nothing is written")
    if parser.parse_args().trial:
        for failure, cure, settings in ROWS[:2]:
            print(failure, "|", cure, "|", run(settings | {"steps": 10}, 0, held_out=10))
        return
    done = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    rows = []
    for failure, cure, settings in ROWS:
        row = {"failure": failure, "cure": cure, "changes": settings}
        old = next((r for r in done if row.items() <= r.items()), None)
        row["runs"] = old["runs"] if old else [run(settings, seed) for seed in SEEDS]
        rows.append(row)
        print(failure, "|", cure, "|", *[(r["exact"], r["stops"], r["answer_loss"]) for r in row["runs"]])
        sys.stdout.flush()
        if not old:
            save(rows)
    save(rows)


def save(rows: list[dict[str, Any]]) -> None:
    """Write the rows that there are: a run that was cut off goes on where it stopped. Delete the file to begin anew."""
    record = {
        "what": "common cures on the clinic's sick runs: sentiment, tiny model, 100 held-out prompts",
        "tool": "python -m tools.measure_clinic",
        "healthy": HEALTHY,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "versions": {p: version(p) for p in ("torch", "transformers")},
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    with replaced_folder(OUT.parent) as partial:
        (partial / OUT.name).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
