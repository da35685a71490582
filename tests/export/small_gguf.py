"""GGUF files of a few bytes, for tests of what is read of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<s>")


def write(path: Path, *, adapter: bool = False, fields: Mapping[str, Any] | None = None, width: int = 32) -> Path:
    """A base with one weight, or an adapter for it. `fields` are booleans, integers and texts beside the usual ones."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    weight = "blk.0.attn_q.weight"
    if adapter:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 16.0)
        writer.add_tensor(f"{weight}.lora_a", np.zeros((4, width), np.float32))
        writer.add_tensor(f"{weight}.lora_b", np.zeros((width, 4), np.float32))
    else:
        writer.add_context_length(512)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_eos_token_id(1)
        array = np.zeros((width, width), np.float32)
        quantized = (fields or {}).get("quantized")
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(
            weight, gguf.quants.quantize(array, kind) if quantized else array, raw_dtype=kind if quantized else None
        )
    for name, value in (fields or {}).items():
        if name == "quantized":
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
