"""Equality with bitsandbytes to the bit, on the CPU. Written against bitsandbytes 0.50.2; the lock file pins it.

`test_the_kernels_are_those_that_were_matched` says what to look at when another release rounds otherwise.
"""

import logging

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from utils.models import load_base
from utils.quant import nf4
from utils.quant.absmax import nearest

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

torch.set_num_threads(1)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def eagerly():
    """Its fallback for odd widths compiles a kernel for each shape, which takes seconds and changes no value."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def compare(values, book="nf4", double=False, dequantized=True):
    """Codes, scales and restored values of ours and theirs: the first that differs, or None."""
    packed, state = functional.quantize_4bit(values, quant_type=book, compress_statistics=double)
    ours = nf4.quantize(values, book=book, double=double)
    pairs = {"packed codes": (packed.flatten(), ours.packed)}
    if double:
        pairs["scales' codes"] = (state.absmax, ours.scales.codes)
        pairs["scales' scales"] = (state.state2.absmax, ours.scales.scales)
        pairs["offset"] = (state.offset, ours.scales.offset)
    else:
        pairs["scales"] = (state.absmax, ours.scales)
    if dequantized:
        back = functional.dequantize_4bit(packed, state)
        pairs["restored values"] = (back.reshape(values.shape), nf4.dequantize(ours))
    return next((name for name, (theirs, mine) in pairs.items() if not torch.equal(theirs, mine)), None)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(2,), (64,), (65,), (128,), (1, 2)])
def test_a_vector_has_their_values_and_keeps_its_shape(shape, double):
    """bitsandbytes gives some of them back as a matrix, (2,) as (2, 1) and (64,) as (1, 64)."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert compare(values, double=double) is None
    assert nf4.dequantize(nf4.quantize(values, double=double)).shape == shape


def test_the_kernels_are_those_that_were_matched():
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    assert not registered("bitsandbytes::quantize_4bit", "CPU"), "4-bit codes come from the PyTorch implementation"
    assert registered("bitsandbytes::quantize_blockwise", "CPU"), "8-bit codes come from the compiled kernel"
    assert registered("bitsandbytes::dequantize_4bit", "CPU")


@pytest.mark.parametrize("book", ["nf4", "fp4"])
def test_code_books(book):
    assert torch.equal(nf4.code_book(book), functional.get_4bit_type(book, device="cpu"))


def test_the_dynamic_map():
    assert torch.equal(nf4.dynamic_map(), functional.create_dynamic_map())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 70, 128, 64 * 256, 64 * 256 + 1, 64 * 300 + 18])
def test_any_size(count, double, book, dtype):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    assert compare(values, book, double) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, 1e-4, 60_000.0])
@pytest.mark.parametrize("count", [64, 70, 200])
def test_constant_blocks(value, count, dtype):
    for book in ("nf4", "fp4"):
        for double in (False, True):
            assert compare(torch.full((count,), value).to(dtype), book, double) is None


def test_zero_blocks_among_others():
    values = torch.randn(64 * 8, generator=torch.Generator().manual_seed(0))
    values[64:192] = 0
    assert all(compare(values, book, double) is None for book in ("nf4", "fp4") for double in (False, True))


def test_values_exactly_between_two_entries():
    book = functional.get_4bit_type("nf4", device="cpu")
    middles = (book[:-1] + book[1:]) / 2
    around = [middles.nextafter(torch.tensor(side)) for side in (-9.0, 9.0)]
    assert compare(torch.cat([middles, *around, torch.ones(1)])) is None


@pytest.mark.parametrize("book", ["nf4", "fp4"])
def test_middles_tell_dividing_by_the_scale_from_multiplying_with_its_inverse(book):
    """Next to a middle the two round to different codes: bitsandbytes multiplies whole blocks, and divides a last one
    that is shorter."""
    entries = nf4.code_book(book)
    ordered = entries.sort().values
    middles = (ordered[:-1] + ordered[1:]) / 2
    told_apart = 0
    for scale in torch.rand(40, generator=torch.Generator().manual_seed(0)) * 3 + 0.1:
        short = torch.cat([middles * scale, (middles * scale).nextafter(torch.tensor(9.0)), scale[None]])
        divided, multiplied = (nearest(x, entries) for x in (short / scale, short * (1 / scale)))
        told_apart += int((divided != multiplied).sum())
        whole = torch.cat([short, torch.zeros(64 - len(short))])
        for values in (short, whole, torch.cat([whole, short])):
            assert compare(values, book) is None
    assert told_apart > 40, "no value tells the two apart, so nothing is proved"


@settings(deadline=None, max_examples=150)
@given(
    npst.arrays("float32", st.integers(1, 300), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)),
    st.sampled_from(DTYPES),
    st.sampled_from(["nf4", "fp4"]),
)
def test_any_values(array, dtype, book):
    values = torch.from_numpy(array).to(dtype)
    assert compare(values, book) is None


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**20), st.integers(1, 700), st.sampled_from([0.0, 1.0, 4.0]), st.sampled_from(DTYPES))
def test_double_quantization_of_blocks_of_any_spread(seed, blocks, spread, dtype):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(spread * torch.randn(blocks, 1, generator=generator)).clamp(1e-3, 1e3)
    values = (sizes * torch.randn(blocks, 64, generator=generator)).to(dtype)
    assert compare(values, double=True) is None


def test_the_eight_bit_codes_come_from_a_table_of_65536_points():
    """Comparing with the code book itself gives other codes next to its middles; the table gives bitsandbytes'."""
    scaled = torch.linspace(-1, 1, 200_001)
    theirs, _ = functional.quantize_blockwise(scaled, blocksize=2**20)
    table = nf4._dynamic_table()[((scaled + 1) * 0.5 * 65_535 + 0.5).long()]
    assert torch.equal(theirs, table)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
def test_every_linear_weight_of_the_tiny_model(dtype, double):
    model, _ = load_base(dtype)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert len(layers) == 29
    different = {n: compare(m.weight.detach(), double=double) for n, m in layers.items()}
    assert {n: what for n, what in different.items() if what} == {}


@pytest.mark.parametrize("shape", [(4, 96), (4, 32), (3, 80)])
def test_a_width_that_blocks_dont_divide(shape):
    """Codes and scales agree; restoring doesn't on AVX-512, where bitsandbytes 0.50.2 reads another row's scales.

    Its kernel looks the scale up at row * (width // 64) + column // 64, which is right for widths that 64 divides.
    """
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert compare(values, dequantized=False) is None
    packed, state = functional.quantize_4bit(values, quant_type="nf4")
    theirs, ours = functional.dequantize_4bit(packed, state), nf4.dequantize(nf4.quantize(values))
    if not torch.equal(theirs, ours):
        rows, width = shape
        at = torch.arange(rows)[:, None] * (width // 64) + torch.arange(width) // 64
        entries = nf4.code_book("nf4")[nf4.unpack_codes(packed.flatten(), values.numel()).long()].view(shape)
        assert torch.equal(theirs, entries * state.absmax[at])


def test_a_layer_made_of_our_bytes_computes_what_theirs_computes():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(192, 128, bias=False), torch.randn(5, 192, requires_grad=True)
    theirs = Linear4bit(192, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict(linear.state_dict())
    weight = nf4.dequantize(nf4.quantize(linear.weight, double=True))
    assert torch.equal(theirs.to("cpu")(x), torch.nn.functional.linear(x, weight))
