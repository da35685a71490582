"""Race the variants of LoRA, at equal parameter budgets and each at its own best learning rate, and write
assets/measurements/variants.json.

    python -m tools.race_variants              everything (one H100: five minutes)
    python -m tools.race_variants --trial      few runs of few steps, on any machine
    python -m tools.race_variants --work DIR   keep finished parts there; a second call trains only what they lack

Each entry of utils.train.sweep.ENTRIES learns each task with every rate of its grid and every seed. The rate is chosen
by the mean over the seeds on the dev split; what is reported is the test split at that rate. Runs of one entry and task
differ in their trainable tensors alone, so they are trained together, stacked, through torch.func.vmap
(:class:`Ensemble`); tests/train/test_sweep.py holds such a run against the same run alone. Entries are spread over
processes. At the end, one process alone measures time and memory of a single run of each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Sequence
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from utils import models
from utils.data import chat
from utils.data.chat import Example
from utils.evaluate import gates
from utils.lora import adalora, nf4_linear
from utils.profiling.activations import saved_activation_bytes
from utils.tinyworld import task_examples
from utils.train import loop, sweep

ROOT = Path(__file__).resolve().parents[1]

SEEDS = (0, 1, 2, 3, 4)
HELD_OUT, WINDOWS, WINDOW = 200, 32, 256
CHUNK = {"VeRA r=3630": 15}
"""Runs that are trained in one stack, where a GPU of 80 GB can't hold all of them beside the other processes."""
OUT = ROOT / "assets" / "measurements" / "variants.json"


