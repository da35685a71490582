"""Write into each lesson's opening how long running takes, from the record, and into the notebooks what changed.

    python -m tools.minutes        (`make minutes` measures first: pytest -p tools.pytest_notebooks --seconds=...)

A sentence that is near enough to its record (rules.py says how near) stays, so that measuring again changes little.
Nothing is run: the notebooks keep their outputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tools.build.__main__ import main as build
from tools.build.lesson import ROOT
from tools.build.rules import RECORD, RUNS, near


def rounded(seconds: float) -> int:
    """To five seconds below a minute, else to ten; five at the least."""
    step = 5 if seconds < 57.5 else 10
    return max(5, step * round(seconds / step))


def write_sentences(root: Path) -> list[str]:
    """Mend the lessons whose sentence is too far from the record in `root`; returns their stems."""
    measured = json.loads((root / RECORD).read_text(encoding="utf-8"))["seconds"]
    written = []
    for path in sorted((root / "lessons").glob("[0-9][0-9]_*.md")):
        text = path.read_text(encoding="utf-8")
        said = RUNS.search(text)
        if said and path.stem in measured and not near(int(said[1]), measured[path.stem]):
            new = said[0].replace(f"about {said[1]} s", f"about {rounded(measured[path.stem])} s")
            path.write_text(text[: said.start()] + new + text[said.end() :], encoding="utf-8")
            written.append(path.stem)
    return written


def main(root: Path = ROOT) -> int:
    """The command; returns the exit status."""
    stems = write_sentences(root)
    print("\n".join(stems) if stems else "every sentence is near enough to its measurement")
    return build(["--prose", *stems]) if stems else 0


if __name__ == "__main__":
    sys.exit(main())
