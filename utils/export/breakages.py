"""Exports that went wrong in the ways that people's do, each made from a right one, to see its symptom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from utils.evaluate.metrics import Answer
from utils.export.edit import edited
from utils.export.gguf_facts import gguf_facts
from utils.export.llama_cpp import LlamaCpp, Prompt
from utils.export.rope import unrotate
from utils.files import expanded

_CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class Export(NamedTuple):
    """A model's file, an adapter's, and how they are asked: `ask` gives the prompt for a user's words, `settings` go to
    :meth:`utils.export.llama_cpp.LlamaCpp.answer`.
    """

    model: Path
    adapter: Path
    ask: Callable[[LlamaCpp, str], Prompt]
    settings: Mapping[str, Any] = {}

    def answers(self, prompts: Sequence[str], max_new_tokens: int = 64) -> list[Answer]:
        """What llama.cpp answers to what users say, greedily, with the adapter."""
        with LlamaCpp(self.model, {"it": self.adapter}) as server:
            asked = [self.ask(server, words) for words in prompts]
            return server.answer(asked, max_new_tokens, adapter="it", **self.settings)


def rotation_forgotten(model: Path) -> Callable[[str, Tensor], Tensor]:
    """For :func:`utils.export.edit.edited`: puts q's and k's rows back into transformers' order, in the file `model` of
    a Llama or in its adapter's.
    """
    import gguf

    fields = gguf.GGUFReader(model).fields
    names = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    heads = {part: int(fields[f"llama.attention.{name}"].contents()) for part, name in names.items()}

    def plain_order(name: str, tensor: Tensor) -> Tensor:
        part = name.split(".")[2] if name.startswith("blk.") else ""
        return unrotate(tensor, heads[part]) if part in heads and not name.endswith("lora_a") else tensor

    return plain_order


def broken_exports(model: str | Path, adapter: str | Path, folder: str | Path) -> dict[str, Export]:
    """By the name of what went wrong: the export as it should be, and eight of it that aren't, written into `folder`.

    `model` and `adapter` are right files of a Llama, in float32, that begins without BOS. A file that doesn't name its
    EOS token isn't among them: llama.cpp knows the usual ones, such as <|end|>, by how they are written, so that
    answers end all the same.
    """
    model, adapter, folder = expanded(model), expanded(adapter), expanded(folder)
    rank = min(gguf_facts(adapter).shapes[next(iter(gguf_facts(adapter).shapes))])

    plain_order = rotation_forgotten(model)

    def chat(server: LlamaCpp, words: str) -> Prompt:
        return words

    def raw(server: LlamaCpp, words: str) -> Prompt:
        return server.token_ids(words)

    def chatml(server: LlamaCpp, words: str) -> Prompt:
        return server.token_ids(_CHATML.format(words))

    bos = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True}
    with_bos = edited(model, folder / "bos.gguf", bos)
    no_order = edited(model, folder / "order.gguf", tensors=plain_order)
    own_order = edited(adapter, folder / "adapter-order.gguf", tensors=plain_order)
    return {
        "nothing": Export(model, adapter, chat),
        "rotation forgotten in the base": Export(no_order, adapter, chat),
        "rotation forgotten in the adapter": Export(model, own_order, chat),
        "rotation forgotten in both": Export(no_order, own_order, chat),
        "alpha forgotten": Export(
            model, edited(adapter, folder / "alpha.gguf", {"adapter.lora.alpha": float(rank)}), chat
        ),
        "no chat template": Export(model, adapter, raw),
        "another model's template": Export(model, adapter, chatml),
        "a BOS that training never saw": Export(with_bos, adapter, chat),
        "no end token": Export(model, adapter, chat, {"ignore_eos": True}),
    }
