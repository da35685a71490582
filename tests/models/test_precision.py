"""What the course computes in on each kind of machine: one place decides, and a card without bf16 trains soundly."""

from __future__ import annotations

import re

import pytest
import torch
from datasets import Dataset
from torch import nn

import capstone
from utils import models
from utils.course import environment
from utils.data.records import to_prompt_completion
from utils.data.report import data_report
from utils.lora import inject
from utils.models import loading
from utils.tinyworld import task_examples
from utils.train import loop as training
from utils.train import sft
from utils.train.recipes import Recipe
from utils.train.settings import Settings

torch.set_num_threads(1)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RECIPE = Recipe(r=4, lora_alpha=8, lr=1e-3, steps=4, batch_size=4, target_modules="all-linear")
SETTINGS = Settings(steps=4).filled("tiny", models.load_config(models.TINY_DIR))


@pytest.fixture
def machine(monkeypatch):
    """`machine("T4")` or another kind: what torch then says of its devices."""

    def make(kind: str, profile: str = "small") -> None:
        monkeypatch.setenv("COURSE_PROFILE", profile)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind in ("T4", "L4"))
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: kind == "L4" or including_emulation
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "Mac")
        # Optimizers ask it of a card; a build of torch with CUDA then asks the driver, which isn't there.
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    return make


@pytest.mark.parametrize(
    ("kind", "profile", "compute", "weights", "trainer"),
    [
        ("T4", "small", F16, F32, {"bf16": False, "fp16": True, "use_cpu": False, "dataloader_pin_memory": True}),
        ("T4", "7b", F16, F32, {"bf16": False, "fp16": True, "use_cpu": False, "dataloader_pin_memory": True}),
        ("L4", "small", BF16, BF16, {"bf16": True, "fp16": False, "use_cpu": False, "dataloader_pin_memory": True}),
        ("L4", "tiny", F32, F32, {"bf16": False, "fp16": False, "use_cpu": True, "dataloader_pin_memory": False}),
        ("T4", "tiny", F32, F32, {"bf16": False, "fp16": False, "use_cpu": True, "dataloader_pin_memory": False}),
        ("Mac", "small", F32, F32, {"bf16": False, "fp16": False, "use_cpu": False, "dataloader_pin_memory": False}),
        ("CPU", "small", F32, F32, {"bf16": False, "fp16": False, "use_cpu": True, "dataloader_pin_memory": False}),
    ],
)
def test_each_machine_computes_in_what_it_is_good_at(machine, kind, profile, compute, weights, trainer):
    machine(kind, profile)
    assert models.compute_dtype() == compute
    assert models.weights_dtype() == weights
    assert models.trainer_precision() == trainer


def test_a_whole_base_on_a_card_without_bf16_comes_in_float32(machine, monkeypatch):
    """In float16 the gradients of a loop without loss scaling would vanish."""
    machine("T4")
    asked = []
    monkeypatch.setattr(loading, "_load", lambda dtype, *_: asked.append(dtype))
    models.load_base()
    models.load_base(F16)
    machine("L4")
    models.load_base()
    assert asked == [F32, F16, BF16]


@pytest.mark.parametrize(("kind", "bf16", "fp16"), [("T4", False, True), ("L4", True, False), ("CPU", False, False)])
def test_the_trainers_settings_follow_the_machine(machine, tmp_path, kind, bf16, fp16):
    import transformers.training_args

    machine(kind)
    with pytest.MonkeyPatch.context() as patch:
        # It asks torch for a real card; what it would find is what `machine` says.
        patch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: bf16)
        patch.setattr(torch.cuda, "set_device", lambda _: None)
        for made in (sft.sft_config(tmp_path, RECIPE), capstone.sft_settings(tmp_path, SETTINGS)):
            assert (made.bf16, made.fp16, made.use_cpu) == (bf16, fp16, kind == "CPU")


