"""FSDP2 through accelerate on processes without a GPU, for tests and for trying a configuration out.

accelerate 1.15 shards on accelerators only: with gloo on CPUs it ignores a configuration's FSDP part without a word and
runs DDP. What it does for FSDP2 needs no GPU, though.
"""

from __future__ import annotations

import os


def wants_fsdp() -> bool:
    """Whether the launcher's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_on_cpu() -> bool:
    """Let accelerate shard on the CPU in this process: call it before the first Accelerator or TrainingArguments.

    Returns whether that was needed: the configuration asks for FSDP, there is a launcher, and no GPU. It starts the
    process group and gives the group the name of several GPUs, by which accelerate chooses; the device stays the CPU.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if not wants_fsdp() or "RANK" not in os.environ or torch.accelerator.is_available():
        return False
    state = PartialState(cpu=True)
    state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return True
