"""A PEFT adapter's folder as what llama.cpp takes: pairs of matrices by its names, one alpha, and what it can't take.

llama.cpp computes ``scale * alpha / r`` from the file's one alpha, each pair's own rank r, and the scale of a request.
PEFT's scaling may be another: sqrt(r) in rsLoRA, or an alpha of its own for some modules. What one alpha can't say is
multiplied into lora_B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.export.adapter_settings import check_rank, scaling
from utils.export.errors import ExportError
from utils.export.names import gguf_names, heads_to_rotate, linear_shapes
from utils.export.rope import rotate
from utils.lora.adapter_config import BASE_CHANGING, checked_settings, short
from utils.lora.checkpoint import PREFIX, WEIGHTS, check_files, read_header, read_matrices

_MERGE = "merge it into its base (merge_and_unload), save that, and write the merged model"
_REFUSED = {
    "use_dora": "DoRA's magnitude has no place in the file",
    "modules_to_save": "whole trained modules have no place in the file",
    "trainable_token_indices": "trained token embeddings have no place in the file",
    "target_parameters": "adapters on parameters (fused experts) have no place in the file",
    "lora_bias": "a bias in lora_B has no place in the file",
    "layer_replication": "llama.cpp doesn't repeat layers",
    "use_qalora": "QA-LoRA pools its inputs, which llama.cpp doesn't",
    "use_bdlora": "block-diagonal matrices are computed otherwise",
    "alora_invocation_tokens": "activated LoRA isn't written here",
    "fan_in_fan_out": "it is for transposed layers (GPT-2's), which these architectures don't have",
}


class AdapterTensors(NamedTuple):
    """An adapter as a GGUF file has it: its alpha, and float32 matrices by their names in the file."""

    alpha: float
    tensors: dict[str, Tensor]


def adapter_tensors(folder: Path, config: Any) -> AdapterTensors:
    """What a file holds of the PEFT adapter in `folder`, for a base with the transformers configuration `config`.

    lora_a is lora_A (r, in); lora_b is lora_B (out, r), its rows reordered where the weight's are, times what of PEFT's
    scaling the file's alpha doesn't say. Raises FileNotFoundError and ValueError for an adapter that is missing or
    damaged, and ExportError for what llama.cpp has no form for, saying what to do instead.
    """
    settings = checked_settings(folder)
    refuse(folder, settings)
    check_files(folder)
    matrices = read_matrices(folder)
    _check_fit(folder, settings, matrices, config)
    wanted = {
        name: scaling(settings, name, len(pair["lora_A"])) * len(pair["lora_A"]) for name, pair in matrices.items()
    }
    alpha = Counter(wanted.values()).most_common(1)[0][0]
    names, found = gguf_names(config), {}
    for module, pair in matrices.items():
        b = (pair["lora_B"].double() * (wanted[module] / alpha)).float()
        if heads := heads_to_rotate(config, module):
            b = rotate(b, heads)
        name = names[f"{module}.weight"]
        found |= {f"{name}.lora_a": pair["lora_A"].float(), f"{name}.lora_b": b.contiguous()}
    return AdapterTensors(alpha, found)


def refuse(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ExportError for an adapter that no GGUF file can hold, naming why and what to do."""
    if (kind := settings.get("peft_type")) != "LORA":
        raise ExportError(
            f"{folder} holds a {short(kind)} adapter, and llama.cpp has LoRA only: turn it into LoRA with "
            "peft.tuners.lora.conversion.save_as_lora(path, model, rank), which approximates it, or " + _MERGE
        )
    for key, why in _REFUSED.items():
        if settings.get(key):
            raise ExportError(f"{folder} uses {key}: {why}. Instead, {_MERGE}")
    if settings.get("bias", "none") != "none":
        raise ExportError(
            f"{folder} trained biases (bias={short(settings['bias'])}), which have no place in the file: {_MERGE}"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING):
        raise ExportError(
            f"{folder} began with init_lora_weights={short(start)}, which changes the base too: save it with "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA, or " + _MERGE
        )
    if not (folder / WEIGHTS).is_file():
        return  # the reader says what is there instead
    kinds = {name: name.removesuffix(".weight").rpartition(".")[2] for name in read_header(folder / WEIGHTS).entries}
    for name, kind in kinds.items():
        if kind.startswith("lora_embedding_"):
            module = name.removeprefix(PREFIX).partition(".lora_")[0]
            raise ExportError(f"{folder} adapts the embedding {module}, which isn't written here. Instead, {_MERGE}")
    if whole := [name for name, kind in kinds.items() if kind not in ("lora_A", "lora_B")]:
        raise ExportError(
            f"{folder} holds {short(whole[0])}, which is no LoRA matrix but a whole one, trained or saved along ("
            f"resized embeddings are): it has no place in the file. Instead, {_MERGE}"
        )


def _check_fit(folder: Path, settings: Mapping[str, Any], matrices: Mapping[str, Any], config: Any) -> None:
    """Raise ValueError when settings and matrices don't belong together, or ExportError for another base's shapes."""
    shapes = linear_shapes(config)
    for name, pair in matrices.items():
        check_rank(folder, settings, name, pair["lora_A"].shape, pair["lora_B"].shape)
        d_in, d_out = pair["lora_A"].shape[1], len(pair["lora_B"])
        if name == "lm_head" and config.tie_word_embeddings:
            raise ExportError(f"{folder} adapts lm_head, which is tied to the embedding: llama.cpp would change both")
        if name not in shapes:
            raise ExportError(
                f"{folder} has matrices for {short(name)}, and the base has no such layer: is it the right base?"
            )
        if shapes[name] != (d_out, d_in):
            raise ExportError(
                f"{folder} corrects {name} of {(d_out, d_in)}, which is {shapes[name]} in the base: another base"
            )
    for name, pair in matrices.items():
        if not torch.isfinite(pair["lora_A"].float()).all() or not torch.isfinite(pair["lora_B"].float()).all():
            raise ValueError(f"{folder} doesn't fit float32 in {name}: its training diverged")
