"""A text file that the build writes beside the notebooks: written in one step, and told when it isn't up to date."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> str:
    """Write a file, atomically: "written", or "unchanged" when it holds that text already."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return "unchanged"
    replace_text(path, text)
    return "written"


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step, with line ends that are the same everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def stale_text(root: Path, name: str, text: str) -> list[str]:
    """Why the file `name` below `root` doesn't hold `text`, in a list of one sentence, or an empty one."""
    path = root / name
    if not path.exists():
        return [f"{name} is missing"]
    return [] if path.read_text(encoding="utf-8") == text else [f"{name} is stale: its lesson gives another text"]
