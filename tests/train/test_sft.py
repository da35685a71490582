"""utils.train.sft against the installed TRL: the settings, what is refused before a run, resuming, and QLoRA."""

import inspect
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from tests.small_llama import small
from utils import models
from utils.data.records import to_messages, to_prompt_completion
from utils.tinyworld import task_examples
from utils.train import sft
from utils.train.loop import WARMUP_STEPS, learning_rate_factor
from utils.train.recipes import RECIPES

RECIPE = RECIPES["style"]._replace(steps=8, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    disable_progress_bars()
    torch.set_num_threads(1)


def records(n=24, task="style"):
    return [{"instruction": e.prompt, "output": e.answer} for e in task_examples(task, "train", n)]


def pairs(n=24):
    return Dataset.from_list([to_prompt_completion(r) for r in records(n)])


def trainer_in(folder, tokenizer, *, data=None, recipe=RECIPE, callbacks=(), adapter=None, **settings):
    return sft.sft_trainer(
        models.load_base()[0], tokenizer, pairs() if data is None else data, sft.sft_config(folder, recipe, **settings),
        peft_config=sft.lora_config(recipe, **(adapter or {})), callbacks=callbacks,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- arguments of 2023


def _parameters(where):
    from trl import SFTConfig, SFTTrainer

    return set(inspect.signature(SFTConfig if where == "TrainingArguments" else SFTTrainer).parameters)


@pytest.mark.parametrize("line", sft.OLD_ARGUMENTS, ids=lambda line: line.argument)
def test_every_old_argument_is_what_the_table_says_it_is_in_the_installed_trl(line):
    accepted = _parameters(line.where)
    if line.fate == "same":
        assert line.argument in accepted, f"{line.argument} is not accepted any more: correct sft.OLD_ARGUMENTS"
    else:
        assert line.argument not in accepted, f"{line.argument} is accepted again: correct sft.OLD_ARGUMENTS"
    if line.fate == "renamed":
        assert line.today in accepted, f"{line.argument} is {line.today} no more: correct sft.OLD_ARGUMENTS"
    if line.fate == "elsewhere":
        assert line.today in _parameters("TrainingArguments"), f"{line.today} is no field of SFTConfig any more"
    if line.fate == "gone":
        assert line.today is None and line.why


def test_the_table_has_every_argument_of_the_two_calls():
    arguments = [line.argument for line in sft.OLD_ARGUMENTS]
    assert len(set(arguments)) == len(arguments)
    assert sum(line.where == "TrainingArguments" for line in sft.OLD_ARGUMENTS) == 28
    assert sum(line.where == "SFTTrainer" for line in sft.OLD_ARGUMENTS) == 9


def test_settings_that_the_course_passes_are_fields_of_sftconfig(tmp_path):
    from trl import SFTConfig

    config = sft.sft_config(tmp_path, RECIPE, eval_strategy="steps", eval_steps=2)
    assert isinstance(config, SFTConfig)
    assert (config.max_steps, config.per_device_train_batch_size, config.learning_rate) == (8, 4, RECIPE.lr)
    assert config.weight_decay == 0 and config.max_grad_norm == 1 and config.use_cpu and not config.bf16
    assert not config.gradient_checkpointing


@pytest.mark.parametrize("on", [True, False])
def test_checkpointing_goes_by_one_name_and_warns_of_nothing(tmp_path, on, recwarn):
    config = sft.sft_config(tmp_path, RECIPE, activation_checkpointing=on)
    assert bool(config.gradient_checkpointing) is on
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]


def test_old_names_are_refused_with_todays_name(tmp_path):
    with pytest.raises(TypeError, match=r"evaluation_strategy \(eval_strategy\)"):
        sft.sft_config(tmp_path, RECIPE, evaluation_strategy="steps")
    with pytest.raises(TypeError, match="no field learnin_rate: did you mean learning_rate"):
        sft.sft_config(tmp_path, RECIPE, learnin_rate=1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sft.sft_config("out", RECIPE, max_steps=0), "sft.max_steps is 0, and has to be 1 or more"),
        (lambda: sft.sft_config("out", RECIPE, learning_rate="2e-4"), "sft.learning_rate is '2e-4', and has to be"),
        (lambda: sft.lora_config(RECIPE, lora_alpha=0), "lora.lora_alpha is 0, and has to be above 0"),
        (lambda: sft.lora_config(RECIPE, r=0), "lora.r is 0, and has to be 1 or more"),
    ],
)
def test_numbers_out_of_their_range_are_refused_before_a_model_is_there(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_epochs_take_the_place_of_the_recipes_steps(tmp_path):
    config = sft.sft_config(tmp_path, RECIPE, num_train_epochs=2)
    assert (config.max_steps, config.num_train_epochs) == (-1, 2)
    assert sft.sft_config(tmp_path, RECIPE, num_train_epochs=2, max_steps=3).max_steps == 3


@pytest.mark.parametrize(
    ("settings", "said"), [("", "doesn't support bf16/gpu"), (", use_cpu=True, bf16=False, tf32=True", "Ampere")]
)
def test_a_bare_sftconfig_and_tf32_raise_without_a_gpu(tmp_path, settings, said, warm):
    code = f"from trl import SFTConfig; SFTConfig(output_dir={str(tmp_path)!r}, gradient_checkpointing=None{settings})"
    (tmp_path / "bare.py").write_text(code)
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([warm, tmp_path / "bare.py"], capture_output=True, text=True, env=hidden)
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1]


