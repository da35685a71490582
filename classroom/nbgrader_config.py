"""nbgrader's settings for a class on this course. `python -m tools.classroom release` copies it to the class."""

import sys

sys.path.insert(0, "COURSE")  # release writes this course's folder here

c = get_config()  # noqa: F821  nbgrader gives it

# The notebooks come with open exercises: there are no solutions to take out.
c.ClearSolutions.enabled = False
# A check cell that somebody deleted comes back, and is judged.
c.OverwriteCells.add_missing_cells = True
# Each answer is judged in a process of its own, instead of running the notebook from top to bottom.
c.Autograde.autograde_preprocessors = [
    "tools.classroom.autograde.Judge",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# What one answer may take, with the cells that it needs. A single call of it has five seconds.
c.Judge.seconds = 60
c.Judge.megabytes = 4000
# What is kept of an output.
c.LimitOutput.max_lines = 200
c.LimitOutput.max_traceback = 50
