"""What is read of a GGUF file: special tokens, BOS, context, shapes; and what is refused."""

import pytest

from tests.export.small_gguf import write
from utils.export.errors import ExportError
from utils.export.gguf_facts import gguf_facts


def test_a_base_says_its_tokens_context_and_shapes(tmp_path):
    facts = gguf_facts(write(tmp_path / "base.gguf", fields={"tokenizer.chat_template": "{{ x }}"}))
    assert (facts.kind, facts.architecture, facts.context) == ("model", "llama", 512)
    assert (facts.eos, facts.bos, facts.adds_bos, facts.chat_template) == ("<|end|>", "", False, "{{ x }}")
    assert facts.shapes == {"blk.0.attn_q.weight": (32, 32)} and facts.dtypes == {"F32": 1}


def test_an_adapter_says_its_alpha_and_the_shapes_of_both_matrices(tmp_path):
    facts = gguf_facts(write(tmp_path / "adapter.gguf", adapter=True))
    assert (facts.kind, facts.alpha, facts.context) == ("adapter", 16.0, None)
    assert facts.shapes == {"blk.0.attn_q.weight.lora_a": (4, 32), "blk.0.attn_q.weight.lora_b": (32, 4)}


@pytest.mark.parametrize(
    ("fields", "adds"),
    [
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.pre": "gpt-2"}, True),
        ({"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.pre": "llama-bpe"}, False),
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.pre": "qwen2"}, False),
    ],
)
def test_whether_llama_cpp_adds_bos_is_what_the_file_says_or_what_its_pretokenizer_implies(tmp_path, fields, adds):
    assert gguf_facts(write(tmp_path / "base.gguf", fields=fields)).adds_bos is adds


def test_a_missing_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        gguf_facts(tmp_path / "none.gguf")
    whole = write(tmp_path / "base.gguf").read_bytes()
    for damaged in (b"", b"GGUF", whole[:40], b"PK" + whole[2:]):
        (tmp_path / "base.gguf").write_bytes(damaged)
        with pytest.raises(ExportError, match="no whole GGUF file"):
            gguf_facts(tmp_path / "base.gguf")
