"""How transformers' Trainer weighs the losses of several small batches: rightly only if the model takes part."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """Predicts every label with one trained vector. Its forward takes what it names, and nothing else."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0, -1.0]))

    def loss(self, labels, **options):
        return F.cross_entropy(self.logits.expand(labels.numel(), 3), labels.flatten(), **options)

    def forward(self, input_ids, labels):
        return {"loss": self.loss(labels)}


class TakesPart(Plain):
    """The same, but it accepts the count of labels and divides by it, as transformers' models do."""

    def forward(self, input_ids, labels, **kwargs):
        count = kwargs.get("num_items_in_batch")
        if count is None:
            return {"loss": self.loss(labels)}
        return {"loss": self.loss(labels, reduction="sum") / count}


ROWS = [[0, 0], [0, 1], [2, -100], [2, -100]]


def gradient_of(model, loss):
    (gradient,) = torch.autograd.grad(loss, model.logits)
    return gradient


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.parametrize("kind", [Plain, TakesPart])
def test_only_a_model_that_accepts_the_count_gets_the_large_batchs_gradient(kind, tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    found = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            found.append(model.logits.grad.clone())

    data = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in ROWS]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_grad_norm=0.0, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=kind(), args=args, train_dataset=data, callbacks=[Keep()])
    trainer._get_train_sampler = lambda *_: torch.utils.data.instructions.SequentialSampler(
        data
    )  # the first two rows are one batch
    trainer.train()

    fresh, labels = kind(), torch.tensor(ROWS)
    large = gradient_of(fresh, fresh.loss(labels))
    means = gradient_of(fresh, (fresh.loss(labels[:2]) + fresh.loss(labels[2:])) / 2)
    assert not torch.allclose(large, means, atol=0.05), "the two must differ for the comparison to mean anything"
    torch.testing.assert_close(found[0], large if kind is TakesPart else means)  # float32, one sum of six terms
