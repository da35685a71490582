"""Write both notebooks of each lesson: lessons/NN_topic.md -> notebooks/ (exercises open) and solutions/ (solved).

    python -m tools.build             build everything: run each chapter once, store the outputs of both copies
    python -m tools.build 02 03       only these chapters
    python -m tools.build --check     start no kernel; fail when a committed notebook is not its lesson's
    python -m tools.build --prose 02       only prose changed: run nothing, keep the stored outputs
    python -m tools.build --no-execute 02     cells without outputs, to look at while writing

The lessons are read first, and everything that breaks a house rule is said with its line, before a kernel starts. The
build fails, and leaves the old notebooks, when a cell raises, writes to stderr, or stores what differs from run to run.
The solutions of a lesson also make a module, utils/course/checks/references/chNN.py, which is written first: the checks
import it. The code cells that a lesson tags "capstone" make a script: capstone.py, in the repository's root.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from tools.build.check import stale, strays
from tools.build.execute import LEAVE, REUSE, RUN, build
from tools.build.lesson import LEARNER, BuildError, Course, find_lessons, make, read_lesson
from tools.build.references import reference_modules, stale_references, stray_references, write_references
from tools.build.rules import broken, unwritten
from tools.build.script import SCRIPT, script, stale_script, write_script


def main(arguments: Sequence[str] | None = None, course: Course | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.build", description="Build notebooks/ and solutions/ from lessons/."
    )
    parser.add_argument("chapters", nargs="*", help="chapter numbers, such as 02; all when left out")
    parser.add_argument("--check", action="store_true", help="no kernel: fail on notebooks not up to date")
    parser.add_argument("--prose", action="store_true", help="no kernel: keep the outputs; code must be as stored")
    parser.add_argument("--no-execute", action="store_true", help="write cells without outputs, for trying")
    options = parser.parse_args(arguments)
    errors: list[str] = []
    outdated = False
    try:
        course = course or Course.here()
        lessons = [read_lesson(path) for path in find_lessons(course, options.chapters)]
        text, references = script(lessons), reference_modules(lessons)
        faults = [said for lesson in lessons for said in broken(lesson, course)] if course.house_rules else []
        if faults:
            errors = faults
        elif options.check:
            errors = stale_references(references, course)
            errors += stale_script(text, course) if text or not options.chapters else []
            errors += [] if options.chapters else [*strays(lessons, course), *stray_references(references, course)]
            outdated = bool(errors)  # also when the next line raises: the checks can't be imported without references
            errors += stale(lessons, course)
            outdated = bool(errors)
        else:
            for name, state in write_references(references, course).items():  # the checks import them
                print(f"{state:9s} {name}")
            for lesson in lessons:  # every lesson's own errors before the first kernel starts
                make(lesson, LEARNER, course)
            outputs = REUSE if options.prose else LEAVE if options.no_execute else RUN
            errors = asyncio.run(build(lessons, course, outputs))
            if not errors and (state := write_script(text, course)):
                print(f"{state:9s} {SCRIPT}")
        for note in (said for lesson in lessons for said in unwritten(lesson)):
            print(f"note: {note}")
    except BuildError as problem:
        errors.append(str(problem))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if outdated:
        print("Run `make notebooks` and commit the result.", file=sys.stderr)
    elif options.check and not errors:
        print(f"{2 * len(lessons)} notebooks are what their lessons give.")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
