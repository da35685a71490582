"""Rank against targets on translation: train every setting with every rate and seed, and write
assets/measurements/rank_sweep.json.

    python -m tools.sweep_rank                 the recorded table (a GPU: some minutes)
    python -m tools.sweep_rank --trial         a few settings for a few steps, on any machine

Each setting's learning rate is chosen on the dev split and its accuracy is reported on the test split, the mean over
three seeds. Runs differ in nothing but their LoRA matrices, so many of them go through the frozen base in one batch
(:class:`Ensemble`); tests/tools/test_sweep_rank.py holds a run of it against utils.train.loop.train.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils import models
from utils.data import chat
from utils.data.chat import Example
from utils.evaluate import gates, metrics
from utils.lora import find_targets
from utils.tinyworld import task_examples
from utils.train import loop

ROOT = Path(__file__).resolve().parents[1]

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
TARGETS = {"q,v": ("q_proj", "v_proj"), "attention": ATTENTION, "MLP": MLP, "all-linear": ATTENTION + MLP}
RANKS = (1, 2, 4, 8, 16)
CONTROLS = {"q,v": 42, "attention": 21, "MLP": 13}
"""The ranks at which these targets have, within 1.3%, the parameters of all-linear at rank 8."""
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


class EnsembleLinear(nn.Module):
    """A frozen linear layer with one LoRA correction for each run; the batch holds the runs' rows one after the
    other.
    """

    def __init__(self, base: nn.Linear, ranks: Sequence[int], on: Sequence[bool]) -> None:
        super().__init__()
        (d_out, d_in), device, widest = base.weight.shape, base.weight.device, max(ranks)
        self.base, self.count = base, len(ranks)
        self.A = nn.Parameter(torch.zeros(self.count, widest, d_in, device=device))
        self.B = nn.Parameter(torch.zeros(self.count, d_out, widest, device=device))
        alive = torch.tensor([[k < r for k in range(widest)] for r in ranks]) & torch.tensor(on)[:, None]
        self.register_buffer(
            "scale", 2.0 * alive[:, None, :].to(device)
        )  # lora_alpha / r = 2 where the run has this row

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(self.count, -1, x.shape[-1])
        delta = (rows @ self.A.mT * self.scale) @ self.B.mT
        return self.base(x) + delta.view(*x.shape[:-1], -1)


class Ensemble:
    """Many LoRA runs on one frozen model, trained together and exactly as utils.train.loop.train trains each alone."""

    def __init__(self, model: nn.Module, runs: Sequence[Run]) -> None:
        self.model, self.runs = model.requires_grad_(False).eval(), list(runs)
        targets = {name: set(find_targets(model, list(modules))) for name, modules in TARGETS.items()}
        self.layers = {}
        for name in find_targets(model, "all-linear"):
            base = model.get_submodule(name)
            self.layers[name] = EnsembleLinear(base, [r.r for r in runs], [name in targets[r.targets] for r in runs])
        for k, run in enumerate(self.runs):
            torch.manual_seed(run.seed)  # the very numbers that utils.lora.inject would draw after this seed
            for name, layer in self.layers.items():
                if name in targets[run.targets]:
                    start = torch.empty(run.r, layer.A.shape[2])
                    nn.init.kaiming_uniform_(start, a=math.sqrt(5))
                    layer.A.data[k, : run.r] = start.to(layer.A.device)
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)
        self.parameters = [p for layer in self.layers.values() for p in (layer.A, layer.B)]

    def remove(self) -> None:
        """Give the model its own layers back."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)

    def _batch(self, per_run: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        length = max(b["input_ids"].shape[1] for b in per_run)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": chat.IGNORED}
        device = self.parameters[0].device
        return {
            key: torch.cat([F.pad(b[key], (0, length - b[key].shape[1]), value=value) for b in per_run]).to(device)
            for key, value in fill.items()
        }

    def train(self, tokenizer, examples: Sequence[Example], *, steps: int, batch_size: int = BATCH) -> Tensor:
        """Train every run and return the losses (steps, runs)."""
        device, count = self.parameters[0].device, len(self.runs)
        rate = torch.tensor([r.lr for r in self.runs], device=device)[:, None, None]
        state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        seeds = sorted({r.seed for r in self.runs})
        drawn = [chat.batches(tokenizer, examples, steps=steps, batch_size=batch_size, seed=s) for s in seeds]
        losses = []
        for step, by_seed in enumerate(
            tqdm(zip(*drawn, strict=True), total=steps, desc=f"{count} runs", mininterval=5)
        ):
            batch = self._batch([by_seed[seeds.index(r.seed)] for r in self.runs])
            labels = batch.pop("labels")[:, 1:]
            logits = self.model(**batch, use_cache=False).logits[:, :-1]
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=chat.IGNORED, reduction="none")
            loss = each.view(count, -1).sum(1) / (labels != chat.IGNORED).view(count, -1).sum(1)
            losses.append(loss.detach())
            gradients = torch.autograd.grad(loss.sum(), self.parameters)
            norm = torch.stack([g.square().sum((1, 2)) for g in gradients]).sum(0).sqrt()
            clip = (loop.MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0)[:, None, None]
            factor = loop.learning_rate_factor(step, steps)
            with torch.no_grad():
                for p, g, (mean, square) in zip(self.parameters, gradients, state, strict=True):
                    g = g * clip
                    mean.lerp_(g, 0.1)
                    square.mul_(0.999).addcmul_(g, g, value=0.001)
                    root = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                    p.sub_(rate * factor / (1 - 0.9 ** (step + 1)) * mean / root)
        return torch.stack(losses)

    @torch.inference_mode()
    def exact_match(self, tokenizer, examples: Sequence[Example], chunk: int = 20) -> list[float]:
        """Each run's share of right answers, teacher-forced: greedy decoding gives an answer when every argmax gives
        it.
        """
        encoded, count = chat.encode(tokenizer, examples), len(self.runs)
        right = torch.zeros(count, device=self.parameters[0].device)
        for start in range(0, len(encoded), chunk):
            one = chat.collate(encoded[start : start + chunk], tokenizer.pad_token_id)
            batch = self._batch([one] * count)
            labels = batch.pop("labels")[:, 1:]
            predicted = self.model(**batch, use_cache=False).logits[:, :-1].argmax(-1)
            right += ((predicted == labels) | (labels == chat.IGNORED)).all(1).view(count, -1).sum(1)
        return (right / len(encoded)).tolist()

    @torch.inference_mode()
    def perplexity(self, rows: Tensor, chunk: int = 4) -> list[float]:
        """Each run's perplexity on `rows` of token ids (windows, length)."""
        count, total = len(self.runs), 0.0
        for part in rows.split(chunk):
            logits = self.model(input_ids=part.repeat(count, 1), use_cache=False).logits[:, :-1]
            target = part[:, 1:].repeat(count, 1)
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            total = total + each.view(count, -1).sum(1)
        return torch.exp(total / (rows.shape[0] * (rows.shape[1] - 1))).tolist()


