"""The clinic: each finding comes with the fault that causes it, and a healthy run has none."""

import math
import warnings

import pytest
import torch
from torch import nn

from utils.data.chat import render
from utils.data.labels import batches
from utils.evaluate import diagnose_cases as cases
from utils.evaluate.diagnose import (
    LAST,
    Chart,
    Signs,
    applied_scaling,
    chart_of,
    examine,
    labels_signs,
    strength,
    trend,
    vital_signs,
    watched,
)
from utils.lora import inject
from utils.models import load_base, profile, widen_trainable
from utils.tinyworld import task_examples
from utils.tinyworld.rewarded import gold_examples, request_rows
from utils.train.adapter_cache import trained_adapter
from utils.train.loop import train

torch.set_num_threads(1)


def signs_of(findings):
    return [finding.sign for finding in findings]


@pytest.fixture(scope="module")
def tokenizer():
    return cases.load_tiny()[1]


@pytest.fixture(scope="module")
def good():
    """Three healthy batches."""
    return cases.healthy_batches(3)


@pytest.fixture(scope="module")
def base():
    return load_base()[0]


@pytest.fixture
def new():
    return cases.new_adapter()


# ------------------------------------------------------------------------------------------------------- the chart


def test_patients_train_on_as_many_batches_as_their_fault_needs_to_show(monkeypatch):
    monkeypatch.setattr(cases, "healthy_batches", lambda steps: list(range(steps)))
    for fault in ("without_eos", "labels_on_everything"):
        monkeypatch.setattr(cases, fault, lambda batch, token: batch)
    for maker in ("new_adapter", "frozen_adapter"):
        monkeypatch.setattr(cases, maker, lambda: nn.Linear(1, 1))
    monkeypatch.setattr(cases, "watched", lambda model, batches, **settings: list(batches))
    ward = cases.admit(progress=False)
    drawn = {letter: patient.chart for letter, patient in ward.items()}
    everything = list(range(cases.STEPS))
    assert drawn["A"] == drawn["C"] == drawn["D"] == everything
    assert drawn["B"] == drawn["E"] == drawn["F"] == everything[: cases.EARLY]


def test_watched_trains_as_train_does(tokenizer):
    """The same losses, number by number: the clinic's runs are the course's runs, only watched."""
    examples = task_examples("sentiment", "train", 50)
    theirs = train(cases.new_adapter(), tokenizer, examples, steps=4, lr=6e-3, batch_size=4, progress=False)
    drawn = batches(tokenizer, examples, steps=4, batch_size=4, seed=0)
    assert watched(cases.new_adapter(), drawn, lr=6e-3, steps=4).losses == theirs


def test_the_norm_is_the_one_before_clipping(good):
    loose, tight = (
        watched(cases.new_adapter(), good[:1], lr=1e-9, steps=5, max_grad_norm=most) for most in (None, 1e-3)
    )
    assert loose.norms == tight.norms and loose.norms[0] > 1


def test_warm_up_zero_begins_at_the_full_rate(good):
    """Adam's first step is the rate times the gradient's sign, so B's largest entry is the rate."""
    for warmup, expected in ((0, 1e-3), (10, 1e-4)):
        model = cases.new_adapter()
        watched(model, good[:1], lr=1e-3, steps=100, warmup=warmup)
        largest = max(p.abs().max().item() for n, p in model.named_parameters() if "lora_B" in n)
        assert math.isclose(largest, expected, rel_tol=1e-2)


def test_a_run_ends_at_a_loss_that_is_no_number(good):
    model = cases.new_adapter()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n).fill_(float("nan"))
    chart = watched(model, good, lr=1e-3, steps=3)
    assert len(chart.losses) == 1 and trend(chart) == "jumped"


def test_a_run_ends_at_a_gradient_that_is_infinite(new, good):
    parameter = next(p for n, p in new.named_parameters() if "lora_B" in n)
    parameter.register_hook(lambda g: g + math.inf)
    chart = watched(new, good, lr=1e-3, steps=3)
    assert len(chart.losses) == len(chart.norms) == 1 and math.isfinite(chart.losses[0])
    assert trend(chart) == "jumped" and parameter.grad is None
    assert parameter.eq(0).all(), "B is as it began"


