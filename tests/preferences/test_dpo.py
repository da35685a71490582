"""DPO: the loss and its gradient by hand, equality with TRL's trainer, the reference, the data, and the traps."""

import contextlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import lora, models
from utils.data.chat import IGNORED, Example, encode
from utils.models import profile
from utils.preferences import dpo
from utils.train.adapter_cache import trained_adapter
from utils.train.loop import Diverged

RECORD = json.loads((models.ASSETS / "measurements" / "dpo.json").read_text())
NUMBERS = st.lists(st.floats(-50, 50), min_size=2, max_size=8).filter(lambda xs: len(xs) % 2 == 0)


@pytest.fixture(scope="module")
def pairs():
    return dpo.moral_pairs(6, "train")


def adapted(seed=1, size=0.02):
    """A base with an adapter that already does something."""
    model, tokenizer = models.load_base()
    lora.inject(model, "all-linear", 8, 16)
    for i, layer in enumerate(lora.lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B, std=size, generator=torch.Generator().manual_seed(seed + i))
    return model, tokenizer


def from_trl(batch):
    """A batch of TRL's collator in the form of dpo.pair_batch."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


# --------------------------------------------------------------------------------------------------------- the loss


@given(NUMBERS, st.floats(0.01, 5))
@settings(max_examples=50, deadline=None)
def test_equal_models_have_the_loss_log_two(log_probs, beta):
    same = torch.tensor(log_probs, dtype=torch.float64)
    assert dpo.dpo_loss(same, same, beta).loss.item() == pytest.approx(math.log(2), abs=1e-12)


@given(NUMBERS, st.floats(0.01, 1), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_gradient_is_the_one_of_the_paper(log_probs, beta, seed):
    own = torch.tensor(log_probs, dtype=torch.float64, requires_grad=True)
    off = torch.randn(len(log_probs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = dpo.dpo_loss(own, off, beta)
    found.loss.backward()
    n = len(log_probs) // 2
    wrong = torch.sigmoid(found.rejected_rewards - found.chosen_rewards)
    expected = beta / n * torch.cat([-wrong, wrong])
    assert torch.allclose(own.grad, expected, atol=1e-12)


def test_the_loss_by_hand():
    own, off = torch.tensor([-10.0, -12.0]), torch.tensor([-11.0, -11.5])
    found = dpo.dpo_loss(own, off, 0.5)
    assert found.chosen_rewards.tolist() == [0.5]
    assert found.rejected_rewards.tolist() == [-0.25]
    assert found.loss.item() == pytest.approx(math.log(1 + math.exp(-0.75)), abs=1e-6)


@pytest.mark.parametrize(
    ("own", "off", "beta", "text"),
    [
        (torch.zeros(3), torch.zeros(3), 0.1, "preferred then rejected"),
        (torch.zeros(2), torch.zeros(4), 0.1, "preferred then rejected"),
        (torch.zeros(0), torch.zeros(0), 0.1, "preferred then rejected"),
        (torch.zeros(2), torch.zeros(2), 0.0, "beta must be positive"),
        (torch.zeros(2), torch.zeros(2), math.nan, "beta must be positive"),
    ],
)
def test_what_the_loss_refuses(own, off, beta, text):
    with pytest.raises(ValueError, match=text):
        dpo.dpo_loss(own, off, beta)


def test_an_answers_log_probability_is_the_sum_of_its_tokens(pairs):
    model, tokenizer = models.load_base()
    batch = dpo.pair_batch(tokenizer, pairs[:2])
    with torch.no_grad():
        found = dpo.answer_log_probs(model, batch)
        for row, answer in enumerate([pairs[0].chosen, pairs[1].chosen, pairs[0].rejected, pairs[1].rejected]):
            prompt, ids = encode(tokenizer, [Example(pairs[row % 2].prompt, answer)])[0]
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            # padded and alone: sums of 150 float32 terms
            assert found[row].item() == pytest.approx(logits[range(len(ids)), ids].sum().item(), abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- TRL


def test_loss_metrics_and_gradients_are_trls(pairs, tmp_path):
    from peft import LoraConfig

    base, tokenizer = models.load_base()
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = dpo.trl_trainer(base, tokenizer, pairs, tmp_path, 0.1, peft_config=config)
    model = trainer.model
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(i))
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    theirs = trainer.compute_loss(model, batch)
    theirs.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    model.zero_grad()

    batch = from_trl(batch)
    own = dpo.answer_log_probs(model, batch)
    found = dpo.dpo_loss(own, dpo.reference_log_probs(model, batch), 0.1)
    found.loss.backward()
    assert abs(theirs.item() - math.log(2)) > 1e-3  # or the comparison would be one of two constants
    assert found.loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    for name, value in dpo.numbers(found).items():
        if name != "loss":
            assert value == pytest.approx(metrics[name], abs=1e-4), name  # beta times sums of 120 float32 terms
    assert own.chunk(2)[0].mean().item() == pytest.approx(metrics["logps/chosen"], abs=1e-3)
    assert len(gradients) == 56
    for name, gradient in gradients.items():
        difference = model.get_parameter(name).grad - gradient
        assert difference.norm() <= 1e-3 * gradient.norm(), name


def test_the_tokens_of_a_pair_are_trls(pairs, tmp_path):
    from peft import LoraConfig

    base, tokenizer = models.load_base()
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    theirs = dpo.trl_trainer(base, tokenizer, pairs, tmp_path, 0.1, peft_config=config)
    batch = from_trl(next(iter(theirs.get_train_dataloader())))
    ours = dpo.pair_batch(tokenizer, pairs)

    def rows(batch, half):
        ids, labels = batch["input_ids"].chunk(2)[half], batch["labels"].chunk(2)[half]
        return sorted(
            (i[m.bool()].tolist(), la[m.bool()].tolist())
            for i, la, m in zip(ids, labels, batch["attention_mask"].chunk(2)[half], strict=True)
        )

    assert rows(batch, 0) == rows(ours, 0)
    assert rows(batch, 1) == rows(ours, 1)


def test_trl_copies_an_adapter_called_default_and_fails_on_any_other_name(pairs, tmp_path):
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(models.load_base()[0], trained_adapter("style", profile()), is_trainable=True)
    trainer = dpo.trl_trainer(tuned, models.load_tokenizer(), pairs, tmp_path, 0.1)
    assert list(trainer.model.peft_config) == ["default", "ref"]
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    folder = trained_adapter("style", profile())
    other = PeftModel.from_pretrained(models.load_base()[0], folder, "style", is_trainable=True)
    with pytest.raises(KeyError, match="default"):
        dpo.trl_trainer(other, models.load_tokenizer(), pairs, tmp_path, 0.1)


# -------------------------------------------------------------------------------------------------------- reference


def test_a_fresh_adapter_begins_at_log_two_and_without_drift(pairs):
    model, tokenizer = models.load_base()
    lora.inject(model, "all-linear", 4, 8)
    found = dpo.evaluate_pairs(model, tokenizer, pairs, 0.1)
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert found["rewards/margins"] == 0
    told = dpo.sample(model, tokenizer, [p.prompt for p in pairs[:2]], max_new_tokens=8)
    assert dpo.drift(model, tokenizer, told) == 0


def test_the_reference_is_the_base_for_ours_and_for_peft(pairs):
    from peft import LoraConfig, get_peft_model

    base, tokenizer = models.load_base()
    batch = dpo.pair_batch(tokenizer, pairs[:2])
    with torch.no_grad():
        expected = dpo.answer_log_probs(base, batch)
    ours, _ = adapted()
    assert torch.equal(dpo.reference_log_probs(ours, batch), expected)
    theirs = get_peft_model(models.load_base()[0], LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        assert not torch.equal(dpo.answer_log_probs(theirs, batch), expected)
    assert torch.equal(dpo.reference_log_probs(theirs, batch), expected)
    with pytest.raises(RuntimeError, match="no LoRA layers"):
        dpo.reference_log_probs(base, batch)


def test_pissas_reference_is_the_base_in_ours_and_refused_in_pefts(pairs):
    """PEFT's, with the adapter off, is what PiSSA left of the base: far from it."""
    from peft import LoraConfig, get_peft_model

    base, tokenizer = models.load_base()
    batch = dpo.pair_batch(tokenizer, pairs[:2])
    with torch.no_grad():
        expected = dpo.answer_log_probs(base, batch)
    ours = models.load_base()[0]
    lora.inject(ours, "all-linear", 4, 8, variant=lora.PiSSA())
    with torch.no_grad():
        for layer in lora.lora_layers(ours).values():
            layer.lora_B.mul_(1.5)  # stands for training
        assert not torch.allclose(dpo.answer_log_probs(ours, batch), expected, atol=1)
    # float32, log-probabilities of whole stories, of the size of a hundred
    assert torch.allclose(dpo.reference_log_probs(ours, batch), expected, atol=1e-2)
    theirs = get_peft_model(
        models.load_base()[0], LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"])
    )
    with torch.no_grad(), theirs.disable_adapter():
        assert not torch.allclose(dpo.answer_log_probs(theirs, batch), expected, atol=1)
    with pytest.raises(ValueError, match="began with init_lora_weights='pissa'.*no reference"):
        dpo.reference_log_probs(theirs, batch)


