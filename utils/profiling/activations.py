"""What autograd keeps between the forward and the backward pass, counted in bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that `forward` saves for the backward pass, each storage counted once, parameters left out.

    `forward` runs the model and returns the loss. The counting uses ``torch.autograd.graph.saved_tensors_hooks`` and
    works on every device, and for tensors without data too. Buffers and inputs that autograd keeps are counted, what
    kernels use in passing is not.
    """
    # A storage is known by `_cdata`, the address of its C++ object: `data_ptr` is 0 for all tensors without data.
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storages keeps an address from being used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor.detach()  # the tensor itself may hold the graph, which would then hold itself for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


def checkpoint_blocks(model: nn.Module, on: bool = True) -> None:
    """Switch gradient checkpointing of a transformers model on or off: each block keeps its input alone and is computed
    again in the backward pass.

    It takes effect in training mode only. Raises ValueError when the model has no method for it.
    """
    switch = getattr(model, f"activation_checkpointing_{'enable' if on else 'disable'}", None)
    if switch is None:
        raise ValueError(f"{type(model).__name__} can't checkpoint its blocks: it isn't a transformers model")
    switch()


def is_checkpointing(model: nn.Module) -> bool:
    """Whether some block of the model is checkpointed."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
