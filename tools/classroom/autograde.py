"""What takes the place of nbgrader's Execute: each answer is judged apart, and its check cell gets the verdict.

classroom/nbgrader_config.py names it. The rest of nbgrader is as it was: gradebook, points, lateness, feedback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbformat import from_dict
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Float

from tools.classroom.judge import Limits, judge_notebook, official, write_verdicts


class Judge(NbGraderPreprocessor):
    """Judges the answers of one submitted notebook. Raises `NotACourseNotebook` for one that isn't a chapter's."""

    seconds = Float(60, help="so long an answer may take, with the cells that it needs").tag(config=True)
    megabytes = Float(4000, help="so much memory it may take").tag(config=True)

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        folder = Path(resources.get("metadata", {}).get("path") or ".").resolve()
        course = official(f"{resources['nbgrader']['notebook']}.ipynb")
        write_verdicts(nb, course, judge_notebook(nb, course, folder, Limits(self.seconds, self.megabytes)))
        nb.cells = [from_dict(cell) for cell in nb.cells]  # the verdicts are plain dictionaries
        return nb, resources