def test_a_float16_run_follows_the_float32_run(tokenizer, good):
    """Loss scaling is on, and the norms of the chart are those of the gradients without the scale."""
    charts, scales = [], []
    for dtype in (torch.float32, torch.float16):
        model = load_base(dtype)[0]
        torch.manual_seed(0)
        inject(model, "all-linear", 4, 8)
        widen_trainable(model)
        first = next(p for n, p in model.named_parameters() if "lora_B" in n)
        seen = []
        first.register_hook(lambda g, seen=seen: seen.append(g.norm().item()))
        charts.append(watched(model, good, lr=3e-3, steps=3))
        scales.append(seen[0])
    assert charts[1].losses == pytest.approx(charts[0].losses, rel=5e-3)
    # A norm sums thousands of products of numbers with eleven binary digits.
    assert charts[1].norms == pytest.approx(charts[0].norms, rel=5e-2)
    assert scales[1] == pytest.approx(65536 * scales[0], rel=5e-2)


def test_watching_leaves_the_mode_and_the_random_state(new, good):
    modes, state = [m.training for m in new.modules()], torch.get_rng_state()
    assert any(modes) and not all(modes), "PEFT's layers come in training mode, the base in evaluation mode"
    watched(new, good, lr=1e-3, steps=3)
    assert [m.training for m in new.modules()] == modes and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", [{"lr": 0, "steps": 3}, {"lr": 1e-3, "steps": 0}, {"lr": 1, "steps": 1, "every": 0}])
def test_watched_refuses_what_is_not_positive(new, good, wrong):
    with pytest.raises(ValueError, match="must be positive"):
        watched(new, good, **wrong)


def test_the_held_out_loss_is_taken_at_the_beginning_every_so_often_and_at_the_end(new, good):
    """Without dropout, and without a trace in the run: its losses are those of a run that nobody looks at."""
    from peft import LoraConfig, get_peft_model

    chart = watched(new, good * 2, lr=6e-3, steps=6, dev=good[1], every=4)
    assert [step for step, _ in chart.dev] == [0, 4, 6]
    with torch.no_grad():
        assert chart.dev[-1][1] == pytest.approx(new.eval()(**good[1]).loss.item())
        assert chart.dev[0][1] == pytest.approx(load_base()[0](**good[1]).loss.item())
    assert chart.losses == watched(cases.new_adapter(), good * 2, lr=6e-3, steps=6).losses
    assert watched(cases.new_adapter(), good, lr=6e-3, steps=3, dev=good[1], every=3).dev[-1][0] == 3
    torch.manual_seed(0)
    noisy = get_peft_model(load_base()[0], LoraConfig(lora_dropout=0.5, target_modules="all-linear"))
    first, second = (watched(noisy, good[:1], lr=1e-12, steps=1, dev=good[1]).dev[0] for _ in range(2))
    assert first == second


def test_a_frozen_model_with_an_open_graph_trains_nothing_in_silence(good):
    chart = watched(cases.frozen_adapter(), good, lr=6e-3, steps=3)
    assert chart.norms == [0, 0, 0]


@pytest.mark.parametrize(
    ("losses", "norms", "expected"),
    [
        ([8.0] + [0.2] * 30, [10.0] + [1.0] * 30, "fell"),
        ([8.0] * 30, [10.0] * 30, "flat"),
        ([8.0] * 30, [0.0] * 30, "flat"),
        ([8.0] * 5, [10.0] * 5, "fell"),  # too early to say
        ([0.1] * 30, [0.5] * 30, "fell"),  # nothing left to learn
        ([8.0, 11.0, *[1.6] * 30], [10.0] * 32, "jumped"),
        ([8.0, 3.0, 7.0, *[1.6] * 30], [10.0] * 33, "jumped"),  # up again, though never above the first
        ([8.0, 7.0, *[1.6] * 30], [10.0, 250.0, *[1.0] * 30], "jumped"),
        ([8.0, 7.0, *[1.6] * 30], [3.0, 32.0, *[1.0] * 30], "fell"),  # labels on everything do this
        ([0.02, 0.005, 0.15], [0.1, 0.1, 3.0], "fell"),  # a wobble near the end
        ([8.0, float("nan")], [10.0, 1.0], "jumped"),
    ],
)
def test_the_trend(losses, norms, expected):
    assert trend(Chart(losses, norms)) == expected


