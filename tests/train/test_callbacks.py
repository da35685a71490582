"""The live loss: what it keeps, and that it draws only in a notebook."""

from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from utils.train import callbacks
from utils.train.callbacks import LiveLoss


class Picture:
    value = b""


def run(live, steps=5, evaluate_at=()):
    args, state, control = (
        TrainingArguments(output_dir="x", use_cpu=True),
        TrainerState(max_steps=steps),
        TrainerControl(),
    )
    live.on_train_begin(args, state, control)
    for step in range(1, steps + 1):
        state.global_step = step
        live.on_step_end(args, state, control)
        live.on_log(args, state, control, logs={"loss": 1 / step, "learning_rate": 0.1})
        if step in evaluate_at:
            live.on_log(args, state, control, logs={"eval_loss": 2 / step})
    live.on_train_end(args, state, control)


def test_it_keeps_the_losses_and_draws_nothing_outside_a_notebook():
    live = LiveLoss()
    run(live, evaluate_at=(2, 4))
    assert live.steps == [1, 2, 3, 4, 5] and live.losses == [1 / s for s in live.steps]
    assert live.eval_steps == [2, 4] and live.eval_losses == [1.0, 0.5]
    assert live._image is None and live._bar.n == 5


def test_in_a_notebook_the_picture_changes_as_the_losses_come(monkeypatch):
    picture = Picture()
    monkeypatch.setattr(callbacks, "in_notebook", lambda: True)
    monkeypatch.setattr(callbacks, "_live_image", lambda: picture)
    seen = []

    class Watched(LiveLoss):
        def on_step_end(self, *args, **kwargs):
            super().on_step_end(*args, **kwargs)
            seen.append(picture.value)

    run(Watched(every=2), evaluate_at=(4,))
    assert seen[0] == b"" and seen[2].startswith(b"\x89PNG") and seen[4] != seen[2]
    assert picture.value != seen[4]  # drawn for the last time at the end


@pytest.mark.parametrize(
    ("shell", "is_one"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)]
)
def test_a_notebook_is_a_shell_with_a_kernel(monkeypatch, shell, is_one):
    """IPython in a terminal is a shell without one."""
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert callbacks.in_notebook() is is_one


def test_a_run_that_logs_nothing_is_no_error():
    live = LiveLoss(plot=False)
    live.close()
    assert live.losses == []


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        LiveLoss(every=0)
