"""An ensemble of LoRA runs gives what each run gives alone."""

import pytest
import torch

from tools import sweep_rank
from utils import lora, models
from utils.evaluate import metrics
from utils.tinyworld import task_examples
from utils.train import loop


@pytest.fixture(scope="module")
def together():
    model, tokenizer = models.load_base()
    runs = [
        sweep_rank.Run("q,v", 2, 2e-3, 0),
        sweep_rank.Run("all-linear", 5, 8e-3, 1),
        sweep_rank.Run("MLP", 1, 1e-2, 0),
    ]
    examples = task_examples("style", "train", 100)
    ensemble = sweep_rank.Ensemble(model, runs)
    losses = ensemble.train(tokenizer, examples, steps=12, batch_size=4)
    held_out = task_examples("style", "test", 10)
    return runs, examples, losses, ensemble.exact_match(tokenizer, held_out), held_out


@pytest.mark.parametrize("index", range(3))
def test_a_run_of_the_ensemble_equals_the_run_alone(together, index):
    runs, examples, losses, _, _ = together
    run = runs[index]
    model, tokenizer = models.load_base()
    torch.manual_seed(run.seed)
    lora.inject(model, list(sweep_rank.TARGETS[run.targets]), run.r, 2 * run.r)
    alone = loop.train(model, tokenizer, examples, steps=12, lr=run.lr, batch_size=4, seed=run.seed, progress=False)
    # float32 sums in another order, through twelve Adam steps, which divide small gradients by their size
    assert losses[:, index].tolist() == pytest.approx(alone, rel=2e-3)
    assert alone[-1] < alone[0] * 0.97, "the run must move for the comparison to mean anything"


def test_controls_have_the_parameters_of_all_linear_at_rank_8():
    model, _ = models.load_base()

    def count(targets, r):
        return sum(r * sum(model.get_submodule(n).weight.shape) for n in lora.find_targets(model, list(targets)))

    wanted = count(sweep_rank.TARGETS["all-linear"], 8)
    for name, r in sweep_rank.CONTROLS.items():
        assert count(sweep_rank.TARGETS[name], r) == pytest.approx(wanted, rel=0.013)


def test_teacher_forcing_marks_as_greedy_decoding_does(together):
    runs, examples, _, _, _ = together
    model, tokenizer = models.load_base()
    torch.manual_seed(0)
    lora.inject(model, "all-linear", 8, 16)
    loop.train(model, tokenizer, examples, steps=60, lr=6e-3, seed=0, progress=False)
    held_out = task_examples("style", "test", 40)
    ensemble = sweep_rank.Ensemble(models.load_base()[0], [sweep_rank.Run("all-linear", 8, 6e-3, 0)])
    ensemble.train(tokenizer, examples, steps=60)
    (forced,) = ensemble.exact_match(tokenizer, held_out)
    assert 0.1 < forced < 1, "half-learnt, or the comparison is empty"
    assert forced == pytest.approx(metrics.exact_match(model, tokenizer, held_out), abs=0.05)
