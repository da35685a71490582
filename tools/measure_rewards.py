"""Race ranks and starts under GRPO, with the controls, and write assets/measurements/rewards.json.

    python -m tools.measure_rewards --work DIR      everything, on one GPU; a second call goes on where the first ended
    python -m tools.measure_rewards --trial         four steps of few runs, on any machine; nothing of it is a result

The task is utils/tinyworld/rewarded.py's: stories with four words asked for, rewarded by the share of them that is
told. First every entry is trained at each of its learning rates with the seeds in CHOOSE, and measured on the dev
split; then at the rate that was best there with the seeds in REPORT, and measured on the test split. Both marks are
taken at half the steps and at the end, and a rate is chosen by the mean of the two. What follows another section takes
the rate of the race's entry with its rank.

Attributes:
    RANK: of everything that isn't about the rank.
    ENTRIES: What has learning rates of its own.
    FOLLOWERS: What takes the race's rates: the settings of `scale`, the rewards of `hacking` and `sparse`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.ensemble import at_best_rate, mean_by_rate, provenance, results_of, write
from utils.data.chat import collate, encode, token_id
from utils.evaluate.seeds import interval
from utils.lora import inject
from utils.lora.layer import LoRA, count_parameters
from utils.lora.variants import PiSSA
from utils.models import load_base
from utils.preferences.grpo import Samples, sample_groups, train_grpo, train_on_best
from utils.preferences.log_probs import completion_log_probs, completion_mask
from utils.tinyworld import rewarded
from utils.train import loop

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "measurements" / "rewards.json"

CHOOSE, REPORT, SMALL_CHOOSE, SMALL_REPORT = (0, 1, 2), (3, 4, 5, 6, 7), (0,), (3, 4, 5)
RANK = 4
VALUES = {"words_told": 5, "all_told": 2}  # so many values a reward can have


class Plan(NamedTuple):
    """How long runs are. train, dev, test: numbers of prompts. limit: new tokens a sample. every: so many steps are a
    line of the history."""

    profile: str
    steps: int
    limit: int
    dev: int
    test: int
    choose: tuple[int, ...]
    report: tuple[int, ...]
    group: int = 8
    prompts: int = 4
    every: int = 5
    train: int = 2000


class Entry(NamedTuple):
    """A run's settings; without `rates` it follows the race's entry of its rank. `how`: grpo, best, sft or base."""

    section: str
    name: str
    method: str
    r: int | None
    rates: tuple[float, ...] = ()
    how: str = "grpo"
    reward: str = "words_told"
    settings: Mapping[str, Any] = {}


PLANS = {
    "tiny": Plan("tiny", 60, rewarded.LIMIT, 128, 256, CHOOSE, REPORT),
    "small": Plan("small", 80, 40, 64, 128, SMALL_CHOOSE, SMALL_REPORT),
}
TRIAL = Plan("tiny", 4, 12, 4, 6, CHOOSE[:1], REPORT[:2], group=4, prompts=2, every=2, train=40)


def _rates(lowest: float, factor: float = 2.0, count: int = 4) -> tuple[float, ...]:
    return tuple(float(f"{lowest * factor**i:.2g}") for i in range(count))


ENTRIES = (
    Entry("race", "LoRA r=1", "LoRA", 1, _rates(4e-3)),
    Entry("race", "LoRA r=4", "LoRA", 4, _rates(1.5e-3)),
    Entry("race", "LoRA r=16", "LoRA", 16, _rates(7.5e-4)),
    Entry("race", "PiSSA r=16", "PiSSA", 16, _rates(2e-4)),
    Entry("race", "orthogonal r=16", "orthogonal", 16, (3.8e-4, 7.5e-4, 1.5e-3, 3e-3)),
    Entry("race", "full fine-tuning", "full fine-tuning", None, _rates(1e-4)),
    Entry("control", "rejection sampling", "LoRA", RANK, _rates(1.5e-3), "best"),
    Entry("control", "SFT on gold", "LoRA", RANK, _rates(1.5e-3), "sft"),
    Entry("small", "LoRA r=1", "LoRA", 1, _rates(5e-4, 3, 3)),
    Entry("small", "LoRA r=16", "LoRA", 16, _rates(1e-4, 3, 3)),
)
DR_GRPO = {"scale": "none", "weighting": "dr_grpo"}
FOLLOWERS = (
    Entry("scale", "Dr. GRPO", "LoRA", RANK, settings=DR_GRPO),
    Entry("scale", "GRPO, beta 0.05", "LoRA", RANK, settings={"beta": 0.05}),
    Entry("scale", "Dr. GRPO, beta 0.05", "LoRA", RANK, settings={**DR_GRPO, "beta": 0.05}),
    Entry("hacking", "mentions", "LoRA", RANK, reward="mentions"),
    Entry("hacking", "mentions, beta 0.1", "LoRA", RANK, reward="mentions", settings={"beta": 0.1}),
    Entry("sparse", "LoRA r=1", "LoRA", 1, reward="all_told"),
    Entry("sparse", "LoRA r=4", "LoRA", 4, reward="all_told"),
    Entry("sparse", "LoRA r=16", "LoRA", 16, reward="all_told"),
)
SECTIONS = ("race", "control", "small", "scale", "hacking", "sparse")


def plan_of(section: str, trial: bool) -> Plan:
    return TRIAL if trial else PLANS["small" if section == "small" else "tiny"]


# --------------------------------------------------------------------------------------------------------- a run


@contextmanager
def profile_of(plan: Plan) -> Iterator[None]:
    """Inside the block COURSE_PROFILE is the plan's."""
    before = os.environ.get("COURSE_PROFILE")
    os.environ["COURSE_PROFILE"] = plan.profile
    try:
        yield
    finally:
        os.environ.pop("COURSE_PROFILE")
        if before is not None:
            os.environ["COURSE_PROFILE"] = before


