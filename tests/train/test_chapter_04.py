"""What chapter 4 says about its training runs, which its notebook prints and doesn't compare, and its box "in PEFT"."""

import copy
import functools
import json
import re
from collections.abc import Iterator

import pytest
import torch
from datasets import disable_progress_bars

from utils.evaluate import exact_match, held_out_stories, perplexity
from utils.lora import count_parameters, inject, lora_layers
from utils.lora.checkpoint import load_adapter
from utils.models import ASSETS
from utils.models.device import ROOT
from utils.tinyworld import task_examples
from utils.train import RECIPES, train

RUNS = {"LoRA, 0.006": 6e-3, "LoRA, 0.002": 2e-3, "full, 0.001": 1e-3, "full, 0.0005": 5e-4}


def steps_needed(losses: list[float], level: float = 0.5, window: int = 10) -> int:
    """As chapter 4 counts them."""
    return next(i for i in range(window, len(losses)) if sum(losses[i - window : i]) / window < level)


@pytest.fixture(scope="module")
def runs(loaded_base, tokenizer) -> Iterator[dict[str, tuple[list[float], float, float]]]:
    """Each run's losses, its exact match on 100 prompts and its perplexity on 30 stories; the base's has no losses."""
    recipe = RECIPES["style"]
    data, test = task_examples("style", "train", recipe.examples), task_examples("style", "test", 100)
    stories = held_out_stories(30)
    found = {"base": ([], exact_match(loaded_base, tokenizer, test), perplexity(loaded_base, tokenizer, stories))}
    for name, lr in RUNS.items():
        model = copy.deepcopy(loaded_base)
        torch.manual_seed(0)
        if name.startswith("LoRA"):
            inject(model, "all-linear", r=8, lora_alpha=16)
        else:
            model.requires_grad_(True)
        losses = train(model, tokenizer, data, steps=recipe.steps, lr=lr, batch_size=8)
        found[name] = losses, exact_match(model, tokenizer, test), perplexity(model, tokenizer, stories)
    yield found


@pytest.mark.slow
def test_all_four_runs_learn_the_task(runs):
    assert runs["base"][1] == 0
    for name in RUNS:
        assert runs[name][1] >= 0.95, name


@pytest.mark.slow
def test_on_this_task_forgetting_is_mostly_the_learning_rate(runs):
    base, high, gentle, full, full_gentle = (runs[name][2] for name in ("base", *RUNS))
    assert base < full_gentle < 1.4 * base and base < gentle < 1.4 * base, "level, and a little more than the base"
    assert abs(gentle - full_gentle) < 0.2 * base
    assert full_gentle + 0.1 * base < full < 0.7 * high
    assert high > 2 * max(gentle, full_gentle)


@pytest.mark.slow
def test_lora_needs_as_many_steps_as_full_fine_tuning_or_more(runs):
    high, gentle, full, full_gentle = (steps_needed(runs[name][0]) for name in RUNS)
    assert abs(high - full_gentle) <= 5 and 40 <= full_gentle <= 52
    assert 28 <= full <= 40 and 6 <= high - full, "a dozen fewer at full fine-tuning's higher learning rate"
    assert 1.6 < gentle / full_gentle < 2.1, "nearly twice as many at the gentle learning rate"


