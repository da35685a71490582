"""tools/measure_elsewhere.py: a folder converted as Ollama does, and what the record holds."""

from __future__ import annotations

import json

import pytest
import torch

from tools.measure_elsewhere import OUT, as_ollama_converts, measure_ollama
from utils.export.gguf_adapter import adapter_tensors
from utils.models import TINY_DIR, load_config
from utils.train.adapter_cache import adapter_dir


def test_a_folder_loses_the_order_of_q_and_k_alone():
    config, folder = load_config(TINY_DIR), adapter_dir("style")
    ours, theirs = adapter_tensors(folder, config).tensors, as_ollama_converts(folder, config)
    assert ours.keys() == theirs.keys()
    other = {name.split(".")[2] for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
    assert other == {"attn_q", "attn_k"}
    for name in ours:  # lora_a's numbers are all there, in another order
        if "lora_a" in name:
            assert torch.equal(ours[name].flatten().sort().values, theirs[name].flatten().sort().values)


@pytest.mark.slow
def test_translation_is_lost_that_way():
    pytest.importorskip("xllamacpp", reason="llama.cpp isn't installed here")
    rows = {row["adapter"]: row["right"] for row in measure_ollama(5)["rows"]}
    assert all(right["to_gguf"] == 5 for right in rows.values())
    assert rows["translation"]["folder"] == 0


def test_the_record_holds_both_parts():
    record = json.loads(OUT.read_text(encoding="utf-8"))
    plain = [row for row in record["mlx"]["rows"] if row["base"] == "float32"]
    assert len(plain) == 4 and all(row["same"] == row["prompts"] == 40 for row in plain)
    assert {row["adapter"] for row in record["ollama_folder"]["rows"]} == {row["adapter"] for row in plain}
