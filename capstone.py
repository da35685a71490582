# Made by tools/build_notebooks.py from lessons/13_capstone.md: edit that.
"""Fine-tune a language model with LoRA on a file of your own, and report what came of it.

    python capstone.py --data my.jsonl --out my-adapter

The file is a .csv, .json or .jsonl with instruction and output, perhaps input, or with messages.
COURSE_PROFILE (tiny, small, 7b) chooses the model, COURSE_MODEL any other. See --help.
"""

import argparse
import gc
import tempfile
from pathlib import Path

import torch

from utils.callbacks import LiveLoss
from utils.data import check_completions_survive, data_report, to_prompt_completion
from utils.evaluation import evaluate, report
from utils.files import replaced_folder
from utils.model_card import write_card
from utils.models import ModelUnavailable, compute_dtype, load_4bit, load_base, model_device
from utils.own_data import data_facts, general_texts, read_own, split_records, usual_settings

MAX_LENGTH = 256
ADAPTER = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def prepare(path, tokenizer):
    """Read the file or refuse it, split it without a leak, and say what is in it."""
    split = split_records(read_own(path))
    check_completions_survive(split.train, tokenizer, MAX_LENGTH)
    print(data_report(split.train, tokenizer, MAX_LENGTH, held_out=split.held_out))
    return split


def load(four_bit):
    """The base, its weights in 16 bits (32 on a CPU) or in 4, and its tokenizer."""
    gc.collect()  # a base that nobody needs any more makes room
    return load_4bit() if four_bit else load_base()


def sft_settings(folder, settings):
    from trl import SFTConfig

    dtype, on_cpu = compute_dtype(), model_device().type == "cpu"
    return SFTConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        warmup_steps=10,
        max_length=MAX_LENGTH,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=None,  # TRL would turn it on
    )


def train(model, tokenizer, records, settings):
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTTrainer

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=sft_settings(scratch, settings),
            train_dataset=Dataset.from_list([to_prompt_completion(r) for r in records]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=settings.r, lora_alpha=2 * settings.r, **ADAPTER),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LiveLoss())
        trainer.train()
    return trainer.model


def reload(folder, four_bit):
    """A fresh base with the saved adapter on it: what whoever gets the folder will have."""
    from peft import PeftModel

    base, tokenizer = load(four_bit)
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer


def compare(model, tokenizer, records):
    """The base and the adapter on the same held-out records, and on texts of another kind."""
    after = evaluate(model, tokenizer, records, general=general_texts())
    with model.disable_adapter():
        before = evaluate(model, tokenizer, records, general=general_texts())
    return before, after


def fine_tune(data, out, settings, four_bit=False):
    """All of it. The folder `out` is written when everything is done, or not at all."""
    if Path(out).exists():
        raise FileExistsError(f"{out} exists already: choose another folder, or move that one")
    model, tokenizer = load(four_bit)
    split = prepare(data, tokenizer)
    with replaced_folder(out) as partial:
        model = train(model, tokenizer, split.train, settings)
        model.save_pretrained(partial, save_embedding_layers=False)  # or PEFT asks the Hub
        del model
        model, tokenizer = reload(partial, four_bit)
        before, after = compare(model, tokenizer, split.held_out)
        shown = {"r": settings.r, "lora_alpha": 2 * settings.r, "learning rate": settings.lr}
        shown |= {"steps": settings.steps, "batch": settings.batch_size, "4-bit base": four_bit}
        write_card(partial, data_facts(data, split), shown, before, after, name=Path(out).name)
    return before, after


def main(arguments=None):
    usual = usual_settings()
    parser = argparse.ArgumentParser(description="LoRA on a file of your own.")
    parser.add_argument("--data", required=True, help="a .csv, .json or .jsonl file")
    parser.add_argument("--out", required=True, help="a new folder for adapter, report and card")
    parser.add_argument("--four-bit", action="store_true", help="QLoRA: the base in 4 bits")
    parser.add_argument("--rank", type=int, default=usual.r, help="r; alpha is twice that")
    parser.add_argument("--steps", type=int, default=usual.steps, help="optimizer steps")
    parser.add_argument("--rate", type=float, default=usual.lr, help="peak learning rate")
    given = parser.parse_args(arguments)
    settings = usual._replace(r=given.rank, steps=given.steps, lr=given.rate)
    try:
        before, after = fine_tune(given.data, given.out, settings, given.four_bit)
    except (ValueError, OSError, ModelUnavailable) as problem:
        parser.exit(1, f"error: {problem}\n")
    print(report(before, after))


if __name__ == "__main__":
    main()
