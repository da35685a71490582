"""What pip said about a failure, as the one sentence that helps.

Attributes:
    LOG: The file in .venv that holds all that pip said.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from utils.start.wheels import WHEELS, where_from
from utils.start.words import AGAIN, last_line

LOG = "lora-course.log"

_NO_SPACE = re.compile(r"No space left on device|Errno 28\b|WinError 112\b|Disk quota exceeded")
_NO_INDEX = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|[Tt]imed out|ProxyError|SSLError"
    r"|Max retries exceeded|Connection (refused|reset|broken|aborted)|Network is unreachable"
    r"|name resolution|Name or service not known|getaddrinfo failed|nodename nor servname"
)
_PATH_TOO_LONG = re.compile(r"Long Path support|WinError 206\b|Errno (36|63)\b")
_IN_USE = re.compile(r"WinError (5|32)\b")  # Windows keeps a file that a program has open from being replaced
_NOT_ALLOWED = re.compile(r"Permission denied|Errno 13\b|Operation not permitted|Read-only file system|Errno 30\b")
_NO_SUCH_VERSION = re.compile(r"No matching distribution found for (\S+)")


def explain(said: str, what: str, venv: Path) -> str:
    """Turn pip's words about a failure into the one sentence that helps."""
    if _NO_SPACE.search(said):
        return (
            f"The disk is full, so {what} could not be installed; make room on the disk of {venv.parent} "
            f"(and in the folder for temporary files) {AGAIN}"
        )
    if _PATH_TOO_LONG.search(said):
        return (
            f"{venv.parent} is too deep in the folders for {what}: a path in it grows longer than the system allows; "
            f"move the course to a shorter place, such as a folder of its own in your home, {AGAIN}"
        )
    if _IN_USE.search(said):
        return (
            f"Windows keeps files of {venv} from being changed, so {what} could not be installed; close JupyterLab "
            f"and what else uses them {AGAIN}"
        )
    if _NO_INDEX.search(said):
        there = ", and COURSE_TORCH_INDEX=pip takes torch from there too" if what == "torch" else ""
        return (
            f"No package index could be reached, so {what} could not be downloaded; check the network "
            f"(a proxy goes into HTTPS_PROXY, a mirror of PyPI into PIP_INDEX_URL{there}) {AGAIN}"
        )
    missing = _NO_SUCH_VERSION.search(said)
    if missing and where_from(venv.parent):
        return (
            f"The folder {WHEELS} has no {missing[1]} for Python {platform.python_version()} on {platform.system()} "
            f"{platform.machine()}: it was packed on another kind of machine; pack it again on one like this, or move "
            f"the folder {WHEELS} away where there is a network, {AGAIN}"
        )
    if missing:
        return (
            f"pip's package index has no {missing[1]} for Python {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}; unset PIP_INDEX_URL and PIP_NO_INDEX if set, or "
            "delete the folder .venv and run the same command with another Python of those that the course supports."
        )
    if _NOT_ALLOWED.search(said):
        return f"{what[:1].upper()}{what[1:]} could not be installed: {not_allowed(venv)}"
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    return (
        f"pip could not install {what} ({last_line(errors[-1] if errors else said)}); look into "
        f"{venv / LOG} for all that it said, mend that {AGAIN}"
    )


def not_allowed(place: Path) -> str:
    """The sentence for a place that one may not write to."""
    return (
        f"you have no permission to write to {place}; make it yours, or copy the course's folder to a place that is "
        f"yours, such as your home, {AGAIN}"
    )
