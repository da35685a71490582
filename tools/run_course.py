"""Run every stored notebook on this machine, whatever its device, and write a report.

    python -m tools.run_course                      both copies of every chapter, the tiny model; on a CUDA machine
    python -m tools.run_course --profile small      chapters 02 to 21 but 19 on SmolLM2-135M-Instruct
    python -m tools.run_course --profile small --as-t4       the same inside a T4's limits; :mod:`tools.gpu.t4` has them
    python -m tools.run_course --trial --out /tmp/x 00 03    some chapters, on a machine without a GPU

CI compares the notebooks with their stored outputs on a CPU. This asks another question: do they run where there is a
GPU, where trainers and quantizers take other paths? A cell that raises does not stop its notebook, so one run shows all
that is wrong. The solved copies run with COURSE_STRICT=1, so a check that doesn't pass is an error. Text that differs
from what is stored is counted and not held against a notebook: it was stored on a CPU, with other versions.

Writes ``course.json``, a row for each notebook, and ``course.md``, the same as a table. A run that was cut off goes on
with the notebooks that are missing.

Attributes:
    SEVERAL: The chapter of two processes, which loads the tiny model whatever the profile.
    REAL_MODEL: The chapters that run on a real model as well.
    SHOWN: So many characters of an error or a difference are kept.
    PROBE: Runs after a notebook's last cell, in memory alone: what the notebook did with the GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import torch
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tools.build.execute import ANSI, ThisPython, kernel_environment, run_cells
from tools.build.lesson import CHECK_CALL, KERNELSPEC, LEARNER, SOLVED, Course
from tools.build.one_run import is_compared
from tools.gpu import t4
from tools.gpu.record import Record

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "measurements"
COPIES = (LEARNER, SOLVED)
SEVERAL = "19"
REAL_MODEL = tuple(number for number in map("{:02d}".format, range(2, 22)) if number != SEVERAL)
SHOWN = 300
PROBE = """\
import json as _json, sys as _sys
_torch = _sys.modules.get("torch")
_cuda = _torch is not None and _torch.cuda.is_available() and _torch.cuda.is_initialized()
_peak = _torch.cuda.max_memory_allocated() if _cuda else 0
_stand_in = getattr(_torch.cuda, "stand_in", None) if _torch is not None else None
print(_json.dumps({"cuda_used": bool(_cuda), "peak_bytes": _peak, "stand_in": _stand_in}))
"""


def chosen(chapters: Sequence[str], profile: str, copies: Sequence[str] = COPIES) -> list[Path]:
    """The notebooks to run. Raises SystemExit for a chapter without one, or that a real model doesn't run."""
    known = {path.name[:2] for path in (ROOT / LEARNER).glob("[0-9][0-9]_*.ipynb")}
    wanted = set(chapters) or (known if profile == "tiny" else known & set(REAL_MODEL))
    if unknown := sorted(wanted - known):
        sys.exit(f"error: no notebook begins with {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if profile != "tiny" and (without := sorted(wanted - set(REAL_MODEL))):
        these = f"{REAL_MODEL[0]} to {REAL_MODEL[-1]} but {SEVERAL}"
        sys.exit(f"error: {', '.join(without)}: with --profile {profile} run chapters {these}")
    return [path for copy in copies for path in sorted((ROOT / copy).glob("*.ipynb")) if path.name[:2] in wanted]


def texts(cell: NotebookNode) -> str:
    """A cell's outputs as nbval compares them: standard output, and the text of what it shows."""
    parts = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.get("outputs", [])
        if output.output_type != "error" and output.get("name") != "stderr"
    ]
    return "".join(parts)


