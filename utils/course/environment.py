"""The go/no-go report of chapter 0: what this machine has, and whether the course can run on it.

The report holds no name of a user or a machine and no path, so that it can be pasted into a public bug report.

Attributes:
    NEEDED_MEMORY: Bytes of main memory below which a notebook may not fit.
    LADDER: The models that are tried, smallest first, to say what a GPU can train.
"""

from __future__ import annotations

import os
import platform
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from utils.course.colab import host
from utils.models.device import ROOT, compute_dtype

NEEDED_MEMORY = 4e9
LADDER = ("SmolLM2-135M", "Llama-3.2-1B", "Llama-3.2-3B", "Llama-2-7B", "Llama-2-13B", "CodeLlama-34B")


@dataclass(frozen=True)
class Row:
    """One line of the report: what was looked at, what was found, and what to do about it (empty: it is fine)."""

    what: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All lines of the report. Printed, it is a table of plain text that ends with the verdict."""

    rows: tuple[Row, ...]

    @property
    def ready(self) -> bool:
        """Whether the course can run here: no line has an advice."""
        return not any(row.advice for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.what) for row in self.rows)
        lines = [f"{'ok ' if not row.advice else 'NO '} {row.what:{width}}  {row.found}" for row in self.rows]
        if self.ready:
            return "\n".join([*lines, "", "GO: this machine can run the course."])
        advice = [f"- {row.what}: {row.advice}" for row in self.rows if row.advice]
        return "\n".join([*lines, "", "NO-GO. What to do:", *advice])


def report() -> Report:
    """Look at Python, the machine, torch and every package that a notebook needs, and say if the course can run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [package_row(Requirement(text)) for text in project["dependencies"]]
    return Report((python_row(project["requires-python"]), *machine_rows(), *device_rows(), *packages))


def python_row(wanted: str) -> Row:
    """Python's version against a range such as ">=3.11"."""
    found = platform.python_version()
    fine = SpecifierSet(wanted).contains(found, prereleases=True)
    return Row("Python", found, "" if fine else f"the course needs Python {wanted}: get one from python.org")


def machine_rows() -> list[Row]:
    """The system, its processors and its memory, and whether this is Colab or Kaggle."""
    memory = psutil.virtual_memory().total
    short = (
        f"{NEEDED_MEMORY / 1e9:.0f} GB are needed: close other programs, or use Colab" if memory < NEEDED_MEMORY else ""
    )
    return [
        Row("system", f"{platform.system()} on {platform.machine()}"),
        Row("host", here.name if (here := host()) else "none, a machine of your own"),
        Row("processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}"),
        Row("memory", f"{memory / 1e9:.1f} GB", short),
    ]


def device_rows() -> list[Row]:
    """The device that computes, whether it has bf16 in hardware (a T4, Colab's free GPU, has not), and what fits on a
    GPU."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        native = compute_dtype("cuda") == torch.bfloat16
        return [
            Row("device", f"CUDA: {properties.name}, {properties.total_memory / 1e9:.1f} GB"),
            Row("bf16", "yes" if native else "no: on this GPU use float16 or float32"),
            Row("fits", what_trains(properties.total_memory, bf16=native, hopper=properties.major == 9)),
        ]
    if torch.backends.mps.is_available():
        return [Row("device", "Apple GPU (mps); the tiny model runs on the CPU"), Row("bf16", "depends on macOS")]
    return [Row("device", "CPU, which is enough for the tiny model"), Row("bf16", "works; float32 is faster here")]


def what_trains(room: int, *, bf16: bool, hopper: bool = False) -> str:
    """The largest model of :data:`LADDER` that LoRA and QLoRA can train on a GPU of `room` bytes, by the estimator.

    A step of one sequence of 512 tokens, with checkpointing. Without bf16 the course keeps a whole model in float32
    (:func:`utils.models.device.weights_dtype`), and a 4-bit one computes in float16.
    """
    from utils.profiling.fit import needed
    from utils.profiling.memory import GB, Setup, predict

    found, rung = [], 0
    for method, narrow in (("lora", "float32"), ("qlora", "float16")):
        largest = "nothing"
        for model in LADDER[rung:]:  # what LoRA can train, QLoRA can
            step = Setup(model, method, dtype="bfloat16" if bf16 else narrow, checkpointing=True, hopper=hopper)
            if (needs := needed(predict(step).peak)) > room:
                break
            largest, rung = f"{model} ({needs / GB:.1f} GB)", LADDER.index(model)
        found.append(f"{'LoRA' if method == 'lora' else 'QLoRA'} up to {largest}")
    return ", ".join(found)


def package_row(requirement: Requirement) -> Row:
    """An installed package's version against the range that the course allows."""
    fix = f'pip install "{requirement}"'
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Row(requirement.name, "missing", fix)
    if not requirement.specifier.contains(found, prereleases=True):
        return Row(requirement.name, f"{found}, not in {requirement.specifier}", fix)
    return Row(requirement.name, found)
