"""Train DPO on "tell the moral" at several beta and rates, and record what is preferred, what is told and what is lost.

    python -m tools.measure_dpo                    one thread: 15 minutes

Written to assets/measurements/dpo.json, which chapter 18 reads, after every run; a run that is in the file is not run
again. `--trial` runs two steps of one seed and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path

import torch

from utils.evaluate.gates import held_out_stories
from utils.evaluate.metrics import perplexity
from utils.files import replaced_folder
from utils.lora import inject
from utils.models import load_base
from utils.preferences.dpo import drift, evaluate_pairs, has_moral, moral_pairs, sample, train_dpo

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements" / "dpo.json"
SEEDS = (0, 1, 2)
BETAS, RATES = (0.02, 0.1, 0.5), (0.001, 0.003)
STEPS, BATCH, TRAIN, TEST, REQUESTS, LIMIT, STORIES = 40, 4, 400, 32, 50, 200, 40


def told(model, tokenizer, requests: list[str]) -> tuple[dict, list]:
    """What the model tells when it is sampled: the share with a moral, how many stop by themselves, their length."""
    answers = sample(model, tokenizer, requests, max_new_tokens=LIMIT)
    return {
        "morals": sum(has_moral(a.text) for a in answers) / len(answers),
        "stopped": sum(a.stopped for a in answers) / len(answers),
        "tokens": round(sum(len(a.ids) for a in answers) / len(answers), 1),
    }, answers


def write(record: dict, trial: bool) -> None:
    """Put the record in its place, whole at every moment, unless this is a trial."""
    if not trial:
        with replaced_folder(OUT.parent) as folder:
            (folder / OUT.name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="two steps of one seed, nothing written")
    trial = parser.parse_args().trial
    train_pairs, test_pairs = moral_pairs(TRAIN, "train"), moral_pairs(TEST, "test")
    requests, stories = [p.prompt for p in moral_pairs(REQUESTS, "dev")], held_out_stories(STORIES)
    base, tokenizer = load_base()
    record = {
        "what": f"prefer the story with its moral: {STEPS} steps of {BATCH} pairs, r=8, alpha=16, all-linear; "
        f"{TEST} held-out pairs; {REQUESTS} stories sampled at temperature 1, at most {LIMIT} tokens; drift in nats "
        f"per story; perplexity of {STORIES} held-out stories",
        "hardware": f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "tool": "python -m tools.measure_dpo",
        "date": datetime.date.today().isoformat(),
        "seeds": list(SEEDS),
        "base": {**told(base, tokenizer, requests)[0], "stories": round(perplexity(base, tokenizer, stories), 4)},
        "rows": [] if trial or not OUT.exists() else json.loads(OUT.read_text())["rows"],
    }
    done = {(row["seed"], row["lr"], row["beta"]) for row in record["rows"]}
    for seed in SEEDS[:1] if trial else SEEDS:
        for lr in RATES:
            for beta in BETAS:
                if (seed, lr, beta) in done:
                    continue
                model, _ = load_base()
                torch.manual_seed(seed)
                inject(model, "all-linear", 8, 16)
                history = train_dpo(
                    model, tokenizer, train_pairs, beta=beta, steps=2 if trial else STEPS, lr=lr, batch_size=BATCH,
                    seed=seed, progress=False,
                )  # fmt: skip
                found, answers = told(model, tokenizer, requests)
                held_out = evaluate_pairs(model, tokenizer, test_pairs, beta)
                row = {"beta": beta, "lr": lr, "seed": seed, "first_loss": round(history[0]["loss"], 6), **found}
                row |= {name: round(value, 4) for name, value in held_out.items()}
                row["drift"] = round(drift(model, tokenizer, answers), 2)
                row["stories"] = round(perplexity(model, tokenizer, stories), 4)
                record["rows"].append(row)
                print(row, flush=True)
                write(record, trial)
    write(record, trial)


if __name__ == "__main__":
    main()
