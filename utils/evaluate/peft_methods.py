"""One contract for every method that PEFT has: built on the same small model with defaults, what does it do?

Where does it start, what does it train, can it be merged, which rank has the change, and does PEFT's conversion to
LoRA keep what it does? PEFT's own word that a method "supports" the conversion isn't enough: it is tried.
A method that needs data, another package or another kind of model is left out, and :data:`LEFT_OUT` says why.

Attributes:
    R: The rank (or its counterpart) where a config has one.
    KEEP: The share of the squared singular values that a conversion to LoRA keeps.
    LEFT_OUT: Methods and options that can't be built here, with the reason.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn

from utils.evaluate.parity import shake

R = 4
KEEP = 0.9999
NEEDS_A_PROMPT = "trains a prompt or a cache in front of the text, no weights"
LEFT_OUT = {
    "PROMPT_TUNING": NEEDS_A_PROMPT, "MULTITASK_PROMPT_TUNING": NEEDS_A_PROMPT, "P_TUNING": NEEDS_A_PROMPT,
    "PREFIX_TUNING": NEEDS_A_PROMPT, "CARTRIDGE": NEEDS_A_PROMPT, "CPT": NEEDS_A_PROMPT,
    "ADAPTION_PROMPT": NEEDS_A_PROMPT,
    "ADAMSS": "needs scikit-learn",
    "SHADOW": "puts a small model beside the base: no change of weights to look at",
    "POLY": "chooses among skills by a task id, which the batch has to bring",
    "XLORA": "mixes LoRA adapters that were trained before",
    "LoRA, eva": "needs activations of your data before training",
    "LoRA, corda": "needs covariances of your data before training",
    "LoRA, lora_ga": "needs gradients of your data before training",
    "LoRA, arrow": "routes among LoRA adapters that were trained before",
    "LoRA, bdlora": "lays LoRA's blocks out over several GPUs: it has to be told which layer is split how",
    "LoRA, loftq": "needs scipy, and quantizes the base itself",
    "LoRA, use_qalora": "needs a base quantized by GPTQ; on any other PEFT ignores it or fails",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "LoRA": {}, "LoRA, rsLoRA": {"use_rslora": True}, "LoRA, DoRA": {"use_dora": True},
    "LoRA, pissa": {"init_lora_weights": "pissa"}, "LoRA, olora": {"init_lora_weights": "olora"},
    "LoRA, orthogonal": {"init_lora_weights": "orthogonal"}, "LoRA, gaussian": {"init_lora_weights": "gaussian"},
    "LoRA, mica": {"init_lora_weights": "mica"}, "LoRA, False": {"init_lora_weights": False},
    "LoRA, aLoRA": {"alora_invocation_tokens": [20, 21], "task_type": "CAUSAL_LM"},
    "LoRA, KaSA": {"kasa_config": peft.tuners.lora.config.KasaConfig()},
    "LoRA, VeLoRA": {"velora_config": peft.tuners.lora.config.VeloraConfig()},
    "LoRA, MonteCLoRA": {"monteclora_config": peft.tuners.lora.config.MontecloraConfig()},
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 100, "init_r": R, "target_r": 2, "task_type": "CAUSAL_LM"},
    "C3A": {"block_size": 32}, "OFT": {"r": 0, "oft_block_size": 32}, "VBLORA": {"vector_length": 32},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [5, 6, 7]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
}  # fmt: skip


class Contract(NamedTuple):
    """What one method does on the model.

    Attributes:
        start: Largest change of a logit before training, over the largest logit of the base.
        trained: Trainable numbers.
        merged: After random training the merged model's logits equal the adapted ones; None where it can't merge.
        rank: Largest rank of the change of one weight after random training; None where it can't merge.
        to_lora: PEFT says that it can be converted to a LoRA.
        lost: Of its effect on the logits after random training, the share that is lost (or wrong) once it is converted
            with :data:`KEEP` and loaded on a fresh base, as norms; None where PEFT refuses.
        milliseconds: Of a forward and backward pass, CPU time, the fastest of 8.
    """

    start: float
    trained: int
    merged: bool | None
    rank: int | None
    to_lora: bool
    lost: float | None
    milliseconds: float


def methods() -> dict[str, Callable[[], Any]]:
    """A config for each of PEFT's methods and each of LoRA's own options that are not left out, by name."""
    made: dict[str, Callable[[], Any]] = {}
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if kind.value in LEFT_OUT or kind.value == "LORA":
            continue
        fields = getattr(config, "__dataclass_fields__", {})
        chosen: dict[str, Any] = {"target_modules": "all-linear"} if "target_modules" in fields else {}
        chosen |= {"r": R} if "r" in fields and kind.value != "ADALORA" else {}
        chosen |= EXTRA.get(kind.value, {})
        made[kind.value] = lambda config=config, chosen=chosen: config(**chosen)
    for name, options in OPTIONS.items():
        made[name] = lambda options=options: peft.LoraConfig(
            r=R, lora_alpha=4 * R, target_modules="all-linear", **options
        )
    return made


def contract(make_base: Callable[[], Any], config: Any, ids: Tensor) -> Contract:
    """Build one method on a fresh base, and see what it does with the tokens `ids`, (batch, length).

    Training is stood for by :func:`utils.evaluate.parity.shake`. Raises what PEFT raises for a config that it refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        base = make_base().eval()
        model = peft.get_peft_model(make_base(), config).eval()
        with torch.no_grad():
            before = base(input_ids=ids).logits
            start = (model(input_ids=ids).logits - before).abs().max() / before.abs().max()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        milliseconds = min(_milliseconds(model, ids) for _ in range(8))
        to_lora = bool(model.supports_lora_conversion())
        with torch.no_grad():
            shake(model)
            lost = _lost(make_base(), model, ids, before) if to_lora else None
            merged, rank = _merged(base, model, ids)
    return Contract(round(start.item(), 4), trained, merged, rank, to_lora, lost, round(milliseconds, 1))


def _milliseconds(model: Any, ids: Tensor) -> float:
    began = time.process_time()
    model(input_ids=ids, labels=ids).loss.backward()
    return 1000 * (time.process_time() - began)


def _lost(base: Any, model: Any, ids: Tensor, before: Tensor) -> float:
    """The share of the adapter's effect on the logits that its conversion to LoRA loses."""
    wanted = model(input_ids=ids).logits
    config, weights = peft.convert_to_lora(model, rank=KEEP)
    converted = peft.get_peft_model(base, config).eval()
    peft.set_peft_model_state_dict(converted, weights)
    return round(((converted(input_ids=ids).logits - wanted).norm() / (wanted - before).norm()).item(), 2)


def _merged(base: nn.Module, model: Any, ids: Tensor) -> tuple[bool | None, int | None]:
    """Whether the merged model answers like the adapted one, and the largest rank of what the merge changed."""
    adapted = model(input_ids=ids).logits
    try:
        after = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError, TypeError):
        return None, None
    close = torch.allclose(after(input_ids=ids).logits, adapted, rtol=0, atol=1e-3 * adapted.abs().max().item())
    old, ranks = dict(base.named_parameters()), [0]
    for name, weight in after.named_parameters():
        change = weight - old[name] if name in old else weight
        if name in old and change.ndim == 2 and change.abs().max() > 1e-4:
            ranks.append(int(torch.linalg.matrix_rank(change, rtol=1e-3)))
    return close, max(ranks)
