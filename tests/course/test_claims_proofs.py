"""Proofs of the claims ledger (lessons/claims.toml) that no cell of a lesson shows: each test computes the fact."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from importlib.metadata import metadata

import pytest
import torch
from torch import nn

from utils.models import ASSETS, ROOT, profile


def test_c02_mistral_7b_has_7_24_billion_parameters():
    from transformers import AutoModelForCausalLM, MistralConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MistralConfig())
    assert sum(p.numel() for p in model.parameters()) == 7_241_732_096


@pytest.mark.parametrize("quote, files", [("", ["=4.35.0"]), ('"', [])])
def test_c11_an_unquoted_bound_becomes_a_file(tmp_path, quote, files):
    done = subprocess.run(
        f"echo install {quote}transformers>=4.35.0{quote}", shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert os.listdir(tmp_path) == files
    assert ("4.35.0" in done.stdout) == (not files)


def test_c12_the_courses_torch_is_built_for_cuda_12_6_or_newer():
    built_for = re.findall(r'"cu(\d+)"', (ROOT / "utils" / "start" / "torch_build.py").read_text(encoding="utf-8"))
    for record in (ASSETS / "measurements").glob("*.json"):
        built_for += re.findall(r'"torch": "[\d.]+\+cu(\d+)"', json.dumps(json.loads(record.read_text())))
    assert len(built_for) >= 3, "torch_build's index and the GPU records name their CUDA"
    assert min(map(int, built_for)) >= 126


def test_c20_a_model_spread_over_devices_is_refused_by_several_processes(monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.MULTI_CPU)
    spread = nn.Linear(2, 2)
    spread.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}  # what device_map="auto" leaves behind
    with pytest.raises(ValueError, match="device_map='auto'` in any distributed mode"):
        accelerator.prepare(spread)
    own = nn.Linear(2, 2)
    own.hf_device_map = {"": 1}
    assert accelerator.verify_device_map(spread) and not accelerator.verify_device_map(own)


def test_c30_lora_of_rank_8_on_llama_2_7b_trains_8_388_608_parameters(capsys):
    from peft import LoraConfig, get_peft_model

    from utils.models import meta_model

    for targets in (["q_proj", "k_proj", "v_proj", "o_proj"], ["q_proj", "v_proj"]):
        config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
        get_peft_model(meta_model("Llama-2-7B"), config).print_trainable_parameters()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "trainable params: 8,388,608 || all params: 6,746,804,224 || trainable%: 0.1243"
    assert second.startswith("trainable params: 4,194,304 ")
    assert round(6_746_804_224 / 8_388_608) == 804


def test_c31_a_warm_up_below_one_is_a_share_and_the_default_rate_is_2e_5(tmp_path):
    from trl import SFTConfig

    settings = SFTConfig(output_dir=str(tmp_path), warmup_steps=0.1, use_cpu=True, bf16=False)
    assert settings.get_warmup_steps(500) == 50
    assert SFTConfig.__dataclass_fields__["learning_rate"].default == settings.learning_rate == 2e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and PEFT's about names that change, none of which is the claim's
@pytest.mark.parametrize(("settings", "loaded"), [({}, False), ({"beta": 0.1}, True)], ids=["default", "beta 0.1"])
def test_c81_grpo_loads_a_reference_only_where_beta_is_set(tmp_path, settings, loaded):
    """Of a model that trains in full, which has no adapter to switch off."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from utils.models import load_tiny

    assert GRPOConfig.__dataclass_fields__["beta"].default == 0
    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=8, **settings
    )
    model, tokenizer = load_tiny()
    rows = Dataset.from_list([{"prompt": "Tell me a story about a fox."}])
    trainer = GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), args, rows, processing_class=tokenizer
    )
    assert (trainer.ref_model is not None) == loaded


METHODS = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}


@pytest.mark.parametrize("method", sorted(METHODS | {f"{name}_svd" for name in METHODS - {"linear"}} | {"cat", "svd"}))
def test_c36_methods_that_need_equal_ranks(method):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(nn.Sequential(nn.Linear(16, 16)), LoraConfig(r=2, target_modules=["0"]), "two")
    model.add_adapter("four", LoraConfig(r=4, target_modules=["0"]))

    def combine():
        density = None if method in ("cat", "svd", "linear") else 0.5
        model.add_weighted_adapter(["two", "four"], [1.0, 1.0], "both", combination_type=method, density=density)

    if method in METHODS:
        with pytest.raises(ValueError, match="same r value"):
            combine()
    else:
        combine()
        assert "both" in model.peft_config