def test_going_on_with_a_trained_adapter_needs_it_in_the_reference(pairs):
    from utils.lora.checkpoint import load_adapter

    model, tokenizer = models.load_base()
    load_adapter(model, trained_adapter("style", profile()))
    trapped = dpo.evaluate_pairs(model, tokenizer, pairs, 0.1)["loss"]
    assert abs(trapped - math.log(2)) > 0.05
    lora.merge(model)
    for name, layer in lora.lora_layers(model).items():
        model.set_submodule(name, layer.base_layer)
    lora.inject(model, "all-linear", 4, 8)
    assert dpo.evaluate_pairs(model, tokenizer, pairs, 0.1)["loss"] == pytest.approx(math.log(2), abs=1e-7)


# --------------------------------------------------------------------------------------------------------- the data


def test_pairs_say_their_moral_or_do_not_and_splits_share_no_chosen_story():
    splits = {split: dpo.moral_pairs(60, split) for split in ("train", "dev", "test")}
    for pairs in splits.values():
        assert all(dpo.has_moral(p.chosen) and not dpo.has_moral(p.rejected) for p in pairs)
    chosen = [{p.chosen for p in pairs} for pairs in splits.values()]
    assert not chosen[0] & chosen[1] and not chosen[0] & chosen[2] and not chosen[1] & chosen[2]
    assert dpo.moral_pairs(5, "train") == splits["train"][:5]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: dpo.moral_pairs(0, "train"), "at least 1"),
        (lambda: dpo.moral_pairs(1, "validation"), "unknown split"),
        (
            lambda: dpo.pair_batch(models.load_tokenizer(), [dpo.Pair("Hi", "yes", "yes")]),
            "prefers an answer to itself",
        ),
        (lambda: dpo.pair_batch(models.load_tokenizer(), [dpo.Pair("Hi", "yes", " ")]), "answer is empty"),
        (lambda: dpo.pair_batch(models.load_tokenizer(), []), "no examples"),
        (lambda: dpo.sample(*models.load_base(), "Tell me"), "prompts is one text"),
        (lambda: dpo.pair_batch(models.load_tokenizer(), [("Hi", "yes", "no")]), "pair 0 must be a Pair"),
        (lambda: dpo.pair_batch(models.load_tokenizer(), [{"prompt": "Hi"}]), "pair 0 must be a Pair"),
        (lambda: dpo.pair_batch(models.load_tokenizer(), [dpo.Pair("Hi", "yes", None)]), "of three texts"),
        (lambda: dpo.pair_batch(models.load_tokenizer(), None), "pairs must be a list of Pair, not None"),
        (lambda: dpo.evaluate_pairs(*adapted(), None, 0.1), "pairs must be a list of Pair"),
        (lambda: dpo.drift(*adapted(), []), "no answers"),
        (lambda: dpo.evaluate_pairs(*adapted(), [], 0.1), "no pairs"),
    ],
)
def test_bad_data_is_refused_in_words(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("own", "beta", "text"),
    [
        (torch.zeros(2), None, "beta must be a number such as 0.1, not None"),
        (torch.zeros(2), "0.1", "beta must be a number .* '0.1', which is text"),
        ([0.0, 0.0], 0.1, "log_probs must be a tensor, not the list"),
    ],
)
def test_a_loss_of_another_kind_is_refused_in_words(own, beta, text):
    with pytest.raises(TypeError, match=text):
        dpo.dpo_loss(own, torch.zeros(2), beta)


