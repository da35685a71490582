"""A GGUF file with some of its fields or tensors changed: to repair one, or to see what a wrong one does.

The `gguf` library has commands for fields (gguf-set-metadata, gguf-new-metadata); this does tensors as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.export.errors import ExportError
from utils.files import expanded, replaced_file


def edited(
    source: str | Path,
    path: str | Path,
    fields: Mapping[str, Any] | None = None,
    tensors: Callable[[str, Tensor], Tensor] | None = None,
) -> Path:
    """Write the GGUF file `source` at `path` with other `fields`, by their full names (None leaves one out), and other
    numbers: `tensors` is given each float32 tensor with its name, and gives one of the same shape.

    A field keeps its type; a new one is a string, a boolean, a float or a whole number. Raises ExportError for a tensor
    of another shape than before.
    """
    import gguf

    source, path = expanded(source), expanded(path)
    reader, changes = gguf.GGUFReader(source), dict(fields or {})
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    data = []
    for tensor in reader.tensors:
        numbers = tensor.data
        if tensors is not None and tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            given = torch.from_numpy(numbers.copy())
            got = tensors(tensor.name, given)
            if got.shape != given.shape:
                raise ExportError(f"{tensor.name} is {tuple(given.shape)} in {source}, not {tuple(got.shape)}")
            numbers = got.float().contiguous().numpy()
        data.append(numbers)
    with replaced_file(path) as scratch:
        writer = gguf.GGUFWriter(scratch, changes.pop(gguf.Keys.General.ARCHITECTURE, architecture))
        try:
            for name, field in reader.fields.items():
                if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
                    continue
                value = changes.pop(name) if name in changes else field.contents()
                if value is not None:
                    sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(name, value, field.types[0], sub_type=sub_type)
            for name, value in changes.items():
                writer.add_key_value(name, value, gguf.GGUFValueType[kinds[type(value)]])
            for tensor, numbers in zip(reader.tensors, data, strict=True):
                writer.add_tensor_info(tensor.name, numbers.shape, numbers.dtype, numbers.nbytes, tensor.tensor_type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for numbers in data:
                writer.write_tensor_data(numbers)
        finally:
            writer.close()
    return path