def test_what_the_lesson_says_of_the_sweep_of_ranks():
    rows = json.loads((ASSETS / "measurements" / "rank_sweep.json").read_text(encoding="utf-8"))["rows"]
    by = {(row["targets"], row["r"], row["steps"]): row for row in rows}
    full, full_half = by["full fine-tuning", None, 300], by["full fine-tuning", None, 150]
    lora = [row for row in rows if row["r"] and row["steps"] == 300]
    decided = [row["lr"] for row in lora if any(row["dev_by_lr"].values())]
    assert (len(lora), len(decided)) == (23, 18) and (min(decided), max(decided)) == (0.004, 0.016)

    tied = [lr for lr, score in full["dev_by_lr"].items() if score == max(full["dev_by_lr"].values())]
    assert tied == ["0.0005", "0.002"] and full_half["lr"] == 0.002
    chosen = {(r, steps): by["all-linear", r, steps]["lr"] for r in (8, 16) for steps in (150, 300)}
    assert chosen == {(8, 300): 0.008, (16, 300): 0.008, (8, 150): 0.008, (16, 150): 0.004}

    half = max((row for row in rows if row["r"] and row["steps"] == 150), key=lambda row: row["test_mean"])
    assert full_half["test_by_seed"] == [0.8, 0.63, 0.32] and half["test_by_seed"] == [0.06, 0.245, 0.0]
    assert max(max(row["test_by_seed"]) - min(row["test_by_seed"]) for row in rows) == pytest.approx(0.835)

    wide = by["all-linear", 16, 300]
    assert wide["test_by_lr"]["0.008"] == pytest.approx(full["test_by_lr"]["0.00025"], abs=0.005), "equal scores"
    assert (wide["perplexity_by_lr"]["0.008"], full["perplexity_by_lr"]["0.00025"]) == (22.112, 1.653)
    assert (wide["test_by_lr"]["0.004"], wide["perplexity_by_lr"]["0.004"]) == (0.79, 3.195)


# ------------------------------------------------------------------------------------------- "In PEFT this is ..."


def box() -> str:
    """The code of the box on the lesson's first screen."""
    lesson = (ROOT / "lessons" / "04_a_lora_layer_from_scratch.md").read_text(encoding="utf-8")
    opening = lesson[: lesson.index("**You will be able to**")]
    (code,) = re.findall(r"^```python \.noeval\n(.*?)^```$", opening, re.M | re.S)
    return code


@pytest.mark.slow
def test_the_box_trains_on_a_readers_file_and_asks_the_adapter(tmp_path, monkeypatch, capsys, fresh_base):
    import trl

    disable_progress_bars()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    code = box()
    (record,) = re.findall(r"^# mine\.jsonl: (.*)$", code, re.M)  # the line of a file that the box shows
    lines = [{key: f"{text} {i}" for key, text in json.loads(record).items()} for i in range(20)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the tests have no network: the tiny model stands in for it
    assert code.count(f'"{hub}"') == 1
    code = code.replace(hub, (ASSETS / "tiny-llama").as_posix())
    aside = functools.partial(trl.SFTConfig, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
    monkeypatch.setattr(trl, "SFTConfig", aside)  # what the lesson says that a machine without a GPU needs
    names: dict = {}
    exec(compile(code, "the box", "exec"), names)

    files = {path.name for path in (tmp_path / "out" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    base = fresh_base()
    load_adapter(base, tmp_path / "out" / "adapter")
    layers = lora_layers(base)
    assert len(layers) == 28 and {len(layer.lora_A) for layer in layers.values()} == {16}
    assert all(layer.lora_B.abs().max() > 0 for layer in layers.values()), "every layer was trained"
    assert all(layer.scaling == 2 for layer in layers.values())
    assert count_parameters(names["model"])[0] == sum(p.numel() for x in layers.values() for p in (x.lora_A, x.lora_B))

    train_set, held_out = names["data"]["train"], names["data"]["test"]
    assert (len(train_set), len(held_out)) == (18, 2)
    losses = [float(n) for n in re.findall(r"held-out loss (?:before|after): +(\S+)", capsys.readouterr().out)]
    assert len(losses) == 2 and losses[1] < losses[0], "better after the training, on records it didn't see"
    tokenizer = names["tokenizer"]
    assert "<|user|>" in tokenizer.decode(names["inputs"]["input_ids"][0]), "asked as it was trained"
    trained = names["trainer"].train_dataset[0]
    asked, answer = train_set[0]["prompt"], train_set[0]["completion"]
    whole = tokenizer.apply_chat_template(asked + answer, return_dict=True)["input_ids"]
    assert list(trained["input_ids"]) == whole, "the chat template's role markers are there"
    batch = next(iter(names["trainer"].get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = tokenizer.decode(ids[labels != -100])
        assert text.startswith(lines[0]["completion"].rsplit(" ", 1)[0]), "the answer alone is in the loss"
        assert "<|user|>" not in text and "<|assistant|>" not in text
