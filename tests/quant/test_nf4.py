"""Quantization by hand: properties that hold whatever the library, and what is said to bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.models.configs import meta_model
from utils.quant import nf4
from utils.quant.absmax import absmax_int8, block_scales, from_absmax_int8, nearest, relative_error

torch.set_num_threads(1)

blocks = st.sampled_from([1, 2, 3, 16, 64, 100])
seeds = st.integers(0, 2**16)


def normal(count, seed=0, scale=1.0):
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_codes_are_found_where_the_values_are():
    """The code book was on the CPU, so a weight on a GPU couldn't be quantized."""
    assert nearest(torch.empty(4, device="meta"), nf4.code_book("nf4")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks for a GPU")
@pytest.mark.parametrize("double", [False, True])
def test_a_gpu_quantizes_to_the_same_codes(double):
    weight = normal(1001)
    here, there = (nf4.quantize(w, double=double) for w in (weight, weight.cuda()))
    assert torch.equal(here.packed, there.packed.cpu())
    assert torch.allclose(nf4.dequantize(here), nf4.dequantize(there).cpu(), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ int8


def test_absmax_int8_by_hand():
    steps, scales = absmax_int8(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    assert steps.tolist() == [32, -64, 127, 0] and scales.tolist() == [2.0]
    assert steps.dtype == torch.int8 and scales.dtype == torch.float32


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 300), blocks)
def test_the_error_of_int8_is_at_most_half_a_step_of_its_block(seed, count, block):
    values = normal(count, seed)
    steps, scales = absmax_int8(values, block)
    error = (from_absmax_int8(steps, scales, block) - values).abs()
    half = scales.repeat_interleave(block)[:count] / 127 / 2
    assert (error <= half * (1 + 1e-5)).all()
    assert steps.abs().max() == 127 and len(scales) == math.ceil(count / block)


def test_an_outlier_spoils_its_own_block_and_no_other():
    values = normal(256)
    values[3] = 100
    whole = from_absmax_int8(*absmax_int8(values))
    parts = from_absmax_int8(*absmax_int8(values, 64), 64)
    assert relative_error(values[64:], whole[64:]) > 20 * relative_error(values[64:], parts[64:])
    assert torch.equal(whole[:64], parts[:64])


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 5)])
def test_int8_keeps_the_shape(shape):
    values = torch.randn(shape)
    steps, scales = absmax_int8(values, 4)
    assert steps.shape == from_absmax_int8(steps, scales, 4).shape == shape


def test_the_relative_error_is_that_of_the_whole():
    values = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(values, values) == 0
    assert relative_error(values, 2 * values) == 1
    assert relative_error(0 * values, 0 * values) == 0 and relative_error(0 * values, values) == math.inf
    assert relative_error(values, values + torch.tensor([[0.0, 0.5], [0.0, 0.0]])) == pytest.approx(0.1)


def test_zeros_stay_zeros():
    steps, scales = absmax_int8(torch.zeros(10), 4)
    assert not steps.any() and not scales.any() and not from_absmax_int8(steps, scales, 4).any()


def test_the_wrong_number_of_scales_is_refused():
    with pytest.raises(ValueError, match="8 values in blocks of 4 don't have 1 scales"):
        from_absmax_int8(torch.zeros(8, dtype=torch.int8), torch.ones(1), 4)


# ----------------------------------------------------------------------------------------------------- code books


def test_nearest_is_nearest_in_any_order_and_takes_the_smaller_of_two():
    book = torch.tensor([2.0, -1.0, 0.0, 5.0])
    values = torch.linspace(-3, 8, 111) + 0.001  # no value lies exactly in the middle
    assert torch.equal(nearest(values, book), (values[:, None] - book).abs().argmin(dim=1))
    assert book[nearest(torch.tensor([1.0, -0.5, 3.5]), book)].tolist() == [0.0, -1.0, 2.0]
    assert nearest(torch.tensor([-0.1, 0.0, 0.1]), torch.tensor([1.0, 0.0, 0.0])).tolist() == [1, 1, 2]


