"""The arithmetic of training memory: weights, gradients and optimizer states, in bytes.

Activations are not in it; they depend on the batch and are measured (:mod:`utils.activations`). A GB is 10**9 bytes
throughout, as on a disk's label; a GiB, 2**30 bytes, is what GPU tools often mean.
"""

from __future__ import annotations

from typing import NamedTuple

from utils.nf4 import bits_per_parameter

GB = 10**9
GIB = 2**30

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Bytes of one number of each dtype."""
ADAM_MOMENTS = 2
"""Adam keeps a running mean of the gradient and one of its square (Kingma & Ba, 2014, https://arxiv.org/abs/1412.6980)."""


class TrainingState(NamedTuple):
    """Bytes that training holds for as long as it runs, whatever the batch."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum of the three."""
        return sum(self)


def bytes_of(dtype: str) -> int:
    """Bytes of one number of a dtype such as "bfloat16". Raises ValueError for one that isn't known."""
    if dtype not in BYTES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(BYTES)}")
    return BYTES[dtype]


def full_finetuning(parameters: int, dtype: str = "float32") -> TrainingState:
    """Full fine-tuning with Adam, weights, gradients and moments all in one dtype. Raises ValueError for less than
    one.
    """
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, not {parameters}")
    size = parameters * bytes_of(dtype)
    return TrainingState(size, size, ADAM_MOMENTS * size)


def mixed_precision(parameters: int) -> TrainingState:
    """Full fine-tuning with Adam in mixed precision: 16-bit weights and gradients, a float32 copy of the weights,
    float32 moments.

    The copy (Micikevicius et al., 2017, https://arxiv.org/abs/1710.03740) is counted with the optimizer, as ZeRO does
    (Rajbhandari et al., 2019, https://arxiv.org/abs/1910.02054): 2 + 2 + 12 bytes per parameter.
    """
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, not {parameters}")
    return TrainingState(2 * parameters, 2 * parameters, (4 + 4 * ADAM_MOMENTS) * parameters)


def lora(
    parameters: int, trainable: int, base_dtype: str = "bfloat16", adapter_dtype: str = "float32"
) -> TrainingState:
    """LoRA with Adam: a frozen base of `parameters` in one dtype, `trainable` adapter parameters on top in another.

    Raises ValueError when either is below one.
    """
    if parameters < 1 or trainable < 1:
        raise ValueError(f"both counts must be at least 1, not {parameters} and {trainable}")
    adapter = trainable * bytes_of(adapter_dtype)
    return TrainingState(parameters * bytes_of(base_dtype) + adapter, adapter, ADAM_MOMENTS * adapter)


def qlora(
    quantized: int, kept: int, trainable: int, *, double: bool = True, kept_dtype: str = "bfloat16"
) -> TrainingState:
    """QLoRA with Adam: `quantized` parameters of the base in NF4, with double quantization or without, `kept` ones in
    `kept_dtype` (embedding, head, norms), `trainable` adapter parameters in float32.

    Raises ValueError when `quantized` or `trainable` is below one or `kept` below zero.
    """
    if quantized < 1 or trainable < 1 or kept < 0:
        raise ValueError(
            f"quantized and trainable must be at least 1 and kept at least 0, not {quantized}, {trainable} and {kept}"
        )
    base = round(quantized * bits_per_parameter(double=double) / 8) + kept * bytes_of(kept_dtype)
    adapter = trainable * bytes_of("float32")
    return TrainingState(base + adapter, adapter, ADAM_MOMENTS * adapter)
