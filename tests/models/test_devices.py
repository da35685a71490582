"""With the model on a card, nothing in utils/ lets a tensor of the CPU meet one of the card."""

from __future__ import annotations

import pytest
import torch

from tests.models.other_device import CARD, DifferentDevices, OnCard, a_card
from utils import models
from utils.evaluate import metrics
from utils.lora import inject, merge, unmerge
from utils.tinyworld import task_examples
from utils.train import loop

torch.set_num_threads(1)

EXAMPLES = task_examples("style", "train", 16)


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
    with pytest.raises(DifferentDevices):
        on_card + on_cpu
    with pytest.raises(DifferentDevices):
        torch.nn.functional.embedding(torch.tensor([0]), torch.ones(2, 2, device=CARD))
    with pytest.raises(DifferentDevices, match="generator"):
        torch.bernoulli(on_card / 2, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        on_card.numpy()
    assert (on_card + torch.tensor(1.0)).tolist() == [2, 2, 2], "one number of the CPU may take part"
    assert on_card[torch.tensor([0, 2])].tolist() == [1, 1], "so may indices"


def test_the_card_moves_tensors_and_modules_with_their_gradients(card):
    there = torch.ones(3, requires_grad=True)
    (there.to(CARD) * 2).sum().cpu().backward()
    assert there.grad.tolist() == [2, 2, 2]
    layer = torch.nn.Linear(3, 4).to(CARD)
    assert {p.device for p in layer.parameters()} == {CARD}
    assert type((layer(torch.ones(1, 3, device=CARD))).to("cpu")) is torch.Tensor


def test_training_on_the_card_is_training_to_the_bit():
    def losses():
        model, tokenizer = adapted()
        return loop.train(model, tokenizer, EXAMPLES, steps=3, lr=1e-3, batch_size=4, progress=False)

    here = losses()
    with a_card():
        assert losses() == here
    assert models.model_device() == torch.device("cpu")


# ----------------------------------------------------------------------------------------------------- the course


def test_asking_and_marking(card):
    model, tokenizer = adapted()
    assert len(metrics.complete(model, tokenizer, ["Hello", "Hello there"], max_new_tokens=3)) == 2
    assert metrics.exact_match(model, tokenizer, EXAMPLES[:2]) == 0
    assert metrics.perplexity(model, tokenizer, [e.answer for e in EXAMPLES], window=32) > 1


def test_merging_and_files(card, tmp_path):
    from utils.lora.checkpoint import load_adapter, save_adapter

    model, _ = adapted()
    ids = torch.arange(5, 15, device=model.device)[None]
    before = model(ids).logits
    merge(model)
    unmerge(model)
    assert torch.allclose(model(ids).logits, before, atol=1e-4)
    save_adapter(model, tmp_path / "adapter", base_model="tiny-llama")
    other, _ = models.load_base()
    load_adapter(other, tmp_path / "adapter")
    assert torch.allclose(other(ids).logits, before, atol=1e-4)
    assert all(isinstance(p, OnCard) for p in other.parameters())


def test_noise_is_where_the_matrix_is(card):
    from utils.lora.lowrank import noise_like

    assert noise_like(torch.ones(3, 4, device=CARD), torch.Generator().manual_seed(0)).device == CARD