def test_the_report_says_whether_the_card_has_bf16(machine, monkeypatch):
    class Card:
        name, total_memory, major = "Tesla T4", 15_600_000_000, 7

    machine("T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    assert environment.device_rows()[1].found.startswith("no")
    machine("L4")
    assert environment.device_rows()[1].found == "yes"


# ------------------------------------------------------------------------------- float16 needs float32 adapters


def test_only_what_trains_in_16_bits_is_widened():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half(), nn.Linear(2, 2).bfloat16())
    model[1].weight.requires_grad_(False)
    before = model[1].bias.clone()
    assert models.widen_trainable(model) == 3
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {F32}
    assert model[1].weight.dtype == F16 and torch.equal(model[1].bias, before.float())
    assert models.widen_trainable(model) == 0


def records() -> list[dict[str, str]]:
    return [{"instruction": e.prompt, "output": e.answer} for e in task_examples("style", "train", 8)]


def four_bit_trainer(tmp_path, *, fp16: bool):
    base, tokenizer = models.load_4bit()
    rows = Dataset.from_list([to_prompt_completion(record) for record in records()])
    args = sft.sft_config(tmp_path, RECIPE)
    args.fp16 = fp16  # afterwards, so that accelerate doesn't look for a card
    return sft.sft_trainer(base, tokenizer, rows, args, peft_config=sft.lora_config(RECIPE))


@pytest.mark.parametrize(("fp16", "dtype"), [(False, BF16), (True, F32)])
def test_fp16_training_has_float32_adapters_on_a_4_bit_base(tmp_path, fp16, dtype):
    """TRL makes them bf16, and the loss scaling of fp16 raises on bf16 gradients on a real card."""
    trainer = four_bit_trainer(tmp_path, fp16=fp16)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {dtype}


def test_the_capstone_widens_them_too(tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def train(self, resume_from_checkpoint):
        seen.update({p.dtype: 1 for p in self.model.parameters() if p.requires_grad})
        raise Stop

    from trl import SFTTrainer

    settings = capstone.sft_settings

    def with_fp16(folder, chosen, dev):
        made = settings(folder, chosen, dev)
        made.fp16 = True
        return made

    monkeypatch.setattr(capstone, "sft_settings", with_fp16)
    monkeypatch.setattr(SFTTrainer, "train", train)
    base, tokenizer = models.load_4bit()
    with pytest.raises(Stop):
        capstone.train(base, tokenizer, data_report(records(), tokenizer, 64).rows, [], SETTINGS, tmp_path)
    assert set(seen) == {F32}


def test_the_short_loop_scales_the_loss_of_a_float16_model():
    """Its float16 run follows the float32 one; the scaler's factor is in no loss that is returned."""
    examples, losses = task_examples("style", "train", 32), {}
    for dtype in (F32, F16):
        model, tokenizer = models.load_base(dtype)
        torch.manual_seed(0)
        inject(model, "all-linear", r=4, lora_alpha=8)
        models.widen_trainable(model)
        losses[dtype] = training.train(model, tokenizer, examples, steps=6, lr=3e-3, batch_size=4, progress=False)
        assert all(p.isfinite().all() for p in model.parameters() if p.requires_grad)
    # float16 keeps eleven binary digits, and four blocks pass the rounding on: half a percent is four roundings.
    assert losses[F16] == pytest.approx(losses[F32], rel=5e-3)


# ------------------------------------------------------------------------------------------- one place decides


def code_of_lessons():
    for lesson in sorted((models.ROOT / "lessons").glob("[0-9]*.md")):
        for cell in re.findall(r"^```python[^\n]*\n(.*?)^```", lesson.read_text(encoding="utf-8"), re.M | re.S):
            yield lesson.name, cell


def sources():
    for file in [models.ROOT / "capstone.py", *sorted((models.ROOT / "utils").rglob("*.py"))]:
        yield file.name, file.read_text(encoding="utf-8")
    yield from code_of_lessons()


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"is_bf16_supported\(", {"device.py"}),  # whoever needs a dtype asks compute_dtype
        (r"(Config|Arguments)\([^()]*\b(bf16|fp16)\s*=\s*True", {"06_loading_models.md"}),  # a T4's lines, to copy
        (r"\.cuda\(\)", set()),
        (r"device\s*=\s*[\"']cuda", set()),
        (r"\.to\([\"']cuda", set()),
    ],
)
def test_nobody_else_chooses_a_precision_or_a_card(pattern, allowed):
    found = {name for name, text in sources() if re.search(pattern, text)}
    assert found <= allowed, f"{pattern} in {sorted(found - allowed)}: utils.models decides that"