def test_trackers(monkeypatch):
    assert sft.tracker("none") == "none" and sft.tracker() == "tensorboard"
    with pytest.raises(ValueError, match="unknown tracker 'mlflw': choose one of none, tensorboard"):
        sft.tracker("mlflw")
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        sft.tracker("wandb")


# ---------------------------------------------------------------------------------------- refused before the run


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset.from_list([]), "the training data is empty: it has 0 examples"),
        (Dataset.from_list(records(2)), "has the columns instruction, output, and SFTTrainer needs one of"),
        ({"train": Dataset.from_list([])}, r"a dictionary of splits \(train\).*data\['train'\]"),
        ([{"prompt": "a", "completion": "b"}], r"is a list, .*Dataset\.from_list"),
        (
            Dataset.from_list([{**to_prompt_completion(r), **to_messages(r)} for r in records(2)]),
            "has messages and also prompt and completion",
        ),
    ],
)
def test_data_that_cant_be_trained_on_is_refused(tmp_path, tokenizer, data, message):
    with pytest.raises(ValueError, match=message):
        trainer_in(tmp_path, tokenizer, data=data)
    assert not list(tmp_path.iterdir())


def test_a_target_that_matches_nothing_beside_one_that_does_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="the target 'v_porj' matches no module. Did you mean 'v_proj'"):
        trainer_in(tmp_path, tokenizer, adapter={"target_modules": ["q_proj", "v_porj"]})


def test_evaluations_without_data_to_evaluate_on_are_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="eval_strategy='epoch' needs data .*evaluation="):
        trainer_in(tmp_path, tokenizer, eval_strategy="epoch")


def test_examples_longer_than_the_models_positions_are_told(tmp_path, tokenizer):
    long = Dataset.from_list([{"prompt": "Once. " * 400, "completion": " The end."}] * 4)
    with pytest.warns(UserWarning, match=r"longest example has \d{3,} tokens, and the model was made for 512"):
        trainer_in(tmp_path, tokenizer, data=long, max_length=None)


def test_an_empty_evaluation_split_is_refused_by_name(tmp_path, tokenizer):
    config = sft.sft_config(tmp_path, RECIPE, eval_strategy="steps", eval_steps=2)
    with pytest.raises(ValueError, match="the evaluation data is empty"):
        sft.sft_trainer(models.load_base()[0], tokenizer, pairs(), config, evaluation=Dataset.from_list([]))


