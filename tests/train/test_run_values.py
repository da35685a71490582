"""A run's file is checked by the fields' own kinds, before anything is loaded."""

import dataclasses
import inspect
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig

from tools import train as tool
from utils.models import ASSETS, ROOT
from utils.train import engine_run, run_values
from utils.train.run_file import batch_of_a_process, checked_run
from utils.train.run_values import FOUR_BIT, check_model, check_values, fits, in_words

TINY = str(ASSETS / "tiny-llama")


DATA = str(ASSETS / "data" / "instructions" / "train.jsonl")


def recipe(**changes):
    return checked_run({"model": TINY, "data": DATA, "output": "out", **changes})


@pytest.mark.parametrize(
    "section, key, value, says",
    [
        ("lora", "r", "eight", "lora.r is 'eight', and has to be a whole number"),
        ("lora", "r", 8.5, "lora.r is 8.5, and has to be a whole number"),
        ("lora", "r", True, "lora.r is true, and has to be a whole number"),
        ("lora", "r", 0, "lora.r is 0, and has to be 1 or more"),
        ("lora", "r", None, "lora.r is empty, and has to be a whole number"),
        ("lora", "use_dora", "maybe", "lora.use_dora is 'maybe', and has to be true or false"),
        ("lora", "use_dora", 1, "lora.use_dora is 1, and has to be true or false"),
        ("lora", "lora_dropout", 1.5, "lora.lora_dropout is 1.5, and has to be from 0 to below 1"),
        ("lora", "target_modules", 5, "lora.target_modules is 5, and has to be a list or a text"),
        ("lora", "target_modules", ["q_proj", 1], "has to be a list or a text"),
        ("lora", "bias", "some", "lora.bias is 'some', and has to be one of none, all, lora_only"),
        ("lora", "init_lora_weights", "pisa", "lora.init_lora_weights is 'pisa'"),
        ("lora", "task_type", "CAUSAL", "lora.task_type is 'CAUSAL'.*CAUSAL_LM"),
        ("lora", "rank", 8, "lora has unknown keys: 'rank'"),
        ("sft", "learning_rate", "fast", "sft.learning_rate is 'fast', and has to be a number"),
        ("sft", "learning_rate", 0, "sft.learning_rate is 0, and has to be above 0"),
        ("sft", "learning_rate", float("nan"), "sft.learning_rate is nan, and has to be a finite number"),
        ("sft", "max_steps", "two", "sft.max_steps is 'two', and has to be a whole number"),
        ("sft", "max_steps", 0, "sft.max_steps is 0, and has to be 1 or more"),
        ("sft", "num_train_epochs", 0, "sft.num_train_epochs is 0, and has to be above 0"),
        ("sft", "max_length", "long", "sft.max_length is 'long', and has to be a whole number"),
        ("sft", "gradient_accumulation_steps", 0, "sft.gradient_accumulation_steps is 0, and has to be 1 or more"),
        ("sft", "seed", "x", "sft.seed is 'x', and has to be a whole number"),
        ("sft", "ddp_timeout", "soon", "sft.ddp_timeout is 'soon', and has to be a whole number"),
        ("sft", "lr_scheduler_type", "cosin", "sft.lr_scheduler_type is 'cosin', and has to be one of linear, cosine"),
        ("sft", "save_strategy", False, "sft.save_strategy is false.*YAML reads no"),
        ("lora", "rank_pattern", {"q": "four"}, "lora.rank_pattern is .*a mapping, each value a whole number"),
        ("sft", "log_level", "loud", "sft.log_level is 'loud', and has to be one of detail"),
        ("sft", "lr_scheduler_kwargs", "x", "sft.lr_scheduler_kwargs is 'x', and has to be a mapping"),
        ("sft", "bf16", "yes please", "sft.bf16 is 'yes please', and has to be true or false"),
        ("four_bit", "bnb_4bit_quant_typo", "nf4", "four_bit has unknown keys: .*did you mean 'bnb_4bit_quant_type'"),
        ("four_bit", "bnb_4bit_quant_type", "nf5", "four_bit.bnb_4bit_quant_type is 'nf5'.*nf4, fp4"),
        ("four_bit", "bnb_4bit_compute_dtype", "bfloat61", "four_bit.bnb_4bit_compute_dtype is 'bfloat61'.*bfloat16"),
        ("four_bit", "bnb_4bit_use_double_quant", "sure", "has to be true or false"),
        ("four_bit", "load_in_4bit", False, "four_bit.load_in_4bit is false, and has to be true"),
        ("four_bit", "load_in_8bit", True, "four_bit has unknown keys: 'load_in_8bit'"),
    ],
)
def test_a_value_of_another_kind_is_named(section, key, value, says):
    with pytest.raises(ValueError, match=says):
        check_values(recipe(**{section: {key: value}}))


