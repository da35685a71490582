"""The record of all jobs, and the ledger's page behind it."""

from __future__ import annotations

import json
from pathlib import Path

from tools.ensemble import write
from tools.real_model.findings import table
from tools.real_model.page import PAGE, write_page
from tools.real_model.tables import tables

OUT = Path(__file__).resolve().parents[2] / "assets" / "measurements" / "real_model.json"
ABOUT = "about"  # the file of a work folder that says on what its jobs ran


def record(work: Path, out: Path = OUT, page: Path = PAGE) -> None:
    """Write the record from all the jobs' files in `work`, the ledger's page from it, and print the table.

    What the record at `out` has and `work` doesn't stays; a section that `work` has in part is mixed of both, so give a
    section all of its jobs. Raises FileNotFoundError where nothing was trained in `work`.
    """
    rows = [row for file in sorted(work.glob("*.json")) for row in json.loads(file.read_text(encoding="utf-8"))]
    about = json.loads((work / ABOUT).read_text(encoding="utf-8"))
    rows = [row for row in rows if row["section"] != "pilot"]
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