def test_a_max_length_that_leaves_no_completion_is_refused_and_one_that_leaves_some_is_told(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="max_length=8 cuts away the completion of every one of the 24 records"):
        trainer_in(tmp_path, tokenizer, max_length=8)
    mixed = Dataset.from_list(
        [to_prompt_completion(r) for r in records(6)] + [to_prompt_completion(r) for r in records(6, "summarization")]
    )
    with pytest.warns(UserWarning, match="away in 6 of the 12 examples of the training data"):
        trainer = trainer_in(tmp_path, tokenizer, data=mixed, max_length=32)
    assert len(trainer.train_dataset) == 6  # what TRL does without a word


def test_conversations_whose_answers_are_cut_away_are_refused_where_only_answers_count(tmp_path, tokenizer):
    chats = Dataset.from_list([to_messages(r) for r in records(5)])
    with pytest.raises(ValueError, match="every one of the 5 records"):
        trainer_in(tmp_path, tokenizer, data=chats, max_length=6, assistant_only_loss=True)


def test_a_second_adapter_is_refused(tmp_path, tokenizer):
    wrapped = trainer_in(tmp_path, tokenizer).model
    with pytest.raises(ValueError, match="carries a PEFT adapter already"):
        sft.sft_trainer(
            wrapped, tokenizer, pairs(), sft.sft_config(tmp_path, RECIPE), peft_config=sft.lora_config(RECIPE)
        )


# --------------------------------------------------------------------------------------------------- what is trained


def test_conversations_train_on_everything_unless_told_and_then_on_what_pairs_train_on(tmp_path, tokenizer):
    chats = Dataset.from_list([to_messages(r) for r in records()])
    everything = trainer_in(tmp_path, tokenizer, data=chats).train_dataset
    answers = trainer_in(tmp_path, tokenizer, data=chats, assistant_only_loss=True).train_dataset
    pair = trainer_in(tmp_path, tokenizer).train_dataset
    labelled, count = sft.trained_tokens(everything)
    assert labelled == count
    assert answers["labels"] == pair["labels"] and 0 < sft.trained_tokens(pair)[0] < count


