"""Fewer bits: absmax rounding and NF4, by hand."""

from utils.quant.absmax import absmax_int8, from_absmax_int8, relative_error
from utils.quant.nf4 import code_book, dequantize, quantize, unpack

__all__ = ["absmax_int8", "code_book", "dequantize", "from_absmax_int8", "quantize", "relative_error", "unpack"]
