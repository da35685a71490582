"""Tables on a first screen are prose, so nothing runs them: they are held to the cells that print the same."""

from __future__ import annotations

import json
import re

from utils.models import ROOT


def test_chapter_6_s_table_of_cards_is_what_its_cell_prints():
    lesson = (ROOT / "lessons" / "06_loading_models.md").read_text()
    written = [re.split(r" *\| *", line.strip("| ")) for line in lesson.splitlines() if line.startswith("| Llama-")]
    notebook = json.loads((ROOT / "solutions" / "06_loading_models.ipynb").read_text())
    (cell,) = (c for c in notebook["cells"] if "first = [next(" in "".join(c["source"]))
    printed = "".join(cell["outputs"][0]["text"]).splitlines()[1:]
    assert [re.split(r" {2,}| +(?=[-\d])", line) for line in printed] == written


def test_chapter_7_s_table_of_formats_is_what_its_cells_print():
    lesson = (ROOT / "lessons" / "07_four_bits_by_hand.md").read_text()
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lesson.splitlines()[:40] if "|" in line]
    written = {row[0].split(",")[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}
    notebook = json.loads((ROOT / "solutions" / "07_four_bits_by_hand.ipynb").read_text())
    outputs = [out for c in notebook["cells"] if c["cell_type"] == "code" for out in c["outputs"]]
    printed = "\n".join("".join(out.get("text", "")) for out in outputs)

    def found(pattern):
        (number,) = re.findall(pattern, printed, re.M)
        return number

    assert [written[name]["error"] for name in ("NF4", "MXFP4", "NVFP4", "FP8")] == [
        f"{float(found(r'^error without .*, with ([0-9.]+)%')):.1f}%",
        found(r"^floor .* error (.*)$"),
        found(r"^scale a float, E4M3 +([\d.]+%)"),
        found(r"^E4M3 +([\d.]+%)"),
    ]
    wrong = {name: found(rf"^{name} +\d\.\d+ +(\d+) ") for name in ("NF4, double quant\\.", "NVFP4", "FP8, E4M3")}
    assert [written[name]["wrong of 800"] for name in ("NF4", "NVFP4", "FP8")] == list(wrong.values())
    floor, even = (found(rf"^MXFP4, {rule} +\d\.\d+ +(\d+) ") for rule in ("floor", "even"))
    assert written["MXFP4"]["wrong of 800"] == f'{floor}; rounded "even" {even}'
    right = found(r"^16 bits +\d\.\d+ +(\d+) ")
    assert f"in 16 bits {right} answers are wrong" in lesson