def judged(stored: NotebookNode, run: NotebookNode) -> dict[str, Any]:
    """What a run's row says of its cells: errors, standard error, checks that passed, and text that isn't as stored."""
    errors, stderr, different, checks = [], [], [], 0
    for index, (before, after) in enumerate(zip(stored.cells, run.cells, strict=False)):
        if after.cell_type != "code":
            continue
        failed = False
        for output in after.outputs:
            if output.output_type == "error":
                failed = True
                said = ANSI.sub("", f"{output.ename}: {output.evalue}")
                errors.append({"cell": index, "said": said[:SHOWN]})
            elif output.get("name") == "stderr":
                stderr.append({"cell": index, "said": output.text.strip()[:SHOWN]})
        checks += "[passed]" in texts(after) and bool(CHECK_CALL.search(after.source))
        compared = is_compared(after)
        if compared and not failed and texts(before) != texts(after):
            pairs = zip(texts(before).splitlines(), texts(after).splitlines(), strict=False)
            line = next((f"{a} -> {b}" for a, b in pairs if a != b), "another number of lines")
            different.append({"cell": index, "said": line[:SHOWN]})
    return {"errors": errors, "stderr": stderr, "checks": checks, "different": different}


async def run_one(path: Path, profile: str, course: Course, cell_seconds: int, as_t4: bool = False) -> dict[str, Any]:
    """Run one notebook in a kernel of this Python and say how it went; with `as_t4` inside a T4's limits."""
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(json.loads(json.dumps(stored)))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.cells.append(new_code_cell(PROBE))
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython(), kernel_name=KERNELSPEC["name"]),
        timeout=cell_seconds,
        resources={"metadata": {"path": str(path.parent)}},
        allow_errors=True,
        store_widget_state=False,
        coalesce_streams=True,
    )
    environment = kernel_environment(path.parent.name, course) | {"COURSE_PROFILE": profile}
    environment = t4.environment(environment) if as_t4 else environment
    began, stopped = time.monotonic(), []
    try:
        await run_cells(client, environment)
    except (CellTimeoutError, DeadKernelError) as problem:
        index = next((i for i, c in reversed(list(enumerate(notebook.cells))) if c.get("execution_count")), 0)
        stopped = [{"cell": index, "said": f"{type(problem).__name__}: {problem}"[:SHOWN]}]
    seconds = round(time.monotonic() - began, 1)
    probe = notebook.cells.pop()
    row = judged(stored, notebook)
    row["errors"] += stopped
    answer = texts(probe) if not stopped else ""
    gpu = json.loads(answer) if answer.startswith("{") else {"cuda_used": None, "peak_bytes": None, "stand_in": None}
    if as_t4 and not stopped and gpu["stand_in"] != "T4":
        row["errors"].append({"cell": len(notebook.cells), "said": "the stand-in for a T4 wasn't in force"})
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    return {"state": "failed" if row["errors"] else "ran", "seconds": seconds, "cells": cells} | gpu | row


def shown(row: dict[str, Any]) -> str:
    """A row's profile, and what the GPU stood in for."""
    return f"{row['profile']} as {row['stand_in']}" if row.get("stand_in") else row["profile"]


def _earlier(rows: Sequence[dict[str, Any]]) -> str:
    """How many rows were kept from earlier commits: a row's `until` is the last that it can be of."""
    kept = Counter(row["until"] for row in rows if "until" in row)
    return "".join(f"; {count} notebooks at {commit} or before" for commit, count in kept.items())


