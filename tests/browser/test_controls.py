"""What the other tests look for is seen when it is there: else they would pass whatever the page shows."""

from __future__ import annotations

from tests.browser.lab import write_notebook
from tests.browser.looks import too_faint, too_wide
from tests.browser.reader import faults

SAYS_AN_ERROR = """from IPython.display import Javascript

Javascript("console.error('heard')")"""

FAINT = """from IPython.display import HTML

HTML("<p style='color: #bbb; background: #fff'>hardly seen</p><p>well seen</p>")"""

WIDE = """from IPython.display import HTML

HTML("<div style='width: 3000px'>wide</div>")"""

CONTROLS_IN_A_ROW = """import ipywidgets as w

w.HBox([w.FloatSlider(description="temperature") for _ in range(3)])"""


def opened(course, reader, *sources):
    """A reader of a notebook with these cells, which have been run."""
    write_notebook(course.root / "control.ipynb", *sources)
    one = reader("control.ipynb")
    one.run_all()
    return one


def test_a_cell_that_fails_and_those_that_do_not_run_are_seen(course, reader):
    one = opened(course, reader, "1 / 0", "2")
    assert faults(one.cells()) == ["code cell 1 raised ZeroDivisionError: division by zero", "code cell 2 did not run"]


def test_an_error_in_the_console_is_heard(course, reader):
    opened(course, reader, SAYS_AN_ERROR)
    (error,) = course.errors()
    assert error.startswith("heard")


def test_a_request_for_another_machine_is_seen_and_not_let_out(course, reader):
    one = opened(course, reader, "from IPython.display import HTML\n\nHTML('<img src=\"https://example.org/a.png\">')")
    one.page.wait_for_timeout(200)
    assert "asked the network for https://example.org/a.png" in course.errors()


def test_what_is_too_wide_or_too_faint_is_seen(course, reader):
    one = opened(course, reader, FAINT, WIDE, CONTROLS_IN_A_ROW)
    one.width(800)
    assert {fault.split(":")[0] for fault in too_wide(one.page)} == {"cell 1", "cell 2"}
    (faint,) = too_faint(one.page)
    assert faint.endswith("hardly seen")
