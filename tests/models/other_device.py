"""A card on a machine that has none: PyTorch's fake tensors have a device, and no data.

A fake tensor on another device refuses to meet one of the CPU, as CUDA's do, so a function of the course that forgets
``.to(model.device)`` fails here as it would on a GPU. Nothing is computed: every number that the code asks for, by
``item()``, ``tolist()``, ``numpy()`` or ``if tensor``, is 1. So this finds tensors in the wrong place, and says nothing
of results, kernels, speed or memory; ``make cuda`` does, on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from utils.models import loading

CARD = torch.device("lazy", 0)  # of all names for a device, one that a torch built for the CPU can switch to


class Card(FakeTensorMode):
    """PyTorch's mode, with a number where the code asks for one, and CUDA's refusal of a generator of the CPU."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func.overloadpacket is torch.ops.aten.to:  # comes whole under inference_mode; `_to_copy` is understood
            with self:
                return func.decompose(*args, **kwargs)
        devices = {kwargs.get("device"), *(t.device for t in tree_leaves(args) if isinstance(t, FakeTensor))}
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu" and CARD in devices:
            raise RuntimeError(f"{func}: expected a generator of the card, and found one of the CPU")
        return super().dispatch(func, types, args, kwargs)


def _numpy(tensor: FakeTensor) -> np.ndarray:
    if tensor.device == CARD:
        raise TypeError("can't convert a tensor of the card to numpy: use Tensor.cpu() to copy it first")
    return np.ones(tensor.shape, dtype=str(tensor.dtype).removeprefix("torch."))


@contextmanager
def a_card() -> Iterator[None]:
    """The card is there, and `utils.models` makes its model there, with weights that have no values."""

    def load_there(dtype: torch.dtype, *_: Any) -> Any:
        from transformers import AutoModelForCausalLM

        tokenizer, config = loading.load_tokenizer(), loading.load_config(loading._source())
        config.pad_token_id = tokenizer.pad_token_id
        with CARD:
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), tokenizer

    with pytest.MonkeyPatch.context() as patch, Card(allow_non_fake_inputs=True):
        patch.setattr(loading, "_load", load_there)
        patch.setattr(loading, "model_device", lambda: CARD)
        patch.setattr(FakeTensor, "numpy", _numpy)
        yield