def build(model: Any, method: str, r: int | None, seed: int) -> Any:
    """The model with what a method trains of it; LoRA's alpha is twice its rank. The start "orthogonal" is PEFT's."""
    torch.manual_seed(seed)
    if method == "full fine-tuning" or r is None:
        return model.requires_grad_(True)
    if method == "orthogonal":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", init_lora_weights="orthogonal")
        return get_peft_model(model, config)
    inject(model, "all-linear", r, 2 * r, variant=PiSSA() if method == "PiSSA" else LoRA())
    return model


@torch.no_grad()
def nats(model: Any, batch: Mapping[str, torch.Tensor], chunk: int = 32) -> float:
    """The mean over the completions' tokens of -log p, in nats."""
    total, count = 0.0, 0
    for start in range(0, len(batch["labels"]), chunk):
        part = {name: tensor[start : start + chunk] for name, tensor in batch.items()}
        total -= completion_log_probs(model, part).sum().item()
        count += int(completion_mask(part).sum())
    return total / count


def told_by(model: Any, base: Any, samples: Samples, words: Sequence[Sequence[str]]) -> dict[str, float]:
    """What was sampled, measured: the share of words told, of samples with all, of words that are new in their text;
    nats per token under the base, and by how much more likely the model finds it, an estimate of the KL divergence.
    """
    under = nats(base, samples.batch)
    found = {
        "told": statistics.mean(rewarded.words_told(samples.prompts, samples.completions, words=words)),
        "all": statistics.mean(rewarded.all_told(samples.prompts, samples.completions, words=words)),
        "distinct": statistics.mean(map(rewarded.distinct, samples.completions)),
        "base_nats": under,
        "kl": under - nats(model, samples.batch),
        "tokens": samples.lengths.float().mean().item(),
        "stopped": samples.stopped.float().mean().item(),
    }
    return {name: round(value, 4) for name, value in found.items()}


def entropy(values: Iterable[float]) -> float:
    """Of an empirical distribution, in bits."""
    counts = Counter(values)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


