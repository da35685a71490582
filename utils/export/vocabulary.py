"""A tokenizer as a GGUF file says it: tokens, merges, which pre-tokenizer, which tokens control, and the chat template.

llama.cpp tokenizes by itself, from these fields. It knows pre-tokenizers (how a text is cut before merges are applied)
by name only, so the name has to be the one whose rules are the tokenizer's own: a wrong one gives other token ids for
some texts, and nothing says so.

Attributes:
    PRE_TOKENIZERS: llama.cpp's names (src/llama-vocab.cpp), by what a tokenizer.json says: "byte level" is GPT-2's
        regular expression, "digits" cuts out every digit first, anything else is the regular expression itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from utils.export.errors import ExportError
from utils.export.names import CONVERTER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    "byte level": "gpt-2",
    "digits, byte level": "smollm",
    rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}


class Vocabulary(NamedTuple):
    """What a GGUF file says of a tokenizer.

    pre: llama.cpp's name of the pre-tokenizer. tokens: by id; types: "NORMAL", "CONTROL" (special tokens),
    "USER_DEFINED" (other added tokens) or "UNUSED" (ids of the model's that the tokenizer doesn't know). merges: pairs,
    joined by a blank. ids: of the special tokens, by the name that the file has for them. adds_bos, adds_eos: whether
    the tokenizer puts these around a text by itself.
    """

    pre: str
    tokens: list[str]
    types: list[str]
    merges: list[str]
    ids: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int] = ()) -> Vocabulary:
    """What a file says of `tokenizer`, for a model with `size` rows in its embedding.

    `ends` are the ids that end an answer by the model's generation config, beside the tokenizer's EOS token: the first
    two others are written as end of turn and end of message. Qwen's NFC normalisation is left to the caller, as
    llama.cpp does: a text that isn't in this form gets other ids. Raises ExportError for a tokenizer that isn't
    byte-level BPE (Llama 2's and Mistral's are SentencePiece's), or one with rules that llama.cpp doesn't know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"this {type(tokenizer).__name__} has no tokenizer.json: use {CONVERTER}")
    said: dict[str, Any] = json.loads(backend.to_str())
    model, pre = said["model"], _pre_tokenizer(said)
    if model.get("ignore_merges", False) != (pre == "llama-bpe"):
        raise ExportError(f"ignore_merges={model.get('ignore_merges')}, and llama.cpp's {pre} does otherwise")
    tokens, types = [f"[PAD{i}]" for i in range(size)], ["UNUSED"] * size
    added = {token["id"]: token for token in said["added_tokens"]}
    known = {id_: text for text, id_ in model["vocab"].items()} | {id_: one["content"] for id_, one in added.items()}
    if max(known) >= size:
        raise ExportError(
            f"the tokenizer has token {max(known)} ({known[max(known)]!r}), and the model's embedding has {size} rows: "
            "resize the embedding as in training (resize_token_embeddings), or take the tokenizer that belongs to it"
        )
    for id_, text in known.items():
        tokens[id_], types[id_] = text, "NORMAL"
    for id_, token in added.items():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ExportError(f"{token['content']!r} takes blanks beside it along, which a GGUF file can't say")
        types[id_] = "CONTROL" if token["special"] else "USER_DEFINED"
    adds_bos, adds_eos = _added_around(tokenizer)
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
        ids=_special_ids(tokenizer, ends),
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        chat_template=_template(tokenizer),
    )


def _pre_tokenizer(said: dict[str, Any]) -> str:
    """llama.cpp's name for the rules of a tokenizer.json."""
    if said["model"]["type"] != "BPE" or said["model"].get("byte_fallback"):
        raise ExportError(
            f"this tokenizer is {said['model']['type']} with byte fallback or no BPE, as SentencePiece makes it, and "
            f"only byte-level BPE is written here. An adapter's file has no tokenizer in it and can be written; for "
            f"the model use {CONVERTER}"
        )
    normalizer = said["normalizer"]
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ExportError(f"this tokenizer changes a text first ({normalizer.get('type')}), and llama.cpp would not")
    outer = said["pre_tokenizer"] or {}
    steps = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    parts: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not step["add_prefix_space"]:
            parts += ["byte level"] if step["use_regex"] else []
        elif kind == "Digits" and step["individual_digits"]:
            parts.append("digits")
        elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            parts.append(step["pattern"].get("Regex", ""))
        else:
            parts.append(f"{kind} {json.dumps(step)}")
    rules = ", ".join(parts)
    if rules not in PRE_TOKENIZERS or not any(step.get("type") == "ByteLevel" for step in steps):
        raise ExportError(
            f"llama.cpp's name for this tokenizer's way to cut a text isn't known here ({rules[:120] or 'none'}): a "
            f"wrong one gives other token ids in silence. Use {CONVERTER}"
        )
    return PRE_TOKENIZERS[rules]


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text and EOS behind it by itself."""
    plain = cast("list[int]", tokenizer.encode("a", add_special_tokens=False))
    whole = cast("list[int]", tokenizer.encode("a", add_special_tokens=True))
    bos = bool(whole) and whole[0] == tokenizer.bos_token_id and whole[: len(plain)] != plain
    eos = len(whole) > len(plain) + bos and whole[-1] == tokenizer.eos_token_id
    if len(whole) != len(plain) + bos + eos:
        raise ExportError(f"this tokenizer puts more around a text than BOS and EOS ({whole} for 'a'): use {CONVERTER}")
    return bos, eos


def _special_ids(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> dict[str, int]:
    """The special tokens' ids, by the names that GGUF has for them."""
    if tokenizer.eos_token_id is None:
        raise ExportError("this tokenizer has no EOS token, so no answer would ever end: set tokenizer.eos_token first")
    others = [end for end in dict.fromkeys(ends) if end != tokenizer.eos_token_id]
    if len(others) > 2:
        raise ExportError(f"the generation config names {len(others) + 1} ends, and a GGUF file has room for three")
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        **dict(zip(("eot", "eom"), others, strict=False)),
    }
    return {name: cast(int, id_) for name, id_ in named.items() if id_ is not None}


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template, the one called "default" where there are several."""
    found: Any = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found
