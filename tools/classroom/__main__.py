"""What an instructor runs; classroom/README.md says when.

python -m tools.classroom release CLASS 00 01   assignments for nbgrader in the folder CLASS, and its settings
python -m tools.classroom grade CLASS           judge CLASS/submitted without nbgrader, and write points.csv
python -m tools.classroom overview CLASS        who is stuck where, and which mistakes are frequent
python -m tools.classroom pack FOLDER           the course with all its wheels, for a room without a network
python -m tools.classroom sample CLASS          a class of made-up learners, cheats among them, to try grading with
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

from tools.classroom.grade import grade
from tools.classroom.overview import overview
from tools.classroom.pack import pack
from tools.classroom.release import Refused, release
from tools.classroom.sample import hand_in


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. Trouble is told in a sentence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may be no UTF-8, a terminal may know less than UTF-8
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        for category in (DuplicateCellId, MissingIDFieldWarning):  # of learners' files, which are judged all the same
            warnings.simplefilter("ignore", category)
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.classroom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["release", "grade", "overview", "pack", "sample"])
    parser.add_argument("folder", type=Path, help="the class's folder, or the one to pack into")
    parser.add_argument("chapters", nargs="*", help="for release: chapters' numbers; all when left out")
    options = parser.parse_args(arguments)
    if options.chapters and options.command != "release":
        parser.error(f"{options.command} takes no chapters")
    folder = options.folder.expanduser()
    try:
        if options.command == "release":
            names = release(folder, options.chapters)
            print(f"{len(names)} assignments are in {folder / 'source'}. Next, in {folder}:")
            print("\n".join(f"    nbgrader generate_assignment {name}" for name in names[:1]))
        elif options.command == "grade":
            grade(folder)
        elif options.command == "overview":
            print(overview(folder))
        elif options.command == "pack":
            pack(folder)
        else:
            print(f"{len(hand_in(folder))} learners handed in chapter 0, in {folder / 'submitted'}.")
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
