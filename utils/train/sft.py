"""Supervised fine-tuning with TRL: the settings, what must be right before a run begins, and how one is resumed.

Everything that can be wrong with the data, the lengths or a checkpoint is looked at here before the first step.

Attributes:
    MAX_LENGTH: Tokens of an example, in the course's runs: more than any of its examples has.
    OLD_ARGUMENTS: Arguments of TrainingArguments and SFTTrainer in tutorials of 2023, and their fate (claims C31, C32).
    TRACKERS: Values of `report_to` that the course knows, each with the package that it needs.
    FORMS: The columns of the dataset forms that SFTTrainer knows, as far as the course uses them.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import tree_iter

from utils.data.chat import IGNORED
from utils.data.labels import check_completions_survive
from utils.data.records import Record
from utils.lora import fingerprint
from utils.lora.target_modules import refuse_lost
from utils.models.device import trainer_precision, widen_trainable
from utils.train.loop import WARMUP_STEPS, check_token_ids, check_trainable, is_finite, tell_too_long
from utils.train.recipes import Recipe
from utils.train.run_values import check_numbers

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

MAX_LENGTH = 256

# ------------------------------------------------------------------------------------ what became of old arguments

Fate = Literal["same", "renamed", "gone", "elsewhere"]


class OldArgument(NamedTuple):
    """One argument of a fine-tuning script from 2023, and what it is in today's TRL.

    where: the call that it was passed to. fate: "same" (accepted), "renamed" (to `today`), "elsewhere" (moved to
    another call, as `today`), "gone". why: a sentence for the reader.
    """

    argument: str
    where: Literal["TrainingArguments", "SFTTrainer"]
    fate: Fate
    today: str | None
    why: str


def _same(*arguments: str, why: str = "") -> list[OldArgument]:
    return [OldArgument(a, "TrainingArguments", "same", a, why) for a in arguments]


OLD_ARGUMENTS: tuple[OldArgument, ...] = (
    *_same("output_dir"),
    OldArgument("overwrite_output_dir", "TrainingArguments", "gone", None, "a folder is never emptied for you"),
    *_same("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *_same("gradient_accumulation_steps"),
    *_same("learning_rate", why="SFTConfig's own default, 2e-5, is meant for full fine-tuning"),
    *_same("lr_scheduler_type"),
    *_same("warmup_steps", why="a number below 1 is a share of all steps"),
    *_same("optim", why="paged_adamw_32bit needs bitsandbytes and a GPU"),
    *_same("weight_decay", "max_grad_norm", "fp16"),
    *_same("bf16", why="SFTConfig turns it on by itself, and so raises where there is no GPU"),
    *_same("tf32", why="True raises on anything but an Ampere or newer GPU"),
    *_same("logging_steps"),
    OldArgument(
        "logging_dir", "TrainingArguments", "gone", None, "TensorBoard's folder is the variable TENSORBOARD_LOGGING_DIR"
    ),
    *_same("report_to", why="wandb needs its package and an account"),
    *_same("save_strategy", "save_steps", "save_total_limit"),
    OldArgument("evaluation_strategy", "TrainingArguments", "renamed", "eval_strategy", "renamed in transformers 4.41"),
    *_same("eval_steps"),
    *_same("load_best_model_at_end", why="evaluation and saving must come at the same steps"),
    *_same("metric_for_best_model", "greater_is_better"),
    *_same("gradient_checkpointing", why="TRL turns it on; newer transformers say activation_checkpointing"),
    *_same("ddp_find_unused_parameters"),
    OldArgument("model", "SFTTrainer", "same", "model", ""),
    OldArgument("train_dataset", "SFTTrainer", "same", "train_dataset", ""),
    OldArgument("eval_dataset", "SFTTrainer", "same", "eval_dataset", ""),
    OldArgument("tokenizer", "SFTTrainer", "renamed", "processing_class", "it may also be an image processor"),
    OldArgument(
        "formatting_func", "SFTTrainer", "same", "formatting_func", "ignored when the dataset is tokenized already"
    ),
    OldArgument(
        "data_collator", "SFTTrainer", "same", "data_collator", "seldom needed: SFTTrainer has its own, which pads"
    ),
    OldArgument("args", "SFTTrainer", "same", "args", "an SFTConfig"),
    OldArgument("packing", "SFTTrainer", "elsewhere", "packing", "now a field of SFTConfig"),
    OldArgument("max_seq_length", "SFTTrainer", "elsewhere", "max_length", "now a field of SFTConfig"),
)


# ---------------------------------------------------------------------------------------------------------- settings


def sft_config(output_dir: str | Path, recipe: Recipe, **changes: Any) -> SFTConfig:
    """TRL's settings for a run of the course, by `recipe`; `changes` are any other fields of SFTConfig.

    AdamW without weight decay, a rate that rises for ten steps and then falls along a line, gradients clipped to norm
    1, each step's loss logged, nothing saved or reported, no checkpointing. The precision follows the machine, by
    :func:`utils.models.device.trainer_precision`: on CUDA bf16 where the card has it and else fp16, elsewhere (and
    always under the profile `tiny`) float32. `num_train_epochs` takes the place of the recipe's steps. Raises
    TypeError, naming it, for a field that SFTConfig doesn't have, ValueError for a number out of its range.
    """
    from trl import SFTConfig

    fields = SFTConfig.__dataclass_fields__
    unknown = sorted(set(changes) - set(fields))
    if unknown:
        today = {line.argument: line for line in OLD_ARGUMENTS}
        said = [f"{name} ({today[name].today or today[name].why})" if name in today else name for name in unknown]
        end = ": see utils.train.sft.OLD_ARGUMENTS for what became of it"
        if not any(name in today for name in unknown):
            near = difflib.get_close_matches(unknown[0], fields, n=1)
            end = f": did you mean {near[0]}?" if near else ""
        raise TypeError(f"SFTConfig has no field {', '.join(said)}{end}")
    check_numbers("sft", changes)
    if "num_train_epochs" in changes:
        changes = {"max_steps": -1, **changes}  # else the recipe's steps would win
    settings: dict[str, Any] = {
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": WARMUP_STEPS,
        "max_length": MAX_LENGTH,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **trainer_precision(),
        "seed": 0,
        "gradient_checkpointing": None,  # TRL's default is True, and any value under this old name warns
    }
    return SFTConfig(output_dir=str(output_dir), **{**settings, **changes})


def lora_config(recipe: Recipe, **changes: Any) -> LoraConfig:
    """PEFT's LoraConfig for a recipe; `changes` are any other fields of it. Raises ValueError for a number out of its
    range, such as a `lora_alpha` of 0, which PEFT takes: the update is multiplied by it.
    """
    from peft import LoraConfig

    check_numbers("lora", changes)
    settings: dict[str, Any] = {
        "r": recipe.r,
        "lora_alpha": recipe.lora_alpha,
        "target_modules": recipe.target_modules,
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**settings, **changes})


TRACKERS = {"none": None, "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def tracker(name: str = "tensorboard") -> str:
    """The value for `report_to`, once it is sure that the tracker's package is there.

    Raises ValueError for a name the course doesn't know, and ModuleNotFoundError, with the command that mends it, for a
    package that isn't installed: transformers would say so after the data has been prepared.
    """
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker {name!r}: choose one of {', '.join(TRACKERS)}")
    package = TRACKERS[name]
    if package and importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"report_to={name!r} needs the package {package}: pip install {package}, or use tensorboard, which came "
            "with the course"
        )
    return name


# -------------------------------------------------------------------------------------- what must hold before a run

FORMS = (("prompt", "completion"), ("messages",), ("input_ids", "labels"), ("input_ids",), ("text",))


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is read while it is used, such as that of :mod:`utils.data.stream`: it has no length, and
    nothing can be looked at beforehand but its first example."""
    from datasets import IterableDataset

    return isinstance(dataset, IterableDataset)


