"""The one estimator of training memory, in bytes.

Weights, gradients and optimizer states are arithmetic (:func:`full_finetuning`, :func:`lora`, :func:`qlora`); they are
there for as long as training runs. :func:`predict` follows a whole step, with its activations and what comes and goes,
and says at which moment most is held. Whether that fits on a card is :mod:`utils.profiling.fit`'s question. A GB is
10**9 bytes throughout, as on a disk's label, and not the 2**30 bytes that GPU tools often mean.

Attributes:
    BYTES: Bytes of one number of each dtype.
    ADAM_MOMENTS: Adam keeps a running mean of the gradient and one of its square (Kingma & Ba, 2014,
        https://arxiv.org/abs/1412.6980).
    HOPPER_WORKSPACE, OTHER_WORKSPACE: Bytes that cuBLAS gets from PyTorch for each thread that multiplies: on a Hopper
        GPU (H100, H200), and on others (``getChosenWorkspaceSize`` in aten/src/ATen/cuda/CublasHandlePool.cpp).
    THREADS: The forward pass runs in Python's thread, the backward pass in autograd's.
    KINDS: What :attr:`Prediction.parts` tells apart; from "attention" to "embedding" they are activations. The last two
        are there on several GPUs only (:mod:`utils.profiling.ranks`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from utils.lora.refusals import check_count, check_hyperparameters
from utils.lora.target_modules import check_targets, converted
from utils.models.configs import KNOWN_MODELS, real_config
from utils.profiling.activations import checkpoint_blocks
from utils.profiling.meta_layers import (
    FusedAttention,
    PeftLinear,
    PeftParameter,
    eight_bit_adam,
    paged_adam,
    plain_linear,
    put_four_bit,
    put_lora,
    put_lora_on_parameters,
    register_attention,
)
from utils.profiling.peak import PeakTracker
from utils.quant.nf4 import bits_per_parameter

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GB = 10**9

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ADAM_MOMENTS = 2


class TrainingState(NamedTuple):
    """Bytes that training holds for as long as it runs, whatever the batch."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum of the three."""
        return sum(self)


def bytes_of(dtype: str) -> int:
    """Bytes of one number of a dtype such as "bfloat16". Raises ValueError for one that isn't known."""
    if dtype not in BYTES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(BYTES)}")
    return BYTES[dtype]


def full_finetuning(parameters: int, dtype: str = "float32") -> TrainingState:
    """Full fine-tuning with Adam, weights, gradients and moments all in one dtype. Raises ValueError for less than
    one.
    """
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, not {parameters}")
    size = parameters * bytes_of(dtype)
    return TrainingState(size, size, ADAM_MOMENTS * size)


def mixed_precision(parameters: int) -> TrainingState:
    """Full fine-tuning with Adam in mixed precision: 16-bit weights and gradients, a float32 copy of the weights,
    float32 moments.

    The copy (Micikevicius et al., 2017, https://arxiv.org/abs/1710.03740) is counted with the optimizer, as ZeRO does
    (Rajbhandari et al., 2019, https://arxiv.org/abs/1910.02054): 2 + 2 + 12 bytes per parameter. ``torch.autocast``
    keeps weights and gradients in float32 and makes no copy, 4 + 4 + 8: that is :func:`full_finetuning`.
    """
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, not {parameters}")
    return TrainingState(2 * parameters, 2 * parameters, (4 + 4 * ADAM_MOMENTS) * parameters)


def lora(
    parameters: int, trainable: int, base_dtype: str = "bfloat16", adapter_dtype: str = "float32"
) -> TrainingState:
    """LoRA with Adam: a frozen base of `parameters` in one dtype, `trainable` adapter parameters on top in another.

    Raises ValueError when either is below one.
    """
    if parameters < 1 or trainable < 1:
        raise ValueError(f"both counts must be at least 1, not {parameters} and {trainable}")
    adapter = trainable * bytes_of(adapter_dtype)
    return TrainingState(parameters * bytes_of(base_dtype) + adapter, adapter, ADAM_MOMENTS * adapter)