def test_nf4_is_derived_from_quantiles_to_the_bit():
    """Probabilities run in equal steps from an offset to 0.5, where 0 is: 8 for the positive half, 7 for the other.

    The offset is the mean of 1 - 1/32 and 1 - 1/30, half a step inside the ends of 16 and of 15 steps.
    """
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    assert round(offset, 7) == 0.9677083
    positive = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9)[:-1].double())
    negative = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8)[:-1].double())
    values = torch.cat([negative, torch.zeros(1), positive]).sort().values.float()
    assert torch.equal(values / values.max(), nf4.code_book("nf4"))


def test_nf4_has_what_the_paper_asks_for():
    book = nf4.code_book("nf4")
    assert len(book.unique()) == 16 and torch.equal(book, book.sort().values)
    assert book.min() == -1 and book.max() == 1 and (book == 0).sum() == 1
    assert (book > 0).sum() == 8 and (book < 0).sum() == 7


def test_the_books_of_equal_steps_and_of_floats():
    assert nf4.code_book("int4").diff().allclose(torch.tensor(1 / 7))
    fp4 = nf4.code_book("fp4")
    assert len(fp4) == 16 and len(fp4.unique()) == 15, "plus and minus zero are one value"
    assert torch.equal(fp4[:8], -fp4[8:])


def test_an_unknown_book_is_refused():
    with pytest.raises(ValueError, match="'nf3'.*nf4, fp4, int4"):
        nf4.code_book("nf3")


def test_on_normal_values_nf4_beats_int4_and_int4_beats_fp4():
    values = normal(64 * 1000)
    nf4_error, int4_error, fp4_error = (
        relative_error(values, nf4.dequantize(nf4.quantize(values, book=book))) for book in ("nf4", "int4", "fp4")
    )
    assert nf4_error < 0.92 * int4_error and int4_error < 0.92 * fp4_error


# ------------------------------------------------------------------------------------------------------- packing


def test_the_first_code_is_in_the_high_half():
    assert nf4.pack_codes(torch.tensor([1, 2, 15], dtype=torch.uint8)).tolist() == [0x12, 0xF0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 15), max_size=40))
def test_unpack_undoes_pack(codes):
    codes = torch.tensor(codes, dtype=torch.uint8)
    packed = nf4.pack_codes(codes)
    assert packed.dtype == torch.uint8 and len(packed) == (len(codes) + 1) // 2
    assert torch.equal(nf4.unpack_codes(packed, len(codes)), codes)


@pytest.mark.parametrize("codes", [[16], [-1], [3, 255]])
def test_what_is_no_4_bit_code_is_refused(codes):
    with pytest.raises(ValueError, match="in 0..15"):
        nf4.pack_codes(torch.tensor(codes))


@pytest.mark.parametrize("count", [5, -1])
def test_more_codes_than_there_are_cant_be_unpacked(count):
    with pytest.raises(ValueError, match=f"2 bytes hold at most 4 codes, not {count}"):
        nf4.unpack_codes(torch.zeros(2, dtype=torch.uint8), count)


# --------------------------------------------------------------------------------------------- whole tensors


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 400), st.sampled_from([16, 64]), st.sampled_from(["nf4", "fp4", "int4"]))
def test_each_value_becomes_the_nearest_entry_times_the_scale(seed, count, block, book):
    values = normal(count, seed)
    quantized = nf4.quantize(values, book=book, block=block)
    scales = block_scales(values, block).repeat_interleave(block)[:count]
    choices = nf4.code_book(book) * scales[:, None]
    best = (choices - values[:, None]).abs().min(dim=1).values
    assert ((nf4.dequantize(quantized) - values).abs() <= best + 1e-6 * scales).all()


