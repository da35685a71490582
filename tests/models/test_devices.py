"""With the model on a card, nothing in utils/ lets a tensor of the CPU meet one of the card."""

from __future__ import annotations

import pytest
import torch

from tests.models.other_device import CARD, a_card
from utils import models
from utils.evaluate import metrics
from utils.lora import inject, merge, unmerge
from utils.tinyworld import task_examples
from utils.train import loop

torch.set_num_threads(1)

EXAMPLES = task_examples("style", "train", 16)
TWO_DEVICES = "same device|two different devices"


@pytest.fixture
def card():
    with a_card():
        yield


def adapted():
    model, tokenizer = models.load_base()
    torch.manual_seed(0)
    inject(model, "all-linear", r=4, lora_alpha=8)
    return model, tokenizer


# ------------------------------------------------------------------------------------------- the card itself


def test_the_card_refuses_what_cuda_refuses(card):
    on_card, on_cpu = torch.ones(3, device=CARD), torch.ones(3)
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        on_card + on_cpu
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        torch.nn.functional.embedding(torch.tensor([0]), torch.ones(2, 2, device=CARD))
    for make in (torch.bernoulli, torch.randn_like):
        with pytest.raises(RuntimeError, match="generator of the card"):
            make(on_card, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator of the card"):
        torch.randn(3, device=CARD, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        on_card.numpy()
    assert (on_card + torch.tensor(1.0)).device == CARD, "one number of the CPU may take part"
    assert on_card[torch.tensor([0, 2])].device == CARD, "so may indices"


def test_a_tensor_made_before_the_card_is_there_is_one_of_the_cpu():
    made_at_import = torch.ones(3)
    with a_card(), pytest.raises(RuntimeError, match=TWO_DEVICES):
        torch.ones(3, device=CARD) + made_at_import


def test_a_tensor_that_moved_gets_its_gradient_where_it_was(card):
    there = torch.ones(3, requires_grad=True)
    (there.to(CARD) * 2).sum().cpu().backward()
    assert there.grad.device.type == "cpu"
    layer = torch.nn.Linear(3, 4, device=CARD)
    layer(torch.ones(1, 3, device=CARD)).sum().backward()
    assert {t.device for p in layer.parameters() for t in (p, p.grad)} == {CARD}


# ----------------------------------------------------------------------------------------------------- the course


def test_training(card):
    model, tokenizer = adapted()
    before = {p.device for p in model.parameters()}
    losses = loop.train(model, tokenizer, EXAMPLES, steps=3, lr=1e-3, batch_size=4, progress=False)
    assert len(losses) == 3 and {p.device for p in model.parameters()} == before == {CARD}


def test_asking_and_marking(card):
    model, tokenizer = adapted()
    assert len(metrics.complete(model, tokenizer, ["Hello", "Hello there"], max_new_tokens=3)) == 2
    metrics.exact_match(model, tokenizer, EXAMPLES[:2])
    metrics.perplexity(model, tokenizer, [e.answer for e in EXAMPLES], window=32)


def test_merging_and_files(card, tmp_path, monkeypatch):
    """safetensors reads and writes a tensor's memory, which no fake one has: its numpy functions stand in."""
    from safetensors import numpy as files

    from utils.lora import checkpoint

    def save(tensors, metadata):
        return files.save({name: tensor.numpy() for name, tensor in tensors.items()}, metadata)

    def load(path):
        return {name: torch.from_numpy(array) for name, array in files.load_file(path).items()}

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint, "load_file", load)
    model, _ = adapted()
    ids = torch.arange(5, 15, device=model.device)[None]
    merge(model)
    model(ids)
    unmerge(model)
    checkpoint.save_adapter(model, tmp_path / "adapter", base_model="tiny-llama")
    other, _ = models.load_base()
    checkpoint.load_adapter(other, tmp_path / "adapter")
    other(ids)
    assert {p.device for p in other.parameters()} == {CARD}


def test_noise_is_where_the_matrix_is(card):
    from utils.lora.lowrank import noise_like

    assert noise_like(torch.ones(3, 4, device=CARD), torch.Generator().manual_seed(0)).device == CARD