def qlora(
    quantized: int, kept: int, trainable: int, *, double: bool = True, kept_dtype: str = "bfloat16"
) -> TrainingState:
    """QLoRA with Adam: `quantized` parameters of the base in NF4, with double quantization or without, `kept` ones in
    `kept_dtype` (embedding, head, norms), `trainable` adapter parameters in float32.

    Raises ValueError when `quantized` or `trainable` is below one or `kept` below zero.
    """
    if quantized < 1 or trainable < 1 or kept < 0:
        raise ValueError(
            f"quantized and trainable must be at least 1 and kept at least 0, not {quantized}, {trainable} and {kept}"
        )
    base = round(quantized * bits_per_parameter(double=double) / 8) + kept * bytes_of(kept_dtype)
    adapter = trainable * bytes_of("float32")
    return TrainingState(base + adapter, adapter, ADAM_MOMENTS * adapter)


# ------------------------------------------------------------------------------------------------------ the whole step

METHODS = ("full", "lora", "qlora")
OPTIMIZERS = ("adamw", "adamw-fused", "adamw-8bit", "adamw-paged", "adamw-paged-8bit", "none")
ATTENTION = ("sdpa", "eager")
HOPPER_WORKSPACE, OTHER_WORKSPACE = 32 * 2**20, 8_519_680
THREADS = 2


@dataclass(frozen=True)
class Setup:
    """A training step. All that its memory depends on.

    model: a name of :mod:`utils.models.configs`, a folder, a Hub id, or a transformers configuration.
    method: "full" trains every parameter, "lora" an adapter beside frozen weights, "qlora" one beside 4-bit weights.
    dtype: of the weights and of computing; for qlora that of what isn't quantized, and of computing.
    target_modules, r, lora_dropout: as in PEFT's LoraConfig. adapter_dtype: PEFT makes adapters in float32 unless it is
    called with ``autocast_adapter_dtype=False``.
    double: double quantization of qlora. prepared: the embedding, the head and the norms of qlora are in float32, as
    ``prepare_model_for_kbit_training`` leaves them.
    batch, length: sequences, and tokens in each, padding included.
    optimizer: "adamw" is ``torch.optim.AdamW``, with moments in the dtype of what it trains; "adamw-fused" the same
    with ``fused=True``, transformers' default; the others are bitsandbytes'. "none" takes no step.
    attention: transformers' ``attn_implementation``; "sdpa" is FlashAttention's kernel on a GPU.
    hopper: an H100 or H200, for which PyTorch gives cuBLAS 32 MiB a thread and not 8.
    """

    model: str | Path | PretrainedConfig = "Llama-2-7B"
    method: str = "lora"
    batch: int = 1
    length: int = 512
    dtype: str = "bfloat16"
    target_modules: tuple[str, ...] | str = "all-linear"
    r: int = 8
    lora_dropout: float = 0.0
    adapter_dtype: str = "float32"
    double: bool = True
    prepared: bool = False
    optimizer: str = "adamw"
    checkpointing: bool = False
    attention: str = "sdpa"
    hopper: bool = True

    def __post_init__(self) -> None:
        for field, known in (("method", METHODS), ("optimizer", OPTIMIZERS), ("attention", ATTENTION)):
            if (value := getattr(self, field)) not in known:
                raise ValueError(f"unknown {field} {value!r}: choose one of {', '.join(known)}")
        for field in ("dtype", "adapter_dtype"):
            if (value := getattr(self, field)) not in FLOATS:
                raise ValueError(f"unknown {field} {value!r}: choose one of {', '.join(FLOATS)}")
        check_count("batch", self.batch)
        check_count("length", self.length)
        if self.method != "full":
            check_hyperparameters(self.r, 2 * self.r, self.lora_dropout)


