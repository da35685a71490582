"""Real training steps of a :class:`Setup`, and their peak on a GPU: what ``predict`` is held against.

A model of the setting's shape with random weights, made where it is used; PEFT's adapters; bitsandbytes' 4-bit layers
and optimizers. Weights don't change how much memory a step takes, so nothing is downloaded. Figures are bytes.

Attributes:
    SEED, STEPS: The seed of the weights and of the batch; the third step is the one that counts: the optimizer's states
        are there.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from utils.models.configs import real_config
from utils.profiling.activations import checkpoint_blocks
from utils.profiling.memory import FLOATS, GB, Setup, predict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED, STEPS = 0, 3


def base_of(setup: Setup) -> tuple[Any, ...]:
    """What two settings share when they can share a base model."""
    return setup.model, setup.method == "qlora", setup.double, setup.dtype, setup.attention


def config_of(model: str, trial: bool) -> Any:
    """A model's configuration; with `trial` that of a tiny one of its kind."""
    config = real_config(model)
    if trial:
        config.update(
            {
                "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            }
        )  # fmt: skip
    return config


def base_model(setup: Setup, device: str, trial: bool = False) -> PreTrainedModel:
    """A model of the setting's shape with random weights, made where it is used, in 4-bit layer by layer; a tiny one
    with `trial`.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(FLOATS[setup.dtype])
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config_of(str(setup.model), trial), dtype=FLOATS[setup.dtype], attn_implementation=setup.attention
            )
    finally:
        torch.set_default_dtype(before)
    if setup.method == "qlora":
        in_four_bits(model, setup, device)
    return model.train()


def in_four_bits(model: nn.Module, setup: Setup, device: str) -> None:
    """Put bitsandbytes' NF4 layers in the place of all linear ones but the head, in place."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            settings = {"compress_statistics": setup.double, "quant_type": "nf4"}
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=FLOATS[setup.dtype], **settings,
                device="meta",
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, **settings)
            model.set_submodule(name, layer.to(device))
            module.register_parameter("weight", None)
    cast(Any, model).is_loaded_in_4bit = True  # so PEFT takes its 4-bit layer, as for a model from from_pretrained


def adapted(model: nn.Module, setup: Setup) -> nn.Module:
    """The model with what trains: all of it, or PEFT's adapters."""
    if setup.method == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    targets = setup.target_modules if isinstance(setup.target_modules, str) else list(setup.target_modules)
    config = LoraConfig(
        r=setup.r, lora_alpha=2 * setup.r, lora_dropout=setup.lora_dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(FLOATS[setup.adapter_dtype])
    return wrapped


def optimizer_of(setup: Setup, trainable: list[nn.Parameter]) -> Any:
    """The setting's optimizer, torch's or bitsandbytes'."""
    if setup.optimizer in ("adamw", "adamw-fused"):
        return torch.optim.AdamW(trainable, lr=1e-5, fused=True if "fused" in setup.optimizer else None)
    import bitsandbytes as bnb

    kinds = {
        "adamw-8bit": bnb.optim.AdamW8bit,
        "adamw-paged": bnb.optim.PagedAdamW32bit,
        "adamw-paged-8bit": bnb.optim.PagedAdamW8bit,
    }
    return kinds[setup.optimizer](trainable, lr=1e-5)


def free() -> int:
    """Let go of what is cached, and say how many bytes are allocated."""
    gc.collect()
    if torch.cuda.is_available():
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    return allocated()


def allocated() -> int:
    """Bytes that PyTorch's allocator has given out on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak() -> dict[str, int]:
    """The largest number of bytes given out, asked for and taken from the GPU since the last call; start again."""
    if not torch.cuda.is_available():
        return {"peak": 0, "requested": 0, "reserved": 0}
    torch.cuda.synchronize()
    found = {
        "peak": torch.cuda.max_memory_allocated(),
        "requested": torch.cuda.memory_stats()["requested_bytes.all.peak"],
        "reserved": torch.cuda.max_memory_reserved(),
    }
    torch.cuda.reset_peak_memory_stats()
    return found


def outside() -> int:
    """Bytes of the GPU that are taken and are not PyTorch's allocator's: CUDA's context and its kernels."""
    if not torch.cuda.is_available():
        return 0
    left, total = torch.cuda.mem_get_info()
    return total - left - torch.cuda.memory_reserved()


def measure_step(model: nn.Module, setup: Setup, device: str, vocabulary: int) -> dict[str, Any]:
    """Peaks of a step in its phases, and what is held between two steps."""
    checkpoint_blocks(model, setup.checkpointing)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(setup, trainable)
    ids = torch.randint(0, vocabulary, (setup.batch, setup.length), device=device)
    phases: dict[str, dict[str, int]] = {}
    resident, first = 0, 0.0
    for step in range(STEPS):
        resident = allocated()
        peak()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        phases["forward"] = peak()
        if step == 0:
            first = loss.item()
        loss.backward()
        phases["backward"] = peak()
        optimizer.step()
        phases["optimizer"] = peak()
        optimizer.zero_grad()
        del loss
    largest = max(phases, key=lambda name: phases[name]["peak"])
    return {
        "loss": round(first, 4),
        "peak": phases[largest]["peak"],
        "phase": largest,
        "phases": phases,
        "resident": resident,
        "outside": outside(),
    }


def run_one(model: PreTrainedModel, setup: Setup, device: str, trial: bool = False) -> dict[str, Any]:
    """Three steps of a setting on the base model, which is afterwards as it was: bytes of the third one's phases.

    Where memory runs out, the row has "out_of_memory" with CUDA's sentence in their place.
    """
    torch.manual_seed(SEED)
    before = free()
    if trial:
        setup = dataclasses.replace(setup, batch=1, length=16, optimizer="adamw")
    start = time.monotonic()
    wrapped = adapted(model, setup)
    try:
        row = measure_step(wrapped, setup, device, model.config.vocab_size)
    except torch.cuda.OutOfMemoryError as error:
        row = {"out_of_memory": str(error).splitlines()[0]}
    model.disable_input_require_grads()  # PEFT's checkpointing switched it on, and nothing else switches it off
    if setup.method != "full":
        cast(Any, wrapped).unload()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return {"weights": before, **row, "seconds": round(time.monotonic() - start, 1)}


def prediction_on_this_gpu(setup: Setup) -> str:
    """A sentence: the predicted peak of a step beside the peak of that step on the CUDA GPU that is here.

    Without one, it says so and gives the prediction alone. Raises ValueError for a setting with ``prepared``, which
    isn't built here.
    """
    if setup.prepared:
        raise ValueError("prepared is True: this builds QLoRA's base without prepare_model_for_kbit_training")
    if not torch.cuda.is_available():
        return f"predicted {predict(setup).peak / GB:.2f} GB; there is no CUDA GPU here to measure it on"
    setup = dataclasses.replace(setup, hopper=torch.cuda.get_device_capability()[0] == 9)
    step = predict(setup).peak
    elsewhere = free()
    row = run_one(base_model(setup, "cuda"), setup, "cuda")
    free()
    if "out_of_memory" in row:
        return f"predicted {step / GB:.2f} GB; {torch.cuda.get_device_name()} ran out: {row['out_of_memory']}"
    peak = row["peak"] - elsewhere
    return (
        f"predicted {step / GB:.2f} GB, measured on {torch.cuda.get_device_name()} {peak / GB:.2f} GB: "
        f"the prediction is off by {step / peak - 1:+.1%}"
    )
