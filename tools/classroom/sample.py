"""A class of made-up learners who hand in chapter 0, to see what grading makes of them.

Attributes:
    CLASS: Each learner by name: what is written into the two exercises' cells, and what it is worth. Those called
        unstopped get points that they shouldn't: classroom/README.md says what judging can't tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.build.lesson import LEARNER, ROOT
from tools.build.stored import replace_text
from tools.classroom.grade import SUBMITTED
from tools.classroom.judge import read
from tools.classroom.release import Refused

NOTEBOOK = "00_start_here.ipynb"
FIRST, SECOND = "linear_parameters", "lora_parameters"

RIGHT = "def linear_parameters(layer):\n    return sum(p.numel() for p in layer.parameters())"
RIGHT_2 = "def lora_parameters(d_in, d_out, r):\n    return r * (d_in + d_out)"


@dataclass(frozen=True)
class Learner:
    """What one learner handed in.

    first, second: the two exercises' cells; None leaves the stub. above: a cell before the first exercise. points: what
    the two are worth. without: an exercise whose check cell is deleted.
    """

    first: str | None = RIGHT
    second: str | None = RIGHT_2
    above: str = ""
    points: int = 2
    without: str = ""


def function(body: str) -> str:
    """The first exercise's cell with this line as its body."""
    return f"def linear_parameters(layer):\n    {body}"


BOTH_NONE = {"first": "linear_parameters = None", "second": "lora_parameters = None", "points": 0}

CLASS: dict[str, Learner] = {
    "right": Learner(),
    "right-with-own-helper": Learner("def linear_parameters(layer):\n    return total(layer)", above=(
        "import numpy as np\n\ndef total(layer):\n    return int(np.sum([p.numel() for p in layer.parameters()]))")),
    "half": Learner(function("return layer.weight.numel()"), points=1),
    "blank": Learner(None, None, points=0),
    "built-on-a-blank": Learner(None, (
        "from torch import nn\n\n\n"
        "def lora_parameters(d_in, d_out, r):\n    a, b = nn.Linear(d_in, r, bias=False), nn.Linear(r, d_out, False)\n"
        "    return linear_parameters(a) + linear_parameters(b)"), points=1),
    "no-python": Learner("def linear_parameters(layer)\n    return 1", points=1),
    "loop": Learner(function("while True: pass"), points=1),
    "loop-in-the-cell": Learner("while True:\n    pass", points=1),
    "crash": Learner(function("__import__('os')._exit(0)"), points=1),
    "flood": Learner(function("print('x' * 100_000_000)\n    return sum(p.numel() for p in layer.parameters())")),
    "flood-without-end": Learner("while True:\n    print('x' * 1_000_000)", points=1),
    "memory": Learner(function("return len(b'x' * 5_000_000_000)"), points=1),
    "deleted-the-check": Learner(without=FIRST),
    "cheat-variable": Learner(**BOTH_NONE, above='import os\nos.environ["COURSE_STRICT"] = "0"'),
    "cheat-new-check": Learner(**BOTH_NONE, above="check = lambda name, answer=None: answer"),
    "cheat-reference": Learner(
        "from utils.course.checks.registry import find\nlinear_parameters = find('linear_parameters').reference",
        "from utils.course.checks.references.ch00 import lora_parameters", points=0),
    "cheat-reference-called": Learner(
        function("import utils.course.checks.registry as r\n    return r.find('linear_parameters').reference(layer)"),
        points=1),
    "cheat-handed-out": Learner(
        "linear_parameters = check('linear_parameters')",
        "lora_parameters = vars(check('linear_parameters', lambda layer: 0)).get('x', check('lora_parameters'))",
        points=0),
    "cheat-engine": Learner(**BOTH_NONE, above=(
        "import utils.course.checks.judge as judge, utils.course.checks.core as core\n"
        "judge.evaluate = core.evaluate = lambda *a: judge.Result('passed')")),
    "cheat-in-the-call": Learner(
        function("import sys\n    for m in list(sys.modules.values()):\n        if hasattr(m, 'PASSED'):\n"
                 "            m.NOT_RIGHT = m.NOT_SOLVED = m.PASSED"), None, points=0),
    "cheat-modules": Learner(**BOTH_NONE, above=(
        "import sys, types\nfake = types.ModuleType('utils.course.checks.core')\n"
        "fake.check = fake.require = lambda name, answer=None: answer\n"
        "sys.modules['utils.course.checks.core'] = sys.modules['utils.course.checks'] = fake\ncheck = fake.check")),
    "cheat-no-errors": Learner(**BOTH_NONE, above=(
        "get_ipython().showtraceback = lambda *a, **k: None\nget_ipython().run_cell = lambda *a, **k: None")),
    "cheat-exit": Learner(
        "import os\nprint('[passed] linear_parameters', flush=True)\nos._exit(0)", None, points=0),
    "unstopped-always-equal": Learner(
        "class Equal(int):\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0\n"
        "    __hash__ = int.__hash__\ndef linear_parameters(layer):\n    return Equal(1)", None, points=1),
    "unstopped-copied": Learner(
        "import glob, utils\nfolder = utils.__path__[0] + '/course/checks/references/'\n"
        "exec(compile(open(folder + 'ch00.py').read(), 'mine', 'exec'))", points=2),
}  # fmt: skip


def submission(learner: Learner) -> dict[str, Any]:
    """The learner's notebook."""
    notebook = read(ROOT / LEARNER / NOTEBOOK)
    cells = []
    for cell in notebook["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id", "")
        written = {FIRST: learner.first, SECOND: learner.second}.get(name)
        if name == FIRST and learner.above:
            cells.append({**cell, "id": "mine", "metadata": {}, "source": learner.above, "outputs": []})
        if name != f"check-{learner.without}":
            cells.append(cell if written is None else {**cell, "source": written})
    return notebook | {"cells": cells}


def hand_in(folder: Path) -> list[str]:
    """Write the class's notebooks to submitted/ below `folder`; returns the learners' names.

    Raises `Refused` where somebody handed in already.
    """
    if (folder / SUBMITTED).exists() and any((folder / SUBMITTED).iterdir()):
        raise Refused(f"{folder / SUBMITTED} holds submissions already: name a new folder for the sample class")
    for name, learner in CLASS.items():
        text = json.dumps(submission(learner), indent=1) + "\n"
        replace_text(folder / SUBMITTED / name / "ch00" / NOTEBOOK, text)
    return list(CLASS)
