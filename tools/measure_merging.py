"""Measure what merging changes of what a QLoRA adapter answers, and write assets/measurements/merging.json.

    python -m tools.measure_merging              everything (one CPU core: ten minutes)
    python -m tools.measure_merging --kept       how much of an update a merge into 4 bits keeps: COURSE_PROFILE's
                                                 model's rows, beside the other's, into merging_kept.json
    python -m tools.measure_merging --trial      one run of two steps, in seconds; written only where --out says

An adapter is trained beside the tiny base in NF4, for each seed anew: half learnt (60 steps of style), when many
answers are undecided, and learnt (180 steps). Then it is put into service in several
ways, and each is compared with the adapter beside the base that it was trained on, on 200 held-out prompts: the
divergence of the predictions, how many answer tokens and answers change, in which direction. Two rows are no merges but
controls: the same adapter beside the 16-bit base, and the base quantized, seen from there.

Attributes:
    JOBS: Task and steps of training.
    WAYS: How an adapter is put into service, in the order of a row.
    KEPT: By profile the model's name, the steps of style that leave its adapter half learnt, and the learning rate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tools.ensemble import provenance, write
from utils.data.labels import batches
from utils.evaluate.merged_answers import Answered, answered
from utils.lora.checkpoint import read_matrices
from utils.lora.merging import dequantized, merge_quantized, stored_4bit
from utils.models import ROOT, load_4bit, load_base
from utils.models.device import profile
from utils.quant.nf4 import dequantize
from utils.tinyworld import task_examples

OUT = ROOT / "assets" / "measurements" / "merging.json"
JOBS = (("style", 60), ("style", 180))
KEPT = {"tiny": ("tiny Llama", 60, 4e-3), "small": ("SmolLM2-135M-Instruct", 20, 1e-3)}
SEEDS, LR, BATCH, EXAMPLES, PROMPTS = range(12), 4e-3, 8, 400, 200


def trained(task: str, steps: int, seed: int, folder: str | Path, examples: int = EXAMPLES, lr: float = LR) -> None:
    """Train LoRA (r=8, alpha=16, all linear layers) beside the base in 4 bits and save it, as chapter 10 does."""
    torch.manual_seed(seed)
    _, tokenizer = load_base()
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(load_4bit()[0], config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    rows = task_examples(task, "train", examples)
    for batch in batches(tokenizer, rows, steps=steps, batch_size=BATCH, seed=seed):
        model(**{name: part.to(model.device) for name, part in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(folder), save_embedding_layers=False)


def _beside(base: Any, folder: str | Path) -> Any:
    return PeftModel.from_pretrained(base, str(folder))


def _merged(base: Any, folder: str | Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that a merge into 4 bits rounds
        return _beside(base, folder).merge_and_unload()


WAYS = {
    "beside the 16-bit base": lambda folder: _beside(load_base(torch.float32)[0], folder),
    "into 4 bits": lambda folder: _merged(load_4bit()[0], folder),
    "dequantized, bf16": lambda folder: _merged(
        dequantized(load_4bit(compute_dtype=torch.bfloat16)[0]), folder
    ).float(),
    "into the original, bf16": lambda folder: _merged(load_base(torch.bfloat16)[0], folder).float(),
}


def measured(task: str, steps: int, seed: int, prompts: int = PROMPTS, lr: float = LR) -> dict[str, Any]:
    """One row: an adapter of one seed in every way, each against the adapter beside its own 4-bit base."""
    _, tokenizer = load_base()
    asked = task_examples(task, "test", prompts)

    def see(model: Any) -> Answered:
        return answered(model, tokenizer, asked)

    with tempfile.TemporaryDirectory() as folder:
        trained(task, steps, seed, folder, lr=lr)
        reference = see(_beside(load_4bit()[0], folder))
        found = {name: see(make(folder)) for name, make in WAYS.items()}
    row: dict[str, Any] = {
        "task": task, "steps": steps, "seed": seed, "tokens": len(reference.logits), "prompts": prompts,
        "right": int(reference.right.sum()), "ways": {name: _numbers(one, reference) for name, one in found.items()},
    }  # fmt: skip
    row["quantizing the base"] = _numbers(reference, found["beside the 16-bit base"])
    return row


def kept(steps: int, seed: int, lr: float) -> dict[str, Any]:
    """How large an adapter's update is beside the 4-bit weights, and which share of it a merge into 4 bits keeps.

    The share is the part of the change of the weights that lies along the update: 1 is all of it, 0 none.
    """
    model, _ = load_4bit()
    size = weights = along = 0.0
    with tempfile.TemporaryDirectory() as folder:
        trained("style", steps, seed, folder, lr=lr)
        for name, matrices in read_matrices(folder).items():
            stored = stored_4bit(model.get_submodule(name))
            delta = 2.0 * (matrices["lora_B"] @ matrices["lora_A"])  # alpha is twice the rank
            before, after = dequantize(stored), dequantize(merge_quantized(stored, delta))
            size += delta.square().sum().item()
            weights += before.square().sum().item()
            along += ((after - before) * delta).sum().item()
    return {"steps": steps, "seed": seed, "update": round((size / weights) ** 0.5, 5), "kept": round(along / size, 4)}


def measure_kept(out: Path, trial: bool) -> None:
    """Measure :func:`kept` of the profile's model with three seeds, and write it beside the other model's rows."""
    name, steps, lr = KEPT[profile()]
    rows = [{"model": name, **kept(2 if trial else steps, seed, lr)} for seed in SEEDS[: 1 if trial else 3]]
    others = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    write(out, {
        "what": "a LoRA adapter trained beside a base in NF4 (style; r=8, alpha=16, all linear layers): the update's "
        "norm divided by the weights', over all layers, and the share of the update that a merge into 4 bits keeps",
        "tool": "python -m tools.measure_merging --kept", **provenance("cpu"), "peft": peft.__version__,
        "rows": [row for row in others if row["model"] != name] + rows,
    })  # fmt: skip
    for row in rows:
        print(row)


def _numbers(one: Answered, reference: Answered) -> dict[str, float]:
    changes = one.changes(reference)
    return changes._asdict() | {"nats": float(f"{changes.nats:.3g}"), "drift": float(f"{changes.drift:.3g}")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help=f"default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--trial", action="store_true", help="one run of two steps")
    parser.add_argument("--kept", action="store_true", help="the share of an update that 4 bits keep")
    args = parser.parse_args(arguments)
    if args.kept:
        if args.trial and not args.out:
            parser.error("--kept --trial needs --out, so that a trial doesn't replace the record")
        return measure_kept(args.out or OUT.with_name("merging_kept.json"), args.trial)
    jobs = [(*job, seed) for job in JOBS for seed in SEEDS]
    if args.trial:
        rows = [measured("style", 2, 0, prompts=4)]
    else:
        rows = []
        for job in jobs:
            rows.append(measured(*job))
            print(*job, rows[-1]["right"], {n: (w["lost"], w["won"]) for n, w in rows[-1]["ways"].items()}, flush=True)
    record = {
        "what": f"a LoRA adapter trained beside the tiny base in NF4 (r=8, alpha=16, all linear layers, learning rate "
        f"{LR:g}, batches of {BATCH} from {EXAMPLES} examples), put into service in several ways, each against the "
        f"adapter beside its 4-bit base on {PROMPTS} held-out prompts: nats per answer token (KL), tokens whose most "
        "likely one changes, answers lost and won, drift of the logits",
        "tool": "python -m tools.measure_merging", **provenance("cpu"), "peft": peft.__version__,
        "seeds": list(SEEDS), "rows": rows,
    }  # fmt: skip
    if out := args.out or (None if args.trial else OUT):
        write(out, record)


if __name__ == "__main__":
    main()