OBJECTIVE_10_1 = """
def objective(trial):
    r = trial.suggest_int("r", 4, 32, step=4)
    lora_alpha = trial.suggest_int("lora_alpha", r, r*4, step=r)
    lora_dropout = trial.suggest_float("lora_dropout", 0.0, 0.2)
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 5e-4, log=True)

    lora_config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=["q_proj", "v_proj"],
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )

    # Train and evaluate...
    return metrics["eval_loss"]
"""
"""The document's, letter by letter."""


def test_c39_the_guides_objective_returns_an_undefined_name():
    import optuna
    from peft import LoraConfig, TaskType

    known = {"LoraConfig": LoraConfig, "TaskType": TaskType}  # imported further up there
    exec(OBJECTIVE_10_1, known)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(direction="minimize")
    with pytest.raises(NameError, match="metrics"):
        study.optimize(known["objective"], n_trials=1)


def test_c39_an_alpha_whose_range_depends_on_r_leaves_the_common_search_space():
    import optuna

    def guides(trial):
        r = trial.suggest_int("r", 4, 32, step=4)
        return float(trial.suggest_int("lora_alpha", r, r * 4, step=r) / r)

    def ratio(trial):
        return float(2 ** trial.suggest_int("log2_r", 2, 5) * trial.suggest_categorical("ratio", [1, 2, 3, 4]))

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    spaces = []
    for objective in (guides, ratio):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=10)
        assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)  # it works
        spaces.append(set(optuna.search_space.intersection_search_space(study.get_trials())))
    assert spaces == [{"r"}, {"log2_r", "ratio"}]


