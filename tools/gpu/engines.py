"""Every engine of tools/engines once on two GPUs under NCCL, beside one process; and a process that is killed.

Writes ``engines.json``. A row is one run of chapter 9's recipe (the tiny Llama, style, six steps of eight records) by
the command that the chapter gives: its losses, their largest difference from the run on one process, and its seconds
with the start. A run that was killed has the seconds from the kill to the launcher's end, the step of the last whole
checkpoint, and the losses after the same command went on from there.

    python -m tools.measure_gpu engines        (a machine with two GPUs; ZeRO-3 where deepspeed is installed)

Attributes:
    STEPS: Of each run; a checkpoint every second half.
    QLORA: The recipe's `four_bit`.
    PATIENCE: Seconds after which a run counts as hung.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from tools.gpu.record import ROOT, Record
from utils.train import run_folder

STEPS = 6
QLORA = {
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "bfloat16",
}
PATIENCE = 150
_SFT = {
    "max_steps": STEPS,
    "learning_rate": 6e-3,
    "max_length": 256,
    "save_strategy": "steps",
    "save_steps": STEPS // 2,
}


def recipe(output: Path, four_bit: bool) -> dict[str, Any]:
    """The run as a YAML file has it."""
    return {
        "model": "assets/tiny-llama", "data": "assets/data/instructions/train.jsonl", "only": {"task": "style"},
        "output": str(output), "global_batch_size": 8, "lora": {"r": 8, "lora_alpha": 16}, "sft": _SFT,
        **({"four_bit": QLORA} if four_bit else {}),
    }  # fmt: skip


def launch(folder: Path, engine: str | None, *, dies: int = 0) -> dict[str, Any]:
    """Run the recipe in `folder`, under an engine on two processes or on one without; rank 1 kills itself as step
    `dies` begins. Gives the exit status, the seconds, what was said, and when it ended."""
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(folder / "adapter", "qlora" in folder.name)), encoding="utf-8")
    command = [sys.executable]
    if engine:
        command += ["-m", "accelerate.commands.launch", "--config_file", f"tools/engines/{engine}.yaml"]
        command += ["--num_processes", "2", "--main_process_port", "0"]
    script = "tests/train/dying_run.py" if dies else "tools/train.py"
    more = {"DIE_RANK": "1", "DIE_STEP": str(dies)} if dies else {}
    more |= {} if engine else {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    began = time.time()
    try:
        done = subprocess.run(
            [*command, script, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
            env={**os.environ, **more},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"status": None, "seconds": PATIENCE, "said": f"hung for {PATIENCE} s", "ended": time.time()}
    return {
        "status": done.returncode, "seconds": round(time.time() - began, 1), "ended": time.time(),
        "said": done.stdout[-2000:] + done.stderr[-6000:],
    }  # fmt: skip


def losses(folder: Path) -> list[float]:
    """A finished run's losses, one a logged step; [] without its log."""
    log = folder / "adapter" / "log.json"
    rows = json.loads(log.read_text(encoding="utf-8")) if log.exists() else []
    return [row["loss"] for row in rows if "loss" in row]


def run(out: Path, trial: bool, seconds: float) -> None:
    """Write ``engines.json`` into `out`; start no run after `seconds`."""
    until = time.time() + seconds
    record = Record(
        out / "engines.json",
        ("TRIAL: on CPUs with gloo. " if trial else "")
        + f"the recipe of chapter 9, {STEPS} steps, by each engine on two processes; losses beside one process",
        seed=0, tool="tools/gpu/engines.py",
        backend="nccl" if torch.cuda.is_available() else "gloo", gpus=torch.cuda.device_count(),
    )  # fmt: skip
    names = ["ddp"] if trial else ["ddp", "fsdp2", "fsdp2_qlora", "zero3"]
    with tempfile.TemporaryDirectory() as scratch:
        for engine in names:
            if engine in record or time.time() > until:
                continue
            if engine == "zero3" and importlib.util.find_spec("deepspeed") is None:
                print("  zero3: deepspeed isn't installed", flush=True)
                continue
            alone = Path(scratch) / ("one-qlora" if "qlora" in engine else "one")
            if not losses(alone):
                _checked(launch(alone, None), alone.name)
            together = Path(scratch) / engine
            found = launch(together, engine)
            pairs = list(zip(losses(alone), losses(together), strict=False))
            record.add(
                engine, status=found["status"], seconds=found["seconds"], losses=losses(together), alone=losses(alone),
                apart=max((abs(a - b) for a, b in pairs), default=None),
                said="" if found["status"] == 0 else found["said"][-1500:],
            )  # fmt: skip
            print(f"  {engine}: status {found['status']}, {found['seconds']} s, {losses(together)}", flush=True)
        for engine in [name for name in names if "qlora" not in name]:
            key, folder = f"{engine}, killed", Path(scratch) / f"killed-{engine}"
            if key in record or engine not in record or time.time() > until:
                continue
            found = launch(folder, engine, dies=STEPS // 2 + 2)
            when = re.search(r"killed at ([\d.]+)", found["said"])
            last = run_folder.last_checkpoint(folder / "adapter.partial" / "checkpoints")
            again = launch(folder, engine)
            record.add(
                key, status=found["status"], last=last.name if last else None,
                seconds_after=round(found["ended"] - float(when[1]), 1) if when else None,
                went_on=again["status"], losses=losses(folder),
                said=[line for line in found["said"].splitlines() if "stops, because" in line or "go on from" in line],
            )  # fmt: skip
            print(f"  {key}: {record.rows[-1]}", flush=True)


def _checked(found: dict[str, Any], name: str) -> None:
    if found["status"] != 0:
        raise RuntimeError(f"the run on one process ({name}) ended with {found['status']}:\n{found['said'][-2000:]}")
