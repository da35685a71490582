"""Which jobs there are and the running of one, in a module that other processes can import."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path

import torch

from tools.ensemble import write
from tools.real_model.plan import PLANS, SECTIONS, Job, calibrated
from tools.real_model.sections import KINDS, Bench


def run_job(job: Job) -> list[dict]:
    """A job's rows, from its file where it has been done; an error is told and leaves no file."""
    file = Path(job["file"])
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    os.environ["COURSE_PROFILE"] = PLANS[job["model"]].profile
    torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU
    if job["device"].startswith("cuda"):
        # a job that outgrows its share halves its stack (ensemble.in_parts) and leaves the other processes theirs
        torch.cuda.set_per_process_memory_fraction(job["share"])
    began, title = time.perf_counter(), f"{job['model']} {job['section']} {job['name']}"
    try:
        rows = KINDS[job["kind"]](Bench(PLANS[job["model"]], job["device"], job["trial"]), job)
    except Exception:
        print(f"{title} FAILED\n{traceback.format_exc()}", flush=True)
        return []
    finally:
        if job["device"].startswith("cuda"):
            torch.cuda.empty_cache()
    rows = [{"model": job["model"], **row} for row in rows]
    seconds = time.perf_counter() - began
    write(file, rows)
    print(f"{title}: {len(rows)} rows, {seconds:.0f} s", flush=True)
    return rows


def jobs_of(model: str, sections: list[str], work: Path, device: str, trial: bool, share: float = 1.0) -> list[Job]:
    """The jobs of the sections, in the order that was asked for, with the steps that the pilot in `work` found.

    share: of the card's memory, for each process.
    """
    pilot = [row for file in sorted(work.glob(f"{model}-pilot-*.json")) for row in json.loads(file.read_text())]
    plan = calibrated(PLANS[model], pilot)
    return [
        {**job, "model": model, "device": device, "trial": trial, "share": share,
         "file": str(work / f"{model}-{section}-{job['name']}.json".replace(" ", "_").replace("+", "_"))}
        for section in sections for job in SECTIONS[section](plan)
    ]  # fmt: skip
