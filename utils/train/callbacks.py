"""What a notebook shows while transformers' Trainer works, a progress bar and the loss, drawn as it falls; and what its
checkpoints keep of the run.
"""

from __future__ import annotations

import io
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from utils import plots
from utils.notebook import in_notebook
from utils.train.settings import PATIENCE


def watching(dev: bool) -> list[TrainerCallback]:
    """The callbacks of a run on data of one's own: the bar, and with a dev split its loss in a line each and the stop
    when it has stopped falling. TRL's own bars for what takes a moment are turned off."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    return [LiveLoss(), *([SayDevLoss(), EarlyStoppingCallback(PATIENCE)] if dev else [])]


class SayDevLoss(TrainerCallback):
    """Prints each dev loss in a terminal, above the bar; a notebook draws it (:class:`LiveLoss`)."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics and "eval_loss" in metrics and not in_notebook():
            from tqdm.auto import tqdm

            tqdm.write(f"step {state.global_step:,} of {state.max_steps:,}: dev loss {metrics['eval_loss']:.3g}")


class LiveLoss(TrainerCallback):
    """A tqdm bar, and in a notebook a small plot of the losses that is redrawn every `every` steps.

    Use it with ``SFTConfig(disable_tqdm=True)``: transformers' own bar is a table that outgrows the page, and its text
    form differs from run to run. The plot is an ipywidgets image, so nothing is cleared and nothing flickers; outside a
    notebook it is left out, and the bar says how long it will take. `steps` and `losses`, and `eval_steps` and
    `eval_losses`, keep what was logged. Raises ValueError when `every` is below 1.
    """

    def __init__(self, desc: str = "training", every: int = 20, plot: bool = True) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps, at least 1, not {every}")
        self.desc, self.every = desc, every
        self.plot = plot and in_notebook()
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.eval_steps: list[int] = []
        self.eval_losses: list[float] = []
        self._bar: Any = None
        self._image: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.desc,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt}" + ("" if in_notebook() else ", {remaining} left"),
        )
        if self.plot:
            self._image = _live_image()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.steps.append(state.global_step)
            self.losses.append(float(logs["loss"]))
        if "eval_loss" in logs:
            self.eval_steps.append(state.global_step)
            self.eval_losses.append(float(logs["eval_loss"]))
        if self._image is not None and self.losses and state.global_step % self.every == 0:
            self._image.value = self._png()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Draw for the last time and close the bar: for a run that ended with an exception."""
        if self._image is not None and self.losses:
            self._image.value = self._png()
        if self._bar is not None:
            self._bar.close()

    def _png(self) -> bytes:
        series = {"training": (self.steps, self.losses)}
        if self.eval_losses:
            series["evaluation"] = (self.eval_steps, self.eval_losses)
        figure = plots.lines(
            series, title=self.desc, xlabel="step", ylabel="loss (nats per token)", log_y=True, markers=False
        )
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=60)
        return png.getvalue()


def _live_image() -> Any:
    """An image that changes in place, shown with a text form that is always the same."""
    import ipywidgets
    from IPython.display import display

    image = ipywidgets.Image(format="png")
    view = {"version_major": 2, "version_minor": 0, "model_id": image.model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/plain": "(the loss, drawn live)"}, raw=True)
    return image


class RunRecord(TrainerCallback, ExportableState):
    """Keeps what a run depends on (:func:`utils.train.sft.run_of`) in the `trainer_state.json` of its checkpoints."""

    def __init__(self, run: dict[str, Any] | None = None) -> None:
        self.run = run or {}

    def state(self) -> dict[str, Any]:
        """In transformers' form: the arguments that make this object again, and what else it holds, nothing."""
        return {"args": {"run": self.run}, "attributes": {}}
