"""Measure what LoRA and full fine-tuning forget while they learn to speak like a pirate, and what an update looks like.

    python -m tools.measure_forgetting rates       learning rates, each update also turned down (one thread: 20 minutes)
    python -m tools.measure_forgetting steps       half the steps (one thread: 3 minutes)
    python -m tools.measure_forgetting replay      with stories of the base's training mixed in (one thread: 5 minutes)

Written to assets/measurements/forgetting.json, which chapter 17 reads, after every run; a run that is in the file is
not run again. `--trial` runs four steps of one seed and writes nothing.

Attributes:
    CHOSEN: The rates at which shorter runs and replay are tried: both forget more than they need to.
    REPLAY_EVERY: Of every five examples in a batch, one is a story, on average; the other four are the task's, as many
        as without.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path

import torch

from utils.evaluate import spectrum
from utils.evaluate.forgetting import interpolated, measure_forgetting, replay_examples, scaled
from utils.evaluate.gates import held_out_stories
from utils.files import replaced_folder
from utils.lora import inject
from utils.models import load_base
from utils.tinyworld import task_examples
from utils.train.loop import train
from utils.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements" / "forgetting.json"
SEEDS = (0, 1, 2)
RECIPE = RECIPES["style"]
RATES = {"LoRA": (0.0015, 0.003, 0.006, 0.012), "full fine-tuning": (0.00025, 0.0005, 0.001, 0.002)}
CHOSEN = {"LoRA": 0.006, "full fine-tuning": 0.001}
FEWER_STEPS = 90
FACTORS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PROMPTS, STORIES, COPIES = 100, 60, 50
REPLAY_EVERY = 5


class Bench:
    """The base, the data, and one run on them."""

    def __init__(self, trial: bool) -> None:
        self.trial = trial
        self.base, self.tokenizer = load_base()
        self.state = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}
        self.data = task_examples("style", "train", RECIPE.examples)
        self.test = task_examples("style", "test", 8 if trial else PROMPTS)
        self.stories = held_out_stories(STORIES)

    def kept(self, model) -> dict:
        found = measure_forgetting(model, self.tokenizer, self.test, self.stories, COPIES)
        return {name: round(value, 4) for name, value in found._asdict().items()}

    def run(self, method: str, lr: float, seed: int, *, steps: int = RECIPE.steps, replay=False, curve=False) -> dict:
        """Train once and measure. Returns what is kept, the intruders, and with `curve` what is kept turned down."""
        model, _ = load_base()
        torch.manual_seed(seed)
        if method == "LoRA":
            names = inject(model, "all-linear", RECIPE.r, RECIPE.lora_alpha)
        else:
            model.requires_grad_(True)
            names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers." in n]
        data, batch = self.data, RECIPE.batch_size
        if replay:
            data = data + replay_examples(len(data) // (REPLAY_EVERY - 1))
            batch = batch * REPLAY_EVERY // (REPLAY_EVERY - 1)
        steps = 4 if self.trial else steps
        train(model, self.tokenizer, data, steps=steps, lr=lr, batch_size=batch, seed=seed, progress=False)
        row = {"method": method, "lr": lr, "steps": steps, "seed": seed, **self.kept(model)}
        base = {name: self.base.get_submodule(name).weight.detach().float() for name in names}
        tuned = spectrum.tuned_weights(model, names)
        updates = [tuned[name] - base[name] for name in names]
        closest = spectrum.all_closest_cosines(base, tuned)
        row["intruders"] = {str(t): int((closest < t).sum()) for t in THRESHOLDS}
        row["stable_rank"] = round(sum(map(spectrum.stable_rank, updates)) / len(updates), 2)
        row["effective_rank"] = round(sum(map(spectrum.effective_rank, updates)) / len(updates), 2)
        if curve:
            row["by_factor"] = {}
            for factor in FACTORS[:1] if self.trial else FACTORS:
                turned = scaled(model, factor) if method == "LoRA" else interpolated(model, self.state, factor)
                with turned:
                    row["by_factor"][str(factor)] = self.kept(model)
        print({k: v for k, v in row.items() if k != "by_factor"}, flush=True)
        return row


SECTIONS = {
    "rates": ([(m, lr) for m, rates in RATES.items() for lr in rates], {"curve": True}),
    "steps": (list(CHOSEN.items()), {"steps": FEWER_STEPS}),
    "replay": (list(CHOSEN.items()), {"replay": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--trial", action="store_true", help="four steps of one seed, nothing written")
    arguments = parser.parse_args()
    bench = Bench(arguments.trial)
    settings, how = SECTIONS[arguments.section]
    if arguments.trial:
        for method, lr in settings:
            bench.run(method, lr, 0, **how)
        return
    record = json.loads(OUT.read_text()) if OUT.exists() else {}
    record |= {
        "what": f"style, {PROMPTS} prompts; perplexity of {STORIES} held-out stories; copying of {COPIES} random "
        f"texts; r=8, alpha=16, all-linear, {RECIPE.steps} steps of {RECIPE.batch_size} unless said; intruders among "
        f"the first {spectrum.LEADING} singular vectors of 28 weights; replay: one story to every four examples",
        "hardware": f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "tool": "python -m tools.measure_forgetting",
        "date": datetime.date.today().isoformat(),
        "seeds": list(SEEDS),
        "base": bench.kept(bench.base),
    }
    rows = record.setdefault(arguments.section, [])
    done = {(row["method"], row["lr"], row["seed"]) for row in rows}
    for method, lr in settings:
        for seed in SEEDS:
            if (method, lr, seed) not in done:
                rows.append(bench.run(method, lr, seed, **how))
                with replaced_folder(OUT.parent) as folder:
                    (folder / OUT.name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
