"""FP8, MXFP4 and NVFP4 by hand: properties that hold whatever the library, and what is said to bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.quant import nf4, small_floats
from utils.quant.absmax import block_scales, relative_error

torch.set_num_threads(1)

seeds = st.integers(0, 2**16)
formats = st.sampled_from(list(small_floats.FORMATS))


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error_of(values, name, **how):
    return relative_error(values, small_floats.dequantize_floats(small_floats.quantize_floats(values, name, **how)))


# ----------------------------------------------------------------------------------------------------- code books


def test_e2m1_is_eight_sizes_and_a_sign():
    book = small_floats.float_book("e2m1")
    assert book[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert torch.equal(book[8:], -book[:8]) and bool(torch.signbit(book[8]))


@pytest.mark.parametrize(("kind", "end", "finite"), [("e2m1", 6, 16), ("e4m3", 448, 254), ("e5m2", 57_344, 248)])
def test_where_a_code_book_ends(kind, end, finite):
    assert small_floats.largest(kind) == end
    assert int(small_floats.float_book(kind).isfinite().sum()) == finite


def test_e8m0_is_powers_of_two():
    book = small_floats.float_book("e8m0")
    assert book[127] == 1 and book[0] == 2.0**-127 and book[254] == 2.0**127 and book[255].isnan()


def test_a_code_book_is_the_callers_own():
    small_floats.float_book("e2m1").zero_()
    assert small_floats.float_book("e2m1")[7] == 6


def test_halves_go_to_the_even_code_and_zero_keeps_its_sign():
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, math.inf, -0.25, -5.0, -0.0])
    assert small_floats.float_codes(values, "e2m1").tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 7, 8, 14, 8]


@settings(deadline=None, max_examples=50)
@given(seeds, st.sampled_from(["e2m1", "e4m3", "e5m2"]))
def test_the_code_is_that_of_the_nearest_entry(seed, kind):
    values = normal(300, seed=seed, scale=0.4 * small_floats.largest(kind))
    book = small_floats.float_book(kind)
    entries = book[book.isfinite()]
    best = (values[:, None] - entries).abs().min(dim=1).values
    assert torch.equal((book[small_floats.float_codes(values, kind).long()] - values).abs(), best)


def test_every_finite_entry_is_its_own_code():
    for kind in ("e2m1", "e4m3", "e5m2"):
        book = small_floats.float_book(kind)
        codes = torch.arange(len(book))[book.isfinite()]
        assert torch.equal(small_floats.float_codes(book[book.isfinite()], kind).long(), codes)


# --------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(
    ("biggest", "floor", "even", "up"),
    [(4.0, 0, 0, 0), (6.0, 0, 0, 0), (6.1, 0, 0, 1), (6.99, 0, 0, 1), (7.0, 0, 1, 1), (7.99, 0, 1, 1), (8.0, 1, 1, 1),
     (3.0, -1, -1, -1), (3.1, -1, -1, 0), (3.6, -1, 0, 0)],
)  # fmt: skip
def test_the_three_ways_to_a_shared_exponent(biggest, floor, even, up):
    for rounding, exponent in (("floor", floor), ("even", even), ("up", up)):
        code = small_floats.shared_exponents(torch.tensor([biggest]), rounding=rounding)
        assert code.dtype == torch.uint8 and int(code) - 127 == exponent, rounding


def test_a_shared_exponent_is_exact_where_a_logarithm_is_not():
    just_below = torch.tensor([8.0]).nextafter(torch.tensor(0.0))
    assert int(small_floats.shared_exponents(just_below)) == 127


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_nothing_is_cut_off_with_up_and_at_most_a_quarter_with_floor(seed):
    biggest = torch.exp(5 * normal(100, seed=seed))
    scales = {r: small_floats.float_book("e8m0")[small_floats.shared_exponents(biggest, rounding=r).long()]
              for r in small_floats.ROUNDINGS}  # fmt: skip
    assert (biggest / scales["up"] <= 6).all() and (biggest / scales["up"] > 3).all()
    assert (biggest / scales["even"] < 7).all() and (biggest / scales["even"] >= 3.5).all()
    assert (biggest / scales["floor"] < 8).all() and (biggest / scales["floor"] >= 4).all()


def test_zeros_and_the_smallest_numbers_have_the_smallest_exponent():
    assert small_floats.shared_exponents(torch.tensor([0.0, 1e-44])).tolist() == [0, 0]


# -------------------------------------------------------------------------------------------------- whole tensors


@settings(deadline=None, max_examples=60)
@given(seeds, formats, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_shape_and_dtype_come_back_and_twice_changes_nothing(seed, name, dtype):
    values = normal(3, 2, 64, seed=seed).to(dtype)
    back = small_floats.dequantize_floats(small_floats.quantize_floats(values, name))
    assert (back.shape, back.dtype) == (values.shape, dtype)
    if name.startswith("mx"):
        assert torch.equal(small_floats.dequantize_floats(small_floats.quantize_floats(back, name)), back)


@pytest.mark.parametrize(
    ("name", "bits"), [("fp8_e4m3", 8), ("fp8_e5m2", 8), ("mxfp8", 8.25), ("mxfp4", 4.25), ("nvfp4", 4.5)]
)
def test_bits_are_those_of_real_bytes(name, bits):
    made = small_floats.quantize_floats(normal(64, 1024), name)
    assert made.bits_per_value == pytest.approx(bits, abs=1e-3)
    if name.startswith("mx"):
        assert made.bits_per_value == bits, "the tensor has no scale of its own"


def test_bits_of_another_block():
    values = normal(64, 1024)
    for name, block, bits in (("mxfp4", 16, 4.5), ("nvfp4", 16, 4.5), ("nvfp4", 64, 4.125)):
        made = small_floats.quantize_floats(values, name, block=block)
        assert made.bits_per_value == pytest.approx(bits, abs=1e-3)  # NVFP4's float32 for the tensor


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(["mxfp4", "mxfp8", "nvfp4"]))
def test_an_outlier_spoils_its_own_block_and_no_other(seed, name):
    values = normal(4, 64, seed=seed)
    values[0, 0] = 0.0  # so that the largest is another one
    outlier = values.clone()
    outlier[0, 0] = 0.9 * values.abs().max()  # no larger than the rest: NVFP4's scale of the tensor stays
    first = small_floats.FORMATS[name].block
    plain, other = (small_floats.dequantize_floats(small_floats.quantize_floats(v, name)) for v in (values, outlier))
    assert torch.equal(plain.flatten()[first:], other.flatten()[first:])


def test_the_first_code_is_in_the_low_half_as_in_torchao():
    assert small_floats.quantize_floats(torch.tensor([1.0, -6.0] + [0.0] * 30), "mxfp4").codes[0] == 0xF2


def test_zeros_stay_zeros():
    for name in small_floats.FORMATS:
        assert not small_floats.dequantize_floats(small_floats.quantize_floats(torch.zeros(2, 32), name)).any()


def test_at_equal_bits_nf4_has_the_smaller_error_on_normal_values():
    values = normal(64 * 2048)
    for block, bits in ((16, 4.5), (32, 4.25)):
        made = nf4.quantize(values, block=block, double=True)
        assert made.bits_per_value == pytest.approx(bits, rel=0.003)
        error = relative_error(values, nf4.dequantize(made))
        for name in ("mxfp4", "nvfp4"):
            floats = small_floats.quantize_floats(values, name, block=block)
            assert floats.bits_per_value == pytest.approx(bits, abs=1e-3)
            assert error < 0.87 * error_of(values, name, block=block)


def test_a_finer_scale_and_not_a_smaller_block_is_what_nvfp4_gains_by_on_normal_values():
    values = normal(64 * 2048)
    mx = [error_of(values, "mxfp4", block=block) for block in (16, 32)]
    nv = [error_of(values, "nvfp4", block=block) for block in (16, 32)]
    assert nv[1] < 0.92 * mx[1] and nv[0] < 0.95 * nv[1] and mx[0] > 0.99 * mx[1]


def test_a_float_bears_an_outlier_and_int8_does_not():
    values = normal(4096)
    values[7] = 100.0
    others = values.abs() < 50
    back = small_floats.dequantize_floats(small_floats.quantize_floats(values, "fp8_e4m3"))
    assert relative_error(values[others], back[others]) < 0.03
    step = block_scales(values, 4096) / 127
    assert relative_error(values[others], ((values / step).round() * step)[others]) > 0.2


BAD = [
    (lambda: small_floats.quantize_floats(torch.ones(2, 50), "mxfp4"), ValueError, "row of 50 values.*blocks of 32"),
    (lambda: small_floats.quantize_floats(torch.ones(9), "mxfp4", block=3), ValueError, "even number of them, not 3"),
    (lambda: small_floats.quantize_floats(torch.tensor(3.0), "mxfp4"), ValueError, "a row of 1 values isn't whole"),
    (lambda: small_floats.quantize_floats(torch.ones(32), "mxfp4", block=-2), ValueError, "at least one value, not -2"),
    (lambda: small_floats.quantize_floats(torch.ones(32), "fp4"), ValueError, "unknown format 'fp4'.*mxfp4"),
    (lambda: small_floats.quantize_floats(torch.tensor([math.nan]), "fp8_e4m3"), ValueError, "nan or infinity"),
    (lambda: small_floats.quantize_floats(torch.ones(4, dtype=torch.int8), "nvfp4"), TypeError, "not torch.int8"),
    (lambda: small_floats.float_codes(torch.tensor([math.nan]), "e2m1"), ValueError, "nan has no nearest"),
    (lambda: small_floats.float_codes(torch.ones(1), "e8m0"), ValueError, "unknown float 'e8m0'"),
    (lambda: small_floats.float_book("e3m0"), ValueError, "unknown float 'e3m0'.*e8m0"),
    (lambda: small_floats.shared_exponents(torch.ones(1), rounding="down"), ValueError, "unknown rounding 'down'"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_what_cant_be_done_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