def test_the_trainers_losses_are_those_of_a_loop_by_hand(tmp_path, tokenizer):
    # The rate of step i is learning_rate_factor's ramp in another form; the loop below follows transformers' own.
    trainer = trainer_in(tmp_path, tokenizer)
    twin = trainer_in(tmp_path, tokenizer)
    torch.manual_seed(0)
    batches = list(twin.get_train_dataloader())
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainable = [p for p in twin.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)
    batches += list(twin.get_train_dataloader())
    torch.manual_seed(0)
    twin.model.train()
    for step, batch in enumerate(batches[: min(len(logged), 6)]):  # one epoch: the second is shuffled anew
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.lr * min(1, step / WARMUP_STEPS)
        loss = twin.model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
        # float32 sums in another order: TRL computes the loss in chunks
        assert loss.item() == pytest.approx(logged[step], rel=1e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert learning_rate_factor(0, 100) > 0  # ours begins one step up the ramp


# ------------------------------------------------------------------------------------------------------------ resume


class Cut(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


SAVING = {"save_strategy": "steps", "save_steps": 2, "adapter": {"lora_dropout": 0.2}}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        trainer_in(folder, tokenizer, callbacks=[Cut()], **SAVING).train()
    return folder


def test_a_resumed_run_ends_to_the_bit_where_an_uninterrupted_one_does(tmp_path, tokenizer, interrupted):
    shutil.copytree(interrupted, tmp_path / "run")
    whole = trainer_in(tmp_path / "whole", tokenizer, **SAVING)
    whole.train()
    resumed = sft.resume(trainer_in(tmp_path / "run", tokenizer, **SAVING))
    assert resumed.state.global_step == 8
    theirs = whole.model.state_dict()
    adapters = {k: v for k, v in resumed.model.state_dict().items() if "lora_" in k}
    assert adapters and all(torch.equal(v, theirs[k]) for k, v in adapters.items())
    plain = trainer_in(tmp_path / "plain", tokenizer).model.state_dict()
    assert not all(torch.equal(v, plain[k]) for k, v in adapters.items())  # it did train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": RECIPE._replace(r=4)}, "r was 8 and is 4"),
        ({"recipe": RECIPE._replace(lora_alpha=99)}, "lora_alpha was 16 and is 99"),
        ({"recipe": RECIPE._replace(target_modules=".*q_proj")}, "target_modules was"),
        ({"recipe": RECIPE._replace(steps=9)}, "max_steps was 8 and is 9"),
        ({"recipe": RECIPE._replace(batch_size=2)}, "per_device_train_batch_size was 4 and is 2"),
        ({"adapter": {"use_rslora": True}}, "use_rslora was False and is True"),
        ({"adapter": {"lora_dropout": 0.3}}, "lora_dropout was 0.2 and is 0.3"),
        ({"adapter": {"modules_to_save": ["lm_head"]}}, r"modules_to_save was None and is \['lm_head'\]"),
        ({"recipe": RECIPE._replace(lr=10 * RECIPE.lr)}, f"learning_rate was {RECIPE.lr} and is {10 * RECIPE.lr}"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0 and is 0.1"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was 'linear' and is 'cosine'"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"data": 20}, "the number of training examples was 24 and is 20"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_before_a_step(tokenizer, interrupted, change, message):
    data = pairs(change.get("data", 24))
    trainer = trainer_in(interrupted, tokenizer, **{**SAVING, **change, "data": data})
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if "lora_" in k}
    with pytest.raises(sft.CheckpointMismatch, match=message):
        sft.resume(trainer)
    after = trainer.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def with_base(folder, tokenizer, change):
    base = models.load_base()[0]
    change(base)
    args, adapter = sft.sft_config(folder, RECIPE, save_strategy="steps", save_steps=2), SAVING["adapter"]
    return sft.sft_trainer(base, tokenizer, pairs(), args, peft_config=sft.lora_config(RECIPE, **adapter))


def test_a_checkpoint_of_another_base_is_refused_by_its_weights_and_by_its_name(tokenizer, interrupted):
    other = with_base(interrupted, tokenizer, lambda base: base.model.embed_tokens.weight.data.mul_(1.5))
    with pytest.raises(sft.CheckpointMismatch, match="the base's embedding is another one: .* blocks of rows differ"):
        sft.resume(other)
    renamed = with_base(interrupted, tokenizer, lambda base: setattr(base, "name_or_path", "org/other-base"))
    with pytest.raises(sft.CheckpointMismatch, match="the base was '.*' and is 'other-base'"):
        sft.resume(renamed)


def test_of_a_checkpoint_that_trl_alone_saved_the_rate_is_still_compared(tmp_path, tokenizer, interrupted):
    shutil.copytree(interrupted, tmp_path / "run")
    file = sorted((tmp_path / "run").iterdir())[-1] / "trainer_state.json"
    state = json.loads(file.read_text())
    assert state["stateful_callbacks"].pop("RunRecord")
    file.write_text(json.dumps(state))
    faster = trainer_in(tmp_path / "run", tokenizer, **SAVING, recipe=RECIPE._replace(lr=10 * RECIPE.lr))
    with pytest.raises(sft.CheckpointMismatch, match="another run: learning_rate was"):
        sft.resume(faster)
    assert sft.check_checkpoint(file.parent, trainer_in(tmp_path / "run", tokenizer, **SAVING)) == file.parent


@pytest.fixture(scope="module")
def waiting(tmp_path_factory, tokenizer):
    """A trainer that could go on from the checkpoints of `interrupted`."""
    return trainer_in(tmp_path_factory.mktemp("waiting"), tokenizer, **SAVING)


def nan_adapter(file):
    weights = load_file(file)
    save_file({**weights, (key := next(iter(weights))): weights[key] * torch.nan}, file)


def nan_optimizer(file):
    state = torch.load(file, weights_only=True)
    state["state"][0]["exp_avg"].fill_(torch.nan)
    torch.save(state, file)


def halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = [
    *[(name, halved) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")],
    *[(name, lambda file: file.write_bytes(b"")) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")],
    ("trainer_state.json", lambda file: file.write_bytes(b"\xff\xfe{}")),
    ("trainer_state.json", lambda file: file.write_text("[1, 2]")),
    ("trainer_state.json", lambda file: file.write_text("[" * 100_000)),
    ("adapter_config.json", lambda file: file.write_text("3")),
    ("optimizer.pt", lambda file: torch.save([1], file)),
    ("adapter_model.safetensors", nan_adapter),
    ("optimizer.pt", nan_optimizer),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path, interrupted, waiting, name, damage):
    folder = shutil.copytree(sorted(interrupted.iterdir())[-1], tmp_path / "checkpoint-6")
    damage(folder / name)
    with pytest.raises(
        sft.CheckpointMismatch, match=f"checkpoint-6 is (damaged|spoilt).*its {name}.*Take|take an earlier"
    ):
        sft.check_checkpoint(folder, waiting)


@pytest.mark.parametrize("name", ["rng_state.pth", "scheduler.pt", "optimizer.pt", "trainer_state.json"])
def test_a_missing_file_is_named(tmp_path, interrupted, waiting, name):
    folder = shutil.copytree(sorted(interrupted.iterdir())[-1], tmp_path / "checkpoint-6")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"checkpoint-6 has no {name}"):
        sft.check_checkpoint(folder, waiting)


# ------------------------------------------------------------------------------- a model that can't be trained


def test_what_train_refuses_of_a_model_the_trainer_refuses_too(tmp_path, tokenizer):
    def make(change, tokenizer=tokenizer):
        base = small()
        change(base)
        return sft.sft_trainer(
            base, tokenizer, pairs(4), sft.sft_config(tmp_path, RECIPE), peft_config=sft.lora_config(RECIPE)
        )

    with pytest.raises(ValueError, match="norm.weight holds NaN or infinity before training"):
        make(lambda base: base.model.norm.weight.data.fill_(torch.nan))
    with pytest.raises(ValueError, match="nothing to train"):
        sft.sft_trainer(small().requires_grad_(False), tokenizer, pairs(4), sft.sft_config(tmp_path, RECIPE))
    merged = make(lambda base: None).model
    merged.merge_adapter()
    with pytest.raises(ValueError, match="is merged into the base weight"):
        sft.sft_trainer(merged, tokenizer, pairs(4), sft.sft_config(tmp_path, RECIPE))
    larger = models.load_tokenizer()
    larger.add_tokens(["Arr!"])
    with pytest.raises(ValueError, match="'Arr!' with the id 1024.*resize_token_embeddings"):
        make(lambda base: None, larger)


def test_a_checkpoint_with_other_shapes_is_refused(tmp_path, tokenizer, interrupted):
    shutil.copytree(interrupted, tmp_path / "run")
    file = sorted((tmp_path / "run").iterdir())[-1] / "adapter_model.safetensors"
    weights = load_file(file)
    key = next(iter(weights))
    save_file({**weights, key: torch.zeros(3, 3)}, file)
    with pytest.raises(sft.CheckpointMismatch, match=r"1 matrices, such as .* were \(3, 3\)"):
        sft.resume(trainer_in(tmp_path / "run", tokenizer, **SAVING))


def test_damaged_and_missing_checkpoints_are_refused(tmp_path, tokenizer, interrupted):
    trainer = trainer_in(tmp_path / "run", tokenizer, **SAVING)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in run"):
        sft.resume(trainer)
    shutil.copytree(interrupted, tmp_path / "run", dirs_exist_ok=True)
    last = sorted((tmp_path / "run").iterdir())[-1]
    whole = (last / "adapter_model.safetensors").read_bytes()
    (last / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(sft.CheckpointMismatch, match=f"{last.name} is damaged"):
        sft.resume(trainer)
    (last / "adapter_model.safetensors").write_bytes(whole)
    (last / "trainer_state.json").write_text(json.dumps({"max_steps": 8})[:-3])
    with pytest.raises(sft.CheckpointMismatch, match="damaged"):
        sft.resume(trainer)
    (last / "optimizer.pt").unlink()
    with pytest.raises(FileNotFoundError, match="has no optimizer.pt"):
        sft.resume(trainer)


# ------------------------------------------------------------------------------------------------------------- QLoRA


def test_qlora_trains_bf16_adapters_and_leaves_the_packed_base_alone(tmp_path, tokenizer):
    base, _ = models.load_4bit()
    trainer = sft.sft_trainer(
        base, tokenizer, pairs(), sft.sft_config(tmp_path, RECIPE), peft_config=sft.lora_config(RECIPE)
    )
    packed = {k: p.clone() for k, p in trainer.model.named_parameters() if p.dtype == torch.uint8}
    adapters = {k: p.clone() for k, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(packed) == 28 and {p.dtype for p in adapters.values()} == {torch.bfloat16}
    trainer.train()
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(p, now[k]) for k, p in packed.items())
    assert all(not torch.equal(p, now[k]) for k, p in adapters.items() if "lora_B" in k)


def test_trl_leaves_doras_magnitudes_in_float32_beside_bf16_adapters(tmp_path, tokenizer):
    trainer = sft.sft_trainer(
        models.load_4bit()[0], tokenizer, pairs(4), sft.sft_config(tmp_path, RECIPE),
        peft_config=sft.lora_config(RECIPE, use_dora=True),
    )  # fmt: skip
    dtypes = {(".lora_magnitude" in k, p.dtype) for k, p in trainer.model.named_parameters() if p.requires_grad}
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}


@pytest.mark.parametrize(("chosen", "dtype"), [({}, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16)])
def test_what_isnt_quantized_comes_in_float32_from_a_name_unless_a_dtype_is_given(tmp_path, chosen, dtype):
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=str(models.ASSETS / "tiny-llama"), train_dataset=pairs(4), peft_config=sft.lora_config(RECIPE),
        args=sft.sft_config(tmp_path, RECIPE, model_init_kwargs=chosen), quantization_config=models.four_bit_config(),
    )  # fmt: skip
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.uint8, dtype}


