"""A device that isn't the CPU, on a machine that has none: its tensors compute, and refuse to meet tensors of the CPU.

CUDA raises where a tensor on the card meets one on the CPU, where a generator is on the wrong device, and where numpy
asks for a tensor's memory. Here a tensor of the device ``xpu`` is a thin shell around an ordinary one. It computes the
same numbers and raises in the same places. What it can't find is what depends on the real card: kernels, speed, memory.
Nor can it follow views made under ``torch.inference_mode``, which it refuses with "Cannot set version_counter".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

CARD = torch.device("xpu", 0)
_COPIES = {"copy_", "_copy_from"}
_TAKES_CPU_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class DifferentDevices(RuntimeError):
    """A tensor of the card met one of the CPU."""


class OnCard(Tensor):
    """A tensor that says it is on :data:`CARD`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCard:
        shell = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=inner.device, requires_grad=False,
        )  # fmt: skip
        shell.inner = inner
        return shell

    device = property(lambda self: CARD)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of the card to numpy. Use Tensor.cpu() to copy it to the CPU first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace != "bitsandbytes":  # a 4-bit weight stays on the CPU here
            _same_device(name, args, kwargs)
        result = func(*tree_map_only(OnCard, _inner, args), **tree_map_only(OnCard, _inner, kwargs))
        if name in _COPIES and not isinstance(args[0], OnCard):
            return args[0]
        wrapped = tree_map(lambda t: OnCard(t) if isinstance(t, Tensor) else t, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _inner(tensor: OnCard) -> Tensor:
    return tensor.inner


def _same_device(name: str, args: tuple, kwargs: dict) -> None:
    """Raise as CUDA does. One number of the CPU may take part; so may indices, and copies are for crossing over."""
    if name in _COPIES:
        return
    if name in _TAKES_CPU_INDICES and isinstance(args[0], OnCard):
        return
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise DifferentDevices(f"{name}: expected a generator of the card, and found one of the CPU")
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor) and not isinstance(tensor, OnCard) and tensor.dim():
            raise DifferentDevices(f"{name}: expected all tensors to be on the same device, found {CARD} and cpu")


class _Cross(torch.autograd.Function):
    """From the CPU to the card, or back, with the gradient the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.inner.clone() if isinstance(tensor, OnCard) else OnCard(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Cross.apply(grad)


def _is_card(device: Any) -> bool:
    return device is not None and torch.device(device).type == CARD.type


class WithCard(TorchFunctionMode):
    """While it is entered, torch knows the card: tensors are made there and moved there and back."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is Tensor.to:
            return self._to(args[0], args[1:], kwargs)
        if func == Tensor.data.__set__:
            return self._set_data(*args)
        if func is Tensor.cpu:
            return _Cross.apply(args[0]) if isinstance(args[0], OnCard) else func(*args, **kwargs)
        device = kwargs.get("device")
        if device is not None and not isinstance(device, int):
            kwargs["device"] = torch.device("cpu") if _is_card(device) else device
            if _is_card(device) or (isinstance(args[0] if args else None, OnCard) and name.endswith("_like")):
                return self._made(func, args, kwargs, card=_is_card(device))
        return func(*args, **kwargs)

    @staticmethod
    def _set_data(tensor: Tensor, value: Tensor) -> None:
        if isinstance(tensor, OnCard) != isinstance(value, OnCard):  # as Module.to does it
            torch.utils.swap_tensors(tensor, nn.Parameter(value.detach(), requires_grad=tensor.requires_grad))
            return
        Tensor.data.__set__(tensor, value)
        if isinstance(tensor, OnCard):
            tensor.inner = value.inner

    @staticmethod
    def _made(func: Callable[..., Any], args: tuple, kwargs: dict, *, card: bool) -> Any:
        plain = tree_map_only(OnCard, _inner, (args, kwargs))
        made = func(*plain[0], **plain[1])
        if not card:
            return made
        gradient = made.requires_grad
        return OnCard(made.detach()).requires_grad_(gradient)

    @staticmethod
    def _to(tensor: Tensor, rest: tuple, kwargs: dict) -> Tensor:
        device, others = kwargs.pop("device", None), []
        for value in rest:
            if isinstance(value, Tensor):
                device = value.device
                others.append(value.dtype)
            elif isinstance(value, str | torch.device) or (isinstance(value, int) and not isinstance(value, bool)):
                device = value
            elif value is not None:
                others.append(value)
        if device is not None and not isinstance(device, int) and _is_card(device) != isinstance(tensor, OnCard):
            tensor = _Cross.apply(tensor)
        kwargs.pop("non_blocking", None)
        dtypes = [value for value in others if isinstance(value, torch.dtype)]
        dtype = kwargs.get("dtype") or (dtypes[0] if dtypes else None)
        copy = kwargs.get("copy", False)
        return torch.Tensor.type(tensor, dtype) if dtype is not None and dtype != tensor.dtype else (
            tensor.clone() if copy else tensor
        )  # fmt: skip


def to_card(model: nn.Module) -> nn.Module:
    """Move a model's parameters and buffers to the card, in place; shared parameters stay shared."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if type(parameter) is nn.Parameter:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(OnCard(parameter.data), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and not isinstance(buffer, OnCard):
                module._buffers[name] = OnCard(buffer)
                module.__dict__.pop(name, None)
    return model


@contextmanager
def a_card() -> Iterator[None]:
    """The card is there, and `utils.models` loads the model to it."""
    from utils import models

    load, device = models._load, models.model_device

    def on_card(*args: Any, **kwargs: Any) -> Any:
        models.model_device = lambda: torch.device("cpu")
        try:
            model, tokenizer = load(*args, **kwargs)
        finally:
            models.model_device = lambda: CARD
        return to_card(model), tokenizer

    models._load, models.model_device = on_card, lambda: CARD
    try:
        with WithCard():
            yield
    finally:
        models._load, models.model_device = load, device
