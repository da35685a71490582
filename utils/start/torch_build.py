"""Which build of torch is installed, and where it comes from.

Attributes:
    TORCH: The version, as pip is asked for it. It isn't in the lock, so that one lock serves CPU and CUDA.
    GIGABYTES: What the environment, the downloads and pip's cache take together, by build.
    OLDEST_MACOS: The oldest macOS that torch has wheels for.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Mapping

from utils.start.words import AGAIN, Trouble

TORCH = "torch==2.13.0"
GIGABYTES = {"cpu": 4, "cuda": 12}
OLDEST_MACOS = 14

_INDEX = "https://download.pytorch.org/whl/"


def torch_choice(option: str | None, environment: Mapping[str, str], before: str | None) -> str:
    """Which torch is wanted: "cpu", "cuda", "pip" (pip's own configuration) or the address of an index.

    In this order: the option given, COURSE_TORCH_INDEX, what an earlier run chose, what the machine has.
    """
    found = "cuda" if shutil.which("nvidia-smi") else "cpu"
    return option or environment.get("COURSE_TORCH_INDEX") or before or found


def torch_index(choice: str, system: str) -> str | None:
    """The index that has the chosen build for this system; None where pip's own configuration has it.

    PyPI has the CUDA build for Linux and the CPU build for Windows and macOS; PyTorch's index has the others.
    Raises Trouble for CUDA on macOS, and for a choice that is no address.
    """
    if choice == "pip":
        return None
    if choice == "cpu":
        return _INDEX + "cpu" if system == "Linux" else None
    if choice == "cuda":
        if system == "Darwin":
            raise Trouble("There is no CUDA build of torch for macOS; run the same command without --cuda.")
        return _INDEX + "cu130" if system == "Windows" else None
    if not re.match(r"(https?|file)://", choice):
        raise Trouble(f"COURSE_TORCH_INDEX is {choice!r}; set it to the word pip or to an address (https://...).")
    return choice


def check_platform() -> None:
    """Raise Trouble where torch has no wheels: 32 bits, Intel Macs, an old macOS."""
    if sys.maxsize < 2**32:
        raise Trouble("This Python is a 32-bit one and torch needs 64 bits; get one from https://www.python.org/.")
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        raise Trouble(
            "torch is no longer made for this Intel build of Python on macOS; use the arm64 Python from "
            "python.org on an Apple-silicon Mac, and open the notebooks in Colab on an Intel one."
        )
    macos = platform.mac_ver()[0].split(".")[0] if platform.system() == "Darwin" else ""
    if macos.isdigit() and 11 <= int(macos) < OLDEST_MACOS:  # 10 is what an old build of Python takes any newer one for
        raise Trouble(
            f"torch needs macOS {OLDEST_MACOS} or newer and this is macOS {macos}; update it {AGAIN.rstrip('.')}, or "
            "open the notebooks in Colab."
        )