def test_qlora_learns_the_same_with_and_without_preparation(tmp_path, tokenizer):
    from peft import prepare_model_for_kbit_training

    late = []
    for prepare in (False, True):
        base, _ = models.load_4bit(compute_dtype=torch.bfloat16)
        if prepare:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        recipe = RECIPE._replace(steps=12)
        trainer = sft.sft_trainer(
            base, tokenizer, pairs(48), sft.sft_config(tmp_path, recipe), peft_config=sft.lora_config(recipe)
        )
        wide = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
        assert wide == {torch.uint8, torch.float32 if prepare else torch.bfloat16}  # so TRL didn't prepare it
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < 0.8 * losses[0]
        late.append(sum(losses[-4:]))
    assert late[0] == pytest.approx(late[1], rel=0.1)


def test_no_recorded_mean_of_qlora_is_more_than_two_tenths_of_a_point_below_loras():
    record = json.loads((models.ASSETS / "measurements" / "sft.json").read_text())
    assert set(record["tasks"]) == set(RECIPES)
    for task, row in record["tasks"].items():
        lora, qlora = (sum(row[way]) / len(row[way]) for way in ("lora", "qlora"))
        assert len(row["lora"]) == len(row["qlora"]) == 3
        assert qlora >= lora - 0.0021, f"{task}: {qlora} against {lora}"
        assert row["base"] <= 0.02


