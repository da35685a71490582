"""FSDP2 and ZeRO-3 through accelerate on processes without a GPU, for tests and for trying a configuration out.

accelerate 1.15 shards on accelerators only: with gloo on CPUs it passes over a configuration's FSDP part without a word
and runs DDP. What it does for FSDP2 needs no GPU, though.
"""

from __future__ import annotations

import os
from typing import Any


def wants_fsdp() -> bool:
    """Whether the launcher's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def wants_deepspeed() -> bool:
    """Whether the launcher's configuration asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def shard_on_cpu() -> bool:
    """Let accelerate shard on the CPU in this process, once the process group is there and before the first Accelerator
    or TrainingArguments is made.

    Several processes on CPUs get the name of several GPUs, by which accelerate chooses; the device stays the CPU.
    Returns whether that was needed: the configuration asks for FSDP, a launcher started this, and there is no GPU.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if not (wants_fsdp() or wants_deepspeed()) or "RANK" not in os.environ or torch.accelerator.is_available():
        return False
    kind_of_state: Any = PartialState
    prepare = kind_of_state._prepare_backend

    def as_gpus(self: PartialState, *args: Any, **kwargs: Any) -> tuple[str | None, DistributedType]:
        backend, kind = prepare(self, *args, **kwargs)
        cpus = kind in (DistributedType.MULTI_CPU, DistributedType.NO)
        return ("gloo", DistributedType.MULTI_GPU) if cpus else (backend, kind)

    kind_of_state._prepare_backend = as_gpus
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # or it would look for the GPU of that name
    return True