class Bench:
    """What one run is measured with: the base, the held-out rows of one split, and what it recorded on the way."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job, self.plan, device = job, Plan(**job["plan"]), job["device"]
        self.model, self.tokenizer = load_base(torch.float32)
        self.model = build(self.model.to(device), job["method"], job["r"], job["seed"]).eval()
        self.base = load_base(torch.float32)[0].to(device).eval()
        split = "dev" if job["phase"] == "choose" else "test"
        self.rows = rewarded.request_rows("four", split, getattr(self.plan, split))
        self.halfway: dict[str, float] | None = None
        self.rewards: list[list[float]] = []
        self.steps: list[dict[str, float]] = []
        self.history: list[dict[str, float]] = []
        self.words: list[Sequence[str]] = []
        self.said: list[list[str]] = []

    def reward(self, prompts: list[str], completions: list[str], *, words: list[Any], **columns: Any) -> list[float]:
        """The job's reward, which is written down."""
        found = getattr(rewarded, self.job["reward"])(prompts, completions, words=words)
        self.rewards.append(found)
        self.words = words
        return found

    def marks(self) -> dict[str, float]:
        """One sample for each held-out prompt, the same draws for every run."""
        plan, device = self.plan, self.job["device"]
        prompts = [row["prompt"] for row in self.rows]
        with loop.in_mode(self.model, False):
            samples = sample_groups(
                self.model, self.tokenizer, prompts, 1, plan.limit, 1.0, torch.Generator(device).manual_seed(0)
            )
            self.said = [[p, c] for p, c in zip(samples.prompts[:2], samples.completions[:2], strict=True)]
            return told_by(self.model, self.base, samples, [row["words"] for row in self.rows])

    def at_half(self, step: int) -> None:
        if step + 1 == self.plan.steps // 2:
            self.halfway = self.marks()

    def on_step(self, step: int, numbers: dict[str, float], samples: Samples) -> None:
        self.steps.append(numbers)
        if (step + 1) % self.plan.every == 0:
            last = self.steps[-self.plan.every :]
            line = {"step": step + 1}
            for name in last[0]:
                values = [own[name] for own in last if not math.isnan(own[name])]
                line |= {name: round(statistics.mean(values), 4)} if values else {}
            about = told_by(self.model, self.base, samples, self.words)
            self.history.append({**about, **line, "kl": about["kl"]})
        self.at_half(step)

    def train(self) -> dict[str, Any]:
        """Train as the job says; returns what only some ways have: bits, and the numbers of the data."""
        job, plan = self.job, self.plan
        rows = rewarded.request_rows("four", "train", plan.train)
        shared: dict[str, Any] = {"steps": plan.steps, "lr": job["lr"], "seed": job["seed"], "progress": False}
        if job["how"] == "base":
            return {}
        if job["how"] == "sft":
            gold = rewarded.gold_examples(rows)
            losses = loop.train(
                self.model, self.tokenizer, gold, batch_size=plan.prompts, after_step=self.at_half, **shared
            )
            self.history = [
                {"step": end, "loss": round(statistics.mean(losses[end - plan.every : end]), 4)}
                for end in range(plan.every, plan.steps + 1, plan.every)
            ]
            encoded = encode(self.tokenizer, gold[:200])
            batch = collate(encoded, token_id(self.tokenizer, "pad"))
            bits = nats(self.base, {k: v.to(job["device"]) for k, v in batch.items()}) / math.log(2)
            tokens = statistics.mean(len(answer) for _, answer in encoded)
            return {"bits": {"per_token": round(bits, 4), "per_answer": round(bits * tokens, 1),
                             "answers": plan.steps * plan.prompts, "tokens_an_answer": round(tokens, 1)}}  # fmt: skip
        loop_of = train_on_best if job["how"] == "best" else train_grpo
        loop_of(
            self.model, self.tokenizer, rows, self.reward, group=plan.group, prompts_per_step=plan.prompts,
            max_new_tokens=plan.limit, on_step=self.on_step, **job["settings"], **shared,
        )  # fmt: skip
        groups = [step[i : i + plan.group] for step in self.rewards for i in range(0, len(step), plan.group)]
        bits = {
            "episodes": sum(map(len, self.rewards)),
            "per_episode": round(statistics.mean(map(entropy, self.rewards)), 4),
            "per_episode_within_groups": round(statistics.mean(map(entropy, groups)), 4),
        }
        values = VALUES.get(job["reward"])
        return {"bits": bits | ({"per_episode_at_most": round(math.log2(values), 4)} if values else {})}


