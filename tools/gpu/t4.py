"""A larger GPU that stands in for a T4, Colab's free card, as far as software can make it one.

In force, torch says that the GPU has compute capability 7.5 and no bf16, not even emulated: a real T4 emulates it, so
slowly that code which takes bf16 there is wrong, and here it raises wherever a library asks first (transformers' bf16,
torch's autocast). torch's allocator gets what a T4 has, less what CUDA itself takes; more is an out-of-memory error.
The reader of a record must be able to tell: the device's properties name the real card.

What it can't tell:

- speed: the real card computes;
- kernels: those of the real card run. A kernel that has no form for sm_75, and one that is wrong there, goes unseen; so
  do bitsandbytes' own on a T4, and products in bf16 by code that asks nobody (``load_4bit(compute_dtype=bfloat16)``),
  which a T4 emulates;
- the memory of several processes together: each has the limit for itself.

Attributes:
    TOTAL: Bytes that a T4 shows.
    ROOM: Bytes that torch's allocator gets: TOTAL less CUDA's own, as utils.profiling.fit.needed counts it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "COURSE_STAND_IN"
TOTAL = 15_600_000_000
ROOM = TOTAL - 810_000_000
CAPABILITY = (7, 5)


def environment(before: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python starts with the stand-in: `before`, the variable and the folder of the hook."""
    hook = str(Path(__file__).resolve().parent / "at_start")
    path = os.pathsep.join(filter(None, [hook, before.get("PYTHONPATH")]))
    return {**before, VARIABLE: "T4", "PYTHONPATH": path}


class _Properties:
    """The real card's properties, with a T4's memory and capability."""

    major, minor = CAPABILITY
    total_memory = TOTAL

    def __init__(self, real: Any) -> None:
        self._real = real
        self.name = f"{real.name} standing in for a T4"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def put_in_force(torch: Any) -> None:
    """Make `torch` say what it says on a T4, and limit its allocator as soon as CUDA is used. Once is enough."""
    cuda = torch.cuda
    if getattr(cuda, "stand_in", None):
        return
    properties, memory = cuda.get_device_properties, cuda.mem_get_info

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return max(0, min(memory(device)[0], ROOM - cuda.memory_reserved(device))), TOTAL

    def get_device_capability(device: Any = None) -> tuple[int, int]:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        if not asks.startswith(("triton", "torch._dynamo", "torch._inductor")):
            return CAPABILITY
        real = properties(device)  # these compile for the card that is there
        return real.major, real.minor

    def limit() -> None:
        for device in range(cuda.device_count()):
            cuda.set_per_process_memory_fraction(min(1.0, ROOM / properties(device).total_memory), device)

    cuda.is_bf16_supported = lambda including_emulation=True: False
    cuda.get_device_capability = get_device_capability
    cuda.get_device_properties = lambda device=None: _Properties(properties(device))
    cuda.mem_get_info = mem_get_info
    cuda._lazy_call(limit)
    cuda.stand_in = "T4"


class _AfterTorch(MetaPathFinder):
    """Calls :func:`put_in_force` after torch was imported. It stays where it is: many libraries look for torch first,
    and import it later.
    """

    def __init__(self) -> None:
        self._looking = False

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "torch" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec("torch")
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            put_in_force(module)

        spec.loader.exec_module = exec_module
        return spec


def when_torch_comes() -> None:
    """Put the stand-in in force at the import of torch, or now where torch is there."""
    if "torch" in sys.modules:
        put_in_force(sys.modules["torch"])
    else:
        sys.meta_path.insert(0, _AfterTorch())
