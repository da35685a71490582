"""The log-probability of each token of a completion: against one text at a time, and what is refused."""

from __future__ import annotations

import pytest
import torch

from utils.data.chat import IGNORED
from utils.preferences.log_probs import completion_log_probs, completion_mask

# A text alone and in a batch: float32 logits of size 10, summed in another order.
CLOSE = {"rtol": 0.0, "atol": 2e-4}

TEXTS = [([2, 58, 332], [40, 41, 42, 1]), ([2, 58, 332, 689, 3], [50, 1]), ([2], [60, 61, 62])]


def batch_of(side):
    """TEXTS as a batch, prompts padded on the left and completions on the right, or all of it on the right."""
    rows = []
    for prompt, answer in TEXTS:
        if side == "left":
            before, after = 5 - len(prompt), 4 - len(answer)
        else:
            before, after = 0, 7 - len(prompt) - len(answer)
        rows.append(
            {
                "input_ids": [0] * before + prompt + answer + [0] * after,
                "attention_mask": [0] * before + [1] * (len(prompt) + len(answer)) + [0] * after,
                "labels": [IGNORED] * (before + len(prompt)) + answer + [IGNORED] * after,
            }
        )
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_token_is_scored_as_in_a_text_of_its_own(base, side, temperature):
    batch = batch_of(side)
    with torch.no_grad():
        found, mask = completion_log_probs(base, batch, temperature), completion_mask(batch)
        for row, (prompt, answer) in enumerate(TEXTS):
            scores = base(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
            expected = scores.log_softmax(-1)[range(len(answer)), answer]
            torch.testing.assert_close(found[row][mask[row]], expected, **CLOSE)
    assert found.shape == mask.shape == (3, 4 if side == "left" else 6)
    assert mask.sum(1).tolist() == [4, 2, 3]
    assert torch.equal(found[~mask], torch.zeros(int((~mask).sum())))


def test_the_gradient_doesnt_touch_what_isnt_a_completion(fresh_base):
    """Other tokens in the padding change no gradient."""
    model, batch = fresh_base(), batch_of("left")

    def gradient(batch):
        model.zero_grad()
        completion_log_probs(model, batch).sum().backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 77)}
    expected = gradient(batch)
    assert expected.norm() > 0
    torch.testing.assert_close(gradient(other), expected, rtol=1e-4, atol=1e-6)


def test_half_precision_is_scored_in_float32(fresh_base):
    model = fresh_base().to(torch.bfloat16)
    with torch.no_grad():
        assert completion_log_probs(model, batch_of("left")).dtype == torch.float32


def test_a_batch_without_a_completion_and_a_temperature_of_zero_are_refused(base):
    batch = batch_of("left")
    with pytest.raises(ValueError, match="temperature must be positive and finite, not 0"):
        completion_log_probs(base, batch, 0)
    with pytest.raises(TypeError, match="temperature must be a number"):
        completion_log_probs(base, batch, "1")
    batch["labels"].fill_(IGNORED)
    with pytest.raises(ValueError, match="no token of the 3 rows has a label"):
        completion_mask(batch)