HEAD = ("section", "name", "phase", "method", "r", "lr", "seed", "how", "reward", "settings")


def one_run(job: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row: its settings, its marks at half the steps and at the end, its history. `dev` is None where it
    diverged."""
    began = time.perf_counter()
    bench = Bench(job)
    row: dict[str, Any] = {name: job[name] for name in HEAD}
    row["trained"], row["hardware"] = count_parameters(bench.model)[0], provenance(job["device"])["hardware"]
    try:
        row |= bench.train()
        row["end"] = bench.marks()
        row["half"] = bench.halfway or row["end"]
        row["dev"] = round((row["half"]["told"] + row["end"]["told"]) / 2, 4)
    except loop.Diverged as error:
        row |= {"dev": None, "diverged": str(error)}
    return row | {"history": bench.history, "said": bench.said, "seconds": round(time.perf_counter() - began, 1)}


def run_job(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A job's row, in a list; from its file where an earlier call has written it. An error is told and leaves no file:
    the next call tries again."""
    file = Path(job["file"])
    if file.exists():
        return [json.loads(file.read_text(encoding="utf-8"))]
    if job["device"].startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32
    try:
        with profile_of(Plan(**job["plan"])):
            row = one_run(job)
    except Exception:
        print(f"{file.stem} FAILED\n{traceback.format_exc()}", flush=True)
        return []
    write(file, row)
    end = row.get("end", {}).get("told")
    print(f"{file.stem}: {end}, {row['seconds']} s", flush=True)
    return [row]


# ------------------------------------------------------------------------------------------------------- the jobs


def job_of(entry: Entry, phase: str, lr: float, seed: int, work: Path, device: str, trial: bool) -> dict[str, Any]:
    name = "-".join((entry.section, entry.name, phase, f"{lr:g}", str(seed)))
    return {
        **entry._asdict(), "settings": dict(entry.settings), "phase": phase, "lr": lr, "seed": seed, "device": device,
        "plan": plan_of(entry.section, trial)._asdict(),
        "file": str(work / f"{name.replace(' ', '_').replace(',', '')}.json"),
    }  # fmt: skip


def entries_of(sections: Sequence[str], trial: bool) -> list[Entry]:
    """The entries of the sections that have rates of their own; of a trial few, with two rates."""
    every = [entry for entry in ENTRIES if entry.section in sections]
    if not trial:
        return every
    few = ("LoRA r=1", "LoRA r=4", "full fine-tuning", "rejection sampling", "SFT on gold")
    return [entry._replace(rates=entry.rates[:2]) for entry in every if entry.name in few]


def first_jobs(sections: Sequence[str], work: Path, device: str, trial: bool) -> list[dict[str, Any]]:
    """The base as it is, and each entry at each of its rates: the long ones first."""
    jobs = [
        job_of(entry, "choose", lr, seed, work, device, trial)
        for entry in entries_of(sections, trial)
        for lr, seed in product(entry.rates, plan_of(entry.section, trial).choose)
    ]
    kinds = dict.fromkeys("small" if section == "small" else "race" for section in sections)
    jobs += [job_of(Entry(k, "base", "LoRA", 1, how="base"), "report", 0.0, 0, work, device, trial) for k in kinds]
    return sorted(jobs, key=lambda job: job["section"] != "small")


def chosen_rate(rows: Sequence[Mapping[str, Any]], section: str, name: str) -> float | None:
    """The rate with the highest mean on dev over CHOOSE's seeds, None where none was tried."""
    mine = [row for row in rows if (row["section"], row["name"], row["phase"]) == (section, name, "choose")]
    return at_best_rate(mine)[0]["lr"] if mine else None


def second_jobs(
    rows: Sequence[Mapping[str, Any]], sections: Sequence[str], work: Path, device: str, trial: bool
) -> list[dict[str, Any]]:
    """Everything that is reported, at the rates that the first jobs' `rows` chose."""
    jobs = []
    for entry in (*entries_of(sections, trial), *(e for e in FOLLOWERS if e.section in sections)):
        section, name = (entry.section, entry.name) if entry.rates else ("race", f"LoRA r={entry.r}")
        lr = chosen_rate(rows, section, name)
        if lr is None:
            print(f"{entry.section}, {entry.name}: left out, no rate of {section}, {name} was tried", flush=True)
            continue
        jobs += [job_of(entry, "report", lr, s, work, device, trial) for s in plan_of(entry.section, trial).report]
    return sorted(jobs, key=lambda job: job["section"] != "small")


# ------------------------------------------------------------------------------------------------------ the record


def mean_history(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The seeds' mean of each number of their histories, line by line."""
    lines = list(zip(*(row["history"] for row in rows), strict=True))
    names = [name for name in (lines[0][0] if lines else {}) if all(name in own for line in lines for own in line)]
    return {name: [round(statistics.mean(own[name] for own in line), 4) for line in lines] for name in names}


def entry_of(rows: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the record says of one entry: `rows`, one a seed, are what is reported, `first` what chose its rate."""
    rows = sorted(rows, key=lambda row: row["seed"])
    done = [row for row in rows if row["dev"] is not None]
    found: dict[str, Any] = {name: rows[0][name] for name in HEAD if name not in ("section", "phase", "seed")}
    found |= {"trained": rows[0]["trained"], "seeds": [row["seed"] for row in rows], "diverged": len(rows) - len(done)}
    if first:
        by_rate = mean_by_rate(first, "dev", 4)
        edges = (min(by_rate, key=float), max(by_rate, key=float))
        found |= {"dev_by_rate": by_rate, "at_the_grids_edge": len(by_rate) > 1 and str(rows[0]["lr"]) in edges}
    for name in ("told", "all", "distinct", "base_nats", "kl", "tokens", "stopped"):
        values = [row["end"][name] for row in done]
        found |= {name: round(statistics.mean(values), 4), f"{name}_by_seed": values} if values else {}
    if len(done) > 1:
        found["told_interval"] = [round(edge, 4) for edge in interval(found["told_by_seed"])]
    if done:
        half = [row["half"]["told"] for row in done]
        found |= {"told_at_half": round(statistics.mean(half), 4), "told_at_half_by_seed": half}
        found |= {"history": mean_history(done), "said": done[0]["said"]}
        found["reward_by_seed"] = [[line["reward"] for line in row["history"] if "reward" in line] for row in done]
        found |= {"bits": mean_bits(done)} if "bits" in done[0] else {}
    return found | {"seconds": round(statistics.mean(row["seconds"] for row in rows), 1)}


def mean_bits(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: round(statistics.mean(row["bits"][name] for row in rows), 4) for name in rows[0]["bits"]}


def bits_of(sections: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What a run could have learned, in bits: of each way whose bits were counted, and the total over its data."""
    found = []
    for section, entries in sections.items():
        for entry in (e for e in entries if "bits" in e and section in ("race", "control", "sparse", "small")):
            bits = entry["bits"]
            total = bits["per_answer"] * bits["answers"] if entry["how"] == "sft" else (
                bits["per_episode"] * bits["episodes"]
            )  # fmt: skip
            head = {"section": section, **{k: entry[k] for k in ("name", "how", "reward", "trained", "seeds")}}
            found.append({**head, **bits, "total": round(total)})
    return found


def tried_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of a run on the dev split, of an entry that has no runs on the test split."""
    end = {} if row["dev"] is None else {**row["end"], "told_at_half": row["half"]["told"], "said": row["said"]}
    return {"split": "dev", "hardware": row.get("hardware"), **end, "seconds": row["seconds"]}


def record_of(rows: Sequence[Mapping[str, Any]], device: str, trial: bool) -> dict[str, Any]:
    import peft

    sections: dict[str, list[dict[str, Any]]] = {}
    tried: list[dict[str, Any]] = []
    for section, name in dict.fromkeys((row["section"], row["name"]) for row in rows if row["how"] != "base"):
        mine = [row for row in rows if (row["section"], row["name"]) == (section, name)]
        reported, first = ([row for row in mine if row["phase"] == phase] for phase in ("report", "choose"))
        if reported:
            sections.setdefault(section, []).append(entry_of(reported, first))
        else:
            tried += [{**{k: row[k] for k in HEAD}, **tried_of(row)} for row in first]
    plans = {section: plan_of(section, trial) for section in ("race", "small")}
    return {
        "what": ("TRIAL, four steps: no result. " if trial else "")
        + "GRPO on stories with four words asked for, rewarded by the share told (utils/tinyworld/rewarded.py); "
        "rates chosen on the dev split's wordings and words with the seeds in choose; told, all and the others "
        "measured on the test split's with the seeds in report, one sample a prompt at temperature 1; float32, with "
        "products in TF32 on a GPU",
        "tool": "python -m tools.measure_rewards",
        **provenance(device),
        "peft": peft.__version__,
        "choose": list(CHOOSE),
        "report": list(REPORT),
        "plans": {name: plan._asdict() for name, plan in plans.items()},
        "base": {row["section"]: {**row["end"], "said": row["said"]} for row in rows if row["how"] == "base"},
        **{section: sections[section] for section in SECTIONS if section in sections},
        "tried": sorted(tried, key=lambda row: (row["section"], row["r"] or 0, row["lr"], row["seed"])),
        "bits": bits_of(sections),
    }


def shown(record: Mapping[str, Any]) -> None:
    """The record's entries, one a line."""
    for section, entries in ((name, record[name]) for name in SECTIONS if name in record):
        for e in entries:
            print(
                f"{section:8} {e['name']:20} lr {e['lr']:<8g} told {e.get('told')} {e.get('told_interval')} half "
                f"{e.get('told_at_half')} all {e.get('all')} distinct {e.get('distinct')} kl {e.get('kl')} "
                f"{e['seconds']} s{' EDGE' if e.get('at_the_grids_edge') else ''}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".rewards", help="where finished runs are kept")
    parser.add_argument("--out", type=Path, default=None, help="default: assets/measurements/rewards.json")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=16, help="processes; 0: this one alone")
    parser.add_argument("--seconds", type=float, default=math.inf, help="give up what isn't done after so long")
    parser.add_argument("--trial", action="store_true")
    args = parser.parse_args()
    out = args.out or (None if args.trial else OUT)
    deadline = time.monotonic() + args.seconds
    context = (args.sections, args.work, args.device, args.trial)

    def done(jobs: Sequence[Any]) -> list[dict]:
        left = deadline - time.monotonic()
        return [row for part in results_of(run_job, jobs, workers=args.workers, seconds=left) for row in part]

    rows = done(first := first_jobs(*context))
    files = {job["file"] for job in first}
    needed = [job for job in first_jobs(["race"], *context[1:]) if job["file"] not in files]
    rows += [row for job in needed if Path(job["file"]).exists() for row in run_job(job)]
    second = second_jobs(rows, *context)
    rows += done(second)
    print(f"{len(rows)} of {len(first) + len(second)} runs")
    record = record_of(rows, args.device, args.trial)
    if out:
        write(out, record)
    shown(record)


if __name__ == "__main__":
    main()
