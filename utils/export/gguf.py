"""A model or an adapter as a GGUF file, which llama.cpp and all that is built on it (Ollama, LM Studio ...) read.

A GGUF file is a header (what is in it, with names and numbers of all kinds), the list of tensors, and their numbers,
each tensor beginning at a multiple of 32 bytes (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The `gguf`
library writes it and knows llama.cpp's names. Ours is what is to be written: :mod:`utils.export.names` which weights,
:mod:`utils.export.rope` their order, :mod:`utils.export.gguf_adapter` an adapter's scaling,
:mod:`utils.export.vocabulary` the tokenizer.

Attributes:
    DTYPES: In what the matrices can be stored, smallest errors first, and the bits that a weight takes. K-quants
        (q4_k_m and its kin) aren't among them: the library reads them and can't make them. llama.cpp's llama-quantize
        does, from a file in f16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from utils.export.errors import ExportError
from utils.export.gguf_adapter import AdapterTensors, adapter_tensors
from utils.export.names import (
    CONVERTER,
    architecture,
    check_tensors,
    context_length,
    expected_shapes,
    gguf_names,
    head_dim,
    heads_to_rotate,
)
from utils.export.own_base import compared, named_base
from utils.export.rope import rope_fields, rotate
from utils.export.vocabulary import vocabulary
from utils.export.weights import Weights
from utils.files import expanded, replaced_file
from utils.lora.adapter_config import CONFIG, checked_settings
from utils.models.ends import listed_ids
from utils.models.errors import ModelUnavailable
from utils.models.loading import load_config

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"f32": 32.0, "bf16": 16.0, "f16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
_FILE_TYPES = {"f32": "ALL_F32"} | {dtype: f"MOSTLY_{dtype.upper()}" for dtype in list(DTYPES)[1:]}
_TWICE_USED = ("token_embd.weight", "output.weight")  # where an error of 4 bits costs most


def to_gguf(
    source: str | Path | PreTrainedModel,
    path: str | Path,
    dtype: str = "f16",
    *,
    base: str | Path | PreTrainedModel | PretrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a GGUF file at `path`, and return it.

    `source` is the folder of a PEFT adapter, the folder of a transformers model (a merged one, or a base), or such a
    model in memory. `dtype` is one of :data:`DTYPES`, for an adapter f32, f16 or bf16. Norms and biases stay in
    float32; below 8 bits the embedding and the output head take q8_0, as their errors reach every token; a matrix whose
    rows don't divide into blocks of 32 stays in f16.

    `base` is the adapter's base: its folder, its id on the Hub, the model or its configuration; by default what the
    adapter names. `tokenizer` is that of a model in memory, by default the one that it came with. The file appears
    when it is whole. Raises FileNotFoundError and ValueError for files that are missing or damaged, and ExportError for
    what can't be written, saying what to do: a base that can't be had, or that the adapter wasn't trained on, as far as
    its fingerprint or two ids of the Hub tell (:mod:`utils.export.own_base`). Where nothing tells, it warns.
    """
    if dtype not in DTYPES:
        raise ExportError(
            f"dtype={dtype!r} isn't written here, only {', '.join(DTYPES)}. K-quants such as q4_k_m are made from a "
            "file in f16 by llama.cpp's llama-quantize"
        )
    path = expanded(path)
    if path.suffix == ".safetensors" or path.is_dir():
        what = "is a folder" if path.is_dir() else "is called like a file of weights, which it would replace"
        raise ExportError(f"{path} {what}: name a new file, such as {path.with_suffix('.gguf').name}")
    if isinstance(source, nn.Module):
        return _write_model(cast("PreTrainedModel", source), path, dtype, tokenizer)
    folder = expanded(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: save the model or the adapter there, with save_pretrained"
        )
    if (folder / CONFIG).is_file():
        return _write_adapter(folder, path, dtype, base)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds neither {CONFIG} nor config.json: it is no adapter and no model")
    return _write_model(folder, path, dtype, tokenizer)


# ------------------------------------------------------------------------------------------------------------ a model


