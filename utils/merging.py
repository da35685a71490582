"""Merging an adapter into its base: the sum, its rounding, bases in 4 bits, and the proof in a new process.

A merged layer computes with ``W + scaling * B A`` and nothing beside it (Hu et al., 2021,
https://arxiv.org/abs/2106.09685, section 4.1). The sum is exact; storing it is not: it is rounded to the weight's
dtype, and in 4 bits it is quantized anew.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from utils.adapter_files import fitting_adapter
from utils.lora import refuse_second
from utils.nf4 import DoubleScales, Quantized, dequantize, quantize
from utils.quantization import relative_error
from utils.tinyworld import Example
from utils.training import IGNORED, collate, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------- one weight


def merge_weight(
    weight: Float[Tensor, "d_out d_in"],
    lora_A: Float[Tensor, "r d_in"],
    lora_B: Float[Tensor, "d_out r"],
    scaling: float,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "d_out d_in"]:
    """``weight + scaling * lora_B @ lora_A``, rounded once, at the end, to `dtype` (the weight's own unless given).

    The product and the sum are in float32, or float64 for a float64 weight, as PEFT's merge of float32 adapters
    computes it. Raises ValueError when the shapes don't fit and TypeError for a weight that isn't of floating point.
    """
    if not weight.is_floating_point():
        raise TypeError(
            f"this weight holds {weight.dtype}, not numbers to add to: it is quantized. Dequantize it first, see "
            "utils.merging.dequantized"
        )
    (d_out, d_in), rank = weight.shape, lora_A.shape[0]
    if lora_A.shape != (rank, d_in) or lora_B.shape != (d_out, rank):
        raise ValueError(
            f"lora_A {tuple(lora_A.shape)} and lora_B {tuple(lora_B.shape)} don't fit a weight {tuple(weight.shape)}: "
            f"expected (r, {d_in}) and ({d_out}, r)"
        )
    wide = torch.promote_types(weight.dtype, torch.float32)
    delta = scaling * (lora_B.to(wide) @ lora_A.to(wide))
    return (weight.to(wide) + delta).to(dtype or weight.dtype)


class Arrival(NamedTuple):
    """What of a correction arrives in a rounded weight.

    error: the size of (what was really added - the correction) over the size of the correction; 0 is perfect.
    unmoved: the share, 0 to 1, of entries that the merge left as they were although the correction there isn't zero.
    """

    error: float
    unmoved: float


def arrival(weight: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"], dtype: torch.dtype) -> Arrival:
    """What of `delta` arrives when `weight`, first rounded to `dtype`, is merged with it and stored in `dtype`.

    Raises ValueError when the shapes differ or the correction is zero throughout.
    """
    if weight.shape != delta.shape:
        raise ValueError(f"the correction {tuple(delta.shape)} doesn't have the weight's shape {tuple(weight.shape)}")
    if not delta.any():
        raise ValueError("the correction is zero throughout, so nothing can arrive: is it an untrained adapter?")
    before, delta = weight.to(dtype).double(), delta.double()
    after = (before + delta).to(dtype).double()
    unmoved = (after == before) & (delta != 0)
    return Arrival(relative_error(delta, after - before), float(unmoved.double().mean()))


# ------------------------------------------------------------------------------------------------------ whole models


@torch.no_grad()
def merge_files(model: nn.Module, folder: str | Path) -> list[str]:
    """Add the adapter in `folder` to the weights of `model`, in place, and return the names of the layers.

    Without PEFT, and without a LoRA layer ever being made. Each weight keeps its dtype and is rounded once. Raises
    RuntimeError when the model has LoRA layers, and what :func:`utils.adapter_files.fitting_adapter` raises; the model
    is then unchanged.
    """
    refuse_second(model)
    config, matrices = fitting_adapter(model, folder)
    for name, pair in matrices.items():
        weight = model.get_submodule(name).weight
        a, b = pair["lora_A"].to(weight.device), pair["lora_B"].to(weight.device)
        weight.copy_(merge_weight(weight, a, b, config["lora_alpha"] / config["r"]))
    return list(matrices)


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A 4-bit model with plain linear layers again, in the dtype that it computed in; the model itself is changed.

    The weights are those that the 4-bit layers computed with, not those from before quantization, which are lost.
    Raises ValueError when the model isn't quantized.
    """
    if not getattr(model, "is_quantized", False):
        raise ValueError("this model is not quantized, so there is nothing to dequantize: attach the adapter and merge")
    talk = logging.getLogger("transformers")
    level = talk.level
    talk.setLevel(logging.ERROR)  # it tells the dtype as a warning
    try:
        return model.dequantize().eval()
    finally:
        talk.setLevel(level)


def stored_4bit(layer: nn.Module) -> Quantized:
    """What a bitsandbytes Linear4bit stores, in the form of :mod:`utils.nf4`, on the CPU.

    Raises TypeError for a layer that isn't in 4 bits.
    """
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        raise TypeError(f"this {type(layer).__name__} is not in 4 bits: it holds {layer.weight.dtype}")
    scales = state.absmax.cpu()
    if state.nested:
        scales = DoubleScales(scales, state.state2.absmax.cpu(), state.offset.cpu())
    packed = layer.weight.detach().cpu().flatten()
    return Quantized(packed, scales, state.shape, state.dtype, state.quant_type, state.blocksize)


def merge_quantized(stored: Quantized, delta: Float[Tensor, "d_out d_in"]) -> Quantized:
    """The correction merged into a weight in 4 bits: restored, added to, and quantized anew, as PEFT does it.

    Every code and every scale may change, and the new quantization error comes on top of the old one. Raises
    ValueError when the shapes differ.
    """
    if tuple(stored.shape) != tuple(delta.shape):
        raise ValueError(f"the correction {tuple(delta.shape)} doesn't have the weight's shape {tuple(stored.shape)}")
    total = (dequantize(stored) + delta).to(stored.dtype)
    return quantize(total, book=stored.book, block=stored.block, double=isinstance(stored.scales, DoubleScales))


# --------------------------------------------------------------------------------------------------- what it changes


class Answered(NamedTuple):
    """What a model makes of held-out examples, told the right answer so far at every token (teacher forcing).

    logits: for every answer token, end marks included, one example behind the other. right: for every example whether
    the most likely token was the right one at each place, which is when greedy decoding gives the right answer.
    """

    logits: Float[Tensor, "tokens vocabulary"]
    right: Bool[Tensor, " examples"]

    @property
    def accuracy(self) -> float:
        """The share, 0 to 1, of examples that greedy decoding gets right."""
        return float(self.right.float().mean())

    def drift(self, reference: Answered) -> float:
        """The size of the difference of all logits from the reference's, over the size of the reference's."""
        return relative_error(reference.logits, self.logits)


@torch.inference_mode()
def answered(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int = 50
) -> Answered:
    """One pass over `examples` with their right answers: logits in float32 on the CPU, and what would be right.

    A tenth of the time that generating takes. Exact match may be higher by answers that spell the right text with
    other tokens. The model is left in evaluation mode. Raises ValueError when there are no examples.
    """
    model.eval()
    device = next(model.parameters()).device
    encoded = encode(tokenizer, examples)
    logits, right = [], []
    for start in range(0, len(encoded), batch_size):
        batch = {
            k: v.to(device) for k, v in collate(encoded[start : start + batch_size], tokenizer.pad_token_id).items()
        }
        labels = batch.pop("labels")[:, 1:]
        found = model(**batch).logits[:, :-1]
        counted = labels != IGNORED
        right.append(((found.argmax(-1) == labels) | ~counted).all(dim=1).cpu())
        logits.append(found[counted].float().cpu())
    return Answered(torch.cat(logits), torch.cat(right))


# ------------------------------------------------------------------------------------------------- in a new process

_CHILD = """
import json, sys
sys.modules["peft"] = None  # importing it would raise: the merged model must not need it
asked = json.load(sys.stdin)
import torch
torch.set_num_threads(asked["threads"])
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from utils.models import model_device
from utils.training import complete
disable_progress_bar()
dtype = getattr(torch, asked["dtype"])
model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=dtype).to(model_device()).eval()
tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
print(json.dumps(complete(model, tokenizer, asked["prompts"], max_new_tokens=asked["max_new_tokens"])))
"""


def answers_in_new_process(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    dtype: torch.dtype = torch.float32,
    timeout: float = 300,
) -> list[str]:
    """What the model saved in `folder`, with its tokenizer, answers greedily in a Python process of its own.

    The process sees nothing of this one but the files, computes in `dtype` with as many threads, never asks the Hub,
    and can't import PEFT. `timeout` is in seconds. Raises FileNotFoundError when `folder` holds no config.json,
    ValueError when there are no prompts, and RuntimeError with the process's last words when it fails or is too slow.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: save the model there first, with save_pretrained")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"there are no prompts to answer: pass a list of texts, not {prompts!r}")
    asked = {
        "folder": str(folder),
        "prompts": list(prompts),
        "max_new_tokens": max_new_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], input=json.dumps(asked), env=environment, timeout=timeout,
            capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the new process took more than {timeout:g} seconds: raise timeout, or ask less") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"the new process failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.strip().splitlines()[-1])