def check_dataset(dataset: Dataset, name: str = "training") -> tuple[str, ...]:
    """The columns of `dataset` that SFTTrainer will read: one of :data:`FORMS`.

    Raises ValueError when the dataset is empty, or is a dictionary of splits or a list, or has none of the forms, or
    both messages and prompt and completion.
    """
    if isinstance(dataset, list):
        raise ValueError(
            f"the {name} data is a list, and SFTTrainer takes a dataset: datasets.Dataset.from_list(...) makes one"
        )
    if isinstance(dataset, dict):
        raise ValueError(
            f"the {name} data is a dictionary of splits ({', '.join(dataset)}), not a dataset: take one of them, "
            f"such as data[{next(iter(dataset), 'train')!r}]"
        )
    if not is_stream(dataset) and not len(dataset):
        raise ValueError(f"the {name} data is empty: it has 0 examples. Look at the filter or the split that made it")
    columns = list(dataset.column_names or next(iter(dataset)))
    if {"messages", "prompt", "completion"} <= set(columns):
        raise ValueError(
            f"the {name} data has messages and also prompt and completion, and only one of them is trained on: keep "
            "one, such as dataset.select_columns(['prompt', 'completion'])"
        )
    for form in FORMS:
        if all(column in columns for column in form):
            return form
    forms = "; ".join(" and ".join(form) for form in FORMS)
    raise ValueError(
        f"the {name} data has the columns {', '.join(columns)}, and SFTTrainer needs one of these sets: {forms}. Map "
        "your records first, for example with utils.data.to_prompt_completion"
    )