def test_two_tasks_are_learned_whole_at_rank_8_by_every_seed():
    tasks = json.loads((models.ASSETS / "measurements" / "sft.json").read_text())["tasks"]
    for task in ("sentiment", "summarization"):
        assert (RECIPES[task].r, RECIPES[task].lora_alpha) == (8, 16)
        assert tasks[task]["lora"] == tasks[task]["qlora"] == [1.0, 1.0, 1.0]


def test_importing_the_module_imports_neither_trl_nor_peft():
    heavy = ("trl", "peft", "transformers", "datasets")
    code = f"import sys, utils.train.sft; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# -------------------------------------------------------------------------------------- evaluation, epochs, overfitting


class Scored(TrainerCallback):
    """Puts a score of its own into what an evaluation found."""

    def __init__(self, scores):
        self.scores = list(scores)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_exact_match"] = self.scores.pop(0)


def test_a_callbacks_score_chooses_the_best_checkpoint_and_stops_the_run(tmp_path, tokenizer):
    config = sft.sft_config(
        tmp_path, RECIPE._replace(steps=12), eval_strategy="steps", eval_steps=2, save_strategy="best",
        load_best_model_at_end=True, metric_for_best_model="eval_exact_match", greater_is_better=True,
    )  # fmt: skip
    trainer = sft.sft_trainer(
        models.load_base()[0], tokenizer, pairs(), config, evaluation=pairs(4), peft_config=sft.lora_config(RECIPE),
        callbacks=[Scored([0.1, 0.6, 0.3, 0.2, 0.9]), EarlyStoppingCallback(early_stopping_patience=2)],
    )  # fmt: skip
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.global_step) == (4, 8)