class Ensemble:
    """Runs of one entry that differ in rate and seed, trained in one stack as sweep.train trains each alone."""

    def __init__(self, entry: sweep.Entry, runs: Sequence[tuple[float, int]], device: str) -> None:
        self.entry, self.runs, self.device = entry, list(runs), device
        by_seed: dict[int, dict[str, Tensor]] = {}
        for seed in sorted({seed for _, seed in self.runs}):
            self.model, self.tokenizer = models.load_base(torch.float32)
            sweep.build(entry, self.model, seed)
            nf4_linear.dequantize(self.model)  # the same numbers, which vmap can differentiate
            by_seed[seed] = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
            by_seed[seed] |= {n: b for n, b in self.model.named_buffers() if ".projection." in n}
        self.model.to(device).eval().requires_grad_(False)
        self.model.set_attn_implementation("eager")
        stacked = {n: torch.stack([by_seed[s][n] for _, s in self.runs]).to(device) for n in by_seed[self.runs[0][1]]}
        self.fixed = {n: t for n, t in stacked.items() if ".projection." in n}
        self.parameters = {n: t for n, t in stacked.items() if n not in self.fixed}

    def _logits(self, parameters: dict[str, Tensor], fixed: dict[str, Tensor], ids: Tensor) -> Tensor:
        # padding is on the right, where a causal model's earlier positions don't see it: no mask is needed
        return functional_call(self.model, parameters | fixed, kwargs={"input_ids": ids, "use_cache": False}).logits

    def _loss(self, parameters: dict, fixed: dict, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(parameters, fixed, ids)[:, :-1].flatten(0, 1)
        wanted = labels[:, 1:].flatten()
        each = F.cross_entropy(logits, wanted, ignore_index=chat.IGNORED, reduction="none")
        loss = each.sum() / (wanted != chat.IGNORED).sum()
        if self.entry.variant == "AdaLoRA":
            return loss + adalora.ORTHOGONALITY_WEIGHT * adalora.orthogonality(parameters), loss.detach()
        return loss, loss.detach()

    def _stack(self, per_run: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        length = max(b["input_ids"].shape[1] for b in per_run)
        fill = {"input_ids": 0, "labels": chat.IGNORED}
        ids, labels = (
            torch.stack([F.pad(b[key], (0, length - b[key].shape[1]), value=value) for b in per_run])
            for key, value in fill.items()
        )
        return ids.to(self.device), labels.to(self.device)

    def _rate(self, name: str, p: Tensor) -> Tensor:
        lr = torch.tensor([lr for lr, _ in self.runs], device=self.device).view(-1, *[1] * (p.ndim - 1))
        return lr * sweep.LORA_PLUS_RATIO if self.entry.variant == "LoRA+" and "lora_B" in name else lr

    def train(self, examples: Sequence[Example], *, steps: int, batch_size: int) -> Tensor:
        """Train every run and return the losses (steps, runs)."""
        step_all = vmap(grad_and_value(self._loss, has_aux=True), randomness="error")
        state = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.parameters.items()}
        rates = {n: self._rate(n, p) for n, p in self.parameters.items()}
        seeds = sorted({seed for _, seed in self.runs})
        drawn = [chat.batches(self.tokenizer, examples, steps=steps, batch_size=batch_size, seed=s) for s in seeds]
        importance, names = adalora.Importance(), {n.rpartition(".")[0] for n in self.parameters}
        losses = []
        for step, by_seed in enumerate(zip(*drawn, strict=True)):
            ids, labels = self._stack([by_seed[seeds.index(seed)] for _, seed in self.runs])
            gradients, (_, loss) = step_all(self.parameters, self.fixed, ids, labels)
            losses.append(loss)
            norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
            clip = (loop.MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0)
            factor = loop.learning_rate_factor(step, steps)
            for name, p in self.parameters.items():
                g = gradients[name] = gradients[name] * clip.view(-1, *[1] * (p.ndim - 1))
                mean, square = state[name]
                mean.lerp_(g, 0.1)
                square.mul_(0.999).addcmul_(g, g, value=0.001)
                root = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                p.sub_(rates[name] * factor / (1 - 0.9 ** (step + 1)) * mean / root)
            if self.entry.variant == "AdaLoRA":
                self._prune(importance, sorted(names), gradients, step, sweep.schedule(self.entry, steps))
        return torch.stack(losses)

    def _prune(self, importance: adalora.Importance, layers: list[str], gradients: dict, step: int, plan) -> None:
        end = plan.total_step - plan.tfinal
        if step < end:
            importance.update(self.parameters, gradients)
        if plan.prunes(step):
            scores = {layer: importance.triplets(layer) for layer in layers}
            self.kept = adalora.survivors(scores, plan.budget(step, len(layers)))
        if plan.masks(step):
            for layer, mask in self.kept.items():
                self.parameters[f"{layer}.lora_E"].masked_fill_(~mask[..., None], 0.0)

    @torch.no_grad()
    def exact_match(self, examples: Sequence[Example], chunk: int = 50) -> list[float]:
        """Each run's share of right answers: greedy decoding gives an answer when every argmax behind it gives it."""
        encoded, right = chat.encode(self.tokenizer, examples), torch.zeros(len(self.runs), device=self.device)
        logits = vmap(self._logits, in_dims=(0, 0, None))
        for start in range(0, len(encoded), chunk):
            one = chat.collate(encoded[start : start + chunk], self.tokenizer.pad_token_id)
            labels = one["labels"][:, 1:].to(self.device)
            predicted = logits(self.parameters, self.fixed, one["input_ids"].to(self.device))[:, :, :-1].argmax(-1)
            right += ((predicted == labels) | (labels == chat.IGNORED)).all(-1).sum(1)
        return (right / len(encoded)).tolist()

    @torch.no_grad()
    def perplexity(self, rows: Tensor, chunk: int = 4) -> list[float]:
        """Each run's perplexity on `rows` of token ids (windows, length)."""
        total, logits = torch.zeros(len(self.runs), device=self.device), vmap(self._logits, in_dims=(0, 0, None))
        for part in rows.to(self.device).split(chunk):
            said = logits(self.parameters, self.fixed, part)[:, :, :-1].flatten(1, 2)
            target = part[:, 1:].flatten().expand(len(self.runs), -1)
            total += F.cross_entropy(said.transpose(1, 2), target, reduction="none").sum(1)
        return torch.exp(total / (rows.shape[0] * (rows.shape[1] - 1))).tolist()


def story_rows(tokenizer: Any) -> Tensor:
    """Held-out stories, joined by end marks and cut into windows (windows, length)."""
    ids: list[int] = []
    for text in gates.held_out_stories(WINDOWS * 4):
        ids += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


def number(value: float, digits: int) -> float | None:
    """The value, rounded; None where a run went out of bounds."""
    return round(value, digits) if math.isfinite(value) else None


def done_already(job: dict) -> list[dict]:
    """The runs of a part that an earlier call finished, as far as this one wants them."""
    file = Path(job["file"])
    if not file.exists():
        return []
    part = json.loads(file.read_text(encoding="utf-8"))
    if part["steps"] != job["steps"]:
        return []
    return [r for r in part["runs"] if r["lr"] in job["rates"] and r["seed"] in job["seeds"]]


def one_part(job: dict) -> str:
    """Train and measure all runs of an entry on a task, and write them to the part's file."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*performance drop.*")
    name, task, device = job["entry"], job["task"], job["device"]
    entry, course = sweep.ENTRIES[name], sweep.COURSES[task]
    train, dev, test = (
        task_examples(task, s, n)
        for s, n in (("train", course.examples), ("dev", job["held_out"]), ("test", job["held_out"]))
    )
    results = done_already(job)
    there = {(r["lr"], r["seed"]) for r in results}
    runs = [run for run in product(job["rates"], job["seeds"]) if run not in there]
    began = time.perf_counter()
    size = CHUNK.get(name, len(runs))
    for start in range(0, len(runs), size):
        stack = Ensemble(entry, runs[start : start + size], device)
        losses = stack.train(train, steps=job["steps"], batch_size=course.batch_size)
        last = losses[-20:].mean(0).tolist()
        marks = stack.exact_match(dev), stack.exact_match(test), stack.perplexity(story_rows(stack.tokenizer))
        for (lr, seed), loss, d, t, p in zip(stack.runs, last, *marks, strict=True):
            results.append({
                "lr": lr, "seed": seed, "dev": number(d, 4), "test": number(t, 4), "loss": number(loss, 4),
                "perplexity": number(p, 3),
            })  # fmt: skip
    results.sort(key=lambda r: (r["lr"], r["seed"]))
    part = {"entry": name, "task": task, "steps": job["steps"], "rates": job["rates"], "seeds": job["seeds"],
            "device": device, "runs": results}  # fmt: skip
    write(Path(job["file"]), part)
    return f"{name}, {task}: {time.perf_counter() - began:.0f} s"


def write(path: Path, content: dict) -> None:
    """Write JSON by way of a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def summarize(part: dict) -> dict:
    """The rate that was best on dev, and the test split there: mean, spread (standard deviation) and every seed."""
    by_rate = {lr: [r for r in part["runs"] if r["lr"] == lr] for lr in part["rates"]}
    dev = {lr: statistics.mean(r["dev"] for r in found) for lr, found in by_rate.items()}
    best = max(dev, key=dev.get)
    tests = [r["test"] for r in by_rate[best]]
    stories = [r["perplexity"] for r in by_rate[best] if r["perplexity"] is not None]
    return {
        "entry": part["entry"], "task": part["task"], "steps": part["steps"], "lr": best,
        "lr_at_the_grids_edge": best in (part["rates"][0], part["rates"][-1]),
        "test_mean": round(statistics.mean(tests), 4),
        "test_spread": round(statistics.stdev(tests), 4) if len(tests) > 1 else None,
        "test_by_seed": tests, "perplexity": round(statistics.mean(stories), 3) if stories else None,
        "dev_by_lr": {str(lr): round(value, 4) for lr, value in dev.items()},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- time and memory


class Timed:
    """One entry's model on one device, ready to take training steps on a batch of translation."""

    def __init__(self, name: str, device: str) -> None:
        entry, course = sweep.ENTRIES[name], sweep.COURSES["translation"]
        self.device, self.name = device, name
        self.model, tokenizer = models.load_base(torch.float32)
        sweep.build(entry, self.model, 0)
        self.model.to(device).train()
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-4)
        examples = task_examples("translation", "train", 200)
        batch = next(chat.batches(tokenizer, examples, steps=1, batch_size=course.batch_size, seed=0))
        self.batch = {key: value.to(device) for key, value in batch.items()}
        self.allocator, self.parameters, self.count = None, dict(self.model.named_parameters()), 0
        if entry.variant == "AdaLoRA":  # prunes from the first step on, as often as in the race
            self.allocator = adalora.RankAllocator(self.model, sweep.schedule(entry, 900)._replace(tinit=0))

    def loss(self) -> Tensor:
        loss = self.model(**self.batch).loss
        if self.allocator:
            loss = loss + adalora.ORTHOGONALITY_WEIGHT * adalora.orthogonality(self.parameters)
        return loss

    def step(self) -> float:
        """Take a step and return its milliseconds."""
        began = time.perf_counter()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.trainable, loop.MAX_GRAD_NORM)
        self.optimizer.step()
        if self.allocator:
            self.allocator.step(self.count)
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.count += 1
        return 1000 * (time.perf_counter() - began)

    def memory(self) -> dict[str, int]:
        """Trainable parameters, and the bytes of weights, optimizer state and what autograd keeps."""
        kept = {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}.values()
        state = [t for s in self.optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.ndim]
        return {
            "trainable": sum(p.numel() for p in self.trainable), "bytes_of_weights": sum(t.nbytes for t in kept),
            "bytes_of_optimizer_state": sum(t.nbytes for t in state),
            "bytes_of_saved_activations": saved_activation_bytes(self.model, self.loss),
        }  # fmt: skip


