"""Writing a folder of files so that an interruption never leaves half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def new_folder(path: str | Path) -> Path:
    """`path`, where a folder is to be made. Raises FileExistsError when there is something already."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another folder, or move that one")
    return path


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `folder` when the block ends without an error.

    A new folder appears with all its files at once, by one rename. Into one that is there already the files move one by
    one, and replace those of the same name; others stay. When the block fails, `folder` is as it was. Raises
    FileExistsError, before the block, when `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, and a folder of that name is to be written: move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir())
        for file in files:
            file.chmod(0o644)
        if not folder.exists():
            Path(scratch).chmod(0o755)
            os.replace(scratch, folder)
            return
        for file in files:
            os.replace(file, folder / file.name)