def test_sixty_examples_are_learned_by_heart_and_more_arent():
    record = json.loads((models.ASSETS / "measurements" / "sft.json").read_text())["overfit"]
    assert {count: len(runs) for count, runs in record.items()} == {"60": 3, "200": 3, "4000": 3}
    for rows in record["60"]:
        assert rows[-1]["loss"] < 0.01 and rows[-1]["seen"] == 1 and rows[-1]["unseen"] == 0
        assert min(row["eval_loss"] for row in rows) == rows[0]["eval_loss"] < rows[-1]["eval_loss"] / 1.4
        assert rows[-1]["eval_entropy"] < 0.4 * rows[-1]["eval_loss"]
    for rows in record["200"] + record["4000"]:
        assert rows[-1]["eval_loss"] == min(row["eval_loss"] for row in rows) and rows[-1]["unseen"] > 0


def test_formatting_func_is_ignored_for_tokenized_data_and_trl_says_so(tmp_path, tokenizer, caplog):
    import logging

    tokenized = trainer_in(tmp_path, tokenizer).train_dataset.select_columns(["input_ids", "labels"])
    trl_log = logging.getLogger("trl")
    trl_log.addHandler(caplog.handler)
    try:
        ignored = sft.sft_trainer(
            models.load_base()[0], tokenizer, tokenized, sft.sft_config(tmp_path, RECIPE),
            formatting_func=lambda record: "### Instruction: " + record["prompt"],
        )  # fmt: skip
    finally:
        trl_log.removeHandler(caplog.handler)
    assert "`formatting_func` will be ignored" in caplog.text
    assert ignored.train_dataset["input_ids"] == tokenized["input_ids"]


def test_an_adapter_loaded_to_go_on_with_trains_and_one_loaded_otherwise_doesnt(tmp_path, tokenizer):
    from peft import PeftModel

    first = trainer_in(tmp_path, tokenizer)
    first.save_model(str(tmp_path / "adapter"))
    for trainable in (True, False):
        again = PeftModel.from_pretrained(models.load_base()[0], tmp_path / "adapter", is_trainable=trainable)
        assert any(p.requires_grad for p in again.parameters()) is trainable