# --------------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"beta": None}, TypeError, "beta must be a number"),
        ({"beta": math.inf}, ValueError, "beta must be positive and finite, not inf"),
        ({"lr": "1e-3"}, TypeError, "lr must be a number"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
        ({"model": None}, TypeError, "model must be a model"),
        ({"pairs": None}, ValueError, "pairs must be a list of Pair"),
        ({"pairs": iter([])}, ValueError, r"pass list\(pairs\)"),
        ({"reference": None}, TypeError, "reference must be a function"),
        ({"reference": torch.nn.Linear(1, 1)}, TypeError, "reference is a model"),
        ({"reference": lambda model: None}, TypeError, r"reference\(model\) must give a block"),
        ({"loss": lambda a, b, c, d: a}, TypeError, r"loss is called as loss\(chosen, rejected"),
        ({"loss": lambda *_: None}, TypeError, "the loss '<lambda>' returned the NoneType None"),
        ({"loss": lambda a, *_: a.sum().item()}, TypeError, "the loss '<lambda>' returned the float"),
        ({"loss": lambda a, *_: a}, TypeError, r"returned a tensor of the shape \(4,\)"),
        ({"loss": lambda a, *_: a.sum().detach()}, ValueError, "without a gradient"),
        ({"loss": lambda a, *_: a.sum() * math.nan}, Diverged, "the loss '<lambda>' returned nan at step 0"),
    ],
)
def test_what_training_cant_use_is_told_before_a_weight_changes(pairs, changed, kind, text):
    model, tokenizer = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    settings = {"model": model, "pairs": pairs, "beta": 0.1, "steps": 1, "lr": 1e-3, "progress": False} | changed
    with pytest.raises(kind, match=text):
        dpo.train_dpo(tokenizer=tokenizer, **settings)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_training_prefers_what_was_preferred_and_leaves_the_base(pairs):
    model, tokenizer = models.load_base()
    lora.inject(model, "all-linear", 4, 8)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    history = dpo.train_dpo(model, tokenizer, pairs[:3], beta=0.1, steps=8, lr=3e-3, batch_size=3, progress=False)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert history[-1]["loss"] < 0.66
    assert history[-1]["rewards/accuracies"] == 1
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert not model.training