def trained_tokens(dataset: Dataset) -> tuple[int, int]:
    """How many tokens of a tokenized dataset have a label, and how many there are."""
    labels = [label for row in dataset["labels"] for label in row]
    return sum(label != IGNORED for label in labels), len(labels)


def sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    args: SFTConfig,
    *,
    evaluation: Dataset | None = None,
    peft_config: LoraConfig | None = None,
    formatting_func: Callable[[dict], str] | None = None,
    callbacks: Sequence[Any] = (),
) -> SFTTrainer:
    """An SFTTrainer that is sure of its data: looked at, tokenized, with labels left in every split.

    TRL drops an example without a word when `max_length` cuts its whole completion away; here that is a warning with
    their number, and an error if it befalls all of them, before any training. transformers' callback that prints every
    log as a dictionary is left out. Each checkpoint keeps :func:`run_of` in its `trainer_state.json`. Raises ValueError
    for what :func:`check_dataset` refuses, when nothing is left to train on, when the model has LoRA already and
    `peft_config` asks for more, when one of its targets matches nothing, when `args` want evaluations and there are no
    `evaluation` data, and for what :func:`utils.train.loop.check_trainable` and
    :func:`utils.train.loop.check_token_ids` refuse.
    """
    from peft import PeftModel
    from transformers import PrinterCallback
    from trl import SFTTrainer

    from utils.train.callbacks import RunRecord

    if isinstance(model, PeftModel) and peft_config is not None:
        raise ValueError(
            "the model carries a PEFT adapter already: pass it without peft_config, or pass the plain base"
        )
    if targets := getattr(peft_config, "target_modules", None):
        refuse_lost(model, targets if isinstance(targets, str) else sorted(targets))
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    if evaluation is None and strategy != "no":
        raise ValueError(f"eval_strategy={strategy!r} needs data to evaluate on: sft_trainer(..., evaluation=...)")
    splits = {"training": train} if evaluation is None else {"training": train, "evaluation": evaluation}
    for name, split in splits.items():
        unread = formatting_func is not None and "input_ids" not in (split.column_names or ())  # it makes the columns
        form = ("text",) if unread else check_dataset(split, name)
        if is_stream(split):
            continue
        if form == ("prompt", "completion") or (form == ("messages",) and args.assistant_only_loss):
            rows = cast("Iterable[Record]", split)  # datasets says no more than that it can be iterated
            lost = 0 if args.packing else check_completions_survive(rows, tokenizer, args.max_length)
            if lost:
                warnings.warn(
                    f"max_length={args.max_length} cuts the whole completion away in {lost} of the {len(split)} "
                    f"examples of the {name} data: TRL leaves them out",
                    stacklevel=2,
                )
    record = RunRecord()
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=peft_config,
        formatting_func=formatting_func,
        callbacks=[*callbacks, record],
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.args.fp16:
        widen_trainable(cast("PeftModel", trainer.model))
    check_trainable(cast("PeftModel", trainer.model))
    largest, longest = _largest_id_and_longest_row(trainer, tokenizer)
    check_token_ids(cast("PeftModel", trainer.model), tokenizer, largest)
    tell_too_long(cast("PeftModel", trainer.model), longest)
    record.run = run_of(trainer)
    return trainer


