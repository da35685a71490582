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
