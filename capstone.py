# Made by tools/build from lessons/13_capstone.md: edit that.
"""Fine-tune a language model with LoRA on a file of your own, and report what came of it.

    python capstone.py --data my.jsonl --out my-adapter

The file is a .csv, .json or .jsonl with instruction and output, perhaps input, or with messages.
COURSE_PROFILE (tiny, small, 7b) chooses the model; beside small and 7b COURSE_MODEL names another.
"""

import argparse
import gc
import tempfile

from utils.course.model_card import write_card
from utils.data import check_completions_survive, data_report, to_prompt_completion
from utils.evaluate import evaluate
from utils.evaluate.report import comparison
from utils.files import new_folder, replaced_folder
from utils.models import ModelUnavailable, load_4bit, load_base, profile, trainer_precision, widen_trainable
from utils.profiling import checkpoint_blocks
from utils.quiet import quiet_upstream
from utils.train import data_facts, general_texts, read_own, split_records, usual_settings

ADAPTER = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def prepare(path):
    """Read the file or refuse it, split it without a leak, and keep the facts for the card."""
    split = split_records(read_own(path))
    return split, data_facts(path, split)


def look_over(split, tokenizer, max_length):
    """Say what is in the data, and refuse it when every answer would be cut away."""
    check_completions_survive(split.train, tokenizer, max_length)
    print(data_report(split.train, tokenizer, max_length, held_out=split.held_out))


def load(four_bit):
    """The base, its weights in 16 bits (32 without bf16) or in 4, and its tokenizer."""
    gc.collect()  # a base that nobody needs any more makes room
    return load_4bit() if four_bit else load_base()


def sft_settings(folder, settings):
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        warmup_steps=10,
        max_length=settings.max_length,
        **trainer_precision(),  # bf16 or fp16 or neither, and whether to stay on the CPU
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=None,  # TRL would turn it on; train() decides
    )


def train(model, tokenizer, records, settings):
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTTrainer

    from utils.train import LiveLoss

    disable_progress_bars()
    checkpoint_blocks(model, on=settings.checkpointing)
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
        if trainer.args.fp16:  # its loss scaling takes float32 gradients only
            widen_trainable(trainer.model)
        trainer.train()
    return trainer.model


def ask(model, tokenizer, records):
    """What the model makes of the held-out records, and of texts of another kind."""
    return evaluate(model, tokenizer, records, general=general_texts())


def reload(folder, four_bit):
    """A fresh base with the saved adapter on it: what whoever gets the folder will have."""
    from peft import PeftModel

    base, tokenizer = load(four_bit)
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer


def fine_tune(data, out, settings, four_bit=False):
    """All of it. The folder `out` is written when everything is done, or not at all."""
    out, settings = new_folder(out), settings.checked()
    split, facts = prepare(data)
    model, tokenizer = load(four_bit)
    look_over(split, tokenizer, settings.max_length)
    before = ask(model, tokenizer, split.held_out)
    with replaced_folder(out) as partial:
        model = train(model, tokenizer, split.train, settings)
        model.save_pretrained(partial, save_embedding_layers=False)  # or PEFT asks the Hub
        in_4bit = getattr(model, "is_loaded_in_4bit", False)
        del model
        model, tokenizer = reload(partial, four_bit)
        after = ask(model, tokenizer, split.held_out)
        shown = settings._asdict() | {"lora_alpha": 2 * settings.r, "base in 4 bits": in_4bit}
        write_card(partial, facts, shown, before, after, profile=profile(), name="-".join(out.name.split()))
    return before, after


def main(arguments=None):
    quiet_upstream()  # in a notebook the setup cell does
    usual = usual_settings(profile())
    parser = argparse.ArgumentParser(description="LoRA on a file of your own.")
    parser.add_argument("--data", required=True, help="a .csv, .json or .jsonl file")
    parser.add_argument("--out", required=True, help="a new folder for adapter, report and card")
    parser.add_argument("--four-bit", action="store_true", help="QLoRA: the base in 4 bits")
    parser.add_argument("--r", type=int, help="the rank; lora_alpha is twice that")
    parser.add_argument("--lr", type=float, help="the peak learning rate")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, help="records in a step")
    parser.add_argument("--max-length", type=int, help="tokens where a record is cut")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time")
    parser.set_defaults(**usual._asdict())
    given = parser.parse_args(arguments)
    settings = usual._replace(**{name: getattr(given, name) for name in usual._fields})
    try:
        before, after = fine_tune(given.data, given.out, settings, given.four_bit)
    except (ValueError, OSError, ModelUnavailable) as problem:
        parser.exit(1, f"error: {problem}\n")
    print(comparison(before, after))


if __name__ == "__main__":
    main()
