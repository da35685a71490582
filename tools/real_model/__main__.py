"""The command line of tools/real_model; its package says how it is called."""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from pathlib import Path

import torch

import tools.real_model as package
from tools.ensemble import provenance, results_of, write
from tools.real_model import findings
from tools.real_model.plan import PLANS, SECTIONS, Job, calibrated


def run_job(job: Job) -> list[dict]:
    """A job's rows, from its file where it has been done; an error is told and leaves no file."""
    from tools.real_model.sections import KINDS, Bench

    file = Path(job["file"])
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    os.environ["COURSE_PROFILE"] = PLANS[job["model"]].profile
    torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU
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


def jobs_of(model: str, sections: list[str], work: Path, device: str, trial: bool) -> list[Job]:
    """The jobs of the sections, in the order that was asked for, with the steps that the pilot in `work` found."""
    pilot = [row for file in sorted(work.glob(f"{model}-pilot-*.json")) for row in json.loads(file.read_text())]
    plan = calibrated(PLANS[model], pilot)
    return [
        {**job, "model": model, "device": device, "trial": trial,
         "file": str(work / f"{model}-{section}-{job['name']}.json".replace(" ", "_").replace("+", "_"))}
        for section in sections for job in SECTIONS[section](plan)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--model", choices=PLANS, default="small")
    parser.add_argument("--work", type=Path, required=True, help="where finished jobs are kept")
    parser.add_argument("--workers", type=int, default=2, help="processes on the card; 0: this one alone")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="give up what isn't done after so long")
    parser.add_argument("--trial", action="store_true", help="the first job of each kind, few runs of four steps")
    parser.add_argument("--record", action="store_true", help="train nothing: write the record from what there is")
    args = parser.parse_args()
    if unknown := set(args.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if args.record:
        return findings.record(args.work)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sections = args.sections or [name for name in SECTIONS if name != "pilot"]
    if not args.sections and not args.trial:
        for _ in results_of(run_job, jobs_of(args.model, ["pilot"], args.work, device, False), workers=args.workers):
            pass
    jobs = jobs_of(args.model, sections, args.work, device, args.trial)
    if args.trial:
        jobs = list({(job["section"], job["kind"], job.get("remedy")): job for job in reversed(jobs)}.values())
    write(args.work / findings.ABOUT, provenance(device))
    done = sum(len(rows) > 0 for rows in results_of(run_job, jobs, workers=args.workers, seconds=args.seconds))
    print(f"{done} of {len(jobs)} jobs are there")


if __name__ == "__main__":
    main()
