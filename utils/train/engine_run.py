"""A run from its file (:mod:`utils.train.run_file`) on one process or on many, whichever engine the launcher chose.

The engine is the launcher's configuration: none, DDP, FSDP2 or ZeRO-3 (`tools/engines`). A step's records, the losses
and the adapter are the same on any number of processes. The checkpoints are the engine's own; what comes out at the
end is an ordinary PEFT folder.

Attributes:
    TIMEOUT: Seconds that processes wait for each other, unless the file's ``sft.ddp_timeout`` says otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from utils.train import run_folder
from utils.train.run_file import RunFile, batch_of_a_process
from utils.train.run_values import check_section, check_values
from utils.train.shard_on_cpu import shard_on_cpu, wants_deepspeed, wants_fsdp

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel, TrainerCallback
    from trl import SFTConfig, SFTTrainer

TIMEOUT = 600.0


class Ranks(NamedTuple):
    """This process among those of the run, as the launcher says: its `rank` of `world`."""

    rank: int
    world: int

    @property
    def main(self) -> bool:
        return self.rank == 0


def ranks() -> Ranks:
    """From torchrun's variables; without a launcher 0 of 1."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


# --------------------------------------------------------------------------------------------- the file's values, made


def sft_settings(run: RunFile, checkpoints: Path) -> SFTConfig:
    """TRL's settings for a run: its `sft`, the batch of one process, and what the machine asks for.

    An incomplete last batch of a pass is left out, since it can't be dealt out evenly. Raises ValueError for what
    :func:`utils.train.run_values.check_values` refuses and for a batch that the processes don't divide.
    """
    from trl import SFTConfig

    from utils.models.device import best_device, trainer_precision

    check_section("sft", run.sft)
    accumulation = int(run.sft.get("gradient_accumulation_steps", 1))
    settings: dict[str, Any] = {
        "per_device_train_batch_size": batch_of_a_process(run.global_batch_size, ranks().world, accumulation),
        "dataloader_drop_last": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "ddp_find_unused_parameters": False,  # transformers' default looks for them at every step
        "gradient_checkpointing": None,  # TRL's default is True, and any value under this old name warns
        "seed": 0,
        "ignore_data_skip": run.streaming,  # a stream begins where the run goes on
        **trainer_precision(best_device()),
        **({"use_cpu": False} if wants_deepspeed() else {}),  # with True accelerate would leave DeepSpeed out
        **run.sft,
    }
    if settings["gradient_checkpointing"]:
        settings.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    return SFTConfig(output_dir=str(checkpoints), **settings)


def lora_settings(run: RunFile) -> LoraConfig:
    """PEFT's settings for a run. Raises ValueError for what :func:`utils.train.run_values.check_values` refuses."""
    from peft import LoraConfig

    check_section("lora", run.lora)
    return LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **run.lora})


def four_bit_settings(run: RunFile) -> BitsAndBytesConfig | None:
    """bitsandbytes' settings for a run, NF4 unless the file says otherwise (transformers' default is FP4); None without
    `four_bit`.

    Raises ValueError for what :func:`utils.train.run_values.check_values` refuses, and under FSDP where the 4-bit codes
    are stored as integers: only floating-point weights are sharded, so they have to be stored in the dtype of the
    adapter, bfloat16 (peft #1432, trl #1723).
    """
    if run.four_bit is None:
        return None
    from transformers import BitsAndBytesConfig

    check_section("four_bit", run.four_bit)
    if wants_fsdp() and run.four_bit.get("bnb_4bit_quant_storage") != "bfloat16":
        raise ValueError(
            "FSDP shards floating-point weights only: four_bit needs bnb_4bit_quant_storage: bfloat16, the dtype of "
            f"the adapter, and has {run.four_bit.get('bnb_4bit_quant_storage', 'uint8, which is the default')}"
        )
    return BitsAndBytesConfig(**{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **run.four_bit})


