"""tools.build.lesson: solved regions, and the lessons that are refused."""

import base64
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.trial import HEADER, LESSON, code_lesson, course_at, lesson_of
from tools.build import lesson as build
from tools.build.__main__ import main
from tools.build.lesson import BuildError, Course, make, split_solution
from utils.course.checks.registry import UnknownExercise
from utils.course.colab import Origin, setup_cell

# ------------------------------------------------------------------------------------------- markers


@pytest.mark.parametrize(
    ("source", "learner", "solved"),
    [
        ("x = 1", "x = 1", "x = 1"),
        (
            f"{build.BEGIN}\nx = 1\n{build.STUB}\n# x = None\n#     # a comment\n#\n\n{build.END}\ny = x",
            "x = None\n    # a comment\n\n\ny = x",
            f"{build.BEGIN}\nx = 1\n{build.END}\ny = x",
        ),
        (
            f"class A:\n    def f(self):\n        {build.BEGIN}\n        return 1\n        {build.END}\n\n"
            f"    def g(self):\n        {build.BEGIN}\n        return 2\n        {build.STUB}\n"
            f"        # return self.f() + ...\n        {build.END}",
            "class A:\n    def f(self):\n        # YOUR CODE HERE\n        raise NotImplementedError\n\n"
            "    def g(self):\n        return self.f() + ...",
            f"class A:\n    def f(self):\n        {build.BEGIN}\n        return 1\n        {build.END}\n\n"
            f"    def g(self):\n        {build.BEGIN}\n        return 2\n        {build.END}",
        ),
    ],
)
def test_solved_regions(source, learner, solved):
    assert split_solution(source, "here") == (learner, solved)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"def f():\n    {build.BEGIN}\n    {build.BEGIN}\n    {build.END}", "still open"),
        (f"def f():\n    {build.BEGIN}\n    pass", "without ### END"),
        (f"x = 1\n{build.END}", "without ### BEGIN"),
        (f"{build.STUB}\n# x = None", "outside a region"),
        (f"{build.BEGIN}\n{build.STUB}\n{build.STUB}\n{build.END}", "second one"),
        (f"{build.BEGIN}\nx = 1\n{build.END}", "at module level a solution needs"),
        (f"{build.BEGIN}\nx = 1\n{build.STUB}\nx = None\n{build.END}", "every line of a stub is a comment"),
        ("# BEGIN SOLUTION\nx = 1", "is no marker"),
        ("###END SOLUTION", "is no marker"),
    ],
)
def test_faulty_markers_are_refused_with_their_place(source, said):
    with pytest.raises(BuildError, match="^lessons/01.md, line 7: .*" + said):
        split_solution(source, "lessons/01.md, line 7")


lines = st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="#"), max_size=8)


@settings(deadline=None)
@given(st.lists(lines, max_size=4), st.lists(lines, max_size=4), st.lists(lines, max_size=4))
def test_what_is_outside_a_region_is_in_both_copies_and_the_solution_in_one(before, solution, stub):
    """Whatever is written in the three parts, in a function."""
    region = [build.BEGIN, *solution, build.STUB, *("# " + line for line in stub), build.END]
    learner, solved = split_solution("\n".join([*before, *region, "after"]), "here")
    assert learner.split("\n") == [*before, *stub, "after"]
    assert solved.split("\n") == [*before, build.BEGIN, *solution, build.END, "after"]


# ----------------------------------------------------------------------------------- refused lessons

