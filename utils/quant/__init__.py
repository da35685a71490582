"""Fewer bits: absmax rounding, NF4, and the small floats FP8, MXFP4 and NVFP4, by hand."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "absmax": "absmax_int8 from_absmax_int8 relative_error",
        "by_bits": "error_curve",
        "nf4": "code_book dequantize quantize unpack_codes",
        "small_floats": "dequantize_floats float_book float_codes quantize_floats shared_exponents",
    },
)