def test_training_with_a_loss_of_ones_own(pairs):
    def weights(**own):
        torch.manual_seed(0)
        model, tokenizer = adapted()
        steps = dpo.train_dpo(model, tokenizer, pairs[:2], beta=0.1, steps=2, lr=1e-3, progress=False, **own)
        return [one["loss"] for one in steps], torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    def loss(chosen, rejected, ref_chosen, ref_rejected, beta, sign=1):
        return -torch.nn.functional.logsigmoid(sign * beta * (chosen - ref_chosen - rejected + ref_rejected)).mean()

    def turned(*arguments):
        return loss(*arguments, sign=-1)

    (losses, course), (own_losses, own), (_, against) = weights(), weights(loss=loss), weights(loss=turned)
    assert own_losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(own, course, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(against, course, rtol=1e-3, atol=1e-5)


def test_training_refuses_what_it_cant_do(pairs):
    model, tokenizer = adapted()
    settings = {"beta": 0.1, "steps": 2, "lr": 1e-3, "progress": False}
    for name in ("steps", "lr", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            dpo.train_dpo(model, tokenizer, pairs, **{**settings, name: 0})
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        dpo.train_dpo(model, tokenizer, pairs, **settings)
    model.requires_grad_(True)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(math.nan)
    with pytest.raises(ValueError, match="holds NaN or infinity before training"):
        dpo.train_dpo(model, tokenizer, pairs, **settings)


@pytest.mark.parametrize(
    ("beta", "factor", "said"), [(1e38, 1.0, "loss is (inf|nan)"), (0.1, math.inf, "norm is (inf|nan)")]
)
def test_an_infinite_loss_or_gradient_ends_the_run_and_changes_no_weight(pairs, beta, factor, said):
    model, tokenizer = adapted(size=0.2)
    pairs = [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in pairs] + pairs
    parameter = next(p for n, p in model.named_parameters() if "lora_B" in n)
    parameter.register_hook(lambda g: g * factor)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(Diverged, match=said):
        dpo.train_dpo(model, tokenizer, pairs, beta=beta, steps=1, lr=1e-3, batch_size=12, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_float16_model_is_trained_with_loss_scaling(pairs):
    """Its losses follow the float32 run's, and Adam's small gradients don't vanish."""
    history = {}
    for dtype in (torch.float32, torch.float16):
        model, tokenizer = models.load_base(dtype)
        torch.manual_seed(0)
        lora.inject(model, "all-linear", 4, 8)
        models.widen_trainable(model)
        scales = []
        first = next(p for n, p in model.named_parameters() if "lora_B" in n)
        first.register_hook(lambda g, scales=scales: scales.append(g.norm()))
        steps = dpo.train_dpo(model, tokenizer, pairs[:2], beta=0.1, steps=5, lr=3e-3, batch_size=2, progress=False)
        history[dtype] = [step["loss"] for step in steps], next(s.item() for s in scales if s.isfinite())
    (losses, norm), (halves, scaled) = history.values()
    # Sums of some hundred log-probabilities, each rounded to eleven binary digits, times beta.
    assert halves == pytest.approx(losses, abs=0.03)
    assert losses[-1] < 0.68
    doublings = math.log2(scaled / norm)
    assert 8 <= round(doublings) <= 16 and doublings == pytest.approx(round(doublings), abs=0.1), "scaled by 2^n"


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_here_changes_the_mode_or_the_random_state(pairs, mode):
    model, tokenizer = adapted()
    model.train(mode)
    state = torch.get_rng_state()
    told = dpo.sample(model, tokenizer, [pairs[0].prompt], max_new_tokens=3)
    dpo.drift(model, tokenizer, told)
    dpo.evaluate_pairs(model, tokenizer, pairs[:1], 0.1)
    dpo.train_dpo(model, tokenizer, pairs[:1], beta=0.1, steps=1, lr=1e-3, progress=False)
    assert all(module.training == mode for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_another_reference_can_be_given(pairs):
    model, tokenizer = adapted()
    batch = dpo.pair_batch(tokenizer, pairs[:1])
    with torch.no_grad():
        own = dpo.answer_log_probs(model, batch)
    assert torch.equal(dpo.reference_log_probs(model, batch, contextlib.nullcontext), own)


def test_a_sample_ends_at_its_end_mark_and_the_seed_decides(pairs):
    model, tokenizer = models.load_base()
    prompts = [p.prompt for p in pairs[:3]]
    told = dpo.sample(model, tokenizer, prompts, max_new_tokens=160)
    assert told == dpo.sample(model, tokenizer, prompts, max_new_tokens=160)
    assert all(t.stopped == (t.ids[-1] == tokenizer.eos_token_id) for t in told)
    assert all(t.ids.count(tokenizer.eos_token_id) <= 1 for t in told)
    assert not any(t.stopped for t in dpo.sample(model, tokenizer, prompts, max_new_tokens=3))


def test_a_sample_ends_at_any_of_several_end_marks(pairs):
    model, tokenizer = models.load_base()
    free = dpo.sample(model, tokenizer, [pairs[0].prompt], max_new_tokens=12)[0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, free.ids[4]]
    cut = dpo.sample(model, tokenizer, [pairs[0].prompt], max_new_tokens=12)[0]
    assert cut.stopped and cut.ids == free.ids[: free.ids.index(free.ids[4]) + 1]


# ------------------------------------------------------------------------------------------------------- the record


def mean(key, **wanted):
    found = [r[key] for r in RECORD["rows"] if all(r[k] == v for k, v in wanted.items())]
    assert len(found) == len(RECORD["seeds"])
    return sum(found) / len(found)


def least(p, q):
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5])
def test_what_the_lesson_says_of_the_record(beta):
    gentle, harsh = {"lr": 0.001, "beta": beta}, {"lr": 0.003, "beta": beta}
    assert mean("rewards/accuracies", **gentle) == mean("rewards/accuracies", **harsh) == 1
    assert mean("morals", **gentle) > 0.9 > 3 * RECORD["base"]["morals"]
    assert mean("stopped", **gentle) == 1
    assert mean("drift", **gentle) < 1.2 * least(RECORD["base"]["morals"], mean("morals", **gentle))
    assert mean("rewards/chosen", **gentle) > 0 > mean("rewards/chosen", **harsh)
    assert mean("rewards/margins", **harsh) > 4 * mean("rewards/margins", **gentle)
    assert mean("morals", **harsh) <= RECORD["base"]["morals"]
    assert mean("stopped", **harsh) < 0.65
    assert mean("drift", **harsh) > 10 * mean("drift", **gentle)


def test_every_run_began_at_log_two():
    assert {row["first_loss"] for row in RECORD["rows"]} == {round(math.log(2), 6)}