class Prediction(NamedTuple):
    """The peak of a training step in bytes, `parts` of it by kind, and the largest moment of each phase.

    phase: in which of "forward", "backward" and "optimizer" the peak lies. resident: what is held between two steps.
    kept: what the forward pass leaves for the backward pass beside that, the activations. moments: what each phase
    holds at its largest moment, by kind.
    """

    peak: int
    phase: str
    parts: dict[str, int]
    phases: dict[str, int]
    resident: int
    kept: int
    moments: dict[str, dict[str, int]]


KINDS = (
    "weights", "adapters", "gradients", "optimizer", "attention", "MLP", "norms", "LoRA", "between blocks", "embedding",
    "logits and loss", "backward in passing", "kernels' workspace", "gathered weights", "communication",
)  # fmt: skip


def kind_of(module: str) -> str:
    """The kind of what a module makes, by its name in a transformers model."""
    for part, kind in (
        ("lora_", "LoRA"), ("norm", "norms"), ("attn", "attention"), ("rotary", "attention"), ("mlp", "MLP"),
        ("embed", "embedding"), ("lm_head", "logits and loss"), ("layers.", "between blocks"),
    ):  # fmt: skip
        if part in module:
            return kind
    return "logits and loss" if not module else "between blocks"


def predict(setup: Setup) -> Prediction:
    """The peak memory of one training step after the first, as ``torch.cuda.max_memory_allocated`` would report it.

    The step runs on the meta device: forward pass with the loss of transformers' model, whose result nobody keeps,
    backward pass, optimizer. It takes seconds and nothing is downloaded but a Hub id's `config.json`. What the GPU
    keeps outside PyTorch's allocator is not in it: CUDA's own context (about 0.5 GB) and the gaps between tensors.

    Measured on GPUs were dense models. In a mixture of experts the adapters are counted as PEFT makes them, on
    experts and routers too where `target_modules` means these, and its layers run here; of the experts' own kernels
    the real ones may take more.

    Raises what :func:`config_of` and :func:`utils.lora.target_modules.check_targets` raise, and ValueError for a model
    that continues no text.
    """
    return follow(setup, model_of(setup))


def follow(
    setup: Setup,
    model: PreTrainedModel,
    place: Callable[[PreTrainedModel, PeakTracker], Callable[[], None]] | None = None,
) -> Prediction:
    """:func:`predict` for a `model` of :func:`model_of`.

    place: is called with the model and the tracker once weights and states are counted, before the step, and may change
    what is counted; what it returns is called at the end of the backward pass.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    tracker = PeakTracker()
    tracker.size_means(setup.batch * setup.length * model.config.get_text_config().vocab_size, "logits and loss")
    tracker.fixed("kernels' workspace", THREADS * (HOPPER_WORKSPACE if setup.hopper else OTHER_WORKSPACE))
    frozen = [p for p in model.parameters() if not p.requires_grad]
    tracker.hold([*frozen, *model.buffers()] + ([] if setup.method != "full" else trainable), "weights")
    tracker.hold(trainable, "adapters")
    step = _optimizer(setup, trainable, tracker)
    _watch(model, tracker)
    ids = torch.zeros(setup.batch, setup.length, dtype=torch.long, device="meta")
    tracker.hold(ids, "embedding")
    end_backward = place(model, tracker) if place else lambda: None
    resident = tracker.total
    with FusedAttention() if model.config._attn_implementation == "sdpa" else nullcontext(), tracker:
        with tracker.during("forward"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        kept = tracker.total - resident
        tracker.kind = "backward in passing"
        with tracker.during("backward"):
            loss.backward()
            end_backward()
        tracker.kind = "optimizer"
        with tracker.during("optimizer"):
            step()
    phase = max(tracker.peaks, key=lambda name: tracker.peaks[name].total)
    moments = {
        name: {kind: peak.parts[kind] for kind in KINDS if kind in peak.parts} for name, peak in tracker.peaks.items()
    }
    phases = {name: peak.total for name, peak in tracker.peaks.items()}
    return Prediction(phases[phase], phase, moments[phase], phases, resident, kept, moments)


def model_of(setup: Setup) -> PreTrainedModel:
    """The model on the meta device, as `setup` trains it: with its adapters, in training mode, checkpointed or not."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = copy.deepcopy(config_of(setup.model))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"the step that is followed here is that of a model that continues text, and {config.model_type} is none. "
            "Of a model for pictures and text pass the text's part, config.get_text_config()"
        )
    kind = cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    attention = setup.attention if kind._supports_sdpa else "eager"  # what transformers takes there
    if attention == "sdpa" and kind._supports_attention_backend:
        attention = register_attention()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=FLOATS[setup.dtype], attn_implementation=attention)
    plain_linear(model)
    if setup.method != "full":
        put_adapters(model, setup)
    if setup.method == "qlora":
        put_four_bit(model, setup.double)
        if setup.prepared:
            for parameter in model.parameters():
                if parameter.dtype in (torch.float16, torch.bfloat16) and not parameter.requires_grad:
                    parameter.data = parameter.data.float()
    model.train()
    checkpoint_blocks(model, setup.checkpointing)
    return model