def test_what_a_recipe_may_say_is_taken():
    lora = {
        "r": 8, "lora_alpha": 22.6, "target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_16",
        "rank_pattern": {"q_proj": 4}, "use_rslora": True, "task_type": "CAUSAL_LM", "layers_to_transform": [0, 1],
    }  # fmt: skip
    sft = {
        "learning_rate": 1, "max_steps": -1, "num_train_epochs": 0.5, "lr_scheduler_type": "cosine", "eval_steps": 10,
        "save_strategy": "no", "bf16": False, "max_length": None, "optim": "paged_adamw_8bit", "report_to": ["wandb"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False}, "warmup_steps": 0.1, "seed": 0,
    }  # fmt: skip
    check_values(recipe(lora=lora, sft=sft, four_bit={"bnb_4bit_quant_storage": "bfloat16", "load_in_4bit": True}))


@pytest.mark.parametrize("config", [LoraConfig, SFTConfig])
def test_every_default_of_the_installed_classes_is_of_its_fields_kind(config):
    hints = run_values._hints(config)
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            assert fits(field.default, hints[field.name]), field.name
        assert in_words(hints[field.name])


def test_four_bits_keys_are_those_of_bitsandbytes_config_and_nf4_is_the_runs_default():
    assert FOUR_BIT.keys() <= inspect.signature(BitsAndBytesConfig.__init__).parameters.keys()
    made = engine_run.four_bit_settings(recipe(four_bit={"bnb_4bit_use_double_quant": True}))
    assert made is not None and made.bnb_4bit_quant_type == "nf4"


def test_no_accumulated_batch_is_refused_and_not_divided_by():
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 0"):
        batch_of_a_process(8, 2, 0)


@pytest.mark.parametrize("steps", ["many", 2.5, 0, True])
def test_a_stream_with_no_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"sft needs max_steps.*not {steps!r}"):
        recipe(streaming=True, sft={"max_steps": steps})


def test_a_model_that_isnt_there_is_named_with_its_key(tmp_path):
    with pytest.raises(FileNotFoundError, match="model: there is no folder ./no/model/here"):
        check_model("./no/model/here")
    with pytest.raises(ValueError, match=r"model: the folder .* has no config\.json"):
        check_model(str(tmp_path))
    with pytest.raises(ValueError, match="is an adapter's: give its base"):
        check_model(str(ASSETS / "adapters" / "style"))
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match="is a file"):
        check_model(str(tmp_path / "model.bin"))
    check_model("HuggingFaceTB/SmolLM2-135M")


def test_data_that_isnt_there_is_named_with_its_key(tmp_path):
    with pytest.raises(FileNotFoundError, match="data: there is no file nowhere.jsonl, seen from "):
        check_values(recipe(data="nowhere.jsonl"))
    with pytest.raises(ValueError, match="data: .* is a folder; give a file"):
        check_values(recipe(data=str(tmp_path)))
    streamed = {"streaming": True, "sft": {"max_steps": 1}}
    with pytest.raises(FileNotFoundError, match="data: there is no file"):
        check_values(recipe(data=str(tmp_path / "*.jsonl"), **streamed))
    (tmp_path / "part.jsonl").touch()
    check_values(recipe(data=str(tmp_path / "*.jsonl"), **streamed))


def test_a_folders_name_that_could_be_a_hub_ids_is_named_when_nothing_loads(tmp_path):
    run = recipe(model="assets/tiny-lama", output=str(tmp_path / "out"), sft={"max_steps": 1})
    with pytest.raises(OSError, match="model: there is no folder assets/tiny-lama here, and from the Hub: "):
        engine_run.build(run, tmp_path)


# ----------------------------------------------------------------------------------------------- too little to train on


def few(folder, count, **changes):
    folder.mkdir(exist_ok=True)
    data = folder / "few.jsonl"
    data.write_text("".join(f'{{"instruction": "Say {n}", "output": "{n}"}}\n' for n in range(count)))
    return recipe(data=str(data), output=str(folder / "out"), **changes)


