"""What chapter 8 says without comparing: experts have to be adapted, and new tokens need rows of their own trained."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from utils.data import Example
from utils.evaluate import exact_match
from utils.lora import propose_targets, upcycled
from utils.models import load_base
from utils.tinyworld import task_examples
from utils.train import train

pytestmark = pytest.mark.slow


def adapted(model, **fields):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))


def test_at_one_rank_the_experts_adapter_learns_what_attentions_does_not():
    base, tokenizer = load_base()
    attention = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    experts = propose_targets(upcycled(base)).fields
    losses = []
    for where in (attention, experts):
        model = adapted(upcycled(base), r=8, lora_alpha=16, **where)
        found = train(
            model, tokenizer, task_examples("style", "train", 500), steps=60, lr=6e-3, batch_size=8, progress=False
        )
        losses.append(sum(found[-10:]) / 10)
    assert losses[0] > 3 * losses[1], losses


def tagged(split, count):
    rows = [
        (row.prompt.removeprefix("Say it like a pirate: "), row.answer) for row in task_examples("style", split, count)
    ]
    pirate = [Example(f"<|pirate|> {sentence}", answer) for sentence, answer in rows]
    return pirate, [Example(f"<|echo|> {sentence}", sentence) for sentence, _ in rows]


def test_two_new_tokens_are_one_to_lora_until_their_rows_train():
    learn = [row for rows in tagged("train", 500) for row in rows]
    scores = []
    for more in ({}, {"trainable_token_indices": [1024, 1025]}):
        model, tokenizer = load_base()
        tokenizer.add_tokens(["<|pirate|>", "<|echo|>"], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer))
        rows = model.get_input_embeddings().weight.detach()
        assert (rows[-1] - rows[-2]).norm() < 1e-3, "both begin at the old rows' mean"
        model = adapted(model, r=8, lora_alpha=16, target_modules="all-linear", **more)
        train(model, tokenizer, learn, steps=150, lr=6e-3, batch_size=8, progress=False)
        scores.append([exact_match(model, tokenizer, rows) for rows in tagged("test", 20)])
    assert sum(scores[0]) <= 1.1, "what can't be told apart gets one answer"
    assert min(scores[1]) >= 0.9
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.token_adapter.trainable_tokens_delta is embedding.token_adapter.trainable_tokens_delta
