"""The settings of a run on data of one's own: checked before the file is read, filled in by the file and the model.

Attributes:
    SCALE: What an adapter's correction is multiplied by, unless `alpha` says otherwise: ``alpha = 2 * r`` gives it, and
        with rsLoRA ``alpha = 2 * sqrt(r)``.
    MOST_SCALE: A larger scale is refused. At 16 (r=64, alpha=128, rsLoRA) the course's style task ended at a dev loss
        of 3.0 where a scale of 2 reached 0.5 in the same 50 steps.
    WIDTHS: The hidden size of each profile's own model, for which its learning rate was chosen.
    WIDTH_POWER: How the learning rate falls with the hidden size: the exponent for Llama models in the cookbook of the
        authors of *LoRA Without Regret* (Schulman et al., 2025): ``get_lr`` of tinker-cookbook, 5e-4 (2000 / width) to
        the power of 0.781. For Qwen models it has 0.0775, so nearly the same rate, 5e-4, at every width: ours is within
        a factor of 2.5 of that from 896 to 5,120.
    STEP: So many records in an optimizer step, accumulated where fewer are computed at once: the low end of the
        decision guide's 8 to 32.
    USUAL_EPOCHS, FEWEST_SEEN, MOST_SEEN, MOST_EPOCHS: So many epochs, unless that is fewer or more records seen than
        these; then more, at most MOST_EPOCHS, or fewer, at least one. This is the default of OpenAI's fine-tuning
        service as its cookbook gives it ("Data preparation and analysis for chat model fine-tuning").
    DEV_SHARE, DEV_AT_LEAST, DEV_AT_MOST: The share of the training records by whose loss the best checkpoint is chosen,
        in records at most; where it would be fewer than DEV_AT_LEAST there is no such choice.
    LOOKS: How often in a run checkpoint and dev loss are taken.
    PATIENCE: After so many looks without a lower dev loss the run stops.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCALE = 2
MOST_SCALE = 8
WIDTHS = {"tiny": 192, "small": 576, "7b": 3584}
WIDTH_POWER = 0.781
STEP = 8
USUAL_EPOCHS, FEWEST_SEEN, MOST_SEEN, MOST_EPOCHS = 3, 100, 25_000, 25
DEV_SHARE, DEV_AT_LEAST, DEV_AT_MOST = 0.1, 10, 200
LOOKS, PATIENCE = 10, 3


@dataclass(frozen=True)
class Settings:
    """A run on data of one's own. None: to be chosen by :meth:`filled`, from the profile, the model and the file.

    r: the rank. alpha: lora_alpha. rslora: the correction is scaled by alpha / sqrt(r) in the place of alpha / r.
    targets: "all-linear", or names of layers. target_parameters: names of weights that are no layers, a mixture's
    experts. exclude: parts that get no adapter, such as a vision tower. lr: the peak learning rate. weight_decay:
    AdamW's, on A and B. epochs, steps: how long, in passes over the training records or in optimizer steps; not both.
    batch_size: records at once. accumulation: batches of one step. max_length: tokens where a record is cut.
    checkpointing: whether blocks keep their input alone and are computed twice, for memory. four_bit: QLoRA. held_out:
    the share to test with, or a number of records, or a file of them. general: a text file that shows what is
    forgotten; None for the course's stories. seed: of the split, the adapter's start, and the order of the records.
    positions: of the model, in tokens; None when its config doesn't say.
    """

    r: int = 8
    alpha: float | None = None
    rslora: bool = False
    targets: str | Sequence[str] = "all-linear"
    target_parameters: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    lr: float | None = None
    weight_decay: float = 0.0
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    max_length: int | None = None
    checkpointing: bool | None = None
    four_bit: bool = False
    held_out: float | str = 0.1
    general: str | None = None
    seed: int = 0
    positions: int | None = None

    def checked(self) -> Settings:
        """The same. Raises ValueError, naming it and what to do, for a value that no run can have."""
        for name in ("r", "steps", "batch_size", "accumulation", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number of 1 or more, not {value}")
        for name, words, example in (
            ("lr", "the learning rate", "2e-4"),
            ("alpha", "alpha", "16"),
            ("epochs", "epochs", "3"),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{words} is a number above 0, such as {example}, not {value}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is a number of 0 or more, such as 3, not {self.weight_decay}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is a number from 0 to 2**32 - 1, not {self.seed}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs:g} and steps={self.steps} both say how long the run is: give one of them"
            )
        if not self.targets or not all(map(str.strip, self.targets)):
            raise ValueError('targets are names of layers, such as q_proj v_proj, or "all-linear"')
        for option, names in (("target_parameters", self.target_parameters), ("exclude", self.exclude)):
            if names is not None and not (names and all(map(str.strip, names))):
                raise ValueError(f"{option} holds names, at least one, and none of them empty; not {list(names)}")
        if not isinstance(self.held_out, str) and not (
            0 < self.held_out < 1 or (self.held_out >= 1 and self.held_out == int(self.held_out))
        ):
            raise ValueError(
                "held_out is a share between 0 and 1, such as 0.1, or a number of records, or a file; not "
                f"{self.held_out}"
            )
        if self.scale > MOST_SCALE:
            root, usual = ("sqrt(r)", usual_alpha(self.r, True)) if self.rslora else ("r", usual_alpha(self.r, False))
            raise ValueError(
                f"alpha={self.alpha:g} at r={self.r} scales the correction by alpha / {root} = {self.scale:.3g}, and "
                f"above {MOST_SCALE} a run rather breaks than learns: take alpha={usual:g}, which is a scale of "
                f"{SCALE}, or leave alpha out"
            )
        return self

    @property
    def scale(self) -> float:
        """What the correction is multiplied by: alpha / r, with rsLoRA alpha / sqrt(r)."""
        alpha = usual_alpha(self.r, self.rslora) if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def filled(self, profile: str, config: Any) -> Settings:
        """With what the profile and the model's `config` decide, all but the length of the run.

        Raises ValueError when `max_length` is more than the model has positions.
        """
        from utils.train.recipes import recipe

        usual = recipe("style", profile)
        text = config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None)
        if positions and self.max_length and self.max_length > positions:
            raise ValueError(
                f"max_length={self.max_length}, and the model has {positions} positions: beyond them it was never "
                f"trained, and what it writes there is gibberish. Take at most {positions}, or another model"
            )
        at_once = self.batch_size or min(usual.batch_size, 2 if profile == "7b" else STEP)
        pieces = 1 if self.batch_size else max(1, STEP // at_once)
        length = min(512 if profile == "tiny" else 1024, positions or 1024)
        return dataclasses.replace(
            self,
            alpha=usual_alpha(self.r, self.rslora) if self.alpha is None else self.alpha,
            lr=usual_rate(profile, text.hidden_size) if self.lr is None else self.lr,
            batch_size=at_once,
            accumulation=self.accumulation or pieces,
            max_length=self.max_length or length,
            positions=positions,
            checkpointing=profile == "7b" if self.checkpointing is None else self.checkpointing,
        )

    def timed(self, records: int) -> Settings:
        """With the length of the run in steps, for so many records to train on, and in epochs. Those of
        :meth:`filled`; raises ValueError when there are no records."""
        if records < 1:
            raise ValueError("there are no records to train on")
        a_pass = math.ceil(records / ((self.batch_size or 1) * (self.accumulation or 1)))
        if self.steps is not None:
            return dataclasses.replace(self, epochs=self.steps / a_pass)
        epochs = usual_epochs(records) if self.epochs is None else self.epochs
        return dataclasses.replace(self, epochs=epochs, steps=max(1, round(epochs * a_pass)))

    @property
    def look_every(self) -> int:
        """Steps from one checkpoint, and look at the dev loss, to the next. Of settings that are :meth:`timed`."""
        return max(1, math.ceil((self.steps or 1) / LOOKS))

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises: ten, in a short run a tenth. Of settings that are :meth:`timed`."""
        return min(10, (self.steps or 1) // 10)

    def sentence(self, records: int, dev: int) -> str:
        """The run in a line, for `records` to train on and `dev` more to choose by. Of settings that are
        :meth:`timed`."""
        each = f"{self.batch_size}" + (f" x {self.accumulation}" if (self.accumulation or 1) > 1 else "")
        often = "after every step" if self.look_every == 1 else f"every {self.look_every} steps"
        by, none = (f"; the loss of {dev} more {often} chooses the checkpoint", "") if dev else ("", _no_dev(records))
        return (
            f"{_count(records, 'record')} to train on, {_count(self.epochs or 0, 'epoch')}, "
            f"{_count(self.steps or 0, 'step')} of {each}{by}; learning rate {self.lr:g}, r={self.r}, "
            f"alpha={self.alpha:g}{none}"
        )

    def table(self) -> dict[str, Any]:
        """Every setting by the name that a reader knows, as a model card shows it. Of settings that are
        :meth:`timed`."""
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        more = {"target_parameters": self.target_parameters, "left out": self.exclude}
        return {
            "r": self.r,
            "lora_alpha": f"{self.alpha:g}",
            "scale": f"{self.scale:.3g} (alpha / {'sqrt(r), rsLoRA' if self.rslora else 'r'})",
            "target_modules": targets,
            **{name: ", ".join(names) for name, names in more.items() if names},
            "learning rate": f"{self.lr:g}",
            **({"weight decay": f"{self.weight_decay:g}"} if self.weight_decay else {}),
            "steps": self.steps,
            "batch size": f"{self.batch_size}" + (f" x {self.accumulation}" if (self.accumulation or 1) > 1 else ""),
            "max_length": self.max_length,
            "checkpointing": self.checkpointing,
            "seed": self.seed,
        }


def _no_dev(records: int) -> str:
    """Why there is no dev set, and what follows: the end of a sentence, and another."""
    least = round(DEV_AT_LEAST / DEV_SHARE)
    why = f"that takes {least} records to train on" if records < least else "too few different prompts"
    return f". No dev set ({why}): the weights of the last step are kept"


def _count(number: float, noun: str) -> str:
    text = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    return f"{text} {noun}{'s' * (number != 1)}"


def usual_alpha(r: int, rslora: bool) -> int:
    """The lora_alpha that makes the scale :data:`SCALE`: twice the rank, with rsLoRA twice its root."""
    return max(1, round(SCALE * math.sqrt(r))) if rslora else SCALE * r


def usual_rate(profile: str, hidden_size: int) -> float:
    """A learning rate to begin with, for a model of this hidden size, to one digit.

    That of the profile's own model is the course's (under `tiny` the one of its three other tasks, 4e-3, which forgets
    less than the pirate's own 6e-3). For another model it is brought to its width: four times as wide, a third of the
    rate (:data:`WIDTH_POWER`, which says where that is from). Try three times less and more.
    """
    from utils.train.recipes import recipe

    usual = 4e-3 if profile == "tiny" else recipe("style", profile).lr
    return float(f"{usual * (WIDTHS[profile] / hidden_size) ** WIDTH_POWER:.0e}")


def usual_epochs(records: int) -> int:
    """How many passes over so many records: three, for a few records more, for very many one.

    >>> [usual_epochs(n) for n in (10, 30, 405, 10_000, 50_000)]
    [10, 3, 3, 2, 1]
    """
    if USUAL_EPOCHS * records < FEWEST_SEEN:
        return min(MOST_EPOCHS, FEWEST_SEEN // records)
    return max(1, min(USUAL_EPOCHS, MOST_SEEN // records))
