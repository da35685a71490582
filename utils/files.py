"""Writing a folder of files so that an interruption never leaves half of it.

Several files that belong together can't be replaced in one step: each move is one, and a process can be killed between
two of them. So :func:`replaced_folder` writes the new files into a hidden folder beside the old ones, marks it ready by
one rename, takes the old files away, and only then moves the new ones in. Whenever it is stopped, even by SIGKILL, the
folder holds the old files, or some of them, or some of the new ones, but never old beside new, and all of the old or
all of the new ones are whole on the disk. :func:`finish_interrupted` brings the new ones in. (A power cut is another
matter: what the operating system hasn't written yet is lost.)
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_READY = ".ready"


def expanded(path: str | Path) -> Path:
    """`path` with a home folder in the place of ~ or ~NAME at its beginning, as a shell has it; where there is no such
    home it stays as it is.
    """
    return Path(os.path.expanduser(path))


def new_folder(path: str | Path) -> Path:
    """`path`, where a folder is to be made. Raises FileExistsError when there is something already."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another folder, or move that one")
    return path


@contextmanager
def replaced_folder(folder: str | Path, whole: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `folder` when the block ends without an error.

    whole: whether a folder has all that belongs in it. Where another process has made `folder` whole by the end of the
    block, it stays as it is: several that make the same thing at once don't take it from under each other.

    A new folder appears with all its files at once, by one rename. In one that is there already the files replace those
    of the same name; others stay. When the block fails, `folder` is as it was. What processes that were killed in this
    function left beside `folder` is first brought to its end (:func:`finish_interrupted`) and cleaned away. Raises
    FileExistsError, before the block, when `folder` is a file, and OSError when nothing can be written there; after it
    OSError, which says where the new files are, when they can't be moved.
    """
    folder = Path(folder)
    if os.path.isfile(folder):
        raise FileExistsError(f"{folder} is a file, and a folder of that name is to be written: move it away")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish_interrupted(folder)
        made = tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}-{_machine()}-{os.getpid()}-", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise OSError(f"nothing can be written beside {folder} ({error}): choose another place") from error
    with made as name:
        scratch = Path(name)
        yield scratch
        files = sorted(scratch.iterdir())
        for file in files:
            file.chmod(0o644)
        if not folder.exists():
            scratch.chmod(0o755)
            try:
                os.replace(scratch, folder)
            except OSError:
                if whole is None or not whole(folder):
                    raise
        elif whole is not None and whole(folder):
            return
        elif len(files) == 1:
            os.replace(files[0], folder / files[0].name)
        elif files:
            ready = scratch.with_name(scratch.name + _READY)
            os.replace(scratch, ready)
            _finish(ready, folder)


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write a file under, which becomes `path` when the block ends without an error.

    When the block fails, nothing is left of it, and what was at `path` is as it was. Raises IsADirectoryError, before
    the block, when `path` is a folder, and OSError when its folder can't be made.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file of that name is to be written: name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{_machine()}-{os.getpid()}.partial")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def interrupted(folder: str | Path) -> list[Path]:
    """The hidden folders with whole new files for `folder`, whose moving was stopped."""
    return [path for path in _left(Path(folder)) if path.name.endswith(_READY)]


def finish_interrupted(folder: str | Path) -> None:
    """Move the new files into `folder` that a stopped :func:`replaced_folder` had ready, and delete what killed ones
    left half-written. What belongs to a process that still runs, or to another machine, is left alone. Raises OSError
    as :func:`replaced_folder` does.
    """
    folder = Path(folder)
    for path in _left(folder):
        if path.name.endswith(_READY):
            _finish(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _finish(ready: Path, folder: Path) -> None:
    """Move the files of `ready` into `folder`. Ctrl-C between two steps is obeyed after the last."""
    try:
        _move(ready, folder)
    except KeyboardInterrupt:
        _move(ready, folder)
        raise
    except OSError as error:
        raise OSError(
            f"the new files couldn't all be moved into {folder} ({error}). They are whole in {ready}: when the cause "
            f"is gone, call utils.files.finish_interrupted({str(folder)!r})"
        ) from error


def _move(ready: Path, folder: Path) -> None:
    """The old files away, then the new ones in; what was moved before an interruption isn't waiting any more."""
    folder.mkdir(exist_ok=True)
    waiting = sorted(ready.iterdir())
    for file in waiting:
        (folder / file.name).unlink(missing_ok=True)
    for file in waiting:
        os.replace(file, folder / file.name)
    ready.rmdir()


def _left(folder: Path) -> list[Path]:
    """What was left beside `folder` by processes of this machine that are gone, and what this one has ready."""
    if not folder.parent.is_dir():
        return []
    name = re.compile(rf"\.{re.escape(folder.name)}-{_machine()}-(\d+)-\w+({re.escape(_READY)})?")
    found = [(path, match) for path in folder.parent.iterdir() if (match := name.fullmatch(path.name))]
    if not found:
        return []
    import psutil

    return sorted(
        path
        for path, match in found
        if (match[2] if int(match[1]) == os.getpid() else not psutil.pid_exists(int(match[1])))
    )


def _machine() -> str:
    """This machine's name, as far as a file's name can have it."""
    return re.sub(r"\W+", "_", platform.node()) or "here"
