"""The record of all jobs, and the ledger's page behind it."""

from __future__ import annotations

import json
from pathlib import Path

from tools.ensemble import write
from tools.real_model.choosing import Row
from tools.real_model.findings import table
from tools.real_model.jobs import jobs_of
from tools.real_model.page import PAGE, write_page
from tools.real_model.plan import PLANS, SECTIONS, Job
from tools.real_model.tables import tables
from tools.sweep_rank import FULL

OUT = Path(__file__).resolve().parents[2] / "assets" / "measurements" / "real_model.json"
JOBS = OUT.parents[1] / "real_model_jobs"  # the jobs behind it that are kept, those of unfinished sections too
ALONE = ("ranks", "variants", "capacity")
ABOUT = "about"  # the file of a work folder that says on what its jobs ran


def finished(work: Path) -> list[Row]:
    """The rows of the jobs in `work`, of each section, task and method (LoRA or full fine-tuning) that has all of its
    jobs there: half of the settings would be compared with each other alone. In the sections ALONE every job has all
    settings of what it is about, so it counts when it is there; a finding that needs another one finds nothing.
    """
    rows: list[Row] = []
    for model in PLANS:
        groups: dict[tuple, list[Path]] = {}
        for job in jobs_of(model, [name for name in SECTIONS if name != "pilot"], work, "cpu", False):
            apart = job["name"] if job["section"] in ALONE else _trains_all(job)
            groups.setdefault((job["section"], job.get("task"), apart), []).append(Path(job["file"]))
        whole = [files for files in groups.values() if all(file.exists() for file in files)]
        rows += [row for files in whole for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    return rows


def _trains_all(job: Job) -> bool:
    """Whether a job is of full fine-tuning."""
    return job.get("method") == "full" or any(run[0] == FULL for run in job.get("runs", ()))


def record(work: Path, out: Path = OUT, page: Path = PAGE) -> None:
    """Write the record from the :func:`finished` jobs in `work`, the ledger's page from it, and print the table.

    What the record at `out` has and `work` doesn't stays. Raises FileNotFoundError where nothing was trained in `work`.
    """
    rows = finished(work)
    about = json.loads((work / ABOUT).read_text(encoding="utf-8"))
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    findings, behind = table(rows, before.get("findings", ())), tables(rows, before.get("tables"))
    write(out, {
        "what": "the chapters' experiments on SmolLM2-135M-Instruct (small) and the tiny Llama (tiny), by the same "
        "code; a finding holds where the 95% interval over its seeds is on its side of the bound, which was set "
        "before; tables: each setting's mean and interval over the seeds, at the learning rate that is best on dev",
        "tool": "python -m tools.real_model", **about, "findings": findings, "tables": behind,
    })  # fmt: skip
    write_page(out, page)
    for entry in findings:
        sides = [
            f"{m} {entry[m].get('mean', '-')} ({entry[m].get('low', '-')} to {entry[m].get('high', '-')}) "
            f"{entry[m]['verdict']}"
            for m in ("tiny", "small")
        ]
        print(f"{entry['chapter']} {entry['says']} [{entry['unit']}]: {'; '.join(sides)}")