@pytest.mark.parametrize("sft", [{"max_steps": 4}, {"num_train_epochs": 1}])
def test_fewer_records_than_a_step_has_are_refused_before_the_model_loads(sft, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="5 records are fewer than a step's 8: nothing would be trained"):
        engine_run.train(few(tmp_path, 5, sft=sft))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_so_are_those_that_are_left_after_holding_out_or_cutting(tmp_path):
    with pytest.raises(ValueError, match="5 records after holding out 0.5 of them are fewer than a step's 8"):
        engine_run.training_data(few(tmp_path, 10, held_out=0.5), world=1)
    run = few(tmp_path, 10, sft={"max_steps": 1, "max_length": 64})
    long = '{"instruction": "%s", "output": "x"}\n' % ("word " * 200)
    Path(run.data).write_text(Path(run.data).read_text().partition("\n")[0] + "\n" + long * 9)
    with pytest.warns(UserWarning, match="cuts the whole completion"), pytest.raises(ValueError, match="1 records"):
        engine_run.build(run, tmp_path)


def test_a_training_that_took_fewer_steps_than_planned_is_no_finished_run(tmp_path, monkeypatch):
    from trl import SFTTrainer

    monkeypatch.setattr(SFTTrainer, "train", lambda self, **_: setattr(self.state, "max_steps", 4))
    with pytest.raises(ValueError, match="ended after 0 of 4 steps"):
        engine_run.train(few(tmp_path, 10, sft={"max_steps": 4}))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ the tool


def test_the_recipe_of_a_7b_model_is_a_run_file_on_one_to_eight_processes(tmp_path, monkeypatch):
    file = ROOT / "tools" / "engines" / "recipe_7b.yaml"
    run = tool.read_recipe(file)
    check_values(dataclasses.replace(run, data=DATA))
    for processes, each in ((1, 8), (2, 4), (4, 2), (8, 1)):
        monkeypatch.setattr(engine_run, "ranks", lambda world=processes: engine_run.Ranks(0, world))
        assert engine_run.sft_settings(run, tmp_path).per_device_train_batch_size == each
    assert engine_run.lora_settings(run).r == 16
    text = file.read_text(encoding="utf-8").replace("# four_bit: #", "four_bit: #").replace("\n#   bnb", "\n  bnb")
    (tmp_path / "qlora.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    four_bit = engine_run.four_bit_settings(tool.read_recipe(tmp_path / "qlora.yaml"))
    assert four_bit is not None and four_bit.bnb_4bit_use_double_quant


@pytest.mark.parametrize(
    "content, says",
    [
        (b"model: a\ndata: b\nmodel: c\n", "'model' is there twice, in lines 1 and 3"),
        (b"sft: {seed: 1, seed: 2}\n", "'seed' is there twice"),
        ("model: Gemüse\n".encode("latin-1"), "isn't UTF-8: byte 0xfc in line 1"),
        (b"", "r.yaml is empty"),
        (b"- a\n", "r.yaml holds a list and no keys"),
        (b"colour: red\n", "unknown keys: 'colour'\n"),
    ],
)
def test_a_file_is_refused_by_its_name(content, says, tmp_path, capsys):
    (tmp_path / "r.yaml").write_bytes(content)
    assert tool.main([str(tmp_path / "r.yaml")]) == 1
    said = capsys.readouterr().err
    assert "r.yaml" in said and says in said


def test_a_merge_key_and_a_byte_order_mark_are_yaml(tmp_path):
    from tools.run_yaml import read_yaml

    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert read_yaml(tmp_path / "r.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.slow
def test_under_a_launcher_a_mistake_is_said_once(tmp_path, warm):
    file = tmp_path / "r.yaml"
    content = {"model": TINY, "data": DATA, "output": str(tmp_path / "o"), "sft": {"learning_rate": "fast"}}
    file.write_text(yaml.safe_dump(content))
    command = [warm, "-m", "accelerate.commands.launch", "--config_file", "tools/engines/ddp.yaml"]
    done = subprocess.run(
        [*command, "--num_processes", "2", "--main_process_port", "0", "tools/train.py", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("ValueError: sft.learning_rate is 'fast', and has to be a number") == 1
    assert not (tmp_path / "o").exists()
