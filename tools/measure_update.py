"""Take updates apart, teach made-up facts, and write assets/measurements/update.json, which chapter 17 reads.

    python -m tools.measure_update controls   intruders damped, and changes of equal size (one thread: 10 minutes)
    python -m tools.measure_update facts      made-up facts at several numbers of steps (one thread: 10 minutes)

Every run is written when it is done; one that is in the file is not run again. `--trial` runs four steps of one seed
and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path

import torch

from tools.ensemble import write
from utils.evaluate import spectrum
from utils.evaluate.facts import home_facts, says_a_home
from utils.evaluate.gates import copy_accuracy, held_out_stories
from utils.evaluate.metrics import complete, exact_match, perplexity
from utils.lora import inject, lora_layers
from utils.models import load_base
from utils.tinyworld import task_examples
from utils.train.loop import train
from utils.train.recipes import RECIPES

OUT = Path(__file__).resolve().parents[1] / "assets" / "measurements" / "update.json"
SEEDS = (0, 1, 2, 3, 4)
TIMES = (0.75, 0.5)
PROMPTS, STORIES = 100, 60
FACTS, FACT_STEPS, FACT_RATE = 40, (50, 100, 200, 400), 0.003


def trained(task, seed: int, trial: bool):
    """LoRA by the task's recipe."""
    recipe = RECIPES[task]
    model, tokenizer = load_base()
    torch.manual_seed(seed)
    inject(model, recipe.target_modules, recipe.r, recipe.lora_alpha)
    data = task_examples(task, "train", recipe.examples)
    train(
        model, tokenizer, data, steps=4 if trial else recipe.steps, lr=recipe.lr, batch_size=recipe.batch_size,
        seed=seed, progress=False,
    )  # fmt: skip
    return model, tokenizer


def controls(task, seed: int, trial: bool) -> dict:
    """One adapter, its intruders damped, and the four changes of the same size."""
    model, tokenizer = trained(task, seed, trial)
    base = load_base()[0]
    test, stories = task_examples(task, "test", 6 if trial else PROMPTS), held_out_stories(6 if trial else STORIES)

    def measured(patched) -> dict:
        right, read = exact_match(patched, tokenizer, test), perplexity(patched, tokenizer, stories)
        return {"task": round(right, 3), "stories": round(read, 4)}

    names = list(lora_layers(model))
    before, tuned = spectrum.tuned_weights(base, names), spectrum.tuned_weights(model)
    count = sum(spectrum.intruders(before[n], tuned[n], 0.5) for n in names)
    update = sum((tuned[n] - before[n]).square().sum() for n in names)
    row = {"task_name": task, "seed": seed, "intruders": count, "base": measured(base), "tuned": measured(model)}
    for times in TIMES:
        changed = {n: spectrum.equal_changes(before[n], tuned[n], times) for n in names}
        for kind in next(iter(changed.values())):
            moved = sum((changed[n][kind] - tuned[n]).square().sum() for n in names)
            for n in names:
                base.get_submodule(n).weight.data.copy_(changed[n][kind])
            row.setdefault(str(times), {})[kind] = {"changed": round(float(moved / update), 4), **measured(base)}
    return row


def facts(_, seed: int, trial: bool) -> dict:
    """Made-up facts taught for different numbers of steps, and what is asked afterwards."""
    made = home_facts(FACTS, seed)
    stories = held_out_stories(6 if trial else STORIES)
    row: dict = {"task_name": "facts", "seed": seed, "steps": {}}
    for steps in (0,) + ((2,) if trial else FACT_STEPS):
        model, tokenizer = load_base()
        torch.manual_seed(seed)
        inject(model, "all-linear", 8, 16)
        if steps:
            train(model, tokenizer, made.train, steps=steps, lr=FACT_RATE, batch_size=16, seed=seed, progress=False)
        found = {}
        for kind, examples in made.tests.items():
            answers = [a.strip() for a in complete(model, tokenizer, [e.prompt for e in examples], max_new_tokens=24)]
            if kind == "other way round":
                homes = {e.answer for e in made.tests["as taught"]}
                found[kind] = sum(
                    a in homes and a.endswith(e.prompt[10:-1] + ".") for a, e in zip(answers, examples, strict=True)
                )
            elif kind == "stranger":
                found[kind] = sum(says_a_home(e.prompt, a) for a, e in zip(answers, examples, strict=True))
            else:
                found[kind] = sum(a == e.answer for a, e in zip(answers, examples, strict=True))
                if kind == "new wording":
                    found["new wording, form"] = sum(
                        a.startswith(e.answer.split(" lives ")[0] + " lives ")
                        for a, e in zip(answers, examples, strict=True)
                    ) / len(examples)
            found[kind] /= len(examples)
        found["stories"] = perplexity(model, tokenizer, stories)
        found["copying"] = copy_accuracy(model, tokenizer, n=50)
        row["steps"][str(steps)] = {k: round(v, 4) for k, v in found.items()}
    return row


SECTIONS = {"controls": (controls, ("style", "translation")), "facts": (facts, ("facts",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--trial", action="store_true", help="four steps of one seed, nothing written")
    arguments = parser.parse_args()
    measure, tasks = SECTIONS[arguments.section]
    for seed in SEEDS[:1] if arguments.trial else SEEDS:
        for task in tasks:
            record = json.loads(OUT.read_text()) if OUT.exists() else {}
            rows = record.get(arguments.section, [])
            if not arguments.trial and any((r["task_name"], r["seed"]) == (task, seed) for r in rows):
                continue
            row = measure(task, seed, arguments.trial)
            print(json.dumps(row), flush=True)
            if arguments.trial:
                continue
            record = json.loads(OUT.read_text()) if OUT.exists() else {}
            record |= {
                "what": f"controls: LoRA by the recipes of style and translation, {PROMPTS} prompts, perplexity of "
                f"{STORIES} stories; intruders at 0.5 among {spectrum.LEADING} leading directions damped, and changes "
                f"of the same norm; facts: {FACTS} made-up creatures and their homes, r=8, alpha=16, rate {FACT_RATE}",
                "hardware": f"CPU ({platform.machine()})",
                "torch": torch.__version__,
                "tool": "python -m tools.measure_update",
                "date": datetime.date.today().isoformat(),
                "seeds": list(SEEDS),
            }
            record.setdefault(arguments.section, []).append(row)
            record[arguments.section].sort(key=lambda r: (r["task_name"], r["seed"]))
            write(OUT, record)


if __name__ == "__main__":
    main()
