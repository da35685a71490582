"""Many training runs on one frozen base in one stack, and what the two sweeps do with their results.

Runs that differ in their trainable tensors alone are trained together through torch.func.vmap, each as
utils.train.loop.train trains it alone: tests/tools/test_ensemble.py holds them to it. tools/sweep_rank.py makes the
table of ranks and targets so, tools/race_variants.py the race of the variants.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from tqdm import tqdm

from utils.data import chat
from utils.data.chat import Example, padded
from utils.data.labels import batches, encode_rows
from utils.data.records import Record
from utils.evaluate import gates
from utils.lora.layer import injected_layers
from utils.train import loop

Tensors = dict[str, Tensor]
Rows = Sequence[Example | Record]


def _padded(tensor: Tensor | None, shape: torch.Size) -> Tensor:
    """The tensor in the corner of zeros; zeros alone where there is none."""
    whole = torch.zeros(shape)
    if tensor is not None:
        whole[tuple(map(slice, tensor.shape))] = tensor.detach().cpu()
    return whole


def rows_of(examples: Rows | Mapping[int, Rows], seed: int) -> Rows:
    """The rows of a run with this seed."""
    return examples[seed] if isinstance(examples, Mapping) else examples


def scaling_buffers(model: nn.Module) -> list[str]:
    """Turn the scaling of every LoRA layer into a buffer, in place, and return the buffers' names.

    What is a buffer can be another number for each run of a stack: `fixed` says which.
    """
    names = []
    for name, layer in injected_layers(model).items():
        scaling = layer.scaling
        del layer.scaling
        layer.register_buffer("scaling", torch.tensor(scaling))
        names.append(f"{name}.scaling")
    return names


class Ensemble:
    """Runs of one model that differ in their trainable tensors, their learning rate and their seed.

    model: says by requires_grad what is trained, and in which shape. starts: for each run its trainable tensors by
    name. One that is missing or smaller is filled up with zeros; a row of LoRA's A and B that is zero in both has no
    gradient and stays zero, so runs of a lower rank or with fewer targets fit into a stack of the highest rank. rates,
    seeds: one for each run. factors: what the rate of a tensor is multiplied by, by name. fixed: for each run the
    tensors that differ and aren't trained; :func:`scaling_buffers` makes one of each layer's scaling. A run that
    loop.train would end as Diverged is marked in `diverged`, and its tensors are NaN; the others go on.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        starts: Sequence[Mapping[str, Tensor]],
        rates: Sequence[float],
        seeds: Sequence[int],
        *,
        device: str,
        factors: Mapping[str, float] | None = None,
        fixed: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        self.model, self.tokenizer, self.device = model.to(device).eval().requires_grad_(False), tokenizer, device
        self.model.set_attn_implementation("eager")  # which vmap can differentiate
        dtype = next(model.parameters()).dtype

        def stacked(each: list[Tensor]) -> Tensor:
            return torch.stack(each).to(device, dtype)

        self.parameters = {
            n: stacked([_padded(start.get(n), shape) for start in starts]) for n, shape in shapes.items()
        }
        self.fixed = {name: stacked([run[name] for run in fixed]) for name in (fixed[0] if fixed else {})}
        self.seeds, self.count = list(seeds), len(starts)
        rate = torch.tensor(list(rates), device=device, dtype=dtype)
        self.rates = {n: self._each(rate, p) * (factors or {}).get(n, 1.0) for n, p in self.parameters.items()}
        self.diverged = torch.zeros(self.count, dtype=torch.bool, device=device)

    @staticmethod
    def _each(per_run: Tensor, like: Tensor) -> Tensor:
        """One number a run, in a shape that multiplies a stacked tensor."""
        return per_run.view(-1, *[1] * (like.ndim - 1))

    def _logits(self, parameters: Tensors, fixed: Tensors, ids: Tensor, keep: int = 0) -> Tensor:
        """The logits of the last `keep` positions, or of all."""
        # padding is on the right, where a causal model's earlier positions don't see it: no mask is needed
        asked = {"input_ids": ids, "use_cache": False, "logits_to_keep": keep}
        return functional_call(self.model, parameters | fixed, kwargs=asked).logits

    def _stack(self, per_run: Sequence[Tensors]) -> tuple[Tensor, Tensor]:
        length = max(b["input_ids"].shape[1] for b in per_run)
        fill = {"input_ids": 0, "labels": chat.IGNORED}
        ids, labels = (
            torch.stack([F.pad(b[key], (0, length - b[key].shape[1]), value=value) for b in per_run])
            for key, value in fill.items()
        )
        return ids.to(self.device), labels.to(self.device)

    @staticmethod
    def _kept(labels: Tensor) -> int:
        """How many of the last positions have all labels, and the one before the first of them."""
        first = int((labels != chat.IGNORED).flatten(0, -2).any(0).int().argmax())
        return labels.shape[-1] - max(0, first - 1)

    def train(
        self,
        examples: Rows | Mapping[int, Rows],
        *,
        steps: int,
        batch_size: int,
        extra_loss: Callable[[Tensors], Tensor] | None = None,
        after_step: Callable[[int, Tensors, Tensors], None] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Train every run and return the losses (steps, runs).

        `examples` are those of every run, or, by its seed, those of each. `extra_loss` gets one run's tensors;
        `after_step` the step's number and the stacked tensors and gradients.
        """

        def loss_of(
            parameters: Tensors, fixed: Tensors, ids: Tensor, labels: Tensor, keep: int
        ) -> tuple[Tensor, Tensor]:
            logits = self._logits(parameters, fixed, ids, keep)[:, :-1].flatten(0, 1)
            wanted = labels[:, 1 - keep :].flatten()
            each = F.cross_entropy(logits, wanted, ignore_index=chat.IGNORED, reduction="none")
            loss = each.sum() / (wanted != chat.IGNORED).sum()
            return loss if extra_loss is None else loss + extra_loss(parameters), loss.detach()

        step_all = vmap(grad_and_value(loss_of, has_aux=True), (0, 0, 0, 0, None), randomness="error")
        state = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.parameters.items()}
        seeds = sorted(set(self.seeds))
        drawn = [
            batches(self.tokenizer, rows_of(examples, s), steps=steps, batch_size=batch_size, seed=s) for s in seeds
        ]
        bar = tqdm(
            zip(*drawn, strict=True), total=steps, desc=f"{self.count} runs", mininterval=5, disable=not progress
        )
        losses = []
        for step, by_seed in enumerate(bar):
            ids, labels = self._stack([by_seed[seeds.index(seed)] for seed in self.seeds])
            gradients, (total, loss) = step_all(self.parameters, self.fixed, ids, labels, self._kept(labels))
            losses.append(loss)
            norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
            self.diverged |= ~(total.isfinite() & norm.isfinite())
            clip = (loop.MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0).masked_fill(self.diverged, math.nan)
            factor = loop.learning_rate_factor(step, steps)
            for name, p in self.parameters.items():
                g = gradients[name] = gradients[name] * self._each(clip, p)
                mean, square = state[name]
                mean.lerp_(g, 0.1)
                square.mul_(0.999).addcmul_(g, g, value=0.001)
                root = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                p.sub_(self.rates[name] * factor / (1 - 0.9 ** (step + 1)) * mean / root)
            if after_step:
                after_step(step, self.parameters, gradients)
        return torch.stack(losses)

    def exact_match(self, examples: Rows | Mapping[int, Rows], chunk: int = 50) -> list[float]:
        """Each run's share of right answers: greedy decoding gives an answer when every argmax behind it gives it."""
        return self.marks(examples, chunk)[0]

    @torch.no_grad()
    def marks(self, examples: Rows | Mapping[int, Rows], chunk: int = 50) -> tuple[list[float], list[float]]:
        """:meth:`exact_match`, and each run's loss on the answers (nats per token). `examples` as for :meth:`train`."""
        seeds = sorted(set(self.seeds))
        encoded = [list(encode_rows(self.tokenizer, rows_of(examples, seed))) for seed in seeds]
        right, nats, tokens = (torch.zeros(self.count, dtype=torch.float64, device=self.device) for _ in range(3))
        logits = vmap(self._logits, (0, 0, 0, None))
        for start in range(0, len(encoded[0]), chunk):
            by_seed = [padded(rows[start : start + chunk], self.tokenizer.pad_token_id) for rows in encoded]
            ids, labels = self._stack([by_seed[seeds.index(seed)] for seed in self.seeds])
            keep = self._kept(labels)
            said, wanted = logits(self.parameters, self.fixed, ids, keep)[:, :, :-1], labels[:, :, 1 - keep :]
            right += ((said.argmax(-1) == wanted) | (wanted == chat.IGNORED)).all(-1).sum(1)
            each = F.cross_entropy(said.flatten(0, 2), wanted.flatten(), ignore_index=chat.IGNORED, reduction="none")
            nats += each.view(self.count, -1).sum(1)
            tokens += (wanted != chat.IGNORED).flatten(1).sum(1)
        return (right / len(encoded[0])).tolist(), (nats / tokens).tolist()

    @torch.no_grad()
    def perplexity(self, rows: Tensor, chunk: int = 4) -> list[float]:
        """Each run's perplexity on `rows` of token ids (windows, length)."""
        total, logits = torch.zeros(self.count, device=self.device), vmap(self._logits, in_dims=(0, 0, None))
        for part in rows.to(self.device).split(chunk):
            said = logits(self.parameters, self.fixed, part)[:, :, :-1].flatten(1, 2)
            target = part[:, 1:].flatten().expand(self.count, -1)
            total = total + F.cross_entropy(said.transpose(1, 2), target, reduction="none").sum(1)
        return torch.exp(total / (rows.shape[0] * (rows.shape[1] - 1))).tolist()


def story_rows(tokenizer: Any, windows: int, length: int = 256) -> Tensor:
    """Held-out stories, joined by end marks and cut into windows (windows, length)."""
    ids: list[int] = []
    for text in gates.held_out_stories(windows * 4):
        ids += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return torch.tensor(ids[: windows * length]).view(windows, length)


def results_of(
    measure: Callable[[Any], list[dict]], jobs: Sequence[Any], *, workers: int, seconds: float = math.inf
) -> Iterator[list[dict]]:
    """What `measure` gives for each job, as they finish, in `workers` processes (0: in this one, one after another).

    After so many `seconds` the jobs that still run are given up. The error of a job that fails in its process is raised
    when the others are done. Raises BrokenProcessPool at once where a process dies or can't find `measure`.
    """
    deadline, failed = time.monotonic() + seconds, None
    if not workers:
        for job in jobs:
            if time.monotonic() < deadline:
                yield measure(job)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), torch.set_num_threads, (1,))
    try:
        waiting = [pool.submit(measure, job) for job in jobs]
        for done in tqdm(
            as_completed(waiting, None if seconds == math.inf else seconds), "jobs", len(jobs), mininterval=5
        ):
            try:
                yield done.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                failed = failed or error
    except (TimeoutError, GeneratorExit):
        for process in list(pool._processes.values()):  # before Python 3.14 there is no public way to give up what runs
            process.terminate()
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise failed