def test_an_empty_chart_has_no_trend():
    with pytest.raises(ValueError, match="empty"):
        trend(Chart([], []))


# -------------------------------------------------------------------------------------------------------- the labels


def test_a_healthy_batch_and_a_new_adapter_have_no_findings(new, tokenizer, good, base):
    chart = watched(new, good, lr=6e-3, steps=3)
    assert examine(new, tokenizer, batch=good[0], chart=chart, base=base) == []
    signs = vital_signs(chart, new, good[0], tokenizer.eos_token_id)
    assert signs == Signs(108_544, "fell", pytest.approx(24 / good[0]["labels"].numel()), 0, True)


def test_labels_without_an_end_mark(new, tokenizer, good):
    sick = cases.without_eos(good[0], tokenizer.eos_token_id)
    assert signs_of(examine(new, tokenizer, batch=sick)) == ["no EOS"]
    assert (good[0]["labels"] == tokenizer.eos_token_id).any(), "the batch itself was changed"


def test_labels_on_everything(new, tokenizer, good):
    sick = cases.labels_on_everything(good[0], tokenizer.pad_token_id)
    assert signs_of(examine(new, tokenizer, batch=sick)) == ["padding trained on", "prompt trained on"]
    share, padding, eos = labels_signs(sick, tokenizer.eos_token_id)
    assert (share, eos) == (1.0, True) and padding == int((sick["attention_mask"] == 0).sum())
    with pytest.raises(ValueError, match="width must be"):
        cases.labels_on_everything(good[0], tokenizer.pad_token_id, width=3)
    own = good[0]["input_ids"].shape[1]
    assert cases.labels_on_everything(good[0], tokenizer.pad_token_id, width=own)["labels"].shape[1] == own


def test_a_label_on_the_first_token_counts_as_none(new, tokenizer, good):
    """Nothing is predicted before the first token, so a prompt that is learnt from its second one on is learnt."""
    ids, mask = good[0]["input_ids"], good[0]["attention_mask"]
    for first, expected in ((0, ["prompt trained on"]), (1, ["prompt trained on"]), (2, [])):
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :first] = -100
        assert signs_of(examine(new, tokenizer, batch={**good[0], "labels": labels})) == expected


def test_an_end_mark_that_pads_is_no_end_mark(new, tokenizer, good):
    """Where eos serves as padding, a learnt padding must not pass for a learnt EOS."""
    eos = tokenizer.eos_token_id
    sick = cases.labels_on_everything(cases.without_eos(good[0], eos), eos)
    real = (sick["labels"] == eos) & (sick["attention_mask"] == 1)
    sick["labels"] = sick["labels"].masked_fill(real, -100)
    assert "no EOS" in signs_of(examine(new, tokenizer, batch=sick))


def test_no_labels_at_all(new, tokenizer, good):
    sick = {**good[0], "labels": torch.full_like(good[0]["labels"], -100)}
    assert signs_of(examine(new, tokenizer, batch=sick)) == ["no labels"]


@pytest.mark.parametrize("filtered", [False, True], ids=["a loop of one's own", "transformers' log"])
def test_a_first_loss_that_is_no_number_names_the_labels_and_not_the_rate(new, tokenizer, good, filtered):
    """With all labels at -100 the mean over no label is NaN; transformers logs 0 for it, and a norm of 0."""
    sick = {**good[0], "labels": torch.full_like(good[0]["labels"], -100)}
    chart = Chart([0.0] * 3, [0.0] * 3) if filtered else watched(new, [sick], lr=6e-3, steps=1)
    (found,) = examine(new, tokenizer, chart=chart)
    assert found.sign == "no loss" and "labels" in found.text and "-100" in found.text
    assert signs_of(examine(new, tokenizer, batch=sick, chart=chart)) == ["no labels", "no loss"]
    later = Chart([5.0, math.nan], [1.0, math.nan])  # a number first: then it is the rate
    assert signs_of(examine(new, tokenizer, chart=later)) == ["rate too high"]


def test_what_transformers_logs_where_no_label_is_left(tmp_path, tokenizer, good):
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": i, "attention_mask": m, "labels": torch.full_like(i, -100)}
            for i, m in zip(good[0]["input_ids"], good[0]["attention_mask"], strict=True)]  # fmt: skip
    args = TrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(model=cases.new_adapter(), args=args, train_dataset=rows)
    trainer.train()
    chart = chart_of(trainer.state.log_history)
    assert chart.losses == chart.norms == [0, 0]
    assert signs_of(examine(trainer.model, tokenizer, chart=chart)) == ["no loss"]


