"""The answers to chapter 19's exercises, cell by cell as the lesson solves them.

Generated from lessons/19_several_gpus.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- sent_chunk
def sent_chunk(rank, step, world):
    return (rank - step) % world


# -------- ddp_loss
def ddp_loss(losses, counted, total, world):
    return losses[counted].sum() * world / total


# -------- sent_bytes
def sent_bytes(base, adapter, world):
    part = (world - 1) / world
    ddp = 2 * part * 4 * adapter
    fsdp_lora = part * (2 * 2 * (base + adapter) + 2 * adapter)
    fsdp_full = part * (2 * 2 * base + 2 * base)
    return ddp, fsdp_lora, fsdp_full
