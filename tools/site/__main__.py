"""Builds the website, or serves what was built.

python -m tools.site                  site/_build/html; makes .venv-site and site/node_modules where they are missing
python -m tools.site serve            the same, and serves it at http://127.0.0.1:8000 (--port for another)
python -m tools.site setup            only what the build needs
python -m tools.site ref              says whether this checkout is what the site is published from, to GitHub too
python -m tools.site lock             writes site/requirements.lock from pyproject.toml
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tools.site import environment
from tools.site.build import built, served
from tools.site.collect import ROOT, address_of
from utils.course.colab import origin


def _told_the_ref() -> int:
    """Compare the ref that GitHub runs a workflow for with pyproject.toml's, and tell the workflow's later steps."""
    ref, here = origin(ROOT).ref, os.environ.get("GITHUB_REF_NAME", "no ref of GitHub's")
    told = f"publish={str(here == ref).lower()}"
    print(f"The site is published from {ref}; this is {here}: {told}")
    if "GITHUB_OUTPUT" in os.environ:
        with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as output:
            print(told, file=output)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["build", "serve", "setup", "ref", "lock"], default="build")
    parser.add_argument("--out", type=Path, default=ROOT / "site" / "_build", help="folder to build in")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        if options.command == "lock":
            print(f"{environment.PYTHON_LOCK}: {environment.lock(ROOT)} packages")
            return 0
        if options.command == "ref":
            return _told_the_ref()
        environment.set_up(ROOT)
        if options.command == "setup":
            return 0
        started = time.monotonic()
        pages = built(ROOT, options.out)
        count = sum(1 for _ in pages.rglob("*.html"))
        print(f"{count} pages in {time.monotonic() - started:.0f} s: {pages}")
    except environment.SetUpError as problem:
        print(f"The site can't be built: {problem}", file=sys.stderr)
        return 1
    if options.command == "serve":
        with served(pages, options.port, urlsplit(address_of(origin(ROOT))).path) as address:
            print(f"{address} serves it; Ctrl+C ends that.")
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