# --------------------------------------------------------------------------------------------------------- the model


def test_a_frozen_adapter(tokenizer, good, base):
    frozen = cases.frozen_adapter()
    assert signs_of(examine(frozen, tokenizer, batch=good[0])) == ["nothing trainable"]
    chart = watched(frozen, good * 7, lr=6e-3, steps=21)
    found = signs_of(examine(frozen, tokenizer, batch=good[0], chart=chart, base=base))
    assert found == ["nothing trainable", "no gradient", "start"]


def test_a_rate_that_is_too_low_and_one_that_is_too_high(tokenizer, good):
    for lr, expected in ((2e-5, "rate too low"), (0.1, "rate too high")):
        model = cases.new_adapter()
        chart = watched(model, good * 7, lr=lr, steps=100, warmup=0, max_grad_norm=None)
        assert signs_of(examine(model, tokenizer, chart=chart)) == [expected]


def test_a_config_that_was_changed_afterwards(new, tokenizer):
    new.peft_config["default"].r = 16
    assert signs_of(examine(new, tokenizer)) == ["config changed"]
    new.peft_config["default"].r = 8
    new.peft_config["default"].lora_alpha = 64
    assert signs_of(examine(new, tokenizer)) == ["scaling"]
    for pattern in ("rank_pattern", "alpha_pattern"):  # either gives layers ranks or scalings of their own
        setattr(new.peft_config["default"], pattern, {"q_proj": 4})
        assert signs_of(examine(new, tokenizer)) == []
        setattr(new.peft_config["default"], pattern, {})


def test_rslora_scales_by_the_root_and_is_healthy(tokenizer):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"])
    assert examine(get_peft_model(load_base()[0], config), tokenizer) == []


def test_training_on_merged_layers(new, tokenizer, good):
    new.merge_adapter()
    assert signs_of(examine(new, tokenizer, batch=good[0])) == ["merged"]


# ------------------------------------------------------------------- overfitting, precision, experts, tokens, the data


@pytest.mark.parametrize(
    ("dev", "expected"),
    [
        ([(0, 5.8), (10, 1.1), (20, 1.6)], ["overfitting"]),
        ([(0, 5.8), (10, 1.1), (20, 1.15)], []),  # a wobble
        ([(0, 5.8), (10, 1.1), (20, 0.9)], []),
        ([(0, 5.8), (10, 0.01), (20, 0.04)], []),  # three times nearly nothing
        ([(0, 5.8), (10, 1.6), (20, 1.1)], []),
        ([], []),
    ],
)
def test_a_held_out_loss_that_rises(new, tokenizer, dev, expected):
    found = examine(new, tokenizer, chart=Chart([5.0, 1.0, 0.1], [1.0] * 3, dev))
    assert signs_of(found) == expected
    if found:
        assert "1.10, after 10 steps and is 1.60 after 20" in found[0].text


def test_a_run_on_few_examples_overfits_and_one_on_many_does_not(tokenizer):
    from utils.data.chat import collate, encode

    dev = collate(encode(tokenizer, task_examples("translation", "dev", 20)), tokenizer.pad_token_id)
    for n, expected in ((16, ["overfitting"]), (800, [])):
        model = cases.new_adapter()
        drawn = batches(tokenizer, task_examples("translation", "train", n), steps=60, batch_size=8, seed=0)
        chart = watched(model, drawn, lr=6e-3, steps=60, dev=dev)
        assert signs_of(examine(model, tokenizer, chart=chart)) == expected


