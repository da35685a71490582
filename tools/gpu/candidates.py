"""Layers to compare with, for :mod:`tools.gpu.layer`: one that adds in the other order, Triton's, Unsloth's."""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

from utils.lora import LoRALinear
from utils.lora.fused import gradient_product, scaled_product


class _AddedAfter(torch.autograd.Function):
    """The large product first; then the small one is added, so that y is written, read and written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        rows, a, b = x.reshape(-1, x.shape[-1]), A.to(x.dtype), B.to(x.dtype)
        h = scaled_product(rows, a.t(), s)
        y = (rows @ W.t()).addmm_(h, b.t())
        ctx.save_for_backward(x, W, a, b, h)
        ctx.s = s
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W, a, b, h = ctx.saved_tensors
        rows, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        q = scaled_product(g, b, ctx.s)
        dB, dA = gradient_product(g.t(), h, torch.float32), gradient_product(q.t(), rows, torch.float32)
        return (g @ W).addmm_(q, a).view(x.shape), None, dA, dB, None


class AddedAfter(LoRALinear):
    """A LoRALinear that adds the small product to the large one."""

    def forward(self, x: Tensor) -> Tensor:
        return _AddedAfter.apply(x, self.base_layer.weight, self.lora_A, self.lora_B, self.scaling)


def unsloth_function() -> Any:
    """Unsloth's ``LoRA_W``, from the folder that UNSLOTH_FOLDER names (its wheel, unpacked), or None.

    Its package asks for a stack that isn't here (unsloth_zoo, xformers, datasets, trl ...), so only the module with the
    layer is loaded and what it imports for other formats than 16 bits is put off with empty modules.
    """
    folder = os.environ.get("UNSLOTH_FOLDER")
    if not folder:
        return None
    from packaging.version import Version

    class Missing(types.ModuleType):
        __path__: list[str] = []

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("unsloth", "unsloth.kernels", "unsloth_zoo"):
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(folder, *name.split("."))]
        sys.modules[name] = module
    for name in (
        "unsloth_zoo.utils", "unsloth_zoo.temporary_patches", "unsloth_zoo.temporary_patches.common",
        "unsloth.kernels.fp8", "unsloth.kernels.nvfp4", "unsloth.kernels.int4_packed",
    ):  # fmt: skip
        sys.modules[name] = Missing(name)
    sys.modules["unsloth_zoo.utils"].Version = lambda text: Version(str(text).split("+")[0])
    sys.modules["unsloth_zoo.temporary_patches.common"].torch_compile = lambda f=None, **_: f if f else (lambda g: g)
    return importlib.import_module("unsloth.kernels.fast_lora").LoRA_W


class UnslothLinear(LoRALinear):
    """A LoRALinear that Unsloth's function computes."""

    function: Any

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x, self.base_layer.weight, None, self.lora_A, self.lora_B, self.scaling)


class _WithTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        from tools.gpu.triton_lora import expand

        rows, a, b = x.reshape(-1, x.shape[-1]), A.to(x.dtype), B.to(x.dtype)
        h, y = expand(rows, a.t(), b.t(), s)
        ctx.save_for_backward(x, W, a, b, h)
        ctx.s = s
        return y.addmm_(rows, W.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from tools.gpu.triton_lora import expand, outer

        x, W, a, b, h = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1]).contiguous()
        q, dx = expand(g, b, a, ctx.s)
        dB, dA = outer(g, h, ranks_first=False), outer(x.reshape(-1, x.shape[-1]), q, ranks_first=True)
        return dx.addmm_(g, W).view(x.shape), None, dA, dB, None


class TritonLinear(LoRALinear):
    """A LoRALinear whose thin products are Triton kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return _WithTriton.apply(x, self.base_layer.weight, self.lora_A, self.lora_B, self.scaling)


def others(base_of: Any, r: int, *, trial: bool) -> dict[str, nn.Module]:
    """The layers of this module by name, each over a base of its own from `base_of`."""
    found: dict[str, nn.Module] = {"added after": AddedAfter(base_of(), r, 2 * r)}
    if not trial:
        found["fast, Triton"] = TritonLinear(base_of(), r, 2 * r)
        try:
            function = unsloth_function()
        except Exception as error:
            print(f"  Unsloth's layer can't be loaded: {type(error).__name__}: {str(error)[:200]}", flush=True)
            function = None
        if function is not None:
            found["Unsloth"] = UnslothLinear(base_of(), r, 2 * r)
            found["Unsloth"].function = function
    return found
