"""The curves of error against bits are what quantizing by hand gives."""

import pytest
import torch

from utils.quant import dequantize, dequantize_floats, error_curve, quantize, quantize_floats, relative_error


@pytest.fixture
def values():
    return torch.randn(4096, generator=torch.Generator().manual_seed(0))


def test_a_point_is_the_block_its_bits_and_its_error_in_percent(values):
    (nf4,) = error_curve(values, "nf4", [64])
    expected = relative_error(values, dequantize(quantize(values, block=64, double=True)))
    assert nf4 == (64, pytest.approx(4.127, abs=0.02), pytest.approx(100 * expected))
    small, large = error_curve(values, "nvfp4", (16, 64))
    expected = relative_error(values, dequantize_floats(quantize_floats(values, "nvfp4", block=64)))
    assert large == (64, pytest.approx(4.125, abs=0.02), pytest.approx(100 * expected))
    assert small[0] == 16 and small[1] > large[1] and small[2] < large[2]


def test_the_error_is_that_of_the_kept_values_alone(values):
    values[7] = 100.0
    kept = values != 100
    (whole,) = error_curve(values, "mxfp4", [32])
    (ordinary,) = error_curve(values, "mxfp4", [32], kept)
    assert ordinary[2] != whole[2]
    assert ordinary[2] == pytest.approx(
        100 * relative_error(values[kept], dequantize_floats(quantize_floats(values, "mxfp4", block=32))[kept])
    )


def test_a_format_that_does_not_exist_is_refused(values):
    with pytest.raises(ValueError, match="nf5"):
        error_curve(values, "nf5", [64])