def put_adapters(model: PreTrainedModel, setup: Setup) -> None:
    """LoRA on what PEFT's LoraConfig would put it on. Raises ValueError for what can't be adapted, and for dropout
    beside experts that are parameters, which PEFT refuses too.
    """
    targets = setup.target_modules if isinstance(setup.target_modules, str) else list(setup.target_modules)
    names, parameters = check_targets(model, targets), converted(model, targets).parameters
    if parameters and setup.lora_dropout:
        raise ValueError(
            f"these targets mean {len(parameters)} weights of experts too, such as {next(iter(parameters))!r}, and "
            f"beside them PEFT takes no lora_dropout, not {setup.lora_dropout}: set it to 0, or name other targets"
        )
    dtype = FLOATS[setup.adapter_dtype]
    put_lora(model, [name for name in names if name not in parameters], setup.r, setup.lora_dropout, dtype)
    if parameters:
        put_lora_on_parameters(model, parameters, setup.r, dtype)


def config_of(model: str | Path | PretrainedConfig) -> PretrainedConfig:
    """The configuration of a model: one of :mod:`utils.models.configs` by name, else what
    :func:`utils.models.loading.load_config` finds in a folder or under a Hub id. A configuration is handed back.
    """
    if not isinstance(model, str | Path):
        return model
    if model in KNOWN_MODELS:
        return real_config(str(model))
    from utils.models.loading import load_config

    return load_config(model, setting="model (on the command line --model)")


def _optimizer(setup: Setup, trainable: list[nn.Parameter], tracker: PeakTracker) -> Callable[[], None]:
    """Count the optimizer's states, and return its step."""
    if setup.optimizer == "none":
        return lambda: None
    paged = "paged" in setup.optimizer
    if "8bit" in setup.optimizer:
        states = eight_bit_adam(trainable, paged)
    elif paged:
        states = paged_adam(trainable)
    else:
        # `foreach` is what AdamW chooses on a GPU: one operation for all parameters, whose results lie there together.
        adam = torch.optim.AdamW(trainable, foreach=True)
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
        with PeakTracker():  # its own count is thrown away: it is quicker than PyTorch by itself
            adam.step()
        adam.zero_grad()
        states = list(adam.state.values())
    tracker.hold(states, "optimizer")
    if setup.optimizer == "adamw":
        return adam.step
    tracker.keep(states)
    return lambda: None


def _watch(model: nn.Module, tracker: PeakTracker) -> None:
    """Let each module of `model` name the kind of what it makes."""
    for name, module in model.named_modules():
        kind = kind_of(name)
        own = "LoRA" if isinstance(module, PeftLinear | PeftParameter) else kind

        def after(module: nn.Module, inputs: object, output: object, kind: str = kind) -> None:
            tracker.leave()
            if isinstance(module, PeftLinear) and isinstance(output, Tensor):
                tracker.relabel(output, kind)  # it takes the place of the base layer's output

        module.register_forward_pre_hook(lambda *_, own=own: tracker.enter(own))
        module.register_forward_hook(after, always_call=True)  # checkpointing leaves a block by an exception
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.relabel(p.grad, "gradients"))