def story_rows(tokenizer, windows: int = WINDOWS, length: int = 256) -> Tensor:
    """Held-out stories, joined by end marks and cut into windows (windows, length)."""
    ids: list[int] = []
    for text in gates.held_out_stories(windows * 4):
        ids += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return torch.tensor(ids[: windows * length]).view(windows, length)


def lora_results(runs: list[Run], steps: int, device: str, chunk: int) -> list[dict]:
    """Train the runs, `chunk` at a time, and measure each."""
    model, tokenizer = models.load_base()
    model.to(device)
    train, dev, test = (
        task_examples("translation", s, n) for s, n in (("train", TRAIN), ("dev", HELD_OUT), ("test", HELD_OUT))
    )
    rows, results = story_rows(tokenizer).to(device), []
    for start in range(0, len(runs), chunk):
        ensemble = Ensemble(model, runs[start : start + chunk])
        ensemble.train(tokenizer, train, steps=steps)
        measured = (
            ensemble.exact_match(tokenizer, dev),
            ensemble.exact_match(tokenizer, test),
            ensemble.perplexity(rows),
        )
        for run, d, t, p in zip(ensemble.runs, *measured, strict=True):
            results.append(
                {
                    "targets": run.targets,
                    "r": run.r,
                    "lr": run.lr,
                    "seed": run.seed,
                    "dev": d,
                    "test": t,
                    "perplexity": p,
                }
            )
        ensemble.remove()
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
        rows = story_rows(tokenizer).to(device)
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
        by_rate = {lr: [x for x in mine if x["lr"] == lr] for lr in sorted({x["lr"] for x in mine})}

        def mean_by_rate(what: str, digits: int, by_rate: dict = by_rate) -> dict[str, float]:
            return {str(lr): round(statistics.mean(x[what] for x in found), digits) for lr, found in by_rate.items()}

        dev = {lr: statistics.mean(x["dev"] for x in found) for lr, found in by_rate.items()}
        best = max(dev, key=dev.get)
        tests = [x["test"] for x in by_rate[best]]
        rows.append({
            "steps": steps, "targets": targets, "r": r, "parameters": parameters[targets, r], "lr": best,
            "test_mean": round(statistics.mean(tests), 4), "test_by_seed": [round(t, 4) for t in tests],
            "dev_by_lr": {str(lr): round(d, 4) for lr, d in dev.items()},
            "test_by_lr": mean_by_rate("test", 4),
            "perplexity_by_lr": mean_by_rate("perplexity", 3),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunk", type=int, default=138, help="runs that are trained in one batch")
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
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, args.out)
    for row in table:
        setting = f"{row['steps']:4} {row['targets']:17} r={row['r']!s:5} {row['parameters']:9,} lr={row['lr']:<7}"
        print(
            setting,
            f"test {row['test_mean']:.3f} {row['test_by_seed']}",
            f"ppl {row['perplexity_by_lr'][str(row['lr'])]}",
        )


if __name__ == "__main__":
    main()