def _largest_id_and_longest_row(trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The largest id that the trainer's batches will hold, padding included, and the tokens of their longest row."""
    largest, longest = cast("int | None", tokenizer.pad_token_id) or 0, 0
    for split in (trainer.train_dataset, trainer.eval_dataset):
        if not is_stream(split) and "input_ids" in getattr(split, "column_names", ()):
            for ids in cast("Dataset", split)["input_ids"]:
                largest, longest = max(largest, max(ids, default=0)), max(longest, len(ids))
    return largest, longest


# ------------------------------------------------------------------------------------------------------------ resume


class CheckpointMismatch(ValueError):
    """A checkpoint that isn't one of this run: of other settings, of another base or shape, or damaged."""


_MAY_DIFFER = ("inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "runtime_config")
_SETTINGS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "seed",
    "data_seed", "max_length", "packing", "completion_only_loss", "assistant_only_loss",
)  # fmt: skip


def run_of(trainer: SFTTrainer) -> dict[str, Any]:
    """What a run depends on beside its adapter's settings and its rate, as numbers and names that JSON can hold.

    ``base`` is the base's fingerprint (:mod:`utils.lora.fingerprint`) as text, None without an embedding; ``examples``
    the number of training examples; the rest are settings.
    """
    weight = fingerprint.embedding(cast("PeftModel", trainer.model))
    return {"base": None if weight is None else fingerprint.fingerprint(weight).text(), **_settings_of(trainer)}


def _settings_of(trainer: SFTTrainer) -> dict[str, Any]:
    """:func:`run_of` without the base, whose embedding takes a while to hash."""
    settings = trainer.args.to_dict()
    return {
        "examples": None if is_stream(trainer.train_dataset) else len(cast("Dataset", trainer.train_dataset)),
        **{name: settings[name] for name in _SETTINGS if name in settings},
    }


class _Checkpoint(NamedTuple):
    """What a checkpoint's files hold; of the random states only that they can be read."""

    state: dict[str, Any]
    config: dict[str, Any]
    matrices: dict[str, Tensor]
    scheduler: dict[str, Any]


def _read_checkpoint(folder: Path) -> _Checkpoint:
    """Read every file that transformers will read. Raises what :func:`check_checkpoint` raises for missing and damaged
    ones.
    """
    from transformers.trainer_pt_utils import safe_globals

    def pickled(path: Path) -> dict[str, Any]:
        with safe_globals():
            return torch.load(path, map_location="cpu", weights_only=True)

    def written(path: Path) -> dict[str, Any]:
        return json.loads(path.read_text(encoding="utf-8"))

    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "trainer_state.json": written, "adapter_config.json": written, "adapter_model.safetensors": load_file,
        "optimizer.pt": pickled, "scheduler.pt": pickled,
    }  # fmt: skip
    readers |= dict.fromkeys([path.name for path in folder.glob("rng_state*.pth")] or ["rng_state.pth"], pickled)
    if missing := [name for name in readers if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder.name} has no {missing[0]}: it is no checkpoint of a LoRA run, or one whose saving was cut off. "
            "Take an earlier one"
        )
    held: dict[str, dict[str, Any]] = {}
    for name, reader in readers.items():
        try:
            held[name] = reader(folder / name)
            wrong = "" if isinstance(held[name], dict) else f"it holds a {type(held[name]).__name__} and no dictionary"
        except (ValueError, RuntimeError, OSError, EOFError, RecursionError, UnpicklingError, SafetensorError) as error:
            wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'it is empty'}"
        if wrong:
            raise CheckpointMismatch(
                f"{folder.name} is damaged, its {name} can't be read ({wrong}): take an earlier one"
            )
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        if not all(is_finite(leaf) for leaf in tree_iter(held[name]) if isinstance(leaf, Tensor)):
            raise CheckpointMismatch(
                f"{folder.name} is spoilt: its {name} holds NaN or infinity, so that run had diverged. Take an earlier "
                "one, and a lower learning rate"
            )
    state, config, matrices = (held[name] for name in list(readers)[:3])
    return _Checkpoint(state, config, matrices, held["scheduler.pt"])


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | list | tuple) else value


