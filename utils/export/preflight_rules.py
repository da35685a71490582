"""The rules of the preflight: what each target refuses of an adapter, and what it loads and computes wrong.

vLLM and SGLang take the PEFT folder as it is. The others take a file of their own, which the course writes: a GGUF file
for llama.cpp and Ollama (:func:`utils.export.to_gguf`), `adapters.safetensors` for MLX (:func:`utils.export.to_mlx`).
There "refuses" is what no such file can hold, and "wrong" is what the usual other way makes of it, which the course's
writer avoids.

Each rule was read in the source that it names, at these versions: vLLM 0.32.0, SGLang 0.5.23 and mlx-lm 0.32.2 as PyPI
has them; llama.cpp at 0b03ada, Ollama at fb30760. Another version may do otherwise.

Attributes:
    TARGETS: The targets, by the name that :func:`utils.export.preflight_report` is given, and as they write themselves.
    VLLM_RANKS: The values that vLLM's ``--max-lora-rank`` takes (vllm/config/lora.py).
    CONVERTIBLE: The PEFT methods, beside LoRA itself, whose update PEFT 0.21 turns into LoRA's form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.export.adapter_facts import AdapterFacts
from utils.export.errors import ExportError
from utils.export.finding import Finding, Verdict
from utils.export.own_base import compared
from utils.lora.adapter_config import BASE_CHANGING, all_linear, short

TARGETS = {"vllm": "vLLM", "llama.cpp": "llama.cpp", "ollama": "Ollama", "mlx": "MLX", "sglang": "SGLang"}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CONVERTIBLE = (
    "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "LOHA", "LOKR", "MISS", "PSOFT", "RANDLORA", "SHIRA",
    "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip

Finder = Callable[[AdapterFacts, str, int | None], Iterator[Finding]]

_MERGE = "merge it into its base (merge_and_unload) and take the merged model there"
_HELPER = "vLLM, vllm/lora/peft_helper.py"
_NAMES = "vLLM, vllm/lora/utils.py, parse_fine_tuned_lora_name"
_CONVERTER = "llama.cpp, convert_lora_to_gguf.py"
_LOADER = "mlx-lm, mlx_lm/tuner/utils.py, load_adapters"
_SGLANG = "SGLang, sglang/srt/lora"
_GGUF = ("llama.cpp", "ollama")


def _by_target(target: str, answers: Mapping[str, tuple[Verdict, str]], what: str, cure: str, rule: str):
    """The finding of a rule for `target`, or none: `answers` holds the verdict and the source; Ollama takes llama.cpp's
    file, so llama.cpp's answer is its own.
    """
    key = "llama.cpp" if target == "ollama" and "ollama" not in answers else target
    if key in answers:
        verdict, source = answers[key]
        yield Finding(rule, what, cure, verdict, source)


# ------------------------------------------------------------------------------------------------ what kind of adapter


def another_method(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """A method other than LoRA: none of the targets computes it."""
    if facts.method == "LORA":
        return
    cure = f"{facts.method} has no form as LoRA in PEFT: {_MERGE}"
    if facts.method in CONVERTIBLE:
        cure = (
            "load it with PEFT, write it as LoRA by peft.save_as_lora(path, model, rank=...), which keeps the largest "
            f"singular values of its update, and compare its answers; or {_MERGE}"
        )
    sources = {
        "vllm": f"{_HELPER}, from_dict",
        "llama.cpp": f"{_CONVERTER}, get_tensors",
        "mlx": _LOADER,
        "sglang": f"{_SGLANG}/lora.py, LoRAAdapter",
    }
    answers: dict[str, tuple[Verdict, str]] = {key: ("refuses", source) for key, source in sources.items()}
    what = f"it is a {short(facts.settings.get('peft_type'))} adapter, and LoRA alone is computed there"
    yield from _by_target(target, answers, what, cure, "method")


def rank_above_limit(facts: AdapterFacts, target: str, max_rank: int | None) -> Iterator[Finding]:
    """A rank above what the server was started for. Raises ExportError for a limit that vLLM doesn't take."""
    rank = max([facts.rank, *(facts.settings.get("rank_pattern") or {}).values()])
    if target == "vllm":
        limit = 16 if max_rank is None else max_rank
        if limit not in VLLM_RANKS:
            raise ExportError(f"vLLM's --max-lora-rank takes {', '.join(map(str, VLLM_RANKS))}, not {limit}")
        if rank > limit:
            enough = vllm_rank(rank)
            default = " (its default)" if max_rank is None else ""
            cure = (
                f"start it with --max-lora-rank {enough}"
                if enough >= rank
                else f"it goes to {VLLM_RANKS[-1]} at most: write it smaller by peft.save_as_lora(path, model, "
                f"rank={VLLM_RANKS[-1]}), or {_MERGE}"
            )
            what = f"rank {rank} is above --max-lora-rank {limit}{default}"
            yield Finding("rank", what, cure, "refuses", f"{_HELPER}, validate_legal; vllm/config/lora.py")
    elif target == "sglang" and max_rank is not None and rank > max_rank:
        what = f"rank {rank} is above the server's --max-lora-rank {max_rank}"
        cure = f"start it with --max-lora-rank {rank}"
        yield Finding("rank", what, cure, "refuses", f"{_SGLANG}/mem_pool.py, can_support")


