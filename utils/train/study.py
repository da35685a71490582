"""A hyperparameter study with Optuna: what is searched, how one trial runs, and how a study survives an interruption.

The space holds the rank as a power of two, the ratio `lora_alpha / r` instead of `lora_alpha`, the dropout, the
learning rate and the targets. A trial trains on the train split and is judged by its loss on the dev split; the test
split belongs to nobody here. Optuna (Akiba et al., 2019, https://arxiv.org/abs/1907.10902) asks and keeps the books.

The sampler of each trial is seeded by the study's seed and the number of finished trials. So a study that was
interrupted and opened again goes on exactly as it would have gone on by itself.

Attributes:
    TARGETS: The choices of `target_modules` by the names that a study stores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.data import chat
from utils.data.chat import Example
from utils.lora import layer as lora
from utils.lora.target_modules import ALL_LINEAR
from utils.train import loop

if TYPE_CHECKING:
    import optuna
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
TARGETS: dict[str, list[str] | str] = {
    "q,v": ["q_proj", "v_proj"],
    "attention": ATTENTION,
    "MLP": MLP,
    "all-linear": ALL_LINEAR,
}


class Setting(NamedTuple):
    """One point of the space. `ratio` is ``lora_alpha / r``, the layer's scaling; `targets` a key of
    :data:`TARGETS`."""

    r: int
    ratio: float
    lora_dropout: float
    lr: float
    targets: str

    @property
    def lora_alpha(self) -> float:
        """What LoraConfig wants: ``ratio * r``."""
        return self.ratio * self.r


def suggest(trial: optuna.trial.BaseTrial) -> Setting:
    """Draw a setting: r from 1 to 32 by doublings, the ratio from 1/2 to 8 and the rate from 3e-4 to 1e-1 on
    logarithmic scales, the dropout from 0 to 0.2, the targets from :data:`TARGETS`."""
    trial.suggest_int("log2_r", 0, 5)
    trial.suggest_float("ratio", 0.5, 8, log=True)
    trial.suggest_float("lora_dropout", 0.0, 0.2)
    trial.suggest_float("lr", 3e-4, 1e-1, log=True)
    trial.suggest_categorical("targets", list(TARGETS))
    return setting_of(trial.params)


def setting_of(params: dict[str, Any]) -> Setting:
    """The setting that a trial's `params` stand for."""
    return Setting(2 ** params["log2_r"], *(params[name] for name in Setting._fields[1:]))


# ---------------------------------------------------------------------------------------------------------- one trial


class Measured(NamedTuple):
    """loss: nats per answer token; exact: the share, 0 to 1, of examples with every token of the answer right."""

    loss: float
    exact: float


@torch.inference_mode()
def teacher_forced(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int = 100
) -> Measured:
    """Loss and exact match in one forward pass, with the right answer given as input (teacher forcing).

    An answer counts as exact when the likeliest token is the right one everywhere; greedy decoding then writes that
    very answer. The model's mode is kept. Raises ValueError when there are no examples.
    """
    encoded = chat.encode(tokenizer, examples)
    device = next(model.parameters()).device
    total = count = right = 0
    with loop.in_mode(model, False):
        for start in range(0, len(encoded), batch_size):
            batch = chat.collate(encoded[start : start + batch_size], chat.token_id(tokenizer, "pad"))
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            trained = labels != chat.IGNORED
            total += F.cross_entropy(logits[trained], labels[trained], reduction="sum").item()
            count += int(trained.sum())
            right += int(((logits.argmax(-1) == labels) | ~trained).all(1).sum())
    return Measured(total / count, right / len(encoded))