def report(record: Record) -> str:
    """The record as a Markdown page: the machine, a table, and under it every error and line of standard error."""
    head, rows = record.head, record.rows
    ran = sum(row["state"] == "ran" for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    lines = [
        f"# The course on {head['hardware']}",
        "",
        f"{head['date']}, {versions}, commit {head['commit']}{_earlier(rows)}. "
        f"{ran} of {len(rows)} notebooks ran without an error.",
        "",
        "| profile | notebook | result | code cells | checks passed | seconds | GPU peak, MB | text not as stored |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        lines.append(
            f"| {shown(row)} | {row['notebook']} | {row['state']} | {row['cells']} | {row['checks']} | "
            f"{row['seconds']:.0f} | {peak} | {len(row['different'])} |"
        )
    if any(row.get("stand_in") for row in rows):
        said = "this GPU stood in for a T4: its memory, no bf16. `tools/gpu/t4.py` says what that can't tell."
        lines += ["", f"*as T4*: {said}"]
    for what, title in (("errors", "Errors"), ("stderr", "Standard error")):
        found = [(row, item) for row in rows for item in row[what]]
        if found:
            lines += ["", f"## {title}", ""]
            lines += [
                f"- {shown(row)} {row['notebook']}, cell {item['cell']}: `{' '.join(item['said'].split())}`"
                for row, item in found
            ]
    return "\n".join(lines) + "\n"


def row_key(path: Path, profile: str, as_t4: bool = False) -> str:
    """A notebook's key in the record."""
    return f"{profile}{' as T4' if as_t4 else ''} {path.parent.name}/{path.stem}"


async def run_all(
    paths: Sequence[Path],
    profile: str,
    record: Record,
    *,
    at_once: int,
    cell_seconds: int,
    seconds: float,
    as_t4: bool = False,
) -> None:
    """Run the notebooks that the record lacks, `at_once` at a time; start none after `seconds`."""
    course, gate, began = Course.here(), asyncio.Semaphore(at_once), time.monotonic()

    async def one(path: Path) -> None:
        name, key = f"{path.parent.name}/{path.stem}", row_key(path, profile, as_t4)
        async with gate:
            if key in record:
                return
            if time.monotonic() - began > seconds:
                print(f"not started {key}: {seconds:.0f} s are over", flush=True)
                return
            row = await run_one(path, profile, course, cell_seconds, as_t4)
            if any(error["said"].startswith("KeyboardInterrupt") for error in row["errors"]):
                raise KeyboardInterrupt  # nbclient hands Ctrl-C to the kernel, and the run would go on
            record.add(key, profile=profile, notebook=name, **row)
            page = record.path.with_suffix(".md")
            scratch = page.with_name(f".{page.name}-{os.getpid()}")
            scratch.write_text(report(record), encoding="utf-8")
            os.replace(scratch, page)
            first = f"  {row['errors'][0]['said'].splitlines()[0]}" if row["errors"] else ""
            print(f"{row['state']:6s} {key}  {row['seconds']:.0f} s{first}", flush=True)

    await asyncio.gather(*map(one, paths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="*", help="chapter numbers, such as 03 (default: all that the profile has)")
    parser.add_argument("--profile", choices=("tiny", "small", "7b"), default="tiny")
    parser.add_argument("--only", choices=COPIES, help="the learner's copies or the solved ones (default: both)")
    parser.add_argument("--as-t4", action="store_true", help="inside a T4's limits: 15.6 GB and no bf16")
    parser.add_argument("--out", type=Path, help="the folder to write into (default: assets/measurements)")
    parser.add_argument("--at-once", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="notebooks at a time")
    parser.add_argument("--cell-seconds", type=int, default=300, help="a cell that takes longer is an error")
    parser.add_argument("--seconds", type=float, default=480.0, help="stop starting notebooks after so long")
    parser.add_argument("--trial", action="store_true", help="on a machine without a GPU too; needs --out")
    arguments = parser.parse_args()
    if arguments.at_once < 1:
        sys.exit(f"error: --at-once is {arguments.at_once}; run at least one notebook at a time")
    if arguments.trial and arguments.out is None:
        sys.exit("error: --trial needs --out, so that a trial's report doesn't replace a GPU's")
    if not arguments.trial and not torch.cuda.is_available():
        sys.exit("error: this runs the course on a CUDA GPU, and there is none here (--trial runs it anyway)")
    paths = chosen(arguments.chapter, arguments.profile, [arguments.only] if arguments.only else COPIES)
    try:
        record = Record((arguments.out or OUT) / "course.json", "the course's notebooks, run on this machine", seed=0)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    limits = {name: getattr(arguments, name) for name in ("at_once", "cell_seconds", "seconds", "as_t4")}
    try:
        asyncio.run(run_all(paths, arguments.profile, record, **limits))
    except KeyboardInterrupt:
        sys.exit("error: interrupted; run the same command again, and it goes on")
    missing = [path for path in paths if row_key(path, arguments.profile, arguments.as_t4) not in record]
    failed = [row for row in record.rows if row["state"] != "ran"]
    print(f"{len(record.rows)} notebooks in {record.path.with_suffix('.md')}: {len(failed)} failed", flush=True)
    sys.exit(1 if failed or missing else 0)


if __name__ == "__main__":
    main()
