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

RUNS = {"LoRA, 0.006": 6e-3, "LoRA, 0.002": 2e-3, "full, 0.0005": 5e-4}


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
def test_all_three_runs_learn_the_task(runs):
    assert runs["base"][1] == 0
    for name in RUNS:
        assert runs[name][1] >= 0.95, name


@pytest.mark.slow
def test_the_learning_rate_decides_what_is_forgotten(runs):
    base, high, gentle, full = (runs[name][2] for name in ("base", *RUNS))
    assert base < full < 1.4 * base and base < gentle < 1.4 * base, "level, and a little more than the base"
    assert abs(gentle - full) < 0.2 * base
    assert high > 2 * max(gentle, full)


@pytest.mark.slow
def test_lora_needs_as_many_steps_as_full_fine_tuning_or_more(runs):
    high, gentle, full = (steps_needed(runs[name][0]) for name in RUNS)
    assert abs(high - full) <= 5 and 40 <= full <= 52
    assert 1.6 < gentle / full < 2.1, "nearly twice as many at the gentle learning rate"


# ------------------------------------------------------------------------------------------- "In PEFT this is ..."


def box() -> str:
    """The code of the box on the lesson's first screen."""
    lesson = (ROOT / "lessons" / "04_a_lora_layer_from_scratch.md").read_text(encoding="utf-8")
    opening = lesson[: lesson.index("**You will be able to**")]
    (code,) = re.findall(r"^```python \.noeval\n(.*?)^```$", opening, re.M | re.S)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("records", ["messages", "strings"])
def test_the_box_trains_on_a_readers_file_and_leaves_an_adapter(tmp_path, monkeypatch, fresh_base, records):
    import trl

    disable_progress_bars()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": f"Say {i}", "completion": f" Arr {i}"} for i in range(8)]
    if records == "messages":
        roles = {"prompt": "user", "completion": "assistant"}
        lines = [{k: [{"role": roles[k], "content": text}] for k, text in line.items()} for line in lines]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code = box()
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the tests have no network: the tiny model stands in for it
    assert code.count(f'"{hub}"') == 1
    code = code.replace(hub, (ASSETS / "tiny-llama").as_posix())
    aside = functools.partial(trl.SFTConfig, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
    monkeypatch.setattr(trl, "SFTConfig", aside)  # what the lesson says that a machine without a GPU needs
    box_names: dict = {}
    exec(compile(code, "the box", "exec"), box_names)

    files = {path.name for path in (tmp_path / "out" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    base = fresh_base()
    load_adapter(base, tmp_path / "out" / "adapter")
    layers = lora_layers(base)
    assert len(layers) == 28 and {len(layer.lora_A) for layer in layers.values()} == {16}
    assert all(layer.lora_B.abs().max() > 0 for layer in layers.values()), "every layer was trained"
    assert all(layer.scaling == 2 for layer in layers.values())
    assert count_parameters(box_names["model"])[0] == sum(
        p.numel() for x in layers.values() for p in (x.lora_A, x.lora_B)
    )
    trainer = trl.SFTTrainer(box_names["model"], box_names["settings"], train_dataset=box_names["data"])
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    assert (labels[:, 0] == -100).all() and (labels != -100).any(dim=1).all(), "the answer alone is in the loss"
