# Made by tools/build from lessons/20_capstone.md: edit that.
"""Fine-tune a language model with LoRA on a file of your own, and report what came of it.

    python capstone.py --data my.jsonl --out my-adapter

COURSE_PROFILE (tiny, small, 7b) chooses the model; beside small and 7b COURSE_MODEL names another.
A run that stopped goes on when it is called again as before.
"""

import gc
from dataclasses import asdict
from pathlib import Path

from utils.course.own_run import command_line, loading, one_line, settings_of, to_export, what_now
from utils.data import read_own
from utils.quiet import quiet_upstream
from utils.train import data_facts, hold_out
from utils.train.run_folder import CHECKPOINTS, is_trained, keep_adapter, last_checkpoint, unfinished


def prepare(path, settings):
    """Read the file or refuse it, say what it is, split it without a leak, and keep the facts for the card."""
    reading = read_own(path)
    print(reading)
    split = hold_out(reading.records, settings.held_out, settings.seed)
    return reading, split, data_facts(path, split)


def look_over(reading, split, tokenizer, settings):
    """Say what will be learned, or refuse it; the encoded rows to train on, and those of the dev split."""
    from utils.data import check_template, data_report
    from utils.lora.run_targets import look_at_targets, skeleton
    from utils.models import load_config
    from utils.train import other_texts

    check_template(reading, tokenizer)
    other_texts(settings.general, tokenizer)
    base = skeleton(load_config(tokenizer.name_or_path))  # its names, without weights
    targets = look_at_targets(base, settings.targets, settings.target_parameters, settings.exclude)
    cut, known = settings.max_length, settings.positions
    report = data_report(split.train, tokenizer, cut, split.held_out, context=known).checked()
    print(report, *report.warnings(), *targets, sep="\n")
    return report.rows, data_report(split.dev, tokenizer, cut).rows if split.dev else []


def load(four_bit):
    """The base, its weights in 16 bits (32 without bf16) or in 4, and its tokenizer."""
    from utils.models import load_4bit, load_base

    gc.collect()  # a base that nobody needs any more makes room
    return load_4bit() if four_bit else load_base()


def sft_settings(folder, settings, dev=False):
    from trl import SFTConfig

    from utils.models import trainer_precision

    return SFTConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.lr,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_length=settings.max_length,
        seed=settings.seed,
        **trainer_precision(),  # bf16 or fp16 or neither, and whether to stay on the CPU
        **looks(settings.look_every, dev),
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=None,  # TRL would turn it on; train() decides
    )


def looks(every, dev):
    """A checkpoint every so many steps; with a dev split its loss too, and in the end the best of them."""
    saved = {"save_strategy": "steps", "save_steps": every, "save_total_limit": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    return saved | best | {"eval_strategy": "steps", "eval_steps": every} if dev else saved


def lora_config(settings):
    from peft import LoraConfig

    from utils.lora.run_targets import excluding

    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        target_modules=settings.targets,
        target_parameters=settings.target_parameters,
        exclude_modules=excluding(settings.exclude),
        task_type="CAUSAL_LM",
    )


def train(model, tokenizer, rows, dev, settings, folder):
    """Train an adapter, from the last checkpoint in `folder` if there is one. The trainer comes back."""
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    from utils.models import widen_trainable
    from utils.profiling import checkpoint_blocks
    from utils.train.callbacks import watching

    checkpoint_blocks(model, on=settings.checkpointing)
    set_seed(settings.seed)
    trainer = SFTTrainer(
        model=model,
        args=sft_settings(folder, settings, bool(dev)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(dev) if dev else None,
        processing_class=tokenizer,
        peft_config=lora_config(settings),
        callbacks=watching(bool(dev)),
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.args.fp16:  # its loss scaling takes float32 gradients only
        widen_trainable(trainer.model)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return trainer


def ask(model, tokenizer, records, general=None):
    """What the model makes of the held-out records, and of other texts: the file `general`, or picture-book stories."""
    from utils.evaluate import evaluate
    from utils.train import other_texts

    texts, name = other_texts(general, tokenizer)
    return evaluate(model, tokenizer, records, general=texts, general_name=name, progress="asking")


def reload(folder, four_bit):
    """A fresh base with the saved adapter on it: what a recipient of the folder will have."""
    from peft import PeftModel

    base, tokenizer = load(four_bit)
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer


def fine_tune(data, out, settings):
    """All of it. The folder `out` is there when everything is done; until then `out`.partial holds what there is."""
    reading, split, facts = prepare(data, settings.checked())
    from utils.course.model_card import base_name, write_card
    from utils.models import load_config, load_tokenizer, profile

    with unfinished(out, {"data": split.digest(), "base": base_name(profile()), **asdict(settings)}) as partial:
        tokenizer = load_tokenizer()
        settings = settings.filled(profile(), load_config(tokenizer.name_or_path))
        rows, dev = look_over(reading, split, tokenizer, settings)
        settings = settings.timed(len(rows))
        print(settings.sentence(len(rows), len(dev)), loading(profile(), tokenizer), sep="\n")
        model, tokenizer = load(settings.four_bit)
        before = ask(model, tokenizer, split.held_out, settings.general)
        done = is_trained(partial) or keep_adapter(
            train(model, tokenizer, rows, dev, settings, partial / CHECKPOINTS), partial
        )
        in_4bit = getattr(model, "is_loaded_in_4bit", False)
        del model
        model, tokenizer = reload(partial, settings.four_bit)
        after = ask(model, tokenizer, split.held_out, settings.general)
        shown = settings.table() | {"base in 4 bits": in_4bit}
        write_card(partial, facts, done, shown, before, after, profile=profile(), name="-".join(Path(out).name.split()))
    return before, after


def main(arguments=None):
    quiet_upstream()  # in a notebook the setup cell does
    parser = command_line("LoRA on a file of your own.")
    given = parser.parse_args(arguments)
    with one_line(parser, given.out):  # what stops it is said in a line, and how it goes on
        if not to_export(given, finished=True):
            before, after = fine_tune(given.data, given.out, settings_of(given))
            from utils.evaluate.report import comparison

            print(comparison(before, after), what_now(given), sep="\n")
        if to_export(given):
            from utils.course.own_export import export

            for said in export(given.out, given.export):
                print(said)


if __name__ == "__main__":
    main()