def training_data(run: RunFile, *, world: int, step: int = 0) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """Prompts and completions to train on, and to evaluate on where something is held out.

    A stream begins with the records of `step`. Raises what :func:`utils.data.formats.read_own` and
    :mod:`utils.data.stream` raise, and ValueError when `only` leaves nothing, or less than a step's records.
    """
    from datasets import Dataset

    from utils.data.formats import read_own
    from utils.data.records import to_prompt_completion
    from utils.data.rows import read_rows
    from utils.data.stream import stream_dataset, stream_files, wanted

    if run.streaming:
        stream = stream_dataset(
            stream_files(run.data), batch=run.global_batch_size, parts=world, only=run.only,
            start=step * run.global_batch_size, buffer=run.buffer, seed=int(run.sft.get("seed", 0)),
        )  # fmt: skip
        return stream, None
    if run.only is None:
        records = read_own(run.data).records
    else:
        records = [row for _, row in read_rows(run.data).rows if isinstance(row, dict) and wanted(row, run.only)]
    if not records:
        raise ValueError(f"{Path(run.data).name} has no record with {dict(run.only or {})}")
    data = Dataset.from_list([to_prompt_completion(record) for record in records])
    if not run.held_out:
        check_fills_a_step(len(data), run)
        return data, None
    both = data.train_test_split(test_size=run.held_out, seed=0)
    check_fills_a_step(len(both["train"]), run)
    return both["train"], both["test"]


def check_fills_a_step(records: int, run: RunFile) -> None:
    """Raise ValueError where the records of a pass don't fill one step. An incomplete batch is left out, so the trainer
    would take no step at all and leave an untrained adapter."""
    if records < run.global_batch_size:
        rest = f" after holding out {run.held_out:g} of them" if run.held_out else ""
        raise ValueError(
            f"{records} records{rest} are fewer than a step's {run.global_batch_size}: nothing would be trained. Give "
            f"more data, or a global_batch_size of {records} or less"
        )


# ------------------------------------------------------------------------------------------------------------- a run


@contextmanager
def shared_folder(run: RunFile) -> Iterator[Path]:
    """The partial folder of a run for all of its processes: the main one makes it, and in the end renames it
    (:func:`utils.train.run_folder.unfinished`, which says what is raised); the others wait."""
    here = ranks()
    with run_folder.unfinished(run.output, run.said()) if here.main else nullcontext():
        _wait()
        yield run_folder.partial_folder(run.output)
        _wait()


def join(timeout: float = TIMEOUT) -> None:
    """Become one of the run's processes, where a launcher started several, and keep the libraries quiet.

    timeout: seconds after which a collective that some process doesn't enter ends in an error, SFTConfig's
    `ddp_timeout`; that of SFTConfig comes too late, when there is a process group.
    """
    import datasets
    import torch
    import torch.distributed as dist
    import transformers

    from utils.quiet import quiet_upstream

    quiet_upstream()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    if "RANK" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    shard_on_cpu()


def _wait() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


class Held(NamedTuple):
    """How many of a model's numbers this process holds, and how many there are; bitsandbytes' codes as they lie."""

    here: int
    all: int


def held(model: nn.Module) -> Held:
    """What this process holds of a model that an engine has wrapped."""
    here = whole = 0
    for each in model.parameters():
        parameter = cast(Any, each)
        if hasattr(parameter, "ds_numel"):  # ZeRO-3's mark
            here, whole = here + parameter.ds_tensor.numel(), whole + parameter.ds_numel
        else:
            here += parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()
            whole += parameter.numel()
    return Held(here, whole)


def engine_name() -> str:
    """Which engine the launcher's configuration asks for: "FSDP2", "ZeRO-3", "DDP", or "no engine" for one process."""
    if wants_deepspeed():
        return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '?')}"
    return "FSDP2" if wants_fsdp() else "DDP" if ranks().world > 1 else "no engine"


