"""kv_cache: a model goes on from its cache as from the whole text, and its costs are counted right."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.inference import kv_cache
from utils.models import load_base
from utils.train.adapter_cache import adapter_dir


@pytest.mark.parametrize(("prompt", "new"), [(1, 1), (11, 5), (512, 128)])
def test_positions(prompt, new):
    assert kv_cache.positions_computed(prompt, new, cache=True) == prompt + new - 1
    assert kv_cache.positions_computed(prompt, new, cache=False) == sum(range(prompt, prompt + new))


def test_the_bytes_are_those_that_the_model_keeps():
    model, _ = load_base(torch.bfloat16)
    with torch.inference_mode():
        output = model(input_ids=torch.ones(3, 17, dtype=torch.long), use_cache=True)
    cache = output.cache
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert kv_cache.cache_bytes(4, 2, 32, 17, batch=3) == held


@pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")
def test_a_model_goes_on_from_its_cache_with_and_without_an_adapter(caplog):
    from peft import PeftModel

    base, _ = load_base(torch.float64)
    ids = torch.randint(5, 900, (2, 9), generator=torch.Generator().manual_seed(0))
    for model in (base, PeftModel.from_pretrained(base, adapter_dir("style"))):
        with torch.inference_mode():
            whole = model(input_ids=ids).logits[:, -1]
            cache = model(input_ids=ids[:, :-1], use_cache=True).cache
            last = model(input_ids=ids[:, -1:], cache=cache).logits[:, -1]
        torch.testing.assert_close(last, whole)
    assert "past_key_values" not in caplog.text


def test_a_step_with_a_cache_computes_more_the_more_tokens_are_in_it():
    """The layers' products are those of one token; attention's are with every key before it."""
    base, _ = load_base()
    c = base.config
    linear = 2 * sum(p.numel() for p in base.parameters() if p.dim() == 2)  # the embedding is the head, too
    base.set_attn_implementation("eager")  # its two products are counted
    for past in (16, 480):
        ids = torch.randint(5, 900, (1, past))
        with torch.inference_mode():
            cache = base(input_ids=ids, use_cache=True).cache
            with FlopCounterMode(display=False) as counted:
                base(input_ids=ids[:, -1:], cache=cache)
        scores = c.num_hidden_layers * c.num_attention_heads * 2 * 2 * c.head_dim * (past + 1)
        rotary = counted.get_total_flops() - linear - scores
        assert 0 <= rotary < 0.001 * linear, "the angles of rotary embeddings are a product, too"


def test_a_llamas_cache():
    assert kv_cache.cache_bytes(32, 32, 128, 1) == 2**19, "half a MiB for each token of Llama-2-7B in 16 bits"


@pytest.mark.parametrize("arguments", [(0, 1, 1, 1), (1, 1, 1, -1), (1, 1, 1, 1, 0), (1, 1, 1, 1, 1, 0)])
def test_nonsense_is_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        kv_cache.cache_bytes(*arguments)
    with pytest.raises(ValueError, match="at least 1"):
        kv_cache.positions_computed(0, 3, cache=True)
