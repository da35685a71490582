"""How a job of the plan is trained and measured: one function for each kind, from a job to its rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tools import measure_capacity, measure_merging, race_variants
from tools.ensemble import Ensemble, in_parts, number, story_rows
from tools.measure_remedies import Divergence, averages, decays
from tools.real_model import general
from tools.real_model.plan import TRIAL, Job, Plan
from tools.sweep_rank import FULL, Run, stack_of
from utils import models
from utils.data.chat import Example, render
from utils.evaluate import metrics
from utils.evaluate.forgetting import replay_examples
from utils.evaluate.spectrum import closest_cosines
from utils.lora import combine, find_targets
from utils.lora.combine import Factors
from utils.quant import absmax, nf4, small_floats
from utils.tinyworld import task_examples
from utils.tinyworld.verified import VERIFIED, check, verified_examples
from utils.train import sweep

CUT_TO = (1, 2, 4, 8, 16, 32, 64)
FACTORS = (0.5, 0.7, 0.8, 0.9)
INTRUDER_BLOCKS = 5


class Bench:
    """One model's data and machine, for all jobs of a process."""

    def __init__(self, plan: Plan, device: str, trial: bool) -> None:
        self.plan, self.device, self.trial = plan, device, trial
        self.held_out = TRIAL["held_out"] if trial else plan.held_out
        self.windows = TRIAL["windows"] if trial else 24

    def rows(self, task: str, split: Any, n: int | None = None) -> list[Example]:
        """A task's examples: the tiny world's, or those of a task with a checker."""
        make: Callable = verified_examples if task in VERIFIED else task_examples
        return make(task, split, n or (32 if self.trial else 4000) if split == "train" else n or self.held_out)

    def general(self, tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Windows of general text, to choose by and to report."""
        length = 64 if self.trial else 256
        if self.plan.general == "stories":
            found = story_rows(tokenizer, 2 * self.windows, length)
        else:
            found = general.general_rows(tokenizer, 2 * self.windows, length)
        return found[: self.windows], found[self.windows :]

    def few(self, runs: Sequence[Run]) -> list[Run]:
        """In a trial the runs of one rate and two seeds of the first settings."""
        if not self.trial:
            return list(runs)
        first = {(run.targets, run.r): run.lr for run in reversed(runs)}
        return [r for r in runs if r.lr == first[r.targets, r.r] and r.seed < TRIAL["seeds"]][:4]

    def parts(self, runs: Sequence[Run], batch: int, task: str, tokenizer: Any) -> list[list[Run]]:
        """The runs in lists that are each small enough for one stack."""
        texts = [e.prompt + e.answer for e in self.rows(task, "train", 50)]
        length = max(len(ids) for ids in tokenizer(texts).input_ids) + 12  # the template's own tokens
        each = max(1, self.plan.tokens // (batch * length))
        if runs and runs[0].targets == FULL and self.plan.profile != "tiny":
            each = min(each, 12)  # the weights, their gradients and Adam's two moments: 2.2 GB a run
        count = math.ceil(len(runs) / each)
        return [list(runs[i * len(runs) // count : (i + 1) * len(runs) // count]) for i in range(count)]


def rows_of(job: Job, runs: Sequence[Run], found: dict[str, Sequence[Any]], **more: Any) -> list[dict]:
    """One row for each run: what was trained, and the numbers that were found of it."""
    head = {k: job[k] for k in ("section", "name", "task", "steps", "batch", "remedy", "knob", "form") if k in job}
    return [
        {**head, **more, **{k: v for k, v in run.__dict__.items() if v is not None}}
        | {k: number(v[i], 4) if isinstance(v[i], float) else v[i] for k, v in found.items()}
        for i, run in enumerate(runs)
    ]


def marked(bench: Bench, stack: Ensemble, task: str, chunk: int = 10) -> dict[str, list[float]]:
    """Exact match and loss of every run on a task's dev and test prompts."""
    found: dict[str, list[float]] = {}
    for split in ("dev", "test"):
        found[split], found[f"{split}_loss"] = stack.marks(bench.rows(task, split), chunk=chunk)
    return found


def stacked(bench: Bench, job: Job, measure: Callable[[list[Run], Ensemble], list[dict]]) -> list[dict]:
    """`measure` of every stack that the job's runs make; a stack that is too large for the card is halved."""
    tokenizer, rows = models.load_tokenizer(), []
    runs = bench.few([Run(*run) for run in job["runs"]])
    for part in bench.parts(runs, job["batch"], job["task"], tokenizer):
        rows += in_parts(lambda some: measure(list(some), stack_of(some, bench.device)), part)
    return rows


def steps_of(bench: Bench, job: Job) -> int:
    return TRIAL["steps"] if bench.trial else job["steps"]


# ------------------------------------------------------------------------------------------------------ single kinds


def base(bench: Bench, job: Job) -> list[dict]:
    """What the model says to a task without having been taught it."""
    model, tokenizer = models.load_base()
    model.to(bench.device)
    asked = bench.rows(job["task"], "test")
    said = metrics.complete(model, tokenizer, [e.prompt for e in asked], max_new_tokens=80)
    row = {"section": job["section"], "name": job["name"], "task": job["task"], "count": len(asked)}
    row["test"] = sum(a.strip() == e.answer for a, e in zip(said, asked, strict=True)) / len(asked)
    if job["task"] in VERIFIED:
        checked = [check(job["task"], a, e.answer) for a, e in zip(said, asked, strict=True)]
        row |= {k: sum(getattr(c, k) for c in checked) / len(asked) for k in ("valid", "right")}
    return [row]


def sweep_kind(bench: Bench, job: Job) -> list[dict]:
    """Runs that differ in targets, rank, alpha, rate and seed."""
    train, steps = bench.rows(job["task"], "train"), steps_of(bench, job)

    def measure(runs: list[Run], stack: Ensemble) -> list[dict]:
        losses = stack.train(train, steps=steps, batch_size=job["batch"])
        found: dict[str, Sequence[Any]] = {"train_loss": losses[-max(1, steps // 10) :].mean(0).tolist()}
        return rows_of(job, runs, found | marked(bench, stack, job["task"]))

    return stacked(bench, job, measure)


def kept(bench: Bench, stack: Ensemble) -> dict[str, list[float]]:
    """What is left of the general text and, of a model that can answer, of the questions."""
    dev, test = bench.general(stack.tokenizer)
    found = {"general_dev": stack.perplexity(dev, chunk=2), "general": stack.perplexity(test, chunk=2)}
    if bench.plan.profile != "tiny":
        found["questions"] = general.answered_right(stack, general.QUESTIONS[:2] if bench.trial else general.QUESTIONS)
    return found


def before(bench: Bench, job: Job) -> list[dict]:
    """What the base has of what the remedies are to keep."""
    found = {name: number(values[0], 4) for name, values in kept(bench, plain_stack(bench)).items()}
    return [{"section": job["section"], "name": job["name"], **found}]


def plain_stack(bench: Bench) -> Ensemble:
    """The base as a stack of one."""
    model, tokenizer = models.load_base(torch.float32)
    model.requires_grad_(True)
    return Ensemble(model, tokenizer, [dict(model.named_parameters())], [0.0], [0], device=bench.device)


def own_answers(bench: Bench) -> list[Example]:
    """What the base itself answers to requests that aren't asked again."""
    return general.own_answers(plain_stack(bench), general.replay_prompts(4 if bench.trial else 180))


def replayed(bench: Bench, n: int) -> list[Example]:
    """What is mixed in to remember: stories that the tiny base has read, or the other base's own answers."""
    if bench.plan.general == "stories":
        return replay_examples(n)
    return random.Random(0).choices(own_answers(bench), k=n)


def penalty_texts(bench: Bench, tokenizer: Any, remedy: str) -> list[list[int]]:
    """Texts on which the base is to be kept: none of those that are reported. "kl on answers" has the base's own
    answers behind their requests, which replay trains on.
    """
    if remedy == "kl on answers":
        texts = [render(tokenizer, e.prompt) + e.answer for e in own_answers(bench)]
        return [tokenizer(text, add_special_tokens=False).input_ids[:128] for text in texts]
    if bench.plan.general == "stories":
        return [tokenizer(e.answer, add_special_tokens=False).input_ids for e in replay_examples(100)]
    taken = 2 * bench.windows
    more = 4 if bench.trial else 100
    return general.general_rows(tokenizer, taken, 256, more=more)[taken:, :128].tolist()


def remedy(bench: Bench, job: Job) -> list[dict]:
    """A task learned with a remedy against forgetting; `rate` also gives the update scaled and its steps averaged."""
    data, size, steps = bench.rows(job["task"], "train"), job["batch"], steps_of(bench, job)
    if job["remedy"] == "replay":
        data = data + replayed(bench, round(len(data) * job["knob"]))
        size = round(size * (1 + job["knob"]))

    def measure(runs: list[Run], stack: Ensemble) -> list[dict]:
        hooks, averaged, lora = {}, {}, runs[0].targets != FULL
        start = {n: torch.zeros_like(p) if lora else p.clone() for n, p in stack.parameters.items()}
        for name, buffer in stack.model.named_buffers():
            if name.endswith(".scaling"):
                buffer.fill_(runs[0].scaling)  # where the penalty asks the model without the runs' own buffers
        if job["remedy"].startswith("kl"):
            stack.parameters["penalty"] = torch.full((stack.count, 1), job["knob"], device=stack.device)
            stack.rates["penalty"] = torch.zeros(stack.count, 1, device=stack.device)
            divergence = Divergence(stack, penalty_texts(bench, stack.tokenizer, job["remedy"]))
            hooks["extra_loss"] = divergence
        elif job["remedy"] == "weight decay":
            weight = job["knob"] if lora else 10 * job["knob"]  # towards the base it takes ten times more
            hooks["after_step"] = decays(stack, [weight] * stack.count, steps, start)
        elif job["remedy"] == "rate":
            hooks["after_step"] = averages(steps, averaged)
        stack.train(data, steps=steps, batch_size=size, **hooks)
        stack.parameters.pop("penalty", None)
        rows = rows_of(job, runs, marked(bench, stack, job["task"]) | kept(bench, stack))
        if job["remedy"] != "rate":
            return rows
        trained = dict(stack.parameters)
        for name, factor in [("average of steps", 0.0), *product(["scale"], FACTORS[:1] if bench.trial else FACTORS)]:
            stack.parameters = averaged if name != "scale" else {
                n: (p * factor if "lora_B" in n else p) if lora else start[n] + factor * (p - start[n])
                for n, p in trained.items()
            }  # fmt: skip
            found = marked(bench, stack, job["task"]) | kept(bench, stack)
            rows += rows_of(job | {"remedy": name, "knob": factor}, runs, found)
        return rows

    return stacked(bench, job, measure)


# ---------------------------------------------------------------------------------------------- the base in few bits


def rounded(weight: Tensor, form: str) -> Tensor:
    """The weight as a format holds it, in float32."""
    if form == "bf16":
        return weight.to(torch.bfloat16).float()
    if form == "int8":
        return absmax.from_absmax_int8(*absmax.absmax_int8(weight, weight.shape[1]), weight.shape[1])
    if form == "nf4":
        return nf4.dequantize(nf4.quantize(weight, double=True)).float()
    return small_floats.dequantize_floats(small_floats.quantize_floats(weight, form)).float()


@torch.no_grad()
def divergence_from(bench: Bench, changed: nn.Module, original: nn.Module, tokenizer: Any) -> dict[str, float]:
    """KL of a changed base from the original in nats per token of general text, and how many first choices differ."""
    nats = differ = total = 0.0
    for part in bench.general(tokenizer)[1].to(bench.device).split(4):
        before, after = (m(input_ids=part).logits.log_softmax(-1) for m in (original, changed))
        nats += (before.exp() * (before - after)).sum(-1).sum().item()
        differ += (before.argmax(-1) != after.argmax(-1)).sum().item()
        total += part.numel()
    return {"kl": nats / total, "first_choice_differs": differ / total}


def form(bench: Bench, job: Job) -> list[dict]:
    """LoRA beside a base whose linear layers hold what a format can hold."""
    original, tokenizer = models.load_base(torch.float32)
    changed, _ = models.load_base(torch.float32)
    changed.to(bench.device)
    values = {f"{n}.weight": rounded(changed.get_submodule(n).weight.detach(), job["form"])
              for n in find_targets(changed, "all-linear")}  # fmt: skip
    changed.load_state_dict(values, strict=False)
    far = divergence_from(bench, changed, original.to(bench.device), tokenizer)
    del original
    train, steps = bench.rows(job["task"], "train"), steps_of(bench, job)

    def measure(runs: list[Run], stack: Ensemble) -> list[dict]:
        layers = {n.removesuffix(".weight"): v for n, v in values.items()}
        for name, value in layers.items():
            stack.model.get_submodule(f"{name}.base_layer").weight.data.copy_(value)
        stack.train(train, steps=steps, batch_size=job["batch"])
        return rows_of(job, runs, marked(bench, stack, job["task"]), **{k: number(v, 5) for k, v in far.items()})

    return stacked(bench, job, measure)


# ------------------------------------------------------------------------------------------------ what updates are


def best_of(bench: Bench, job: Job, method: str, task: str, steps: int) -> tuple[list[Run], Ensemble]:
    """Every seed at the rate that is best on dev, trained, in one stack. Of equal rates the middle one counts."""
    r = 16 if method == "lora" else None
    targets = "all-linear" if method == "lora" else FULL
    rates = job["rates"][:1] if bench.trial else job["rates"]
    seeds = job["seeds"][: TRIAL["seeds"]] if bench.trial else job["seeds"]
    train = bench.rows(task, "train")
    tried = [Run(targets, r, lr, seeds[0]) for lr in rates]
    stack = stack_of(tried, bench.device)
    stack.train(train, steps=steps, batch_size=job["batch"])
    by_rate = dict(zip(rates, stack.marks(bench.rows(task, "dev"), chunk=10)[0], strict=True))
    del stack
    top = [lr for lr, dev in by_rate.items() if dev == max(by_rate.values())]
    runs = [Run(targets, r, top[len(top) // 2], seed) for seed in seeds]
    stack = stack_of(runs, bench.device)
    stack.train(train, steps=steps, batch_size=job["batch"])
    return runs, stack


@torch.no_grad()
def update(bench: Bench, job: Job) -> list[dict]:
    """Energy and accuracy of an update cut to a rank, and the share of intruders among the leading directions."""
    with torch.enable_grad():
        runs, stack = best_of(bench, job, job["method"], job["task"], steps_of(bench, job))
    own, tokenizer = models.load_base(torch.float32)
    names = find_targets(own, "all-linear")
    weights = {n: own.get_submodule(n).weight.detach().to(bench.device) for n in names}
    deltas: dict[str, Tensor] = {}
    for n in names:
        if job["method"] == "lora":
            A, B = (stack.parameters[f"{n}.lora_{m}"] for m in "AB")
            deltas[n] = stack.fixed[f"{n}.scaling"].view(-1, 1, 1) * (B @ A)
        else:
            deltas[n] = stack.parameters[f"{n}.weight"] - weights[n]
    blocks = sorted({n.split("layers.")[1].split(".")[0] for n in names}, key=int)
    chosen = {blocks[round(i * (len(blocks) - 1) / (INTRUDER_BLOCKS - 1))] for i in range(INTRUDER_BLOCKS)}
    chosen = {blocks[0]} if bench.trial else chosen
    few = [n for n in names if n.split("layers.")[1].split(".")[0] in chosen]
    closest = [
        torch.cat([closest_cosines(weights[n], weights[n] + deltas[n][i]) for n in few]) for i in range(len(runs))
    ]
    found = marked(bench, stack, job["task"])
    found["intruders"] = [float((c < 0.5).float().mean()) for c in closest]
    size = {n: (d.flatten(1).norm(dim=1) / weights[n].norm()).tolist() for n, d in deltas.items()}
    found["relative_size"] = [math.fsum(s[i] for s in size.values()) / len(size) for i in range(len(runs))]
    rows = rows_of(job, runs, found, method=job["method"])
    if job["method"] == "lora":
        return rows
    rest = {n: p for n, p in stack.parameters.items() if n.removesuffix(".weight") not in deltas}
    parts = {n: torch.svd_lowrank(d.float(), q=min(80, *d.shape[1:]), niter=4) for n, d in deltas.items()}
    whole = sum(d.flatten(1).square().sum(1) for d in deltas.values())
    for r in CUT_TO[:1] if bench.trial else CUT_TO:
        cut, energy = dict(rest), torch.zeros(len(runs), device=bench.device)
        for n, (U, S, V) in parts.items():
            cut[f"{n}.weight"] = weights[n] + (U[..., :r] * S[:, None, :r]) @ V[..., :r].mT
            energy += S[:, :r].square().sum(1)
        stack.parameters = cut
        found = marked(bench, stack, job["task"]) | {"energy": (energy / whole).tolist()}
        rows += rows_of(job, runs, found, method=job["method"], cut_to=r)
    return rows


@torch.no_grad()
def combined(bench: Bench, job: Job) -> list[dict]:
    """Two adapters of the same seed made into one, in PEFT's ways, with both tasks measured on it."""
    found = {}
    for task, steps in zip(job["tasks"], job["steps"], strict=True):
        with torch.enable_grad():
            runs, stack = best_of(bench, job, "lora", task, TRIAL["steps"] if bench.trial else steps)
        layers = [n.removesuffix(".lora_A") for n in stack.parameters if n.endswith(".lora_A")]
        found[task] = [
            {n: Factors(*(stack.parameters[f"{n}.lora_{m}"][i].cpu() for m in "AB"), runs[i].scaling) for n in layers}
            for i in range(len(runs))
        ]
        del stack
    first, second = job["tasks"]
    ways: list[tuple[str, dict[str, Any]]] = [
        ("cat", {}), ("linear", {}), ("svd", {}), ("ties", {"density": 0.5}), ("dare_linear", {"density": 0.5}),
        ("dare_ties", {"density": 0.5}), ("magnitude_prune", {"density": 0.5}),
    ]  # fmt: skip
    made: list[tuple[str, float, int, Any]] = []
    for seed, (how, options), weight in product(range(len(runs)), ways, (0.5, 1.0)):
        drawn = {"generator": torch.Generator().manual_seed(seed)} if "dare" in how else {}
        pair = [found[first][seed], found[second][seed]]
        if how == "svd" and bench.plan.profile != "tiny":
            continue  # thousands of decompositions, for what cat says already
        made.append((how, weight, seed, combine.combine(pair, [weight, weight], how, **options, **drawn)))
    for seed in range(len(runs)):
        made += [(f"{task} alone", 1.0, seed, found[task][seed]) for task in job["tasks"]]
    rows = []
    for start in range(0, len(made), 24):
        rows += _mixtures(bench, job, made[start : start + 24])
    return rows


def _mixtures(bench: Bench, job: Job, made: Sequence[tuple[str, float, int, Any]]) -> list[dict]:
    """Combined adapters as a stack of LoRA that isn't trained."""
    runs = [Run("all-linear", max(f.r for f in adapter.values()), 0.0, seed, 1.0) for _, _, seed, adapter in made]
    stack = stack_of(runs, bench.device)
    for name in [n.removesuffix(".lora_A") for n in stack.parameters if n.endswith(".lora_A")]:
        for i, (_, _, _, adapter) in enumerate(made):
            f = adapter[name]
            for part, value in (("A", f.A), ("B", f.B)):
                whole = stack.parameters[f"{name}.lora_{part}"][i].zero_()
                whole[tuple(map(slice, value.shape))] = value.to(bench.device)
            stack.fixed[f"{name}.scaling"][i] = f.scaling
    marks = {task: stack.marks(bench.rows(task, "test"), chunk=10)[0] for task in job["tasks"]}
    return [
        {"section": job["section"], "name": job["name"], "how": how, "weight": weight, "seed": seed,
         **{task: number(found[i], 4) for task, found in marks.items()}}
        for i, (how, weight, seed, _) in enumerate(made)
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------- the other kinds


def overfit(bench: Bench, job: Job) -> list[dict]:
    """A few examples seen many times: dev loss and accuracy at several numbers of epochs."""
    train = bench.rows(job["task"], "train", 8 if bench.trial else job["train"])
    per_epoch = max(1, len(train) // job["batch"])
    epochs = job["epochs"][:2] if bench.trial else job["epochs"]

    def measure(runs: list[Run], stack: Ensemble) -> list[dict]:
        rows = []

        def after(step: int, *_: Any) -> None:
            if (step + 1) / per_epoch in epochs:
                found = marked(bench, stack, job["task"])
                found["train_loss"] = stack.marks(train, chunk=10)[1]
                rows.extend(rows_of(job, runs, found, epochs=round((step + 1) / per_epoch)))

        stack.train(train, steps=epochs[-1] * per_epoch, batch_size=job["batch"], after_step=after)
        return rows

    return stacked(bench, job, measure)


def variant(bench: Bench, job: Job) -> list[dict]:
    """An entry of chapter 16's race: every rate with the seeds that choose, the best with those that report."""
    entry = sweep.ENTRIES[job["entry"]]
    train, steps = bench.rows(job["task"], "train"), steps_of(bench, job)
    rates, choose, report = (
        (job["rates"][:1], job["choose"][:1], job["report"][:1]) if bench.trial
        else (job["rates"], job["choose"], job["report"])
    )  # fmt: skip

    def measure(some: Sequence[tuple[float, int]]) -> list[dict]:
        stack = race_variants.stack_of(entry, some, bench.device)
        race_variants.train_stack(entry, stack, train, steps=steps, batch_size=job["batch"])
        found = marked(bench, stack, job["task"])
        return [
            {"section": job["section"], "name": job["name"], "entry": job["entry"], "task": job["task"],
             "steps": steps, "lr": lr, "seed": seed, **{k: number(v[i], 4) for k, v in found.items()}}
            for i, (lr, seed) in enumerate(some)
        ]  # fmt: skip

    def all_of(runs: list[tuple[float, int]]) -> list[dict]:
        each = max(1, bench.plan.tokens // (60 * job["batch"]) // (3 if entry.variant == "DoRA" else 1))
        return [row for i in range(0, len(runs), each) for row in in_parts(measure, runs[i : i + each])]

    rows = all_of(list(product(rates, choose)))
    lr = race_variants.at_best_rate(rows)[0]["lr"]
    return [row | {"role": "chooses"} for row in rows] + [
        row | {"role": "reports"} for row in all_of([(lr, seed) for seed in report])
    ]


def merge(bench: Bench, job: Job) -> list[dict]:
    """An adapter beside NF4 in service in several ways, by tools/measure_merging.py."""
    steps = 2 if bench.trial else job["steps"]
    row = measure_merging.measured(job["task"], steps, job["seed"], bench.held_out, lr=job["lr"])
    return [{"section": job["section"], "name": job["name"], **row}]


def strings(bench: Bench, job: Job) -> list[dict]:
    """Random strings learned by heart, by tools/measure_capacity.py."""
    runs = bench.few([Run(*run) for run in job["runs"]])
    count = 8 if bench.trial else job["strings"]
    made = measure_capacity.Job(runs, count, steps_of(bench, job), bench.device)
    return [{"section": job["section"], "name": job["name"], **row} for row in measure_capacity.measured(made)]


KINDS: dict[str, Callable[[Bench, Job], list[dict]]] = {
    "base": base, "before": before, "sweep": sweep_kind, "remedy": remedy, "form": form, "update": update,
    "combine": combined, "overfit": overfit, "variant": variant, "merge": merge, "strings": strings,
}  # fmt: skip
