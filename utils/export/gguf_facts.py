"""What a GGUF file says of itself that a Modelfile depends on: special tokens, template, context, tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.export.errors import ExportError
from utils.files import expanded

_ADD_BOS = frozenset(("llama3", "llama-v3", "llama-bpe", "tekken", "gemma4"))
"""Pre-tokenizers with which llama.cpp adds BOS where the file doesn't say (src/llama-vocab.cpp)."""


@dataclass(frozen=True)
class GGUFFacts:
    """Of a base model or an adapter in a GGUF file.

    Attributes:
        kind: ``general.type``: "model", "adapter" ...
        architecture: Such as "llama".
        chat_template: The Jinja template in the file, or "".
        adds_bos: Whether llama.cpp puts the BOS token in front of a text.
        bos, eos: These tokens as text, or "" where the file names none.
        context: The longest context the base was trained with, in tokens; None where the file doesn't say.
        shapes: Each tensor's shape, the way PyTorch writes it.
        dtypes: How many tensors of two or more dimensions are stored in each dtype, such as {"F16": 28}.
        alpha: An adapter's alpha, or None.
    """

    kind: str
    architecture: str
    chat_template: str
    adds_bos: bool
    bos: str
    eos: str
    context: int | None
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, int]
    alpha: float | None


def gguf_facts(path: str | Path) -> GGUFFacts:
    """Read them from `path`. Raises FileNotFoundError, and ExportError when it is no whole GGUF file."""
    from gguf import GGUFReader

    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the library raises whatever a damaged header leads to
        raise ExportError(f"{path} is no whole GGUF file ({error}): write it again with to_gguf") from None

    def value(key: str, otherwise: Any = "") -> Any:
        found = reader.get_field(key)
        return otherwise if found is None else found.contents()

    def token(name: str) -> str:
        number, tokens = value(f"tokenizer.ggml.{name}_token_id", None), reader.get_field("tokenizer.ggml.tokens")
        return "" if number is None or tokens is None or number >= len(tokens.data) else tokens.contents(int(number))

    dtypes: dict[str, int] = {}
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            dtypes[tensor.tensor_type.name] = dtypes.get(tensor.tensor_type.name, 0) + 1
    architecture = value("general.architecture")
    by_default = value("tokenizer.ggml.model") == "llama" or value("tokenizer.ggml.pre") in _ADD_BOS
    alpha = value("adapter.lora.alpha", None)
    return GGUFFacts(
        kind=value("general.type", "model"),
        architecture=architecture,
        chat_template=value("tokenizer.chat_template"),
        adds_bos=bool(value("tokenizer.ggml.add_bos_token", by_default)),
        bos=token("bos"),
        eos=token("eos"),
        context=value(f"{architecture}.context_length", None),
        shapes={t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors},
        dtypes=dtypes,
        alpha=None if alpha is None else float(alpha),
    )
