"""aLoRA as PEFT has it: whose keys and values a prompt has, what is read once, and what is refused. And chapter 11's
record of what it costs."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from utils import models
from utils.data.chat import render
from utils.inference.shared_prefix import answer_from, apart_by_position, read_by_base, tokens_read
from utils.models import load_base
from utils.tinyworld import TASKS, task_examples
from utils.train.recipes import RECIPES

RECORD = json.loads((models.ASSETS / "measurements" / "alora.json").read_text())
INVOCATION = [3]  # <|assistant|>


@pytest.fixture(scope="module")
def two():
    """A tiny base with two random aLoRA adapters and a plain one, none of them an identity."""
    fields = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
    torch.manual_seed(0)
    config = LoraConfig(**fields, alora_invocation_tokens=INVOCATION)
    model = get_peft_model(load_base()[0], config, adapter_name="a")
    model.add_adapter("b", config)
    model.add_adapter("plain", LoraConfig(**fields))
    return model.eval()


@pytest.fixture(scope="module")
def ids():
    _, tokenizer = load_base()
    assert tokenizer.encode("<|assistant|>", add_special_tokens=False) == INVOCATION
    text = render(tokenizer, task_examples("summarization", "test", 1)[0].prompt)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


@torch.no_grad()
def _cache(model, name, ids):
    model.set_adapter(name)
    return model(input_ids=ids, use_cache=True).cache


def test_before_the_invocation_the_cache_is_the_bases_to_the_bit(two, ids):
    until = ids.shape[1] - 1
    with two.disable_adapter(), torch.no_grad():
        base = two(input_ids=ids, use_cache=True).cache
    for name in ("a", "b"):
        apart = apart_by_position(_cache(two, name, ids), base)
        assert apart[:until].max() == 0 and apart[until] > 0.1, "PEFT adapts the invocation's first token too"
    assert apart_by_position(_cache(two, "plain", ids), base).min() > 0.1, "plain LoRA changes every token"
    with pytest.raises(ValueError, match="4 layers of .* positions"):
        apart_by_position(base, _cache(two, "a", ids[:, :5]))


def test_the_shared_prefix_is_read_once_and_changes_no_answer(two, ids):
    until = ids.shape[1] - 1
    cache, read = tokens_read(two, lambda: read_by_base(two, ids, until))
    assert read == [until] and read_by_base(two, ids, until, cache) is cache
    for name in ("a", "b"):
        alone, alone_read = tokens_read(two, lambda name=name: answer_from(two, name, ids, max_new_tokens=5))
        shared, shared_read = tokens_read(two, lambda name=name: answer_from(two, name, ids, cache, max_new_tokens=5))
        assert alone == shared and (alone_read[0], shared_read[0]) == (until + 1, 1)
        assert alone_read[1:] == shared_read[1:] == [1] * (len(alone) - 1)
    assert cache.get_seq_length() == until, "an adapter works on a copy"
    plain = answer_from(two, "plain", ids, max_new_tokens=5)
    assert plain != answer_from(two, "plain", ids, cache, max_new_tokens=5), "the control: this cache isn't its own"
    with pytest.raises(ValueError, match=f"holds {until} positions, and only 3"):
        read_by_base(two, ids, 3, cache)


def test_the_second_turn_reads_only_what_is_new(two, ids):
    later = torch.cat([ids, torch.tensor([[40, 41, 2, 50, 51, *INVOCATION]])], 1)
    cache = read_by_base(two, ids, ids.shape[1] - 1)
    cache, read = tokens_read(two, lambda: read_by_base(two, later, later.shape[1] - 1, cache))
    assert read == [6], "the old invocation, the answer and the new turn, all by the base"
    for name in ("a", "b"):
        shared = answer_from(two, name, later, cache, max_new_tokens=5)
        assert shared == answer_from(two, name, later, max_new_tokens=5)


def test_hooks_are_gone_behind_a_count_that_failed(two):
    before = len(two.get_input_embeddings()._forward_pre_hooks)
    with pytest.raises(ZeroDivisionError):
        tokens_read(two, lambda: 1 / 0)
    assert len(two.get_input_embeddings()._forward_pre_hooks) == before


@torch.no_grad()
def test_a_single_token_without_its_offset_is_the_bases(two, ids):
    """peft 0.21 looks for the invocation in the ids of each call: a hand-written loop has to pass alora_offsets."""
    two.set_adapter("a")
    token = torch.tensor([[50]])
    whole = two(input_ids=torch.cat([ids, token], 1)).logits[:, -1]

    def step(**given):
        return two(input_ids=token, cache=two(input_ids=ids, use_cache=True).cache, **given).logits[:, -1]

    cache = two(input_ids=ids, use_cache=True).cache
    with two.disable_adapter():
        base = two(input_ids=token, cache=cache).logits[:, -1]
    assert torch.equal(step(), base) and (base - whole).abs().max() > 0.1
    torch.testing.assert_close(step(alora_offsets=[1]), whole, rtol=1e-4, atol=1e-4)


def test_merging_and_beams_are_refused_and_a_mixed_batch_is_not(two, ids):
    two.set_adapter("a")
    with pytest.raises(NotImplementedError, match="does not support merging"):
        two.merge_adapter()
    with pytest.raises(ValueError, match="Beam search"):
        two.generate(input_ids=ids, num_beams=2, max_new_tokens=2)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mixed = two.generate(input_ids=ids.repeat(2, 1), adapter_names=["a", "plain"], **settings)
    for row, name in zip(mixed[:, ids.shape[1] :].tolist(), ("a", "plain"), strict=True):
        alone = answer_from(two, name, ids, max_new_tokens=5)
        assert row[: len(alone)] == alone


def test_the_record_says_what_alora_costs():
    rows = {(row["task"], row["alora"], row["r"], row["seed"]): row["exact_match"] for row in RECORD["rows"]}
    assert RECORD["seeds"] == [0, 1, 2] and len(rows) == len(RECORD["rows"]) == 3 * 3 * len(TASKS)
    for task in TASKS:
        r = RECIPES[task].r
        plain, activated = ([rows[task, alora, r, seed] for seed in (0, 1, 2)] for alora in (False, True))
        assert min(plain) > 0.94
        if task == "translation":
            assert min(activated) < 0.7 < max(activated), "it isn't free where the whole prompt matters"
        else:
            assert min(activated) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sentiment"])
def test_an_alora_learns_a_task_of_the_course(task):
    from tools.measure_alora import run

    row = run(task, RECIPES[task].r, True, 0)
    assert row["exact_match"] > 0.9