@pytest.mark.parametrize(("widen", "expected"), [(False, ["float16 trained"]), (True, [])])
def test_an_adapter_in_float16(tokenizer, good, widen, expected):
    """And what a GradScaler makes of it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"])
    model = get_peft_model(load_base(torch.float16)[0], config, autocast_adapter_dtype=widen)
    assert signs_of(examine(model, tokenizer, batch=good[0])) == expected
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    scaler.scale(model(**good[0]).loss).backward()
    if widen:
        scaler.unscale_(optimizer)
    else:
        with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
            scaler.unscale_(optimizer)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, ["experts untouched"]),
        ({"target_modules": ["q_proj"], "target_parameters": EXPERTS}, []),
        ({"target_modules": [], "target_parameters": EXPERTS[1:]}, []),
    ],
)
def test_experts_that_no_adapter_reaches(base, tokenizer, good, fields, expected):
    from peft import LoraConfig, get_peft_model

    from utils.lora import upcycled

    model = get_peft_model(upcycled(base), LoraConfig(r=4, **fields))
    found = examine(model, tokenizer, batch=good[0])
    assert signs_of(found) == expected
    if found:
        assert "89%" in found[0].text and "'experts.down_proj'" in found[0].text
    frozen = upcycled(base).requires_grad_(False)
    assert signs_of(examine(frozen, tokenizer, batch=good[0])) == ["nothing trainable"]
    assert examine(upcycled(base).requires_grad_(True), tokenizer, batch=good[0]) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["new tokens untrained"]),
        ({"trainable_token_indices": [1024, 1025]}, []),
        ({"modules_to_save": ["embed_tokens"]}, []),
    ],
)
def test_new_tokens_whose_rows_do_not_train(base, good, fields, expected):
    from peft import LoraConfig, get_peft_model

    wider, model = cases.with_tags()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], **fields))
    drawn = list(batches(wider, cases.tagged("train", 32), steps=2, batch_size=8, seed=0))
    chart = watched(model, drawn, lr=1e-3, steps=2)
    found = examine(model, wider, batch=drawn[0], base=base, chart=chart)
    assert signs_of(found) == expected, "the base can't have a loss on tokens that it hasn't"
    if found:
        assert "'<|good|>'" in found[0].text or "'<|bad|>'" in found[0].text
    old = good[0]  # a batch without the tokens says nothing about them
    assert "new tokens untrained" not in signs_of(examine(model, wider, batch=old, base=base))


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, "embedding and the head don't train"),
        ({"trainable_token_indices": {"embed_tokens": [1024, 1025]}}, "in the head don't train"),
        ({"trainable_token_indices": {"embed_tokens": [1024, 1025], "lm_head": [1024, 1025]}}, None),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, None),
    ],
    ids=["nothing", "embedding alone", "both", "both whole"],
)
def test_a_head_of_its_own_needs_the_new_rows_too(good, fields, missing):
    from peft import LoraConfig, get_peft_model

    def untied(model):
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    wider, model = cases.with_tags()
    model = get_peft_model(untied(model), LoraConfig(r=4, target_modules=["q_proj"], **fields))
    batch = next(iter(batches(wider, cases.tagged("train", 32), steps=1, batch_size=8, seed=0)))
    found = examine(model, wider, batch=batch, base=untied(load_base()[0]))
    assert signs_of(found) == ([] if missing is None else ["new tokens untrained"])
    if missing:
        assert missing in found[0].text and "embed_tokens and lm_head" in found[0].text


def test_the_rows_that_transformers_draws_for_new_tokens_are_nearly_one():
    _, model = cases.with_tags()
    rows = model.get_input_embeddings().weight[-2:].detach()
    assert torch.cosine_similarity(*rows, dim=0) > 0.99


@pytest.mark.parametrize(
    ("mean_resizing", "fields", "written"),
    [(True, {}, 0), (True, {"trainable_token_indices": [1024, 1025]}, 20), (False, {}, 20)],
    ids=["default", "trained", "apart"],
)
def test_lora_writes_new_tokens_only_if_their_rows_are_drawn_apart_or_trained(mean_resizing, fields, written):
    from peft import LoraConfig, get_peft_model

    from utils.evaluate.metrics import complete

    wider, model = cases.with_tags(mean_resizing)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **fields))
    drawn = batches(wider, cases.tagged("train", 4000), steps=50, batch_size=8, seed=0)
    watched(model, drawn, lr=6e-3, steps=50)
    said = complete(model, wider, [e.prompt for e in cases.tagged("test", 20)], 4)
    assert sum(answer in cases.TAGS.values() for answer in said) == written


def test_what_is_wrong_with_the_data(new, tokenizer):
    clean = [{"instruction": e.prompt, "output": e.answer} for e in task_examples("translation", "train", 40)]
    train, test = clean[:30], clean[30:]
    assert examine(new, tokenizer, records=train, held_out=test) == []
    near = {"instruction": train[0]["instruction"].replace(".", "!"), "output": train[0]["output"]}
    for leaked, words in ((train[1], "1 are among the records and 0"), (near, "0 are among the records and 1")):
        found = examine(new, tokenizer, records=train, held_out=[*test, leaked])
        assert signs_of(found) == ["leak"] and words in found[0].text
    spoilt = {"instruction": "Is it?", "output": "It is.<|end|> Or <|user|> not."}
    found = examine(new, tokenizer, records=[*train, spoilt])
    assert (
        signs_of(found) == ["special tokens"] and "<|end|> in 1" in found[0].text and "<|user|> in 1" in found[0].text
    )
    with pytest.raises(ValueError, match="held_out needs records"):
        examine(new, tokenizer, held_out=test)


# ------------------------------------------------------------------------------------------------- how often it is in


def test_applied_scaling():
    torch.manual_seed(0)
    weight, a, b = torch.randn(6, 8), torch.randn(2, 8), torch.randn(6, 2)
    for s in (0.0, 1.0, 2.0, -0.5):
        assert math.isclose(applied_scaling(weight, weight + s * (b @ a), a, b), s, abs_tol=1e-5)  # float32's rounding
    with pytest.raises(ValueError, match="zero throughout"):
        applied_scaling(weight, weight, a, 0 * b)


@pytest.fixture(scope="module")
def servers():
    return cases.open_servers(task_examples("translation", "test", 8))


@pytest.mark.parametrize(
    ("letter", "times", "expected"),
    [
        ("G", 2, ["template"]),
        ("H", 1, ["alpha/r forgotten"]),
        ("I", 2, ["right padding"]),
        ("J", 2, []),
        ("K", 4, ["merged twice"]),
    ],
)
def test_each_server_has_its_own_fault_and_no_other(servers, tokenizer, base, letter, times, expected):
    server, folder = servers[letter], trained_adapter("translation", profile())
    assert strength(server.model, base, folder) == (pytest.approx(times, abs=1e-4), 2, pytest.approx(0, abs=5e-3))
    assert signs_of(examine(server.model, tokenizer, inputs=server.inputs, base=base, adapter=folder)) == expected


def test_merged_once_is_healthy_however_it_was_merged(tokenizer, base):
    folder, wrapped = trained_adapter("translation", profile()), cases.attached()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_adapter()
        wrapped.merge_adapter()  # PEFT refuses the second time
    for model in (wrapped, cases.attached().merge_and_unload(), cases.attached().merge_and_unload().bfloat16()):
        assert examine(model, tokenizer, base=base, adapter=folder) == []


def test_an_adapter_that_is_off_or_absent(tokenizer, base):
    folder, model = trained_adapter("translation", profile()), cases.attached()
    for sick in (load_base()[0], model):
        if sick is model:
            model.base_model.disable_adapter_layers()
        assert signs_of(examine(sick, tokenizer, base=base, adapter=folder)) == ["not applied"]


def test_another_revision_of_the_base(tokenizer, base):
    """The update is there once, and something else beneath it; a merge in 16 bits isn't taken for that."""
    folder = trained_adapter("translation", profile())
    moved = cases.attached(cases.next_revision())
    assert strength(moved, base, folder).times == pytest.approx(2, abs=0.1)
    for model in (moved, cases.attached(cases.next_revision()).merge_and_unload()):
        found = examine(model, tokenizer, base=base, adapter=folder)
        assert signs_of(found) == ["another base"] and "29%" in found[0].text
    assert strength(cases.attached().merge_and_unload().bfloat16(), base, folder).apart < 0.005


