"""Installing what the course needs into a Python that somebody else has filled: Colab's, Kaggle's.

What is there and fits stays. What is missing or doesn't fit gets the version of requirements.lock, as does whatever has
to change along with it, so that the same notebook finds the same packages next year. torch and numpy are never touched.

This module is imported before anything is installed, so it needs the standard library only.

Attributes:
    KEPT: What a host has built for its GPUs: never installed, never replaced.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

KEPT = ("torch", "numpy")

# Python itself loads this piece of setuptools; a restart would find it as it is.
_AT_EVERY_START = "_distutils_hack"

# What was replaced under a module that this session has loaded: true until it is restarted.
_stale: dict[str, str] = {}


class SetupProblem(RuntimeError):
    """The setup can't go on without the reader. A notebook shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Menus(NamedTuple):
    """Where a host's menus have what a reader may have to click on: restarting the session, a newer image of the host's
    Python, and a machine as new."""

    restart: str
    newer: str
    fresh: str


class Need(NamedTuple):
    """A package that is missing or doesn't fit: its name, what pip is to install, the version found."""

    name: str
    requirement: str
    found: str | None


def ensure_packages(root: str | os.PathLike[str], menus: Menus) -> list[str]:
    """Install what the course needs and this Python lacks, or has outside pyproject.toml's range.

    Every distribution whose version differs afterwards is listed. Where the locked versions can't be had on this
    Python, the newest that pyproject.toml admits are taken, and a line says so.

    Args:
        root: the folder of the repository, where pyproject.toml and requirements.lock lie.
        menus: what to click on here.

    Returns:
        The names of the distributions that were installed or replaced.

    Raises:
        SetupProblem: pip failed, with its last error and what to try; or the session has to be restarted, because what
            was replaced is loaded already.
    """
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = unmet(project["dependencies"])
    for need in needs:
        if need.name in KEPT:
            _say(
                f"The course asks for {need.requirement} and finds {need.found or 'none'}; it is left alone. "
                f"Choose a newer runtime: {menus.newer}."
            )
    wanted = [need for need in needs if need.name not in KEPT]
    if wanted:
        before = installed()
        lock = locked((Path(root) / "requirements.lock").read_text(encoding="utf-8"))
        _install(wanted, before, lock, menus)
        after = installed()
        changed = {name: found for name, found in after.items() if before.get(name) != found}
        new = [f"{name} {found}" for name, found in changed.items() if name not in before]
        replaced = [f"{name} {before[name]} -> {found}" for name, found in changed.items() if name in before]
        _say(f"Installed: {_listed(new)}.")
        _say(f"Replaced: {_listed(replaced)}.")
        _say(f"Left as they were: {_listed(f'{name} {before[name]}' for name in KEPT if name in before)}.")
        _stale.update({name: changed.get(name, after[name]) for name in in_use(set(changed) & set(before))})
    else:
        changed = {}
    if _stale:
        raise SetupProblem(
            f"Restart the session before you go on: {menus.restart}. Then run the notebook from its first cell. "
            f"This session had loaded {_listed(_stale)} before the change, and what is in memory no longer fits what "
            "is installed."
        )
    print("The course is ready." if changed else "The course is ready; nothing had to be installed.")
    return sorted(changed)


# ----------------------------------------------------------------------------------------------- what is there