SOLVED = f"def f():\n    {build.BEGIN}\n    return 1\n    {build.END}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LESSON.replace("name: python3", "name: ir"), "kernelspec is 'ir', not 'python3'"),
        (code_lesson("x = 1").replace("```python", "```bash"), "line 16: a %%bash cell"),
        (LESSON.replace("nbval-ignore-output", "nbval_ignore_output"), "unknown cell metadata"),
        (code_lesson("x = 1").replace("```python", '```python name="five"'), "unknown cell metadata"),
        (code_lesson("# c", ""), "an empty code cell"),
        (LESSON.replace("```python .noeval", "```python"), "</details> end up in different cells"),
        (LESSON.replace("</summary>\n", "</summary>\n\nA.\n\n\nB."), "different cells"),
        (HEADER + "# T\n\n```text\nnever closed\n", "a ``` fence is not closed"),
        (HEADER + "Prose first.\n\n```python\nx = 1\n```\n", "opens with a title"),
        (code_lesson(SOLVED), 'line 16: no code cell calls check'),
        (code_lesson(SOLVED, "x = 1", 'f = check("f", f)'), "the next code cell has to call check"),
        (code_lesson("x = 1", 'f = check("f", f)'), "has no solved region in the code cell before"),
        (code_lesson(SOLVED, 'f = check("f", f)', SOLVED, 'f = check("f", f)'), "checked a second time"),
        (code_lesson(SOLVED, 'f = check("f", f)\ng = check("g", f)'), "one check a cell"),
        (code_lesson(f"def f():\n    {build.BEGIN}\n    return 1", "check('f', f)"), "without ### END"),
    ],
)  # fmt: skip
def test_faulty_lessons_are_refused_before_anything_runs(tmp_path, capsys, text, said):
    course = course_at(tmp_path, **{"00_bad": text})
    assert main([], course) == 1
    assert said in capsys.readouterr().err
    assert list((tmp_path / "notebooks").iterdir()) == []


def test_an_unregistered_exercise_is_refused(tmp_path):
    def points(name):
        raise UnknownExercise(f"there is no exercise {name!r}")

    lesson = lesson_of(tmp_path, code_lesson(SOLVED, 'f = check("f", f)'))
    with pytest.raises(BuildError, match="line 16: there is no exercise 'f'"):
        make(lesson, "notebooks", Course(tmp_path, "O/R", lambda lesson: "pass", points))


def test_errors_name_the_line_of_the_lesson(tmp_path):
    lesson = lesson_of(tmp_path, LESSON)
    text = LESSON.split("\n")
    for cell, line in zip(lesson.cells, lesson.lines, strict=True):
        assert text[line - 1] == cell.source.split("\n")[0]


def test_no_lessons_and_unknown_chapters_are_errors(tmp_path, capsys):
    course = course_at(tmp_path)
    assert main([], course) == 1
    assert main(["--check"], course) == 1
    assert capsys.readouterr().err.count("there are no lessons") == 2
    assert main(["07"], course_at(tmp_path, **{"01_a": LESSON, "02_b": LESSON})) == 1
    assert "no lesson begins with '07'; there are 01_a, 02_b" in capsys.readouterr().err


def test_a_notebook_says_of_its_language_what_its_kernel_will_say():
    """Else JupyterLab writes it into each notebook that is opened, and git takes it for changed."""
    from ipykernel.ipkernel import IPythonKernel

    assert build.LANGUAGE_INFO | {"version": sys.version.split()[0]} == IPythonKernel.language_info


def test_the_kernel_is_the_one_that_every_environment_has():
    """Colab complains of any other, and JupyterLab changes a notebook that it opens where the names differ."""
    from ipykernel.kernelspec import KERNEL_NAME, get_kernel_dict

    own = get_kernel_dict()
    wanted = {"display_name": own["display_name"], "language": own["language"], "name": KERNEL_NAME}
    assert build.KERNELSPEC == wanted


def test_the_badge_needs_no_network_and_is_the_picture_in_assets(tmp_path):
    badge = make(lesson_of(tmp_path, LESSON), "notebooks", course_at(tmp_path)).cells[0].source
    kind, picture, page = re.fullmatch(r"\[!\[Open in Colab\]\(data:([^;]+);base64,(\S+)\)\]\((\S+)\)", badge).groups()
    assert kind == "image/png" and base64.b64decode(picture) == build.BADGE.read_bytes()
    assert page.startswith("https://colab.research.google.com/github/OWNER/REPO/blob/v1/notebooks/")
    assert len(badge) < 3000


def test_a_notebooks_setup_cell_names_its_lesson_as_it_was(tmp_path):
    def setup(lesson):
        return setup_cell(Origin("owner/name", "v1"), lesson)

    lesson = lesson_of(tmp_path, LESSON)
    source = make(lesson, "notebooks", replace(course_at(tmp_path), setup=setup)).cells[2].source
    said = subprocess.run(["git", "hash-object", lesson.path], capture_output=True, text=True, check=True).stdout
    assert f'lesson, version = "lessons/00_topic.md", "{said.strip()}"' in source
    assert source == make(lesson, "solutions", replace(course_at(tmp_path), setup=setup)).cells[2].source
