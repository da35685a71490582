"""Which layers of a model can carry LoRA: found in the model itself, and asked for by names that do match.

A name means what PEFT takes it for: every module whose full name is it, or ends with a dot and it; a text instead of a
list is a regular expression for the whole name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES = (
    "Llama", "Mistral", "Qwen3", "Gemma3", "Phi", "Phi3", "GPT-2", "GPT-NeoX", "BLOOM", "OPT", "Falcon", "T5",
)  # fmt: skip
"""Architectures that :func:`tiny_random` builds."""


def tiny_random(architecture: str) -> PreTrainedModel:
    """A model of an architecture with made-up, tiny sizes and random weights: the names are real, and nothing is
    downloaded.

    The same weights every time; the global random state is left alone. Raises ValueError for an architecture that isn't
    one of :data:`ARCHITECTURES`.
    """
    import transformers as t

    llama_like = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    plain = {k: v for k, v in llama_like.items() if k != "num_key_value_heads"}
    configs = {
        "Llama": lambda: t.LlamaConfig(**llama_like),
        "Mistral": lambda: t.MistralConfig(**llama_like),
        "Qwen3": lambda: t.Qwen3Config(**llama_like, head_dim=8),
        "Gemma3": lambda: t.Gemma3TextConfig(**llama_like, head_dim=8),
        "Phi": lambda: t.PhiConfig(**llama_like),
        "Phi3": lambda: t.Phi3Config(**llama_like),
        "GPT-2": lambda: t.GPT2Config(
            vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
        ),
        "GPT-NeoX": lambda: t.GPTNeoXConfig(**plain),
        "BLOOM": lambda: t.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0),
        "OPT": lambda: t.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=64,
        ),
        "Falcon": lambda: t.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
        "T5": lambda: t.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        ),
    }  # fmt: skip
    if architecture not in configs:
        raise ValueError(f"no tiny {architecture!r} here: choose one of {', '.join(ARCHITECTURES)}")
    config = configs[architecture]()
    auto = t.AutoModelForSeq2SeqLM if architecture == "T5" else t.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto.from_config(config).eval()


# ------------------------------------------------------------------------------------------------------- what is there


def is_linear(module: nn.Module) -> bool:
    """Whether a module is linear: torch's Linear (and its quantized heirs), or the Conv1D of GPT-2."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's Conv1D: a linear layer whose weight is stored as (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")


class Proposal(NamedTuple):
    """What can be targeted in a model's blocks, by the shortest names that tell attention and MLP apart.

    conv1d: True when the layers are GPT-2's Conv1D, which need ``fan_in_fan_out=True``.
    """

    attention: list[str]
    mlp: list[str]
    conv1d: bool

    @property
    def all(self) -> list[str]:
        """Both lists in one."""
        return [*self.attention, *self.mlp]


def _block_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside numbered blocks; head, embeddings and what stands alone are left out."""
    return [
        name for name, module in model.named_modules() if is_linear(module) and re.search(r"\.\d+\.", name) is not None
    ]


def _in_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split(".")[:-1])


def propose_targets(model: nn.Module) -> Proposal:
    """Names to target in any transformers model, read off its blocks and not off a table.

    A layer belongs to attention when a module around it says so in its name, and else to the MLP. A name that occurs in
    both, such as GPT-2's ``c_proj``, is given with the part before it, ``attn.c_proj``. Raises ValueError for a model
    without linear layers in numbered blocks.
    """
    layers = _block_layers(model)
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no linear layers in numbered blocks: name the targets yourself")
    last = {name: name.rpartition(".")[2] for name in layers}
    in_attention = {last[name] for name in layers if _in_attention(name)}
    elsewhere = {last[name] for name in layers if not _in_attention(name)}

    def shown(name: str) -> str:
        return ".".join(name.split(".")[-2:]) if last[name] in in_attention & elsewhere else last[name]

    attention = list(dict.fromkeys(shown(name) for name in layers if _in_attention(name)))
    mlp = list(dict.fromkeys(shown(name) for name in layers if not _in_attention(name)))
    return Proposal(attention, mlp, any(is_conv1d(model.get_submodule(name)) for name in layers))


# ------------------------------------------------------------------------------------------------- what a name matches


def match_targets(model: nn.Module, target_modules: Sequence[str] | str) -> dict[str, list[str]]:
    """The linear layers that each target matches, by PEFT's rule; an empty list for a target that matches none.

    A text is one regular expression for whole names, or ``"all-linear"``: every linear layer but the head.
    """
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    if isinstance(target_modules, str):
        if target_modules == "all-linear":
            head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
            return {target_modules: [name for name in linear if model.get_submodule(name) is not head]}
        return {target_modules: [name for name in linear if re.fullmatch(target_modules, name)]}
    return {target: [n for n in linear if n == target or n.endswith(f".{target}")] for target in target_modules}


def unmatched(model: nn.Module, target_modules: Sequence[str] | str) -> list[str]:
    """The targets that match no linear layer of the model."""
    return [target for target, names in match_targets(model, target_modules).items() if not names]


def check_targets(model: nn.Module, target_modules: Sequence[str] | str) -> dict[str, list[str]]:
    """What :func:`match_targets` gives, once it is sure that every target matches something.

    PEFT raises only if *nothing* matches; a misspelt name beside a right one it ignores. Raises ValueError with all
    names that match nothing and the nearest ones that would, and for an empty list.
    """
    if not target_modules:
        raise ValueError("target_modules is empty: name at least one linear layer, or pass 'all-linear'")
    matches = match_targets(model, target_modules)
    missing = [target for target, names in matches.items() if not names]
    if missing:
        known = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
        said = []
        for target in missing:
            close = difflib.get_close_matches(target, known, n=1)
            said.append(repr(target) + (f" (did you mean {close[0]!r}?)" if close else ""))
        raise ValueError(f"matches no linear layer: {', '.join(said)}. The linear layers here are called {', '.join(known)}")
    return matches
