"""Counting operations, arithmetic and bytes: by hand for single ones, against PyTorch's counter for a whole layer."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.lora import LoRALinear
from utils.lora.fused import use_fused
from utils.profiling.traffic import Operation, operations

A, B = torch.empty(3, 5), torch.empty(5, 7)
C = torch.empty(3, 7)


@pytest.mark.parametrize(
    ("work", "name", "flops", "numbers"),
    [
        (lambda: A @ B, "mm", 2 * 3 * 5 * 7, 15 + 35 + 21),
        (lambda: A.t().t() @ B, "mm", 2 * 3 * 5 * 7, 15 + 35 + 21),  # views are free
        (lambda: torch.addmm(C, A, B), "addmm", 2 * 3 * 5 * 7, 15 + 35 + 21 + 21),
        (lambda: C.addmm_(A, B), "addmm_", 2 * 3 * 5 * 7, 15 + 35 + 21 + 21),  # read and written
        (lambda: torch.addmm(C, A, B, beta=0, out=C), "addmm", 2 * 3 * 5 * 7, 15 + 35 + 21),  # not read
        (lambda: A + A, "add", 0, 3 * 15),
        (lambda: A * 2, "mul", 0, 2 * 15),
        (lambda: A.mul_(2), "mul_", 0, 2 * 15),
        (lambda: torch.empty(4).zero_(), "zero_", 0, 4),
        (lambda: A[:1].expand(3, 5) + A, "add", 0, 5 + 15 + 15),  # an expanded row is there once
    ],
)
def test_an_operation_is_counted_as_by_hand(work, name, flops, numbers):
    (found,) = operations(work)
    assert found == Operation(name, flops, 4 * numbers, torch.float32)


def test_a_conversion_reads_one_size_and_writes_another():
    (found,) = operations(lambda: A.bfloat16())
    assert found.moved == (4 + 2) * 15 and found.dtype == torch.float32


@pytest.mark.parametrize("fused", [True, False])
def test_a_layers_arithmetic_is_what_pytorch_counts_and_the_same_without_data(fused):
    def step(device):
        with torch.device(device):
            layer = LoRALinear(nn.Linear(24, 20, dtype=torch.bfloat16), 4, 8)
            if fused:
                use_fused(layer)
            x = torch.zeros(3, 10, 24, dtype=torch.bfloat16, requires_grad=True)
            grad = torch.zeros(3, 10, 20, dtype=torch.bfloat16)
        return lambda: layer(x).backward(grad)

    found = operations(step("cpu"))
    with FlopCounterMode(display=False) as theirs:
        step("cpu")()
    counted = sum(op.flops for op in found)
    n, d_in, d_out, r = 30, 24, 20, 4
    assert counted == 4 * n * d_in * d_out + 6 * n * r * (d_in + d_out)
    in_place = 2 * 2 * n * d_in * d_out if fused else 0  # PyTorch's counter doesn't know addmm_
    assert theirs.get_total_flops() + in_place == counted
    assert operations(step("meta")) == found


def test_the_slower_of_arithmetic_and_memory_decides():
    operation = Operation("mm", 600, 30, torch.float32)
    assert operation.least_seconds(100.0, 10.0) == 6.0
    assert operation.least_seconds(1000.0, 10.0) == 3.0
