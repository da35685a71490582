"""tools/train.py under its engines, on CPUs with gloo: one run on one process and on two, stopped and gone on with."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tools import train as tool
from utils import models
from utils.data import stream
from utils.data.records import BadRecords
from utils.inference.loopback import free_port
from utils.train import consolidate, engine_run, run_folder
from utils.train.run_file import batch_of_a_process, checked_run

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "tools" / "engines"
DATA = ROOT / "assets" / "data" / "instructions" / "train.jsonl"

STEPS = 6
SFT = {"max_steps": STEPS, "learning_rate": 6e-3, "max_length": 256, "save_strategy": "steps", "save_steps": 3}
# Float32 rounds a loss of 8.5 to 1e-6, and Adam carries that into the weights, at its first steps the more the smaller
# a gradient is. A step of other records, or a mean over ranks instead of tokens, changes a loss by more than 0.01.
CLOSE = 2e-4

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed isn't installed: pip install deepspeed in a copy of the environment, and DS_ACCELERATOR=cpu",
)
ON_TWO = ["ddp", "fsdp2", pytest.param("zero3", marks=needs_deepspeed)]


def recipe(output, **changes):
    return {
        "model": str(models.ASSETS / "tiny-llama"), "data": str(DATA), "only": {"task": "style"}, "output": str(output),
        "global_batch_size": 8, "lora": {"r": 8, "lora_alpha": 16}, "sft": {**SFT},
        **changes,
    }  # fmt: skip


def launch(
    folder, *, engine=None, processes=2, script="tools/train.py", content=None, env=None, more=(), timeout=170,
    python=sys.executable,
):  # fmt: skip
    """Run a recipe in other processes; gives what ended, with the time of its end. python: also the launcher's."""
    if torch.cuda.is_available():
        pytest.skip("these compare float32 on CPUs: CUDA_VISIBLE_DEVICES= python -m pytest ...")
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content or recipe(folder / "adapter")))
    command = [python]
    if engine:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(ENGINES / f"{engine}.yaml")]
        command += ["--num_processes", str(processes), *(more or ("--main_process_port", "0"))]
    done = subprocess.run(
        [*command, script, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": str(python), **(env or {})},
    )  # fmt: skip
    done.ended = time.time()
    return done


def killed_at(done):
    """When dying_run.py killed its process: how long the starts before it took hangs on the machine."""
    return float(re.search(r"killed at ([\d.]+)", done.stderr)[1])


def losses(folder):
    return [row["loss"] for row in json.loads((folder / "log.json").read_text()) if "loss" in row]


def matrices(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


def assert_the_same(a, b, what):
    """Two adapters as two roundings of one run leave them: a number here and there moved, since Adam's first steps are
    as long as the learning rate, 6e-3, whatever the gradient; the rest to 1e-5."""
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    one, two = (torch.cat([each[name].flatten() for name in sorted(a)]) for each in (a, b))
    apart, moved = (one - two).norm() / one.norm(), int(((one - two).abs() > 1e-4).sum())
    print(f"{what}: adapters differ by {apart:.0e} of their norm, {moved} of {len(one):,} numbers by more than 1e-4")
    assert apart < 1e-3 and moved < 20


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run in this process, its checkpoints of steps 3 and 6 kept: a folder with log.json and checkpoints."""
    folder = tmp_path_factory.mktemp("one")
    engine_run.join()
    trainer = engine_run.build(checked_run(recipe(folder / "adapter")), folder / "checkpoints")
    trainer.train()
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same on two processes, by the engine's name, each once, in a Python that has nothing imported yet."""
    made = {}

    def of(engine):
        if engine not in made:
            folder = tmp_path_factory.mktemp(engine)
            done = launch(folder, engine=engine)
            assert done.returncode == 0, done.stderr[-3000:]
            made[engine] = folder / "adapter"
        return made[engine]

    return of


# ------------------------------------------------------------------------------------------ one and two processes


@pytest.mark.slow
@pytest.mark.parametrize("engine", ON_TWO)
def test_two_processes_have_the_losses_of_one(engine, one, two):
    a, b = losses(one), losses(two(engine))
    assert len(a) == len(b) == STEPS
    difference = max(abs(x - y) for x, y in zip(a, b, strict=True))
    print(f"{engine}: largest difference of the losses {difference:.1e}")
    assert difference < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("engine", ON_TWO)
def test_the_adapter_of_two_processes_is_that_of_one(engine, one, two):
    here = matrices(one / "checkpoints" / f"checkpoint-{STEPS}")
    assert_the_same(here, matrices(two(engine)), engine)
    consolidate.check_whole(two(engine))
    model = PeftModel.from_pretrained(models.load_base()[0], str(two(engine)))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(here) / 2


@pytest.mark.slow
def test_a_mean_over_ranks_has_other_losses(one, tmp_path, warm):
    content = recipe(tmp_path / "adapter")
    content["sft"] = {**content["sft"], "average_tokens_across_devices": False, "save_strategy": "no"}
    done = launch(tmp_path, engine="ddp", content=content, python=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(abs(x - y) for x, y in zip(losses(one), losses(tmp_path / "adapter"), strict=True)) > 50 * CLOSE


@pytest.mark.slow
def test_accelerate_runs_ddp_on_cpus_where_fsdp_was_asked_for_and_the_run_says_so(tmp_path, warm):
    done = launch(tmp_path, engine="fsdp2", script="tests/train/dying_run.py", env={"NO_SHARDING": "1"}, python=warm)
    assert done.returncode != 0
    assert "FSDP2 was asked for, and this process holds all of the model" in done.stderr


@pytest.mark.slow
def test_accumulation_checkpointing_and_evaluation_are_the_same_on_two_processes(tmp_path, warm):
    sft = {**SFT, "gradient_accumulation_steps": 2, "gradient_checkpointing": True, "eval_strategy": "steps"}
    content = recipe(tmp_path / "adapter", sft={**sft, "eval_steps": 3, "save_strategy": "no"}, held_out=0.106)  # 48
    done = launch(tmp_path, engine="fsdp2", content=content, python=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "one").mkdir()
    engine_run.train(checked_run({**content, "output": str(tmp_path / "one" / "adapter")}))
    a, b = (json.loads((folder / "adapter" / "log.json").read_text()) for folder in (tmp_path / "one", tmp_path))
    assert [entry.keys() for entry in a] == [entry.keys() for entry in b]
    for name, least in (("loss", STEPS), ("eval_loss", 2)):
        both = [(x[name], y[name]) for x, y in zip(a, b, strict=True) if name in x]
        assert len(both) == least
        difference = max(abs(x - y) for x, y in both)
        print(f"{name}: largest difference {difference:.1e}")
        assert difference < CLOSE


# ------------------------------------------------------------------------------------------ stopped, and gone on with


@pytest.fixture(scope="module")
def killed(tmp_path_factory, warm):
    """A run of two processes whose rank 1 is killed as step 5 begins, by engine: how it ended, and its folder."""
    made = {}

    def of(engine, **changes):
        key = (engine, *sorted(changes))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"killed-{engine}")
            content = recipe(folder / "adapter", **changes)
            done = launch(
                folder, engine=engine, script="tests/train/dying_run.py", content=content,
                env={"DIE_RANK": "1", "DIE_STEP": "5"}, python=warm,
            )  # fmt: skip
            made[key] = (done, folder, content)
        return made[key]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("engine", ON_TWO)
def test_a_killed_process_ends_the_run_with_a_sentence_and_leaves_the_checkpoint(engine, killed, one, tmp_path):
    done, folder, _ = killed(engine)
    assert done.returncode != 0
    assert done.ended - killed_at(done) < 60
    assert "Rank 0 of 2 stops, because another process of this run has ended" in done.stderr
    assert "The run can go on from step 3" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr and "rank      : 1" in done.stderr  # the launcher names the one
    assert not (folder / "adapter").exists()
    last = run_folder.last_checkpoint(folder / "adapter.partial" / "checkpoints")
    assert last is not None and last.name == "checkpoint-3"
    whole = consolidate.consolidate(last, tmp_path / "whole")
    here = matrices(one / "checkpoints" / "checkpoint-3")
    assert_the_same(here, matrices(whole), f"{engine}, consolidated")
    PeftModel.from_pretrained(models.load_base()[0], str(whole))


@pytest.mark.slow
def test_a_run_of_ddp_goes_on_on_one_process(killed, one, warm):
    _, folder, content = killed("ddp")
    done = launch(folder, content=content, python=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "can go on from step 3" in done.stdout
    assert max(abs(x - y) for x, y in zip(losses(one), losses(folder / "adapter"), strict=True)) < CLOSE
    assert not (folder / "adapter.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1])
def test_shards_of_two_processes_go_on_on_another_number(processes, killed, one, warm):
    _, folder, content = killed("fsdp2")
    done = launch(folder, engine="fsdp2", processes=processes, content=content, python=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(abs(x - y) for x, y in zip(losses(one), losses(folder / "adapter"), strict=True)) < CLOSE
    here = matrices(one / "checkpoints" / f"checkpoint-{STEPS}")
    assert_the_same(here, matrices(folder / "adapter"), f"2 processes, then {processes}")


@pytest.mark.slow
def test_a_stream_goes_on_at_its_record_on_another_number_of_processes(killed, tmp_path, warm):
    changes = {"streaming": True, "buffer": 20}
    _, folder, content = killed("ddp", **changes)
    done = launch(folder, content=content, python=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    run = checked_run(recipe(tmp_path / "adapter", **changes))
    engine_run.train(run)
    whole, again = losses(tmp_path / "adapter"), losses(folder / "adapter")
    assert max(abs(x - y) for x, y in zip(whole, again, strict=True)) < CLOSE


@pytest.mark.parametrize(
    "file, engine, processes, says",
    [
        ("pytorch_model_fsdp.bin", "DDP", 1, "saved under FSDP2, and this run is under DDP"),
        ("optimizer.pt", "FSDP2", 2, "saved under DDP, and this run is under FSDP2"),
        ("global_step3/rank_0_optim_states.pt", "ZeRO-3", 2, "saved by 1 processes under ZeRO-3"),
    ],
)
def test_a_checkpoint_of_another_engine_is_refused(file, engine, processes, says, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(ValueError, match=says):
        consolidate.check_resumable(tmp_path, engine, processes)
    was, number = consolidate.saved_by(tmp_path)
    consolidate.check_resumable(tmp_path, was, number or processes)


def as_two_hosts(folder, engine, **given):
    """Two launchers with a process each, on one machine; gives how both ended."""
    port = free_port()
    more = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(
                launch, folder / str(host), engine=engine, content=recipe(folder / "adapter"),
                more=[*more, "--machine_rank", str(host)], **given,
            )
            for host in range(2)
        ]  # fmt: skip
        return [each.result() for each in made]


@pytest.mark.slow
def test_two_hosts_have_the_losses_of_one(one, tmp_path, warm):
    both = as_two_hosts(tmp_path, "fsdp2", python=warm)
    assert [done.returncode for done in both] == [0, 0], both[0].stderr[-3000:]
    assert max(abs(x - y) for x, y in zip(losses(one), losses(tmp_path / "adapter"), strict=True)) < CLOSE


@pytest.mark.slow
def test_a_process_killed_on_one_host_ends_the_run_on_the_other(tmp_path, warm):
    env = {"DIE_RANK": "1", "DIE_STEP": "5"}
    both = as_two_hosts(tmp_path, "ddp", script="tests/train/dying_run.py", env=env, python=warm)
    assert all(done.returncode for done in both)
    assert all(done.ended - killed_at(both[1]) < 60 for done in both)
    assert "Rank 0 of 2 stops, because another process of this run has ended" in both[0].stderr
    assert "The run can go on from step 3" in both[0].stderr


# ------------------------------------------------------------------------------------------------------------ streams


def rows(count, folder, name="part.jsonl", start=0):
    text = "".join(json.dumps({"instruction": str(n), "output": "yes"}) + "\n" for n in range(start, start + count))
    (folder / name).write_text(text)


def take(iterator, count):
    return [row["instruction"] for row, _ in zip(iterator, range(count), strict=False)]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_step_has_the_same_records_on_any_number_of_processes(parts, tmp_path):
    rows(50, tmp_path)
    files = [tmp_path / "part.jsonl"]
    whole = take(stream.endless(files, buffer=7), 80)
    each = [
        take(stream.share(stream.endless(files, buffer=7), batch=8, part=part, parts=parts), 80 // parts)
        for part in range(parts)
    ]
    size = 8 // parts
    for step in range(10):
        dealt = [row for part in each for row in part[step * size : (step + 1) * size]]
        assert dealt == whole[step * 8 : (step + 1) * 8]


def test_a_stream_begins_where_the_run_goes_on(tmp_path):
    rows(50, tmp_path)
    files = [tmp_path / "part.jsonl"]
    whole = take(stream.endless(files, seed=3), 120)
    assert take(stream.share(stream.endless(files, seed=3), batch=8, part=0, parts=1, start=64), 56) == whole[64:]


def test_each_pass_has_all_records_in_another_order(tmp_path):
    rows(30, tmp_path, "a.jsonl")
    rows(20, tmp_path, "b.jsonl", start=30)
    seen = take(stream.endless(stream.stream_files(tmp_path / "*.jsonl"), buffer=10), 100)
    assert sorted(map(int, seen[:50])) == sorted(map(int, seen[50:])) == list(range(50))
    assert seen[:50] != seen[50:]


def test_a_stream_reads_no_further_than_it_is_used(tmp_path):
    rows(100, tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").write_text("no JSON\n")
    files = stream.stream_files(tmp_path / "*.jsonl")
    assert len(take(stream.endless(files, buffer=10), 80)) == 80
    with pytest.raises(BadRecords, match=r"b\.jsonl"):
        take(stream.endless(files, buffer=10), 101)


def test_datasets_deals_out_one_shard_to_each_process(tmp_path):
    rows(40, tmp_path)
    files = [tmp_path / "part.jsonl"]
    whole = stream.stream_dataset(files, batch=8, parts=2)
    assert whole.n_shards == 2
    shards = [take_prompts(whole.shard(num_shards=2, index=part), 8) for part in range(2)]
    assert shards[0][:4] + shards[1][:4] == take_prompts(stream.stream_dataset(files, batch=8), 8)


def take_prompts(dataset, count):
    return [row["prompt"][0]["content"] for row, _ in zip(dataset, range(count), strict=False)]


def test_what_cant_be_streamed_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x\n")
    with pytest.raises(ValueError, match="can't be streamed"):
        stream.stream_files(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        stream.stream_files(tmp_path / "*.jsonl")
    rows(3, tmp_path)
    with pytest.raises(ValueError, match="no record with task='none'"):
        next(stream.endless([tmp_path / "part.jsonl"], only={"task": "none"}))
    with pytest.raises(ValueError, match="can't be divided among 3"):
        stream.stream_dataset([tmp_path / "part.jsonl"], batch=8, parts=3)


# --------------------------------------------------------------------------------------------------------- one share


@pytest.fixture(scope="module")
def shipped():
    return models.ASSETS / "adapters" / "style"


def copy(shipped, folder, change):
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((shipped / "adapter_config.json").read_bytes())
    save_file(change(matrices(shipped)), str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    return folder


def test_a_whole_adapter_is_no_share(shipped):
    consolidate.check_whole(shipped)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_share_of_one_rank_is_named(processes, shipped, tmp_path):
    share = copy(shipped, tmp_path / "share", lambda all: {k: v.chunk(processes)[0].clone() for k, v in all.items()})
    with pytest.raises(ValueError, match=rf"one rank's share.*{8 // processes} of r=8 rows.*{processes} processes"):
        consolidate.check_whole(share)


def test_an_adapter_of_40_bytes_is_named(shipped, tmp_path):
    nothing = copy(shipped, tmp_path / "nothing", lambda all: {})
    assert (nothing / "adapter_model.safetensors").stat().st_size == 40
    with pytest.raises(ValueError, match="40 bytes.*ZeRO-3"):
        consolidate.check_whole(nothing)
    empty = copy(shipped, tmp_path / "empty", lambda all: {k: v[:0].clone() for k, v in all.items()})
    with pytest.raises(ValueError, match="without a number"):
        consolidate.check_whole(empty)


def test_a_folder_without_a_checkpoint_is_refused(shipped, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes((shipped / "adapter_config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="no weights of DDP"):
        consolidate.consolidate(tmp_path, tmp_path / "out")


# ----------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"epochs": 3}, "unknown keys: 'epochs'"),
        ({"outputs": "x"}, "did you mean 'output'"),
        ({"data": None}, "lacks data"),
        ({"global_batch_size": "8"}, "global_batch_size is '8', and has to be int"),
        ({"global_batch_size": True}, "has to be int"),
        ({"global_batch_size": 0}, "1 or more"),
        ({"held_out": 1.5}, "held_out is a share"),
        ({"streaming": True, "sft": {}}, "needs max_steps"),
        ({"streaming": True, "held_out": 0.1}, "nothing can be held out"),
        ({"sft": {"output_dir": "x"}}, "follows from output"),
        ({"sft": {"per_device_train_batch_size": 4}}, "follows from global_batch_size"),
        ({"lora": 8}, "lora is 8, and has to be a mapping"),
    ],
)
def test_a_recipe_that_says_something_else_is_refused(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        checked_run(recipe(tmp_path, **changes))


def test_values_that_peft_and_trl_dont_have_are_refused_by_name(tmp_path):
    run = checked_run(recipe(tmp_path / "a", sft={"learning_rat": 1e-3}))
    with pytest.raises(ValueError, match=r"sft has unknown keys: 'learning_rat' \(did you mean 'learning_rate'\?\)"):
        engine_run.sft_settings(run, tmp_path)
    with pytest.raises(ValueError, match="lora has unknown keys: 'rank'"):
        engine_run.lora_settings(dataclasses.replace(run, lora={"rank": 8}))


def test_the_number_that_yaml_takes_for_a_word_is_one(tmp_path):
    assert yaml.safe_load("6e-3") == "6e-3"
    assert checked_run(recipe(tmp_path, sft={"learning_rate": "6e-3"})).sft["learning_rate"] == 6e-3


def test_a_batch_that_processes_dont_divide_is_refused():
    assert batch_of_a_process(16, 2, 4) == 2
    with pytest.raises(ValueError, match="among 3 processes: take a multiple of 3"):
        batch_of_a_process(8, 3)


def test_four_bits_under_fsdp_need_their_storage_in_the_dtype_of_the_adapter(tmp_path, monkeypatch):
    run = checked_run(recipe(tmp_path, four_bit={"bnb_4bit_quant_type": "nf4"}))
    assert engine_run.four_bit_settings(run).load_in_4bit
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="bnb_4bit_quant_storage: bfloat16.*has uint8"):
        engine_run.four_bit_settings(run)
    stored = dataclasses.replace(run, four_bit={"bnb_4bit_quant_storage": "bfloat16"})
    assert engine_run.four_bit_settings(stored).bnb_4bit_quant_storage == torch.bfloat16


def test_the_tool_says_in_a_line_what_is_wrong(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("model: [\n")
    assert tool.main([str(tmp_path / "r.yaml")]) == 1
    assert "is no YAML" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_the_committed_recipe_is_one():
    run = tool.read_recipe(ENGINES / "recipe.yaml")
    assert (ROOT / run.model).is_dir() and (ROOT / run.data).is_file()
    engine_run.lora_settings(run), engine_run.sft_settings(run, Path("unused"))


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "fsdp2_qlora", "zero3"])
def test_accelerate_knows_every_key_of_the_configurations(engine):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(ENGINES / f"{engine}.yaml"))  # refuses keys that it doesn't know
    known = {action.dest for action in launch_command_parser()._actions}
    assert {**config.fsdp_config, **config.deepspeed_config}.keys() <= known
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "zero3": "DEEPSPEED"}.get(engine, "FSDP")


# ------------------------------------------------------------------------------------------------------- four bits


@pytest.mark.slow
def test_qlora_under_fsdp2_shards_the_codes_and_has_the_losses_of_one_process(tmp_path, warm):
    four_bit = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "bfloat16",
    }
    content = recipe(tmp_path / "adapter", four_bit=four_bit)
    done = launch(tmp_path, engine="fsdp2_qlora", content=content, python=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    here, whole = map(int, done.stdout.partition("holds ")[2].replace(",", "").split(" numbers")[0].split(" of "))
    assert here < 0.51 * whole
    (tmp_path / "one").mkdir()
    engine_run.train(checked_run({**content, "output": str(tmp_path / "one" / "adapter")}))
    differences = [
        abs(x - y) for x, y in zip(losses(tmp_path / "one" / "adapter"), losses(tmp_path / "adapter"), strict=True)
    ]
    print("QLoRA: differences of the losses", [f"{each:.0e}" for each in differences])
    assert differences[0] < CLOSE and max(differences) < 0.15  # the adapters are bfloat16, which rounds to 1 in 256