def costs(names: Sequence[str], device: str, rounds: int, steps: int) -> dict[str, dict]:
    """Memory, and milliseconds a step: the entries take turns, and each one's fastest round (its median) counts, so
    that a disturbance doesn't fall on one of them.
    """
    timed = [Timed(name, device) for name in names]
    for one in timed:
        for _ in range(2):
            one.step()
    medians: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for one in timed:
            few = 1 if device == "cpu" and one.name == "VeRA r=3630" else steps
            medians[one.name].append(statistics.median(one.step() for _ in range(few)))
    return {
        one.name: one.memory()
        | {"ms_per_step": round(min(medians[one.name]), 2), "ms_by_round": [round(m, 2) for m in medians[one.name]]}
        for one in timed
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=6, help="processes that train")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--entries", nargs="+", choices=sweep.ENTRIES, default=list(sweep.ENTRIES))
    parser.add_argument("--work", type=Path, default=ROOT / "assets" / "measurements" / ".variants")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--trial", action="store_true", help="few entries, rates, seeds and steps")
    args = parser.parse_args()
    jobs = []
    for name, (task, course) in product(args.entries, sweep.COURSES.items()):
        rates, seeds, steps, held_out = sweep.ENTRIES[name].rates, SEEDS[: args.seeds], course.steps, HELD_OUT
        if args.trial:
            rates, seeds, steps, held_out = rates[1:3], SEEDS[:2], 12, 10
        file = args.work / f"{name.replace(' ', '_').replace('=', '')}-{task}.json"
        job = {"entry": name, "task": task, "rates": list(rates), "seeds": list(seeds), "steps": steps,
               "held_out": held_out, "device": args.device, "file": str(file)}  # fmt: skip
        jobs.append(job)

    def finished(job: dict) -> bool:
        return len(done_already(job)) == len(job["rates"]) * len(job["seeds"])

    waiting = [job for job in jobs if not finished(job)]
    print(f"{len(jobs)} parts, {len(jobs) - len(waiting)} of them done", flush=True)
    slow = {"VeRA r=3630": 0, "full fine-tuning": 1, "DoRA": 2, "AdaLoRA": 3}
    waiting.sort(key=lambda job: (job["task"] != "translation", slow.get(job["entry"], 9)))
    if waiting:
        with get_context("spawn").Pool(min(args.workers, len(waiting)), maxtasksperchild=None) as pool:
            for line in pool.imap_unordered(one_part, waiting):
                print(line, flush=True)
    torch.set_num_threads(1)
    rounds, steps = (1, 2) if args.trial else (5, 8)
    cost = {device: costs(args.entries, device, rounds, steps if device == "cuda" else 3)
            for device in dict.fromkeys(("cpu", args.device))}  # fmt: skip
    for device, of in cost.items():
        print(device, {name: c["ms_per_step"] for name, c in of.items()}, "ms a step", flush=True)
    import transformers

    parts = [json.loads(Path(job["file"]).read_text(encoding="utf-8")) for job in jobs]
    record = {
        "what": "the variants of LoRA on all linear layers of the tiny base, exact match on 200 test prompts; the rate "
        "chosen on 200 dev prompts by the mean over the seeds; perplexity of held-out stories with the adapter on",
        "tool": "tools/race_variants.py", "date": datetime.date.today().isoformat(),
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else "CPU", "cpu": platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__, "seeds": list(SEEDS[: args.seeds]),
        "entries": {n: {"variant": sweep.ENTRIES[n].variant, "r": sweep.ENTRIES[n].r} for n in args.entries},
        "costs": cost, "results": [summarize(part) for part in parts], "parts": parts,
    }  # fmt: skip
    write(args.out, record)
    for row in record["results"]:
        print(f"{row['entry']:17} {row['task']:12} lr={row['lr']:<8} test {row['test_mean']:.3f} "
              f"+- {row['test_spread']} {row['test_by_seed']} ppl {row['perplexity']}"
              f"{'  EDGE' if row['lr_at_the_grids_edge'] else ''}")  # fmt: skip


if __name__ == "__main__":
    main()