def at_the_engine(adapter: LoraConfig) -> TrainerCallback:
    """A callback that says what each process holds, and puts the adapter's settings into each checkpoint: the trainer
    leaves them out where it saves shards, and without them the shards are no adapter.

    Raises RuntimeError as the training begins when the engine should have cut the model up and hasn't.
    """
    from transformers import TrainerCallback

    class AtTheEngine(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            (here, whole), world, name = held(model), ranks().world, engine_name()
            if world > 1 and name in ("FSDP2", "ZeRO-3") and here == whole:
                raise RuntimeError(f"{name} was asked for, and this process holds all of the model: it isn't sharded")
            if ranks().main:
                processes = f"{world} process{'es' * (world > 1)}"
                print(f"{name[:1].upper()}{name[1:]}, {processes}: rank 0 holds {here:,} of {whole:,} numbers")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if state.is_world_process_zero and folder.is_dir():
                adapter.save_pretrained(str(folder))

    return AtTheEngine()


def build(run: RunFile, checkpoints: Path, *, step: int = 0) -> SFTTrainer:
    """The trainer of a run in this process, checked as :func:`utils.train.sft.sft_trainer` does.

    checkpoints: their folder; step: where the run goes on. TRL's settings come first: they tell transformers of the
    engine, by which it decides how a model is loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils.models.device import best_device, weights_dtype
    from utils.train.sft import sft_trainer

    args, adapter, four_bit = sft_settings(run, checkpoints), lora_settings(run), four_bit_settings(run)
    train, evaluation = training_data(run, world=ranks().world, step=step)
    more: dict[str, Any] = {"dtype": weights_dtype(best_device())}
    if four_bit is not None:
        more = {"dtype": four_bit.bnb_4bit_compute_dtype, "quantization_config": four_bit}
        more["device_map"] = {"": args.device if args.device.type != "cpu" else torch.device("cpu")}
    try:
        model = cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(run.model, **more))
    except OSError as error:
        if Path(run.model).is_dir():
            raise
        said = str(error).partition("\n")[0]
        raise OSError(f"model: there is no folder {run.model} here, and from the Hub: {said}") from error
    if four_bit is not None and args.device.type == "cpu":
        from utils.models.loading import keep_trainable

        keep_trainable(model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    trainer = sft_trainer(model, tokenizer, cast("Dataset", train), args, evaluation=evaluation, peft_config=adapter)
    if not run.streaming:  # TRL leaves out what max_length cuts away
        check_fills_a_step(len(cast("Dataset", trainer.train_dataset)), run)
    trainer.add_callback(at_the_engine(adapter))
    return trainer


def train(run: RunFile) -> Path:
    """Train a run to its end, from the last whole checkpoint where an earlier one has left some, and give the adapter's
    folder. Every process of the run calls it.

    Raises FileExistsError when `output` is there or another run's checkpoints are in its place, what
    :func:`utils.train.run_values.check_values` and :func:`build` raise, and ValueError when the trainer ends before
    the steps that were planned.
    """
    import torch.distributed as dist

    from utils.train.consolidate import check_resumable, save_gathered
    from utils.train.lost_rank import says_when_another_ends

    check_values(run)
    with says_when_another_ends(lambda: run_folder.what_is_left(run.output)):
        join(float(run.sft.get("ddp_timeout", TIMEOUT)))
        with shared_folder(run) as partial:
            last = run_folder.last_checkpoint(partial / run_folder.CHECKPOINTS)
            step = int(last.name.rpartition("-")[2]) if last else 0
            if last:
                check_resumable(last, engine_name().replace("no engine", "DDP"), ranks().world)
            trainer = build(run, partial / run_folder.CHECKPOINTS, step=step)
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            if trainer.state.global_step < trainer.state.max_steps:
                took, planned = trainer.state.global_step, trainer.state.max_steps
                raise ValueError(f"the training ended after {took} of {planned} steps: the data ran out")
            trained = cast("PeftModel", trainer.accelerator.unwrap_model(trainer.model))
            save_gathered(trained, partial, main=ranks().main)
            if ranks().main:
                log = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
                (partial / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        if dist.is_initialized():
            dist.destroy_process_group()
    return Path(run.output)