def _write_model(
    source: Path | PreTrainedModel, path: Path, dtype: str, tokenizer: PreTrainedTokenizerBase | None
) -> Path:
    config = _config_in(source) if isinstance(source, Path) else source.config
    _refuse_model(source, config)
    kind, weights = architecture(config), Weights(source)
    weights.without_tied_head(config)
    check_tensors(config, weights.shapes, weights.where)
    words = vocabulary(tokenizer or _tokenizer_of(source), config.vocab_size, _ends_of(source, config))
    base, rope, factors = rope_fields(config)

    def tensor(name: str) -> Tensor:
        found = weights[name].float()
        heads = heads_to_rotate(config, name.rpartition(".")[0])
        return rotate(found, heads) if heads else found

    names, plan = gguf_names(config), []
    for name, shape in expected_shapes(config).items():
        plan.append(Planned(names[name], shape, _stored_as(names[name], shape, dtype), lambda name=name: tensor(name)))
    if factors is not None:
        plan.insert(0, Planned("rope_freqs.weight", tuple(factors.shape), "f32", lambda: factors))

    def describe(writer: GGUFWriter) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(Path(getattr(config, "_name_or_path", "") or path.stem).name)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(context_length(config))
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_dim(config))
        writer.add_value_length(head_dim(config))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(head_dim(config))
        writer.add_rope_freq_base(base)
        for field, value in rope.items():
            getattr(writer, field)(gguf.RopeScalingType(value) if isinstance(value, str) else value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(words.pre)
        writer.add_token_list(words.tokens)
        writer.add_token_types([gguf.TokenType[name] for name in words.types])
        writer.add_token_merges(words.merges)
        for name, id_ in words.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id_)
        writer.add_add_bos_token(words.adds_bos)
        writer.add_add_eos_token(words.adds_eos)
        if words.chat_template:
            writer.add_chat_template(words.chat_template)

    return write_file(path, kind.name, describe, plan)


def _config_in(folder: Path) -> PretrainedConfig:
    """The configuration in a model's folder, which needn't hold a tokenizer."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{folder / 'config.json'} is missing, damaged, or of a model that transformers doesn't know: copy the "
            f"model again, or use {CONVERTER}"
        ) from error


def _refuse_model(source: Path | PreTrainedModel, config: Any) -> None:
    """Raise ExportError for a model that isn't plain numbers: an adapter still beside them, or weights in 4 bits."""
    if isinstance(source, nn.Module) and (
        hasattr(source, "peft_config") or any("lora_" in name for name, _ in source.named_parameters())
    ):
        raise ExportError(
            "this model has an adapter beside its weights: write the adapter's folder (save_pretrained, then "
            "to_gguf(folder, path)), or merge it first (merge_and_unload)"
        )
    if getattr(config, "quantization_config", None):
        raise ExportError(
            "this model is quantized, and a GGUF file quantizes in its own way: load it in 16 bits, or turn it into "
            "plain numbers first (utils.lora.merging.dequantized(model)); an adapter's file needs neither"
        )


def _tokenizer_of(source: Path | PreTrainedModel) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    where = source if isinstance(source, Path) else source.name_or_path
    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"there is no tokenizer with {where or 'this model'}, and a GGUF file holds it: save it beside the model "
            "(tokenizer.save_pretrained(folder)), or pass tokenizer="
        ) from error


