"""Writing a folder of files so that an interruption never leaves half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to write into, whose files move to `folder` when the block ends without an error.

    Files of the same name are replaced one by one, each by a rename; others in `folder` stay. When the block fails,
    `folder` is as it was.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        yield Path(scratch)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