def canonical(name: str) -> str:
    """A distribution's name as packaging compares it: huggingface_hub and huggingface-hub are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """The version of every installed distribution, by its canonical name; of two, the one that would be imported."""
    importlib.invalidate_caches()
    found: dict[str, str] = {}
    for one in distributions():
        if name := one.metadata["Name"]:
            found.setdefault(canonical(name), one.version)
    return dict(sorted(found.items()))


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None when it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unmet(requirements: Iterable[str]) -> list[Need]:
    """The requirements that the installed packages don't meet, in the order given.

    A requirement whose marker excludes this machine counts as met. Where neither packaging nor pip can be
    imported, versions can't be compared and only missing packages are found.
    """
    parse = _of_packaging("requirements", "Requirement")
    needs = []
    for text in requirements:
        name = re.findall(r"[\w.-]+", text)[0]
        found = installed_version(name)
        if parse is None:
            met = found is not None
        else:
            wanted = parse(text)
            applies = wanted.marker is None or wanted.marker.evaluate()
            met = not applies or (found is not None and wanted.specifier.contains(found, prereleases=True))
        if not met:
            needs.append(Need(name, text, found))
    return needs


def in_use(replaced: Collection[str]) -> list[str]:
    """Which distributions this session has loaded, among those that were `replaced` and those that are built on one
    with compiled code, as pandas is on pyarrow."""
    loaded = {os.path.normpath(file) for module in list(sys.modules.values()) if (file := _file(module))}
    by_name: dict[str, Distribution] = {}
    for one in distributions():
        by_name.setdefault(canonical(one.metadata["Name"] or ""), one)
    compiled = {name for name in replaced if _is_compiled(by_name[name])}
    return [
        name
        for name, one in sorted(by_name.items())
        if (name in replaced or compiled & _requires(one)) and _is_loaded(one, name, loaded)
    ]


def _file(module: object) -> str | None:
    """Where a module came from. sys.modules holds other things too, and modules that load on any question."""
    file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    return file if isinstance(file, str) and _AT_EVERY_START not in file else None


def _is_compiled(one: Distribution) -> bool:
    return any(file.suffix in (".so", ".pyd") for file in one.files or ())


def _requires(one: Distribution) -> set[str]:
    """What a distribution asks for, with any extra."""
    return {canonical(re.findall(r"[\w.-]+", text)[0]) for text in one.requires or ()}


def _is_loaded(one: Distribution, name: str, loaded: set[str]) -> bool:
    if one.files is None:  # the system's own packages keep no list
        return name.replace("-", "_") in sys.modules
    return any(
        file.suffix in (".py", ".so", ".pyd") and os.path.normpath(str(one.locate_file(file))) in loaded
        for file in one.files
    )


def _of_packaging(module: str, name: str) -> Any:
    """Something of packaging, or of pip's copy of it; None where neither can be imported."""
    for package in ("packaging", "pip._vendor.packaging"):
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), name)
        except ImportError:
            continue
    return None


# ---------------------------------------------------------------------------------------------------- pip


def locked(text: str) -> dict[str, str]:
    """The versions of a lock file's `text`, by canonical name. What isn't for this machine does no harm in it."""
    return {canonical(name): found for name, found in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)}


def held(there: Mapping[str, str]) -> list[str]:
    """Constraints for pip that hold torch and numpy where they are."""
    return [f"{name}=={there[name]}" for name in KEPT if name in there]


def as_locked(needs: Sequence[Need], there: Mapping[str, str], lock: Mapping[str, str]) -> list[str]:
    """Constraints for pip under which what comes is what the lock says, and what is there and fits can stay.

    pip keeps an installed version that satisfies whoever asks. Where none does, the newest up to the locked one is
    the locked one.
    """
    parse = _of_packaging("version", "Version")
    replaced, lines = {canonical(need.name) for need in needs}, []
    for name, wanted in lock.items():
        if name not in there or name in replaced:
            lines.append(f"{name}=={wanted}")
        elif parse is not None and name not in KEPT:
            lines.append(f"{name}<={max(wanted, there[name], key=parse)}")
    return lines


def _install(needs: Sequence[Need], there: Mapping[str, str], lock: Mapping[str, str], menus: Menus) -> None:
    """Run pip with the lock as its constraint, and without where that can't be met here."""
    requirements = [need.requirement for need in needs]
    failed = _pip(requirements, [*held(there), *as_locked(needs, there, lock)])
    if failed and _is_conflict(failed):
        failed = _pip(requirements, held(there))
        if not failed:
            _say("The locked versions don't go with this Python: the newest that the course admits were taken.")
    if failed:
        errors = [line for line in failed.splitlines() if line.startswith("ERROR:")]
        last = (errors or failed.strip().splitlines() or ["it did not say why"])[-1]
        raise SetupProblem(
            f"pip could not install {', '.join(requirements)} on this runtime ({last}). Check that it is online, "
            f"then take a fresh machine ({menus.fresh}) and run this cell again."
        )


def _pip(requirements: Sequence[str], constraints: Sequence[str]) -> str | None:
    """Run pip; None when it did its work, else what it said."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text("\n".join(constraints) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "-c", str(file), *requirements]
        done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr or " " if done.returncode else None


def _is_conflict(said: str) -> bool:
    """Whether pip failed over versions. Without a network it says the same words, after it has retried."""
    return "Retrying (" not in said and ("ResolutionImpossible" in said or "No matching distribution" in said)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _say(text: str) -> None:
    print(textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False))