def _ends_of(source: Path | PreTrainedModel, config: Any) -> list[int]:
    """The ids that end an answer, by the generation config, or by the configuration where there is none."""
    if isinstance(source, Path):
        from transformers import GenerationConfig

        has_one = (source / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(source) if has_one else None
    else:
        generation = source.generation_config
    return listed_ids(getattr(generation, "eos_token_id", None)) or listed_ids(getattr(config, "eos_token_id", None))


# --------------------------------------------------------------------------------------------------------- an adapter


def _write_adapter(folder: Path, path: Path, dtype: str, base: Any) -> Path:
    if dtype not in ("f32", "f16", "bf16"):
        raise ExportError(f"an adapter is written in f32, f16 or bf16, not {dtype}: its rows are too short for blocks")
    if base is None and (base := named_base(checked_settings(folder))) is None:
        raise ExportError(f"{folder} doesn't name its base, whose heads decide the order of rows: pass base=")
    config = _config_of(base)
    kind = architecture(config)
    found: AdapterTensors = adapter_tensors(folder, config)
    _look_at_base(folder, base)
    plan = [
        Planned(name, tuple(matrix.shape), dtype, lambda matrix=matrix: matrix)
        for name, matrix in found.tensors.items()
    ]

    def describe(writer: GGUFWriter) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(folder.name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, found.alpha)

    return write_file(path, kind.name, describe, plan)


def _config_of(base: str | Path | PreTrainedModel | PretrainedConfig) -> Any:
    """The configuration of an adapter's base. Raises ExportError for one that can't be had, saying how to give it."""
    if isinstance(base, nn.Module):
        return cast("PreTrainedModel", base).config
    if not isinstance(base, str | Path):
        return base
    if expanded(base).is_dir():
        return _config_in(expanded(base))
    try:
        return load_config(base, setting="base=")
    except ModelUnavailable as error:
        raise ExportError(
            f"the adapter's base can't be had: {str(error).rstrip('.')}. Give it as base=, its folder or the model in "
            "memory: to_gguf(adapter, path, base=FOLDER). Of a folder config.json alone is needed"
        ) from error


def _look_at_base(folder: Path, base: Any) -> None:
    """Raise ExportError when the base isn't the one that the adapter was trained on, and warn when nothing tells."""
    same, why = compared(folder, base)
    if same is False:
        raise ExportError(f"the adapter in {folder} was trained on another base: {why}")
    if same is None:
        warnings.warn(
            f"nothing tells whether {folder.name} was trained on this base: {why}. Ask the file some prompts whose "
            "answers you know",
            stacklevel=4,
        )


# ------------------------------------------------------------------------------------------------------------ the file


class Planned(NamedTuple):
    """A tensor that is to be written: its name and shape in the file, its dtype, and how to get it in float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor]


def write_file(path: Path, arch: str, describe: Callable[[GGUFWriter], None], plan: list[Planned]) -> Path:
    """Write a GGUF file of the architecture `arch`: the fields that `describe` adds, then the tensors, one by one, so
    that only one is held in memory. Nothing is left at `path` of a file that couldn't be finished.

    Raises ExportError when a number is too large for its dtype, and OSError when the disk is full.
    """
    import gguf

    with replaced_file(path) as scratch:
        writer = gguf.GGUFWriter(scratch, arch)
        try:
            describe(writer)
            for tensor in plan:
                kind = gguf.GGMLQuantizationType[tensor.dtype.upper()]
                block, size = gguf.GGML_QUANT_SIZES[kind]
                count = torch.Size(tensor.shape).numel()
                writer.add_tensor_info(
                    tensor.name, tensor.shape, torch.zeros(0).numpy().dtype, count // block * size, raw_dtype=kind
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in plan:
                writer.write_tensor_data(quantized(tensor.load(), tensor.dtype, tensor.name))
        finally:
            writer.close()
    return path


def quantized(tensor: Tensor, dtype: str, name: str = "this tensor") -> Any:
    """The numbers of a tensor as the file stores them, a NumPy array, by the library's own quantization.

    Raises ExportError when a number isn't finite, or is too large for float16.
    """
    import gguf

    tensor = tensor.detach().float().contiguous()
    if not tensor.isfinite().all():
        raise ExportError(f"{name} holds NaN or infinity: the training has diverged")
    half = dtype not in ("f32", "bf16")  # the scales of blocks are float16 too
    if half and tensor.abs().max() > torch.finfo(torch.float16).max:
        raise ExportError(
            f"{name} holds {tensor.abs().max().item():g}, and float16 ends at 65504: write it as bf16 or f32"
        )
    return gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[dtype.upper()])


def _stored_as(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """In which dtype a tensor of a model is stored in a file of `dtype`."""
    if len(shape) < 2:
        return "f32"
    if not dtype.startswith("q"):
        return dtype
    if shape[-1] % 32:
        return "f16"
    return "q8_0" if name in _TWICE_USED else dtype
