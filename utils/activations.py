"""What autograd keeps between the forward and the backward pass, counted in bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that `forward` saves for the backward pass, each storage counted once, parameters left out.

    `forward` runs the model and returns the loss; its graph is thrown away. The counting uses
    ``torch.autograd.graph.saved_tensors_hooks`` and works on every device. Buffers and inputs that autograd keeps are
    counted, what kernels use in passing is not.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps an address from being used again

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in parameters)
