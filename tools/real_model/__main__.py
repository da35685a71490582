"""The command line of tools/real_model; its package says how it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import tools.real_model as package
from tools.ensemble import provenance, results_of, write
from tools.real_model import record
from tools.real_model.jobs import jobs_of, run_job
from tools.real_model.plan import PLANS, SECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--model", choices=PLANS, default="small")
    parser.add_argument("--work", type=Path, default=record.JOBS, help="where finished jobs are kept (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes on the card; 0: this one alone")
    parser.add_argument("--card", type=float, default=0.95, help="the share of the card's memory for all of them")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="give up what isn't done after so long")
    parser.add_argument("--only", metavar="TASK", help="the jobs of one task, and those that need several")
    parser.add_argument("--trial", action="store_true", help="the first job of each kind, few runs of four steps")
    parser.add_argument("--record", action="store_true", help="train nothing: write the record from what there is")
    args = parser.parse_args()
    if unknown := set(args.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if args.trial and args.work == record.JOBS:
        parser.error("--trial needs --work, so that trial runs don't stand among real ones")
    if args.record:
        return record.record(args.work)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sections = args.sections or [name for name in SECTIONS if name != "pilot"]
    share = args.card / max(1, args.workers)
    if not args.sections and not args.trial:
        pilot = jobs_of(args.model, ["pilot"], args.work, device, False, share)
        for _ in results_of(run_job, pilot, workers=args.workers):
            pass
    jobs = jobs_of(args.model, sections, args.work, device, args.trial, share)
    jobs = [job for job in jobs if args.only in (None, job.get("task", args.only))]
    if args.trial:
        jobs = list({(job["section"], job["kind"], job.get("remedy")): job for job in reversed(jobs)}.values())
    write(args.work / record.ABOUT, provenance(device))
    done = sum(len(rows) > 0 for rows in results_of(run_job, jobs, workers=args.workers, seconds=args.seconds))
    print(f"{done} of {len(jobs)} jobs are there")


if __name__ == "__main__":
    main()