def test_c42_a_lora_step_takes_about_two_thirds_of_the_arithmetic():
    from utils.profiling import Setup, step_flops

    full = step_flops(Setup("Llama-2-7B", "full", length=128))
    lora = step_flops(Setup("Llama-2-7B", "lora", length=128, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")))
    assert math.isclose(full.backward / full.forward, 2, rel_tol=0.02)
    assert 0.64 < lora.total / full.total < 0.70


@pytest.mark.parametrize(
    "variant, formula",
    [
        ("LoRA", lambda i, o, r: r * (i + o)),
        ("rsLoRA", lambda i, o, r: r * (i + o)),
        ("DoRA", lambda i, o, r: r * (i + o) + o),
        ("PiSSA", lambda i, o, r: r * (i + o)),
        ("VeRA", lambda i, o, r: o + r),
        ("AdaLoRA", lambda i, o, r: r * (i + o + 1)),
    ],
)
def test_c43_the_variants_parameters_by_formula_and_by_counting(variant, formula):
    from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model

    d_in, d_out, r = 96, 160, 6
    model = nn.Sequential(nn.Linear(d_in, d_out, bias=False))
    makers = {
        "LoRA": lambda: LoraConfig(r=r, target_modules=["0"]),
        "rsLoRA": lambda: LoraConfig(r=r, target_modules=["0"], use_rslora=True),
        "DoRA": lambda: LoraConfig(r=r, target_modules=["0"], use_dora=True),
        "PiSSA": lambda: LoraConfig(r=r, target_modules=["0"], init_lora_weights="pissa"),
        "VeRA": lambda: VeraConfig(r=r, target_modules=["0"]),
        "AdaLoRA": lambda: AdaLoraConfig(init_r=r, target_r=2, total_step=10, target_modules=["0"]),
    }
    wrapped = get_peft_model(model, makers[variant]())
    assert sum(p.numel() for p in wrapped.parameters() if p.requires_grad) == formula(d_in, d_out, r)
    if variant == "rsLoRA":
        layer = wrapped.base_model.model[0]
        assert math.isclose(layer.scaling["default"], wrapped.peft_config["default"].lora_alpha / math.sqrt(r))


def test_c44_bitsandbytes_names_its_new_home():
    home = dict(line.split(", ", 1) for line in metadata("bitsandbytes").get_all("Project-URL"))["homepage"]
    assert home == "https://github.com/bitsandbytes-foundation/bitsandbytes"


@pytest.mark.parametrize("tokens, forward", [(8, "B(Ax)"), (512, "materialized")])
def test_c46_which_order_takes_fewer_flops(tokens, forward):
    from torch.utils.flop_counter import FlopCounterMode

    d, r = 256, 4
    x = torch.randn(tokens, d, requires_grad=True)
    ways = {
        "B(Ax)": lambda W, A, B: x @ W.T + x @ A.T @ B.T,
        "materialized": lambda W, A, B: x @ (W + B @ A).T,
    }
    forwards, steps, results = {}, {}, []
    for name, way in ways.items():
        torch.manual_seed(0)
        W, A, B = torch.randn(d, d), torch.randn(r, d, requires_grad=True), torch.randn(d, r, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            y = way(W, A, B)
            forwards[name] = counter.get_total_flops()
            y.sum().backward()
        steps[name] = counter.get_total_flops()
        results.append((y, A.grad, B.grad))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()  # float32: sums of 256 to 512 terms, in another order
    assert min(forwards, key=forwards.get) == forward
    assert steps["materialized"] - steps["B(Ax)"] > 1.5 * tokens * d * d  # the full-size gradient: 2 n d^2


def test_c47_pefts_base_is_frozen_unless_more_is_asked_for():
    from peft import LoraConfig, get_peft_model

    def trained(**settings):
        base = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 4))
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"], **settings))
        model(torch.randn(3, 12)).square().sum().backward()
        return {name for name, p in model.named_parameters() if p.grad is not None}

    assert all("lora_" in name for name in trained()) and len(trained()) == 2
    assert any("base_layer.bias" in name for name in trained(bias="lora_only"))
    assert any("modules_to_save" in name for name in trained(modules_to_save=["1"]))


@pytest.fixture(scope="module")
def full_updates():
    """The pirate trained in full, twice, on the examples in another order: the matrices before, and the updates."""
    from utils.models import load_base
    from utils.tinyworld import task_examples
    from utils.train import train

    updates = []
    for seed in (0, 1):
        model, tokenizer = load_base()
        before = {name: p.detach().clone() for name, p in model.named_parameters() if "proj" in name}
        for name, p in model.named_parameters():
            p.requires_grad_(name in before)
        train(model, tokenizer, task_examples("style", "train", 4000), steps=120, lr=5e-4, batch_size=12, seed=seed)
        updates.append({name: model.get_parameter(name).detach() - before[name] for name in before})
    return before, updates


def test_c48_full_fine_tuning_cut_to_rank_8_loses_the_task(full_updates):
    from utils.evaluate import exact_match
    from utils.lora import lowrank
    from utils.models import load_base
    from utils.tinyworld import task_examples

    before, updates = full_updates
    test = task_examples("style", "test", 100)
    model, tokenizer = load_base()

    def right(update, r):
        with torch.no_grad():
            for name, weight in before.items():
                B, A = lowrank.best_factors(update[name], r)
                model.get_parameter(name).copy_(weight + B @ A)
        return exact_match(model, tokenizer, test)

    for update in updates:
        assert right(update, 64) >= 0.95, "measured 1.00 for both seeds: the task is learned"
        assert right(update, 32) >= 0.8, "measured 0.98 for both"
        assert right(update, 8) <= 0.4, "measured 0.11 and 0.23: most is gone"


def test_c48_two_full_runs_agree_far_more_than_lora_does_with_full(full_updates):
    """What two full runs share is the control for what LoRA shares with one."""
    from utils.lora import inject, lora_layers
    from utils.models import load_base
    from utils.tinyworld import task_examples
    from utils.train import train

    _, updates = full_updates
    model, tokenizer = load_base()
    torch.manual_seed(0)
    inject(model, "all-linear", r=8, lora_alpha=16)
    train(model, tokenizer, task_examples("style", "train", 4000), steps=120, lr=8e-3, batch_size=12)
    found = {f"{name}.weight": layer.delta_weight().detach() for name, layer in lora_layers(model).items()}

    def cosine(some, other):
        each = [torch.cosine_similarity(some[n].flatten(), other[n].flatten(), 0).item() for n in some]
        return sum(each) / len(each)

    assert cosine(*updates) >= 0.65, "measured 0.735, and the lesson prints 0.7"
    for update in updates:
        assert 0.12 <= cosine(found, update) <= 0.24, "measured 0.175 and 0.166, and the lesson prints 0.2"


# ------------------------------------------------------------------------------------------------------------- traps


@pytest.mark.parametrize("init", ["lora_ga", "eva"])
@pytest.mark.filterwarnings("ignore")
def test_t02_eva_and_lora_ga_without_their_calls_begin_like_plain_lora(init):
    from peft import LoraConfig, get_peft_model

    def start(**fields):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(64, 64))
        torch.manual_seed(1)
        layer = get_peft_model(base, LoraConfig(r=8, target_modules=["0"], **fields)).base_model.model[0]
        return layer.lora_A.default.weight.detach(), layer.lora_B.default.weight.detach()

    torch.manual_seed(1)
    drawn = nn.Linear(64, 8, bias=False).weight.detach()
    A, B = start(init_lora_weights=init)
    assert torch.equal(A, start()[0] if init == "lora_ga" else drawn)
    assert not B.any()