def test_a_folder_without_a_base_is_refused(new, tokenizer):
    with pytest.raises(ValueError, match="adapter needs base"):
        examine(new, tokenizer, adapter=trained_adapter("style", profile()))


# -------------------------------------------------------------------------------------------------------- the prompts


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda t, p: render(t, p), []),
        (lambda t, p: p, ["template"]),
        (lambda t, p: render(t, p) + " ", ["template"]),
        (
            lambda t, p: t.apply_chat_template([{"role": "user", "content": p}], tokenize=False),
            ["template"],
        ),
    ],
    ids=["right", "bare", "a space behind", "no generation prompt"],
)
def test_the_template(new, tokenizer, write, expected):
    texts = [write(tokenizer, e.prompt) for e in task_examples("style", "test", 5)]
    assert signs_of(examine(new.eval(), tokenizer, inputs=cases.tokenized(texts))) == expected


def test_prompts_are_held_against_the_batch_of_training_where_there_is_one(new, tokenizer, good):
    by_hand = "### Instruction:\n{}\n\n### Response:\n".format
    prompts = [e.prompt for e in task_examples("sentiment", "test", 4)]
    asked = {
        "chat": cases.tokenized([render(tokenizer, p) for p in prompts]),
        "hand": cases.tokenized([by_hand(p) for p in prompts]),
    }
    own = [tokenizer.encode(by_hand(p), add_special_tokens=False) for p in prompts]
    answer = tokenizer.encode("good", add_special_tokens=False) + [tokenizer.eos_token_id]
    from utils.data.chat import collate

    trained = {
        "chat": good[0],
        "hand": collate([(ids, answer) for ids in own], tokenizer.pad_token_id),
    }
    for learnt in ("chat", "hand"):
        for form in ("chat", "hand"):
            found = examine(new.eval(), tokenizer, batch=trained[learnt], inputs=asked[form])
            assert signs_of(found) == ([] if form == learnt else ["template"]), (learnt, form)