def in_parts(measure: Callable[[Sequence[Any]], list[dict]], runs: Sequence[Any]) -> list[dict]:
    """What `measure` gives for the runs; where the card's memory isn't enough for all at once, for one half after the
    other.
    """
    try:
        return measure(runs)
    except torch.OutOfMemoryError:
        if len(runs) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(runs) // 2
    return in_parts(measure, runs[:half]) + in_parts(measure, runs[half:])


def provenance(device: str) -> dict[str, Any]:
    """On what, with which versions and when a record was made."""
    import transformers

    return {
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def number(value: float, digits: int) -> float | None:
    """The value, rounded; None where a run went out of bounds."""
    return round(value, digits) if math.isfinite(value) else None


def mean_by_rate(results: Sequence[Mapping[str, Any]], what: str, digits: int) -> dict[str, float | None]:
    """The mean over the seeds of one number, for each learning rate; None where it isn't a number for any seed."""
    found: dict[str, float | None] = {}
    for lr in sorted({r["lr"] for r in results}):
        values = [r[what] for r in results if r["lr"] == lr and r[what] is not None]
        found[str(lr)] = round(statistics.mean(values), digits) if values else None
    return found


def at_best_rate(
    results: Sequence[Mapping[str, Any]], what: str = "dev", lowest: bool = False
) -> list[Mapping[str, Any]]:
    """The results, one a seed, with the learning rate whose mean over the seeds on the dev split is the highest.

    `what` may be another number than the accuracy; `lowest` says that less is better, and None that a run diverged.
    """

    def worth(lr: float) -> float:
        values = [r[what] for r in results if r["lr"] == lr]
        return -math.inf if None in values else statistics.mean(-v if lowest else v for v in values)

    best = max(sorted({r["lr"] for r in results}), key=worth)
    return [r for r in results if r["lr"] == best]


def write(path: Path, content: Any) -> None:
    """Write JSON by way of a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