def test_t03_a_fast_pissa_adapter_does_not_survive_saving_and_a_converted_one_does(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(48, 32, bias=False))

    torch.manual_seed(1)
    x = torch.randn(64, 48)
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=["0"], init_lora_weights="pissa_niter_4"))
    model.save_pretrained(tmp_path / "start")
    assert torch.allclose(model(x), base()(x), atol=1e-5), "at the start it is the base"
    with torch.no_grad():  # as if trained
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn_like(p)
    wanted = model(x).detach()
    model.save_pretrained(tmp_path / "plain")
    learnt, fresh = (wanted - base()(x)).norm(), base()
    torch.manual_seed(2)  # another process: the decomposition is drawn again
    reloaded = PeftModel.from_pretrained(fresh, tmp_path / "plain")
    assert (reloaded(x) - wanted).norm() > 0.5 * learnt, "measured 0.87: most of what was learnt is gone"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    reloaded = PeftModel.from_pretrained(base(), tmp_path / "converted")
    assert (reloaded(x) - wanted).norm() < 1e-4 * learnt


def test_t05_adapter_names_are_refused_in_training_mode():
    from peft import PeftModel

    from utils.models import load_base
    from utils.train.adapter_cache import trained_adapter

    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, trained_adapter("style", profile()), "style")
    ids = tokenizer("Hello.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model.eval()(ids, adapter_names=["style"]).logits.shape[:2] == ids.shape
        with pytest.raises(ValueError, match="adapter_names.*training mode"):
            model.train()(ids, adapter_names=["style"])


@pytest.mark.parametrize("called, left", [(False, 48), (True, 16)])
def test_t08_adalora_prunes_nothing_unless_it_is_told_to(called, left):
    from peft import AdaLoraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(12, 12) for _ in range(8)))
    config = AdaLoraConfig(
        init_r=6, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=8, target_modules=[str(i) for i in range(8)]
    )
    model = get_peft_model(base, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for step in range(8):
        model(torch.randn(16, 12)).square().mean().backward()
        optimizer.step()
        if called:
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    ranks = [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]
    assert len(ranks) == 8 and sum(ranks) == left


# ------------------------------------------------------- accumulation, as transformers' Trainer weighs it (chapter 14)


class PlainModel(nn.Module):
    """Predicts every label with one trained vector. Its forward takes what it names, and nothing else."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0, -1.0]))

    def loss(self, labels, **options):
        return nn.functional.cross_entropy(self.logits.expand(labels.numel(), 3), labels.flatten(), **options)

    def forward(self, input_ids, labels):
        return {"loss": self.loss(labels)}


class ModelThatTakesPart(PlainModel):
    """The same, but it accepts the count of labels and divides by it, as transformers' models do."""

    def forward(self, input_ids, labels, **kwargs):
        count = kwargs.get("num_items_in_batch")
        if count is None:
            return {"loss": self.loss(labels)}
        return {"loss": self.loss(labels, reduction="sum") / count}


BATCH = [[0, 0], [0, 1], [2, -100], [2, -100]]


def gradient_of(model, loss):
    (gradient,) = torch.autograd.grad(loss, model.logits)
    return gradient


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.parametrize("kind", [PlainModel, ModelThatTakesPart])
def test_only_a_model_that_accepts_the_count_gets_the_large_batchs_gradient(kind, tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    found = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            found.append(model.logits.grad.clone())

    data = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in BATCH]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_grad_norm=0.0, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=kind(), args=args, train_dataset=data, callbacks=[Keep()])
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)  # two rows are one batch
    trainer.train()

    fresh, labels = kind(), torch.tensor(BATCH)
    large = gradient_of(fresh, fresh.loss(labels))
    means = gradient_of(fresh, (fresh.loss(labels[:2]) + fresh.loss(labels[2:])) / 2)
    assert not torch.allclose(large, means, atol=0.05), "the two must differ for the comparison to mean anything"
    torch.testing.assert_close(
        found[0], large if kind is ModelThatTakesPart else means
    )  # float32, one sum of six terms