@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_quantizing_twice_changes_nothing(book, double):
    values = normal(64 * 300 + 10)
    once = nf4.dequantize(nf4.quantize(values, book=book))
    assert torch.equal(nf4.dequantize(nf4.quantize(once, book=book)), once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_dtype_come_back(dtype):
    values = torch.randn(3, 5, 7).to(dtype)
    back = nf4.dequantize(nf4.quantize(values, double=True))
    assert (back.shape, back.dtype) == (values.shape, dtype)


def test_a_transposed_matrix_is_read_as_it_is_seen():
    values = normal(64 * 6).view(64, 6)
    assert torch.equal(nf4.quantize(values.T).packed, nf4.quantize(values.T.contiguous()).packed)


def test_a_parameter_can_be_quantized():
    quantized = nf4.quantize(torch.nn.Parameter(normal(64)))
    assert not nf4.dequantize(quantized).requires_grad


def test_double_quantization_costs_little_accuracy():
    values = normal(64 * 1000, scale=0.02)
    error = [relative_error(values, nf4.dequantize(nf4.quantize(values, double=double))) for double in (False, True)]
    assert error[0] < error[1] < 1.01 * error[0]


def test_double_quantization_restores_the_scales_within_two_percent():
    scales = block_scales(normal(64 * 1000), 64)
    restored = nf4.double_dequantize(nf4.double_quantize(scales))
    assert ((restored - scales).abs() <= 0.02 * scales).all()


@pytest.mark.parametrize("double", [False, True])
def test_equal_blocks_are_restored_exactly(double):
    """The scales less their mean are then all zero, and 1 / 0 must not spoil them."""
    values = torch.full((64 * 5,), -3.0)
    assert torch.equal(nf4.dequantize(nf4.quantize(values, double=double)), values)
    assert not nf4.dequantize(nf4.quantize(torch.zeros(130), double=double)).any()


BAD = [
    (torch.zeros(0), ValueError, "nothing to quantize"),
    (torch.tensor([1.0, math.nan]), ValueError, "nan or infinity"),
    (torch.tensor([1.0, math.inf]), ValueError, "nan or infinity"),
    (torch.ones(4, dtype=torch.float64), TypeError, "not torch.float64"),
    (torch.ones(4, dtype=torch.int8), TypeError, "not torch.int8"),
    ([1.0, 2.0], TypeError, "not list"),
]


@pytest.mark.parametrize(("values", "error", "words"), BAD)
def test_what_cant_be_quantized_is_refused(values, error, words):
    for quantize in (nf4.quantize, absmax_int8):
        with pytest.raises(error, match=words):
            quantize(values)


def test_scales_whose_mean_overflows_are_refused_and_quantized_plainly():
    values = torch.full((64 * 5,), 3e38)
    with pytest.raises(ValueError, match=r"largest value is 3e\+38.*double=False"):
        nf4.quantize(values, double=True)
    assert torch.equal(nf4.dequantize(nf4.quantize(values)), values)


def test_a_block_of_none_is_refused():
    for call in (lambda: nf4.quantize(torch.ones(4), block=0), lambda: nf4.bits_per_parameter(0)):
        with pytest.raises(ValueError, match="at least one value, not 0"):
            call()


# ---------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.126953125)])
def test_bits_per_parameter_are_those_of_the_claims_ledger_and_of_real_bytes(double, bits):
    assert nf4.bits_per_parameter(64, double) == bits
    quantized = nf4.quantize(normal(64 * 256 * 4), double=double)
    offset = 4 if double else 0
    assert 8 * (quantized.nbytes - offset) / (64 * 256 * 4) == bits
    assert quantized.bits_per_value == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize(("double", "gigabytes"), [(False, "4.17"), (True, "3.87")])
def test_llama_2_7b_in_4_bits(double, gigabytes):
    """C21: every linear layer but the head in 4 bits, the rest in 16."""
    linear = [
        module.weight.numel()
        for name, module in meta_model("Llama-2-7B").named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    kept = 6_738_415_616 - sum(linear)
    size = sum(linear) * nf4.bits_per_parameter(64, double) / 8 + 2 * kept
    assert f"{size / 1e9:.2f}" == gigabytes