@dataclass(frozen=True)
class Work:
    """What every trial of a study shares: the frozen base, the data and the length of the training.

    A trial trains for `steps` and measures itself on `dev` after every `report_every` steps and at the end.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Example]
    dev: Sequence[Example]
    steps: int
    report_every: int
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.report_every <= self.steps:
            raise ValueError(f"report_every is {self.report_every}: it must be from 1 to the {self.steps} steps")

    def run(
        self,
        setting: Setting,
        *,
        seed: int = 0,
        after_step: Callable[[int], None] | None = None,
        b_rate: float = 1.0,
        examine: Sequence[Sequence[Example]] = (),
    ) -> list[Measured]:
        """Train one setting and measure it on each set of `examine`; the base is as it was afterwards, come what may.

        `b_rate` multiplies the rate of every `lora_B` (LoRA+, Hayou et al., 2024, https://arxiv.org/abs/2402.12354).
        Raises utils.train.loop.Diverged when the loss stops being a number, and whatever `after_step` raises.
        """
        torch.manual_seed(seed)
        r, _, dropout, lr, targets = setting
        lora.inject(self.model, TARGETS[targets], r, setting.lora_alpha, dropout)
        try:
            layers = lora.lora_layers(self.model).values()
            groups = [
                {"params": [layer.lora_A for layer in layers], "lr": lr},
                {"params": [layer.lora_B for layer in layers], "lr": lr * b_rate},
            ]
            loop.train(
                self.model, self.tokenizer, self.train, steps=self.steps, lr=lr, batch_size=self.batch_size, seed=seed,
                progress=False, groups=groups, after_step=after_step,
            )  # fmt: skip
            return [teacher_forced(self.model, self.tokenizer, examples) for examples in examine]
        finally:
            lora.remove(self.model)


def objective(trial: optuna.trial.BaseTrial, work: Work) -> float:
    """Train one setting and return its loss on dev, in nats per token; report it on the way and let the pruner stop it.

    The trial keeps as user attributes `steps`, how many it has trained, and `exact`, its share of exact answers on dev.
    A run that diverges returns infinity: a bad result, from which the sampler learns, and no failure.
    """
    import optuna

    setting, seen, done = suggest(trial), Measured(float("inf"), 0.0), 0

    def look(step: int) -> None:
        nonlocal seen, done
        done = step + 1
        if done % work.report_every and done < work.steps:
            return
        seen = teacher_forced(work.model, work.tokenizer, work.dev)
        trial.set_user_attr("steps", done)
        trial.set_user_attr("exact", seen.exact)
        if not math.isfinite(seen.loss):
            raise loop.Diverged(f"the dev loss is {seen.loss} after {done} steps, no finite number any more")
        trial.report(seen.loss, done)
        if done < work.steps and trial.should_prune():
            raise optuna.TrialPruned()

    try:
        work.run(setting, after_step=look)
    except loop.Diverged:
        trial.set_user_attr("steps", done + 1)
        trial.set_user_attr("diverged", True)
        return float("inf")
    return seen.loss


# ---------------------------------------------------------------------------------------------------------- the study


class Arm(NamedTuple):
    """A way to search: which sampler, with pruning or without, the seed of its random numbers, and `startup`: so many
    trials are drawn at random before TPE has an opinion and before anything is pruned."""

    sampler: Literal["random", "TPE"] = "TPE"
    pruning: bool = True
    seed: int = 0
    startup: int = 8

    @property
    def name(self) -> str:
        """Such as "TPE, pruned"; seeds share it."""
        return f"{self.sampler}, {'pruned' if self.pruning else 'unpruned'}"

    def make_sampler(self, finished: int) -> optuna.samplers.BaseSampler:
        """The sampler for the trial that comes after `finished` others. Raises ValueError for an unknown one."""
        import optuna

        seed = 10_000 * self.seed + finished
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self.sampler == "TPE":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup)
        raise ValueError(f"unknown sampler {self.sampler!r}: choose random or TPE")

    def make_pruner(self) -> optuna.pruners.BasePruner:
        """The median rule: a trial stops when its best dev loss is above the median of the others' at that step."""
        import optuna

        return optuna.pruners.MedianPruner(self.startup) if self.pruning else optuna.pruners.NopPruner()


def open_study(arm: Arm, file: str | Path | None = None, name: str = "study") -> optuna.Study:
    """A new study, or the one that `file` holds, made ready to go on; without a file it lives in memory.

    The file is Optuna's journal, a line of JSON for each event. What a power cut left is cleared: a last line that was
    cut off is taken out, and trials that were running count as failed. So open a file in one process at a time.
    """
    import optuna
    from optuna.storages import journal

    storage = None
    if file is not None:
        _drop_partial_line(Path(file))
        lock = journal.JournalFileOpenLock(str(file))
        storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(file), lock_obj=lock))
    study = optuna.create_study(
        storage=storage, study_name=name, direction="minimize", pruner=arm.make_pruner(), load_if_exists=True,
        sampler=arm.make_sampler(0),
    )  # fmt: skip
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _drop_partial_line(file: Path) -> None:
    """Cut a journal behind its last whole line: Optuna would write its next event into the broken one."""
    if file.exists() and (text := file.read_bytes()) and not text.endswith(b"\n"):
        with open(file, "r+b") as journal:
            journal.truncate(text.rfind(b"\n") + 1)
            os.fsync(journal.fileno())


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that ran to their end or were pruned, in their order; failed and running ones aren't among them."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def spent(study: optuna.Study) -> int:
    """How many training steps the finished trials took."""
    return sum(trial.user_attrs.get("steps", 0) for trial in finished(study))


def go_on(
    study: optuna.Study,
    arm: Arm,
    objective: Callable[[optuna.Trial], float],
    *,
    trials: int | None = None,
    budget: int | None = None,
    longest: int = 0,
) -> None:
    """Run trials until `trials` have finished, or until another of `longest` steps could exceed a `budget` of steps.

    Give one of the two. Trials that finished before count, so the same call begins a study and continues it. An error
    in the objective marks its trial as failed and is raised. Raises ValueError unless exactly one limit is given, or
    when a budget comes without the length of a trial.
    """
    if (trials is None) == (budget is None):
        raise ValueError("say when the study ends: give either trials or budget")
    if budget is not None and longest < 1:
        raise ValueError("with a budget, say in `longest` how many steps an unpruned trial takes")
    while True:
        done = len(finished(study))
        if trials is not None and done >= trials:
            return
        if budget is not None and spent(study) + longest > budget:
            return
        study.sampler = arm.make_sampler(done)
        study.optimize(objective, n_trials=1)


# --------------------------------------------------------------------------------------------------------- the record


def from_record(studies: Sequence[dict[str, Any]]) -> optuna.Study:
    """One study with the trials of all of `studies`, rows of assets/measurements/study.json, that ran to their end.

    It is for Optuna's evaluators, which want a study. Trials whose loss isn't finite are left out.
    """
    import optuna

    pooled = optuna.create_study(direction="minimize")
    example = optuna.create_study().ask()
    suggest(example)
    for row in (trial for one in studies for trial in one["trials"] if trial["state"] == "complete"):
        params = {name: row[name] for name in Setting._fields[1:]} | {"log2_r": row["r"].bit_length() - 1}
        pooled.add_trial(
            optuna.trial.create_trial(params=params, distributions=example.distributions, value=last_loss(row))
        )
    return pooled


def last_loss(trial: dict[str, Any]) -> float:
    """The dev loss, in nats per token, that a recorded trial reported last; infinity for a run that diverged."""
    if trial["state"] == "diverged":
        return float("inf")
    return trial["dev_loss"][max(trial["dev_loss"], key=int)]