def check_checkpoint(checkpoint: str | Path, trainer: SFTTrainer) -> Path:
    """The checkpoint's folder, once it is sure that `trainer` can go on from it.

    Compared are the adapter's settings and shapes, the learning rate, the steps and the batch size, the base's name
    and, where :func:`sft_trainer` made the run that was saved, all of :func:`run_of`. transformers itself warns about
    another batch size, and of the rest says nothing: it goes on with the old rate. Raises :class:`CheckpointMismatch`
    with every difference, or when a file is damaged or holds numbers that aren't finite, and FileNotFoundError when the
    folder or one of its files is missing.
    """
    folder = Path(checkpoint)
    state, saved, matrices, scheduler = _read_checkpoint(folder)
    config = asdict(cast("PeftModel", trainer.model).active_peft_config)
    args, here = trainer.args, _settings_of(trainer)
    pairs = [(name, saved[name], config[name]) for name in config if name in saved and name not in _MAY_DIFFER]
    bases = [str(each.get("base_model_name_or_path") or "").rstrip("/") for each in (saved, config)]
    if all(bases):
        was, now = (base.replace("\\", "/").rpartition("/")[2] for base in bases)
        pairs.append(("the base", was, now))
    rates = scheduler.get("base_lrs") or [args.learning_rate]
    pairs.append(("learning_rate", rates[0], args.learning_rate))
    if args.max_steps > 0:
        pairs.append(("max_steps", state.get("max_steps"), args.max_steps))
    pairs.append(("per_device_train_batch_size", state.get("train_batch_size"), args.train_batch_size))
    try:
        record = dict(state["stateful_callbacks"]["RunRecord"]["args"]["run"])
    except (KeyError, TypeError, ValueError):  # a plain SFTTrainer's checkpoint
        record = {}
    named = {"examples": "the number of training examples"}
    pairs += [(named.get(name, name), was, here[name]) for name, was in record.items() if name in here]
    differences = dict.fromkeys(
        f"{n} was {_plain(a)!r} and is {_plain(b)!r}" for n, a, b in pairs if _plain(a) != _plain(b)
    )
    weight = fingerprint.embedding(cast("PeftModel", trainer.model))
    if weight is not None and isinstance(record.get("base"), str):
        try:
            other = fingerprint.difference(fingerprint.parsed(record["base"]), weight)
        except ValueError as error:
            other = f"what the checkpoint says of it is damaged ({error})"
        if other:
            differences[f"the base's embedding is another one: {other}"] = None
    if not differences:
        from peft import get_peft_model_state_dict

        own = get_peft_model_state_dict(cast("PeftModel", trainer.model), save_embedding_layers=False)
        shapes, needed = ({k: tuple(v.shape) for k, v in each.items()} for each in (matrices, own))
        wrong = sorted(k for k in needed.keys() | shapes.keys() if needed.get(k) != shapes.get(k))
        if wrong:
            key = wrong[0]
            differences = {
                f"{len(wrong)} matrices, such as {key}, were {shapes.get(key)} and are {needed.get(key)}": None
            }
    if differences:
        raise CheckpointMismatch(
            f"{folder.name} belongs to another run: {'; '.join(differences)}. Resume with the settings of that run, or "
            "start anew in another output_dir"
        )
    return folder


def resume(trainer: SFTTrainer) -> SFTTrainer:
    """Go on from the last checkpoint in the trainer's `output_dir` to the end of the run, and give the trainer back.

    Raises FileNotFoundError when there is no checkpoint, and what :func:`check_checkpoint` raises.
    """
    from transformers.trainer_utils import get_last_checkpoint

    folder = cast(str, trainer.args.output_dir)  # never None: without one transformers takes "trainer_output"
    last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if last is None:
        raise FileNotFoundError(
            f"there is no checkpoint in {Path(folder).name}: was save_strategy set, and is output_dir the same as then?"
        )
    trainer.train(resume_from_checkpoint=str(check_checkpoint(last, trainer)))
    return trainer
