"""Measure a GPU: write the records under assets/measurements that chapters and tests read.

    python -m tools.measure_gpu                 (all sections, one after the other, on a CUDA GPU)
    python -m tools.measure_gpu memory layer    (these sections)
    python -m tools.measure_gpu --trial --out /tmp/x memory   (tiny shapes on the CPU: does it run?)

Each section is a module in tools/gpu and ends inside ten minutes. A run that was cut off goes on where it stopped.

Attributes:
    SECONDS: After so long a section starts nothing new.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "assets" / "measurements"
SECONDS = 540.0


def sections() -> list[str]:
    """The names of the modules in tools/gpu that measure."""
    folder = Path(__file__).with_name("gpu")
    return sorted(path.stem for path in folder.glob("*.py") if "\ndef run(" in path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", nargs="*", help=f"what to measure: {', '.join(sections())} (default: all)")
    parser.add_argument("--out", type=Path, help="the folder to write into (default: assets/measurements)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="stop starting new work after so long")
    parser.add_argument("--trial", action="store_true", help="tiny shapes, on a CPU too; needs --out")
    arguments = parser.parse_args()
    chosen = arguments.section or sections()
    if unknown := [name for name in chosen if name not in sections()]:
        sys.exit(f"error: no section {', '.join(unknown)}; there are {', '.join(sections())}")
    if arguments.trial and arguments.out is None:
        sys.exit("error: --trial needs --out, so that trial numbers don't replace real ones")
    if not arguments.trial and not torch.cuda.is_available():
        sys.exit("error: this measures a GPU, and there is none here (--trial shows whether it runs)")
    for name in chosen:
        section, start = importlib.import_module(f"tools.gpu.{name}"), time.monotonic()
        print(f"{name}: {section.__doc__.splitlines()[0]}", flush=True)
        section.run(arguments.out or OUT, arguments.trial, arguments.seconds)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