def vllm_rank(rank: int) -> int:
    """vLLM's smallest ``--max-lora-rank`` that an adapter of this rank fits, or its largest where none is enough."""
    return next((one for one in VLLM_RANKS if one >= rank), VLLM_RANKS[-1])


def dora(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """DoRA's trained lengths, which only MLX has a place for."""
    if not (facts.settings.get("use_dora") or facts.magnitudes):
        return
    answers: dict[str, tuple[Verdict, str]] = {
        "vllm": ("refuses", f"{_HELPER}, _validate_features"),
        "llama.cpp": ("refuses", f"{_CONVERTER}, get_tensors"),
        "sglang": ("refuses", f"{_SGLANG}/lora_manager.py, validate_new_adapter"),
    }
    what = "it uses DoRA, whose trained lengths have no place there"
    cure = f"{_MERGE}. PEFT's convert_to_lora takes DoRA too, and returns another model"
    yield from _by_target(target, answers, what, cure, "dora")


def changed_base(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """An initialisation that changed the base as well: PiSSA and its kin. On the plain base the matrices are wrong."""
    start = str(facts.settings.get("init_lora_weights", "")).lower()
    if not start.startswith(BASE_CHANGING) or (target == "vllm" and start == "lora_ga"):
        return
    wrong: tuple[Verdict, str] = ("wrong", "PEFT, LoraConfig.init_lora_weights; no such key is read there")
    answers: dict[str, tuple[Verdict, str]] = {
        "vllm": ("refuses", f"{_HELPER}, _init_is_supported"),
        "llama.cpp": wrong,
        "mlx": wrong,
        "sglang": wrong,
    }
    what = f"init_lora_weights={start!r} changed the base too, and the served base is the plain one"
    cure = "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA of twice the rank"
    yield from _by_target(target, answers, what, cure, "init")


_SPECIAL = {
    "alora_invocation_tokens": "an activated LoRA, which begins at given tokens",
    "layer_replication": "repeated layers",
    "use_bdlora": "block-diagonal matrices",
    "use_qalora": "pooled inputs (QA-LoRA)",
}


def special_forms(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Settings that change what is computed, which vLLM refuses by name and the others don't read."""
    for key, form in _SPECIAL.items():
        if not facts.settings.get(key):
            continue
        converter: tuple[Verdict, str] = ("wrong", f"{_CONVERTER}, which doesn't read {key}")
        if key == "alora_invocation_tokens":
            converter = ("refuses", "utils/export/gguf_adapter.py; llama.cpp's convert_lora_to_gguf.py writes it")
        if key == "layer_replication":
            converter = ("refuses", "llama.cpp, src/llama-adapter.cpp: no such layer in the base")
        answers: dict[str, tuple[Verdict, str]] = {
            "vllm": ("refuses", f"{_HELPER}, _validate_features"),
            "llama.cpp": converter,
            "mlx": ("refuses", "utils/export/mlx.py: mlx-lm has no such layer"),
            "sglang": ("wrong", f"{_SGLANG}/lora_config.py, which doesn't read {key}"),
        }
        yield from _by_target(target, answers, f"{key}: {form}", _MERGE, "special")


# ------------------------------------------------------------------------------------------ more than pairs of matrices


def whole_modules(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Modules that were trained, or resized, and saved whole."""
    saved = list(facts.settings.get("modules_to_save") or [])
    names = [name for name in facts.whole if not name.endswith(".base_layer.weight")]
    if target == "vllm":  # a classifier's head is served
        saved = [name for name in saved if name not in ("classifier", "score")]
        names = [name for name in names if name.split(".")[-2] not in ("classifier", "score")]
    if not saved and not names:
        return
    outside = all(".layers." not in f".{name}" for name in names)
    converter: tuple[Verdict, str] = ("refuses", f"{_CONVERTER}, get_tensors")
    if names and all("norm" in name for name in names):
        converter = ("wrong", f"{_CONVERTER} writes norms, and llama.cpp, src/llama-adapter.cpp, passes over them")
    answers: dict[str, tuple[Verdict, str]] = {
        "vllm": ("refuses", f"{_HELPER}, _validate_features; {_NAMES}"),
        "llama.cpp": converter,
        "mlx": ("refuses", _LOADER),
        "sglang": ("wrong" if outside else "refuses", f"{_SGLANG}/lora.py, _process_weight, which skips it with a log"),
    }
    shown = ", ".join(saved or [name.removesuffix(".weight") for name in names[:2]])
    why = "" if saved else " (PEFT saves embedding and head when tokens were added)"
    what = f"whole modules were saved, {shown}{why}, and only pairs of matrices are read"
    yield from _by_target(target, answers, what, _MERGE, "modules_to_save")


def trained_tokens(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Rows of the embedding that were trained by their numbers."""
    if not (facts.settings.get("trainable_token_indices") or facts.tokens):
        return
    answers: dict[str, tuple[Verdict, str]] = {
        "vllm": ("refuses", f"{_NAMES}; https://github.com/vllm-project/vllm/issues/36501"),
        "llama.cpp": ("refuses", f"{_CONVERTER}, get_tensors"),
        "mlx": ("refuses", _LOADER),
        "sglang": ("wrong", f"{_SGLANG}/lora.py, _process_weight, which skips it with a log"),
    }
    what = "rows of the embedding were trained (trainable_token_indices), and only pairs of matrices are read"
    cure = f"{_MERGE}, with its tokenizer; merging writes the rows into the embedding"
    yield from _by_target(target, answers, what, cure, "tokens")


def added_tokens(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """A list of added tokens beside the adapter."""
    if target == "sglang" and "added_tokens.json" in facts.files:
        what = "added_tokens.json is beside it, and tokens beyond the base's vocabulary aren't served"
        source = f"{_SGLANG}/lora_manager.py, validate_new_adapter"
        yield Finding("tokens", what, f"take the file away if the base has all of them, else {_MERGE}", "look", source)


def trained_biases(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Biases that were trained, of the layers (`bias`) or of lora_B (`lora_bias`)."""
    kind = facts.settings.get("bias", "none")
    if kind in ("none", None) and not facts.settings.get("lora_bias") and not facts.biases:
        return
    answers: dict[str, tuple[Verdict, str]] = {
        "vllm": ("refuses", f"{_HELPER}, validate_legal"),
        "llama.cpp": ("refuses", f"{_CONVERTER}, get_tensors"),
        "mlx": ("refuses", _LOADER),
        "sglang": ("wrong", f"{_SGLANG}/mem_pool.py, load_lora_weight_to_buffer, which has no place for a bias"),
    }
    setting = "lora_bias=true" if facts.settings.get("lora_bias") else f"bias={kind!r}"
    yield from _by_target(target, answers, f"biases were trained ({setting})", _MERGE, "bias")


def experts(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Adapters on parameters instead of layers: a mixture's fused experts."""
    if not facts.settings.get("target_parameters"):
        return
    answers: dict[str, tuple[Verdict, str]] = {
        "llama.cpp": ("refuses", "utils/export/gguf_adapter.py: the names that PEFT gives them say no expert"),
        "mlx": ("refuses", "utils/export/mlx.py: the names that PEFT gives them say no expert"),
        "sglang": ("refuses", f"{_SGLANG}/utils.py, get_target_module_name"),
    }
    yield from _by_target(target, answers, "it adapts fused experts (target_parameters)", _MERGE, "target_parameters")


def embedding_and_head(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Low-rank pairs on the embedding or on the output head."""
    if facts.embeddings:
        answers: dict[str, tuple[Verdict, str]] = {
            "llama.cpp": ("refuses", "utils/export/gguf_adapter.py; llama.cpp's convert_lora_to_gguf.py writes it"),
            "mlx": ("refuses", "utils/export/mlx.py; mlx-lm has LoRAEmbedding"),
        }
        what = f"it adapts the embedding {facts.embeddings[0]}, which isn't written here"
        yield from _by_target(target, answers, what, _MERGE, "embedding")
    if any(name.endswith("lm_head") for name in facts.linear):
        answers = {
            "llama.cpp": ("look", f"{_CONVERTER}, modify_tensors; https://github.com/ggml-org/llama.cpp/issues/9065"),
            "mlx": ("look", _LOADER),
        }
        what = "it adapts lm_head, and a base that ties its head to the embedding has no such weight there"
        cure = f"look for tie_word_embeddings in the base's config.json; where it is true, {_MERGE}"
        yield from _by_target(target, answers, what, cure, "lm_head")


# ------------------------------------------------------------------------------------------------------------- scaling


def scaling(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """A scaling that isn't lora_alpha / r, where only that is computed."""
    r, alpha = facts.rank, facts.settings.get("lora_alpha")
    converter: tuple[Verdict, str] = ("wrong", f"{_CONVERTER}, which writes lora_alpha as it is")
    ours = "write it by utils.export.to_gguf, which multiplies the rest into lora_B"
    if facts.settings.get("use_rslora") and isinstance(alpha, int | float):
        answers: dict[str, tuple[Verdict, str]] = {
            "llama.cpp": converter,
            "sglang": (
                "wrong",
                f"{_SGLANG}/lora.py, LoRAAdapter; https://github.com/sgl-project/sglang/issues/40835",
            ),
        }
        what = f"rsLoRA scales by alpha / sqrt(r); at alpha / r the update is {math.sqrt(r):.3g} times too weak"
        copy = f"in a copy of adapter_config.json set lora_alpha to {alpha * math.sqrt(r):.6g} and use_rslora to false"
        yield from _by_target(target, answers, what, ours if target in _GGUF else copy, "rslora")
    if facts.settings.get("alpha_pattern"):
        answers = {"llama.cpp": converter, "sglang": ("wrong", f"{_SGLANG}/lora.py, LoRAAdapter")}
        what = "alpha_pattern gives some layers an alpha of their own, and one alpha is read"
        plain = "multiply each layer's alpha / lora_alpha into its lora_B and take the pattern out"
        yield from _by_target(target, answers, what, ours if target in _GGUF else plain, "alpha_pattern")
    if target == "sglang" and len(set(facts.linear.values())) > 1:
        what = f"its layers have ranks from {min(facts.linear.values())} to {r} (rank_pattern), and one r is read"
        cure = "fill lora_A and lora_B with zeros up to the largest rank, with lora_alpha to match"
        yield Finding("rank_pattern", what, cure, "refuses", f"{_SGLANG}/mem_pool.py, load_lora_weight_to_buffer")


# --------------------------------------------------------------------------------------------------- names and the base


def transposed_base(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """Layers that keep their weight transposed, GPT-2's."""
    if not facts.settings.get("fan_in_fan_out"):
        return
    answers: dict[str, tuple[Verdict, str]] = {
        "vllm": ("refuses", "vLLM, vllm/model_executor/models/gpt2.py, which isn't SupportsLoRA"),
        "llama.cpp": ("refuses", "utils/export/names.py: no such architecture is written here"),
        "mlx": ("refuses", "utils/export/mlx.py"),
    }
    what = "fan_in_fan_out: its base keeps weights transposed (Conv1D, as in GPT-2)"
    yield from _by_target(target, answers, what, _MERGE, "fan_in_fan_out")


def names_as_pattern(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """target_modules as a regular expression, which SGLang doesn't read."""
    targets = facts.settings.get("target_modules")
    if target == "sglang" and isinstance(targets, str) and not all_linear(targets):
        ends = sorted({name.rpartition(".")[2] for name in facts.linear})
        what = f"target_modules is the pattern {short(targets)}, and a list of names is read"
        cure = f"in a copy of adapter_config.json write {ends}, the names that its weights have"
        source = f"{_SGLANG}/utils.py, get_normalized_target_modules"
        yield Finding("target_modules", what, cure, "refuses", source)


def unnamed_base(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """An adapter that doesn't say what it belongs to."""
    name = facts.settings.get("base_model_name_or_path")
    if name:
        return
    source = (
        f"{_CONVERTER} asks for it" if target in _GGUF else f"PEFT writes it, and {TARGETS[target]} doesn't read it"
    )
    what = "base_model_name_or_path is empty, so nothing says which base it belongs to; shapes alone are compared"
    yield Finding("base", what, "write the base's id into adapter_config.json before it leaves you", "look", source)


def another_base(folder: Path, base: Any) -> Iterator[Finding]:
    """A base that isn't the one that the adapter was trained on, or of which nothing tells."""
    same, why = compared(folder, base)
    source = "utils/export/own_base.py: no target compares more than shapes"
    if same is False:
        yield Finding("another base", why, "take the base that it was trained on", "wrong", source)
    elif same is None:
        cure = "ask it some prompts whose answers you know, there and here"
        yield Finding("another base", f"nothing tells whether this is its base: {why}", cure, "look", source)


def ollama_folder(facts: AdapterFacts, target: str, _: int | None) -> Iterator[Finding]:
    """The PEFT folder itself after ADAPTER: Ollama's own conversion."""
    if target != "ollama":
        return
    ours = "write ADAPTER with the GGUF file that utils.export.to_gguf makes, never with the folder"
    rotated = [name for name in facts.linear if name.endswith(("q_proj", "k_proj"))]
    if rotated:
        what = (
            f"as a folder, its {len(rotated)} pairs on q_proj and k_proj are converted wrong: lora_A's numbers are "
            "reordered, and lora_B's rows, which rotary embedding needs reordered, are not"
        )
        yield Finding(
            "folder",
            what,
            ours,
            "wrong",
            "Ollama, convert/convert_llama_adapter.go, repack (read, and repeated: tools/measure_elsewhere.py)",
        )
    if isinstance(facts.settings.get("lora_alpha"), float):
        what = f"as a folder, lora_alpha={facts.settings['lora_alpha']!r} isn't read: a whole number is"
        yield Finding("folder", what, ours, "look", "Ollama, convert/convert.go, AdapterParameters.Alpha")


FINDERS: tuple[Finder, ...] = (
    another_method, rank_above_limit, dora, changed_base, special_forms, whole_modules, trained_tokens, added_tokens,
    trained_biases, experts, embedding_and_head, scaling, transposed_base, names_as_pattern, unnamed_base,
    ollama_folder,
)  # fmt: skip