@pytest.mark.parametrize(("stops", "expected"), [(1, []), ([5, 1], []), (5, ["EOS ignored"]), (None, ["EOS ignored"])])
def test_generation_has_to_end_at_the_tokenizers_eos(new, tokenizer, stops, expected):
    assert tokenizer.eos_token_id == 1
    inputs = cases.tokenized([render(tokenizer, "Hello")])
    new.generation_config.eos_token_id = stops
    assert signs_of(examine(new.eval(), tokenizer, inputs=inputs)) == expected
    assert examine(nn.Identity(), tokenizer, inputs=inputs) == [], "nothing to generate with"


def test_dropout_left_on(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_base()[0], LoraConfig(lora_dropout=0.1, target_modules=["q_proj"]))
    inputs = cases.tokenized([render(tokenizer, "Hello")])
    assert signs_of(examine(model.train(), tokenizer, inputs=inputs)) == ["dropout on"]
    assert examine(model.eval(), tokenizer, inputs=inputs) == []


# ------------------------------------------------------------------------------------------------ what TRL really does


WORDS = [chr(97 + n // 26) + chr(97 + n % 26) for n in range(60)]  # sixty of them, all different


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (WORDS[:LAST], []),
        (WORDS[: LAST // 2] * 2, []),
        ([*WORDS[: LAST // 2 - 1], *["fox"] * (LAST // 2 + 1)], []),
        ([*WORDS[: LAST // 2 - 2], *["fox"] * (LAST // 2 + 2)], ["repeated words"]),
        ([*WORDS[:50], *["Fox", "fox."] * 12], ["repeated words"]),
        ([*["fox"] * 50, *WORDS[:LAST]], []),
        (["fox"] * (LAST - 1), []),
        ([], []),
    ],
    ids=[
        "none",
        "half",
        "just under half",
        "over half",
        "at the end of a long one",
        "at its beginning",
        "short",
        "empty",
    ],
)
def test_answers_that_say_a_word_again_and_again(new, tokenizer, said, expected):
    assert signs_of(examine(new, tokenizer, answers=[" ".join(said)] * 3)) == expected


def test_one_answer_that_repeats_is_no_finding_and_most_are_named_with_the_word(new, tokenizer):
    fine, bad = " ".join(WORDS[:LAST]), " ".join(["lake", *["fox"] * (LAST - 1)])
    assert examine(new, tokenizer, answers=[fine, fine, bad]) == examine(new, tokenizer, answers=[]) == []
    (found,) = examine(new, tokenizer, answers=[bad, fine, bad])
    assert f"8% are new (the median of 3 answers); one says 'fox' {LAST - 1} times" in found.text


def test_the_tasks_own_stories_do_not_repeat_themselves(new, tokenizer):
    told = gold_examples(request_rows("four", "train", 50))
    assert examine(new, tokenizer, answers=[example.answer for example in told]) == []


@pytest.fixture
def data():
    from datasets import Dataset

    from utils.data.records import to_prompt_completion

    examples = task_examples("style", "train", 16)
    return Dataset.from_list([to_prompt_completion({"instruction": e.prompt, "output": e.answer}) for e in examples])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trl_trains_a_frozen_adapter_in_silence_when_it_checkpoints(tmp_path, tokenizer, data, checkpointing):
    """The course's own sft_trainer refuses such a model."""
    from peft import PeftModel
    from trl import SFTTrainer

    from utils.train.recipes import Recipe
    from utils.train.sft import sft_config, sft_trainer

    recipe = Recipe(r=8, lora_alpha=16, lr=4e-3, steps=2, batch_size=4)
    model = PeftModel.from_pretrained(load_base()[0], trained_adapter("sentiment", profile()))
    args = sft_config(tmp_path, recipe, activation_checkpointing=checkpointing)
    with pytest.raises(ValueError, match="nothing to train"):
        sft_trainer(model, tokenizer, data, args)
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    if not checkpointing:
        with pytest.raises(RuntimeError, match="does not require grad"):
            trainer.train()
        return
    trainer.train()
    assert chart_of(trainer.state.log_history).norms == [0, 0]


def test_a_trainers_history_is_a_chart(tmp_path, tokenizer, data):
    from utils.train.recipes import Recipe
    from utils.train.sft import lora_config, sft_config, sft_trainer

    recipe = Recipe(r=4, lora_alpha=8, lr=4e-3, steps=4, batch_size=4)
    args = sft_config(tmp_path, recipe, eval_strategy="steps", eval_steps=2, logging_steps=1)
    trainer = sft_trainer(
        load_base()[0], tokenizer, data, args, peft_config=lora_config(recipe), evaluation=data.select(range(4))
    )
    with pytest.raises(ValueError, match="holds no loss"):
        chart_of(trainer.state.log_history)
    trainer.train()
    chart = chart_of(trainer.state.log_history)
    assert len(chart.losses) == len(chart.norms) == 4 and min(chart.norms) > 0
    assert [step for step, _ in chart.dev] == [2, 4] and chart.dev[1][1] < chart.dev[0][1]
    assert chart.losses[-1] < chart.losses[0] and trend(chart) == "fell"
    assert signs_of(examine(trainer.model, tokenizer, chart=chart)) == []
    first = next(iter(trainer.get_train_dataloader()))  # after training, the same batch as the run's first
    assert examine(trainer.model, tokenizer, batch=first, chart=chart, base=load_base()[0]) == []


def test_trl_copies_training_arguments_and_keeps_an_sft_config(tmp_path, tokenizer, data):
    from transformers import TrainingArguments
    from trl import SFTTrainer

    from utils.train.recipes import Recipe
    from utils.train.sft import lora_config, sft_config

    recipe = Recipe(r=8, lora_alpha=16, lr=4e-3, steps=2, batch_size=4)
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    for args, same in ((plain, False), (sft_config(tmp_path, recipe), True)):
        trainer = SFTTrainer(
            model=load_base()[0], args=args, train_dataset=data, processing_class=tokenizer,
            peft_config=lora_config(recipe),
        )  # fmt: skip
        assert (trainer.args is args) is same
        before = trainer.get_train_dataloader().total_batch_size
        args.per_device_train_batch_size = 1
        assert trainer.get_train_dataloader().total_batch_size == before, "the batch was fixed when it was made"


def test_a_plain_module_is_examined_too(tokenizer, good):
    assert signs_of(examine(nn.Linear(2, 2).requires_grad_(False), tokenizer, batch=good[0])) == ["nothing trainable"]


def test_watched_takes_no_step_beyond_those_its_rate_is_planned_for(new, good):
    chart = watched(new, [*good, *good, *good][: 3 * len(good)], lr=1e-3, steps=2)
    assert len(chart.losses) == len(chart.norms) == 2


def test_a_packed_batch_without_a_mask_has_no_padding(tokenizer):
    packed = {"input_ids": torch.tensor([[5, 6, 2, 7, 2]]), "labels": torch.tensor([[-100, 6, 2, -100, 2]])}
    assert labels_signs(packed, 2) == (pytest.approx(0.6), 0, True)
    assert labels_signs(packed | {"attention_mask": torch.ones(1, 5)}, 2) == labels_signs(packed, 2)
