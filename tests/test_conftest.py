"""The shared model's guard sees what a test could leave behind."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import state_of
from utils.lora import inject

IDS = torch.zeros(1, 2, dtype=torch.long)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.model.norm.weight.detach().add_(1.0),
        lambda model: model.requires_grad_(False),
        lambda model: inject(model, ["q_proj"], r=2, lora_alpha=4),
        lambda model: model.lm_head.register_forward_hook(lambda *_: None),
        lambda model: model(input_ids=IDS, labels=IDS).loss.backward(),
    ],
    ids=["mode", "weight", "frozen", "lora", "hook", "gradient"],
)
def test_a_changed_model_is_seen(fresh_base, change):
    model = fresh_base()
    before = state_of(model)
    change(model)
    assert state_of(model) != before


def test_reading_it_changes_nothing_and_a_copy_is_a_copy(base, fresh_base):
    before = state_of(base)
    with torch.inference_mode():
        base(input_ids=IDS)
    with torch.no_grad():
        fresh_base().model.norm.weight.add_(1.0)
    assert state_of(base) == before
