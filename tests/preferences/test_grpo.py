"""GRPO by hand: what advantages and the loss must be, sampling in groups, the loops, the refusals.

TRL's numbers are in test_grpo_trl.py."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import lora, models
from utils.data.chat import IGNORED, render
from utils.preferences import grpo
from utils.preferences.log_probs import completion_log_probs, completion_mask
from utils.preferences.rewards import RewardError
from utils.train.loop import Diverged

ANIMALS = ("fox", "bear", "bee", "hen", "dog", "cat", "pig", "wolf")
ROWS = [{"prompt": f"Tell me a story about a {animal}.", "animal": animal} for animal in ANIMALS]
QUICK = {"steps": 2, "lr": 1e-3, "group": 3, "prompts_per_step": 2, "max_new_tokens": 5, "progress": False}
ZEROS = {
    "log_probs": torch.zeros(2, 3), "old": torch.zeros(2, 3), "reference": torch.zeros(2, 3),
    "advantages": torch.zeros(2), "mask": torch.ones(2, 3, dtype=torch.bool),
}  # fmt: skip
LOOPS = [grpo.train_grpo, grpo.train_on_best]


def once(prompts, completions, **columns):
    """Stories that begin with "Once": one in four does."""
    return [float(text.startswith("Once")) for text in completions]


def lengths(prompts, completions, **columns):
    """A reward that tells nearly all answers apart."""
    return [float(len(text)) for text in completions]


def adapted(rank=4, seed=0):
    torch.manual_seed(seed)
    model, tokenizer = models.load_base()
    lora.inject(model, "all-linear", rank, 2 * rank)
    return model, tokenizer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


@st.composite
def some_rewards(draw, least=-10.0, most=10.0):
    prompts, group = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    flat = draw(st.lists(st.floats(least, most), min_size=prompts * group, max_size=prompts * group))
    return torch.tensor(flat, dtype=torch.float64).view(prompts, group)


@st.composite
def some_batch(draw):
    """Log-probabilities of rows of 0 to 5 tokens, the gains of the rows, and a mask."""
    rows, length = draw(st.integers(1, 4)), 5
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    own, old, off = -torch.rand(3, rows, length, generator=generator, dtype=torch.float64) * 3
    gains = torch.randn(rows, generator=generator, dtype=torch.float64)
    counts = torch.tensor(draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows)))
    return own, old, off, gains, torch.arange(length) < counts[:, None]


ANY_LOSS = {
    "weighting": st.sampled_from(["dapo", "grpo", "bnpo", "dr_grpo"]),
    "level": st.sampled_from(["token", "sequence"]),
}

# ------------------------------------------------------------------------------------------------------- advantages


@given(some_rewards(), st.sampled_from(["group", "batch", "none"]))
@settings(deadline=None)
def test_the_advantages_of_a_group_add_up_to_zero_and_keep_its_order(rewards, scale):
    found = grpo.advantages(rewards, scale)
    assert found.sum(1).abs().max() < 1e-6  # numbers up to 20 over a spread that may be 1e-4
    order = rewards.argsort(dim=1)
    assert (found.gather(1, order).diff(dim=1) >= -1e-9).all()


@given(some_rewards(), st.floats(0.5, 4), st.floats(-5, 5))
@settings(deadline=None)
def test_the_scale_group_forgets_how_large_rewards_are(rewards, factor, shift):
    rewards = rewards + torch.linspace(0, 3, rewards.shape[1], dtype=torch.float64)  # a spread far above 1e-4
    if (rewards.std(dim=1) < 0.5).any():
        return
    first, other = grpo.advantages(rewards), grpo.advantages(factor * rewards + shift)
    torch.testing.assert_close(other, first, rtol=2e-3, atol=1e-9)  # but for the 1e-4
    plain = grpo.advantages(rewards, "none")
    torch.testing.assert_close(grpo.advantages(factor * rewards + shift, "none"), factor * plain, rtol=0, atol=1e-9)


@given(st.floats(-1e3, 1e3, width=32), st.integers(1, 3), st.integers(2, 5))
@settings(deadline=None)
def test_equal_rewards_teach_nothing(value, prompts, group):
    for scale in ("group", "batch", "none"):
        found = grpo.advantages(torch.full((prompts, group), value, dtype=torch.float64), scale)
        assert found.abs().max() < 1e-8


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 1]])
    assert grpo.advantages(rewards, "none").tolist() == [[-0.25, -0.25, -0.25, 0.75], [-0.5, 0.5, -0.5, 0.5]]
    found = grpo.advantages(rewards)
    assert found[0, 3].item() == pytest.approx(0.75 / (0.5 + 1e-4), rel=1e-6)
    assert found[1, 1].item() == pytest.approx(0.5 / (math.sqrt(1 / 3) + 1e-4), rel=1e-6)
    whole = grpo.advantages(rewards, "batch")
    assert whole[0, 3].item() == pytest.approx(0.75 / (math.sqrt(1.875 / 7) + 1e-4), rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "scale", "said"),
    [
        ((4,), "group", r"shape \(prompts, group\).*not \(4,\)"),
        ((4, 1), "group", "an answer alone is its own mean"),
        ((0, 4), "group", r"a row for each prompt, and the shape \(0, 4\) has none"),
        ((2, 2), "std", "unknown scale 'std': choose one of group, batch, none"),
        ((2, 2), True, 'unknown scale True.* TRL\'s True is "group"'),
        ((2, 2), False, 'unknown scale False.* TRL\'s False is "none"'),
        ((2, 2), torch.ones(2), "unknown scale tensor"),
    ],
)
def test_what_advantages_refuse(shape, scale, said):
    with pytest.raises(ValueError, match=said):
        grpo.advantages(torch.zeros(shape), scale)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_whole_numbers_and_bools_are_rewards(kind, scale):
    rewards = torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert torch.equal(grpo.advantages(rewards.to(kind), scale), grpo.advantages(rewards.float(), scale))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "hold NaN or infinity"),
        (math.inf, "hold NaN or infinity"),
        (3e38, r"rewards up to 3e\+38 overflow"),
    ],
)
def test_rewards_whose_advantages_would_be_no_numbers_are_refused(value, said, scale):
    with pytest.raises(ValueError, match=said):
        grpo.advantages(torch.tensor([[0.0, 1, 0], [value, -1, value]]), scale)


@pytest.mark.parametrize("rewards", [[[0.0, 1]], np.zeros((1, 2)), None])
def test_advantages_are_of_a_tensor(rewards):
    with pytest.raises(TypeError, match="rewards must be a tensor, not the"):
        grpo.advantages(rewards)


# -------------------------------------------------------------------------------------------------------- the loss


@given(some_batch(), ANY_LOSS["weighting"], ANY_LOSS["level"])
@settings(max_examples=60, deadline=None)
def test_at_ratio_one_the_loss_is_minus_the_weighted_advantage(batch, weighting, level):
    own, _, _, gains, mask = batch
    found = grpo.grpo_loss(own, own, None, gains, mask, weighting=weighting, level=level, max_length=7)
    tokens = mask.sum(1).double()
    share = {
        "grpo": (tokens > 0).double() / len(gains),
        "dr_grpo": tokens / (7 * len(gains)),
    }.get(weighting, tokens / max(1, int(mask.sum())))
    assert found.loss.item() == pytest.approx(-(gains * share).sum().item(), abs=1e-12)
    assert found.clipped == 0 and math.isnan(found.kl)


@given(some_batch(), ANY_LOSS["weighting"], ANY_LOSS["level"], st.sampled_from([0.0, 0.3]))
@settings(max_examples=60, deadline=None)
def test_what_the_mask_leaves_out_changes_neither_loss_nor_gradient(batch, weighting, level, beta):
    own, old, off, gains, mask = batch

    def found(own, old, off):
        own = own.clone().requires_grad_()
        one = grpo.grpo_loss(own, old, off, gains, mask, beta=beta, weighting=weighting, level=level, max_length=5)
        one.loss.backward()
        assert own.grad is not None
        return torch.stack([*(x.detach() for x in one)]), own.grad

    expected, gradient = found(own, old, off)
    noise = torch.rand_like(own) * ~mask
    changed, other = found(own - noise, old - 2 * noise, off + noise)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(other, gradient, rtol=0, atol=1e-12)
    assert torch.equal(gradient[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))


def test_the_ratio_is_clipped_only_where_it_went_the_right_way_too_far():
    """A better answer that is much likelier already, and a worse one that is much less likely, teach nothing more."""
    own = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]], requires_grad=True)
    gains = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = grpo.grpo_loss(own, torch.zeros(4, 1), None, gains, torch.ones(4, 1, dtype=torch.bool), epsilon=0.2)
    found.loss.backward()
    up, down = math.exp(0.5), math.exp(-0.5)
    assert found.loss.item() == pytest.approx((-1.2 + up - down + 0.8) / 4)
    assert own.grad is not None
    torch.testing.assert_close(own.grad[:, 0], torch.tensor([0, up, -down, 0]) / 4)
    assert found.clipped == 0.5
    wider = grpo.grpo_loss(own, torch.zeros(4, 1), None, gains, torch.ones(4, 1).bool(), epsilon_high=1)
    assert wider.clipped == 0.25


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens():
    own, old = torch.tensor([[0.3, -0.1, 9.0]]), torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    found = grpo.grpo_loss(own, old, None, torch.tensor([1.0]), mask, level="sequence")
    assert found.loss.item() == pytest.approx(-math.exp(0.1), rel=1e-6)


@given(some_batch())
@settings(deadline=None)
def test_the_divergence_is_never_negative_and_zero_from_oneself(batch):
    own, _, off, gains, mask = batch
    settings = {"beta": 0.1, "bias_correction": False}
    assert grpo.grpo_loss(own, own, off, gains, mask, **settings).kl >= 0
    assert grpo.grpo_loss(own, own, own, gains, mask, **settings).kl == 0


def test_the_corrected_divergence_has_the_gradient_of_the_true_one():
    """In expectation over the policy's own tokens, k3 times the ratio has the gradient of KL(policy, reference)."""
    scores = torch.tensor([0.2, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    off = torch.tensor([0.5, 0.1, -0.3], dtype=torch.float64).log_softmax(0)
    own = scores.log_softmax(0)
    (expected,) = torch.autograd.grad((own.exp() * (own - off)).sum(), scores, retain_graph=True)
    gradients = {}
    for corrected in (True, False):
        total = torch.zeros(3, dtype=torch.float64)
        for token in range(3):
            loss = grpo.grpo_loss(
                own[None, token : token + 1], own.detach()[None, token : token + 1], off[None, token : token + 1],
                torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool), beta=1.0,
                bias_correction=corrected,
            ).loss  # fmt: skip
            total += own[token].exp().detach() * torch.autograd.grad(loss, scores, retain_graph=True)[0]
        gradients[corrected] = total
    torch.testing.assert_close(gradients[True], expected, rtol=0, atol=1e-12)
    assert (gradients[False] - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"beta": -0.1}, "beta must be 0 or above, not -0.1"),
        ({"beta": math.nan}, "beta must be 0 or above, not nan"),
        ({"beta": 0.1, "reference": None}, "beta is 0.1, so the loss needs the reference's"),
        ({"epsilon": 0}, "epsilon must be positive"),
        ({"epsilon_high": -1}, "epsilon_high must be positive"),
        ({"weighting": "ppo"}, "unknown weighting 'ppo': choose one of dapo, grpo, bnpo, dr_grpo"),
        ({"level": "word"}, "unknown level 'word': choose one of token, sequence"),
        ({"weighting": "dr_grpo"}, "pass max_length"),
        ({"weighting": "dr_grpo", "max_length": 0}, "max_length must be at least 1"),
        ({"beta": math.inf}, "beta must be finite, not inf"),
        ({"epsilon": 2}, "epsilon must be at most 1, not 2.* epsilon_high"),
        ({"advantages": torch.tensor([0, math.nan])}, "advantages hold NaN or infinity"),
        ({"advantages": torch.tensor([-math.inf, 0])}, "advantages hold NaN or infinity"),
        ({"old": torch.zeros(2, 4)}, r"have one shape, \(rows, length\).*\[\(2, 3\), \(2, 4\)\] and \(2,\)"),
        ({"advantages": torch.zeros(1, 2)}, r"and \(1, 2\)\. Flatten"),
    ],
)
def test_what_the_loss_refuses(changed, said):
    with pytest.raises(ValueError, match=said):
        grpo.grpo_loss(**{**ZEROS, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"beta": None}, "beta must be a number such as 0.04, not None"),
        ({"beta": "0.1"}, "beta must be a number .* not '0.1', which is text"),
        ({"epsilon": "0.2"}, "epsilon must be a number"),
        ({"epsilon_high": "0.2"}, "epsilon_high must be a number"),
        ({"advantages": [0.0, 0]}, "advantages must be a tensor, not the list"),
        ({"log_probs": np.zeros((2, 3))}, "log_probs must be a tensor, not the ndarray"),
        ({"old": None}, "old must be a tensor"),
        ({"mask": [[1, 1, 1]] * 2}, "mask must be a tensor"),
        ({"reference": [0]}, "reference must be a tensor"),
    ],
)
def test_what_is_of_another_kind_is_told_in_words(changed, said):
    with pytest.raises(TypeError, match=said):
        grpo.grpo_loss(**{**ZEROS, **changed})


# -------------------------------------------------------------------------------------------------------- sampling


def asked(base, tokenizer, **changed):
    arguments = {"prompts": [row["prompt"] for row in ROWS[:3]], "group": 2, "max_new_tokens": 12} | changed
    arguments.setdefault("generator", torch.Generator().manual_seed(0))
    return grpo.sample_groups(arguments.pop("model", base), tokenizer, **arguments)


def test_samples_are_groups_of_prompts_in_order(base, tokenizer):
    found = asked(base, tokenizer)
    prompts = [row["prompt"] for row in ROWS[:3]]
    assert found.prompts == [prompts[0], prompts[0], prompts[1], prompts[1], prompts[2], prompts[2]]
    assert found.lengths.tolist() == completion_mask(found.batch).sum(1).tolist() == [12] * 6
    assert not found.stopped.any()
    for row, (prompt, text) in enumerate(zip(found.prompts, found.completions, strict=True)):
        ids = found.batch["input_ids"][row][found.batch["attention_mask"][row].bool()]
        labels = found.batch["labels"][row]
        start = tokenizer(render(tokenizer, prompt), add_special_tokens=False).input_ids
        assert ids[: len(start)].tolist() == start
        assert ids[len(start) :].tolist() == labels[labels != IGNORED].tolist()
        assert tokenizer.decode(ids[len(start) :]) == text


def test_a_completion_ends_behind_any_of_several_ends_and_what_follows_is_padding(fresh_base, tokenizer):
    model = fresh_base()
    (stop,) = tokenizer.encode(".", add_special_tokens=False)[-1:]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    found = asked(model, tokenizer, group=6)
    assert 0 < found.stopped.sum() < 18
    for row, stopped in enumerate(found.stopped.tolist()):
        labels = found.batch["labels"][row]
        own = labels[labels != IGNORED].tolist()
        assert len(own) == found.lengths[row]
        assert own.count(stop) == int(stopped) and (own[-1] == stop) == stopped
        if not stopped:
            assert len(own) == 12
    behind = completion_mask(found.batch).logical_not()
    width = behind.shape[1]
    assert (found.batch["input_ids"][:, -width:][behind] == tokenizer.pad_token_id).all()
    assert (found.batch["attention_mask"][:, -width:][behind] == 0).all()


def test_a_drawn_token_is_as_likely_as_its_log_probability_says(base, tokenizer):
    """1,500 first tokens at temperature 2: each token's share is its probability, within 4.5 standard errors."""
    found = asked(base, tokenizer, prompts=[ROWS[0]["prompt"]], group=1500, max_new_tokens=1, temperature=2.0)
    with torch.no_grad():
        log_probs = completion_log_probs(base, found.batch, 2.0)[:, 0]
        cold = completion_log_probs(base, found.batch, 1.0)[:, 0]
    tokens = found.batch["input_ids"][:, -1]
    for token in tokens.unique():
        own = tokens == token
        p, seen = log_probs[own][0].exp().item(), own.float().mean().item()
        if p > 0.01:
            assert abs(seen - p) < 4.5 * math.sqrt(p * (1 - p) / 1500)
    most = tokens == tokens.mode().values
    assert cold[most][0] > log_probs[most][0] + 0.3, "at temperature 1 it would be likelier"


def test_the_generator_decides_and_pytorchs_own_is_left_alone(base, tokenizer):
    state = torch.get_rng_state()
    first, second = asked(base, tokenizer), asked(base, tokenizer)
    other = asked(base, tokenizer, generator=torch.Generator().manual_seed(1))
    assert first.completions == second.completions != other.completions
    assert torch.equal(torch.get_rng_state(), state)
    asked(base, tokenizer, generator=None)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"prompts": []}, ValueError, "no prompts to answer"),
        ({"prompts": "one"}, ValueError, "prompts is one text, 'one', .* pass a list of texts"),
        ({"prompts": ["a", ""]}, ValueError, "prompt 1 is empty"),
        ({"model": None}, TypeError, "model must be a model"),
        ({"temperature": "1"}, TypeError, "temperature must be a number"),
        ({"prompts": ["word " * 600]}, ValueError, "no room for an answer"),
        ({"group": 0}, ValueError, "group must be at least 1"),
        ({"group": 2.5}, TypeError, "group"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": math.inf}, ValueError, "finite"),
        ({"generator": SimpleNamespace(device=torch.device("cuda"))}, ValueError, r"torch.Generator\('cpu'\)"),
    ],
)
def test_what_sampling_refuses(base, tokenizer, changed, kind, said):
    with pytest.raises(kind, match=said):
        asked(base, tokenizer, **changed)


def test_the_positions_of_the_model_end_a_completion(base, tokenizer):
    long = "word " * 120
    used = len(tokenizer(render(tokenizer, long), add_special_tokens=False).input_ids)
    room = base.config.max_position_embeddings - used
    assert 0 < room < 400
    found = asked(base, tokenizer, prompts=[long], group=2, max_new_tokens=room + 100)
    assert found.lengths.max() <= room


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_spoilt_model_is_named_when_it_writes(fresh_base, tokenizer, value):
    model = fresh_base()
    with torch.no_grad():
        model.lm_head.weight[5] = value
    with pytest.raises(Diverged, match="logits hold NaN or infinity"):
        asked(model, tokenizer)


# -------------------------------------------------------------------------------------------------------- the loops


@pytest.mark.parametrize("train", LOOPS)
def test_training_makes_what_is_rewarded_likelier_and_leaves_the_base(train):
    model, tokenizer = adapted()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    history = train(model, tokenizer, ROWS, once, steps=13, lr=1e-2, max_new_tokens=3, progress=False)
    assert sum(step["reward"] for step in history[:4]) / 4 < 0.4
    assert sum(step["reward"] for step in history[-4:]) / 4 > 0.85
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("train", LOOPS)
def test_the_reward_sees_every_sample_with_its_rows_columns(train):
    model, tokenizer = adapted()
    seen, steps = [], []

    def reward(prompts, completions, animal, **columns):
        assert not columns
        seen.append((prompts, completions, animal))
        return lengths(prompts, completions)

    def on_step(step, numbers, samples):
        steps.append(step)
        prompts, completions, animals = seen[step]
        assert (samples.prompts, samples.completions) == (prompts, completions)
        assert all(a in p for a, p in zip(animals, prompts, strict=True))
        assert [prompts[0]] * 3 == prompts[:3] and [prompts[3]] * 3 == prompts[3:] and prompts[0] != prompts[3]
        assert numbers["reward"] == pytest.approx(sum(map(len, completions)) / 6)
        assert numbers["length"] == 5 and numbers["stopped"] == 0

    history = train(model, tokenizer, ROWS, reward, **QUICK, on_step=on_step)
    assert steps == [0, 1] and len(history) == 2
    keys = {"prompts", "reward", "reward_std", "length", "stopped", "groups_without_spread", "loss"}
    assert history[0].keys() == keys | ({"kl", "clipped"} if train is grpo.train_grpo else {"learned"})


@pytest.mark.parametrize("train", LOOPS)
def test_the_seed_decides_and_mode_and_random_state_are_left_alone(train):
    found = []
    for seed in (0, 0, 1):
        model, tokenizer = adapted()
        model.train()
        state = torch.get_rng_state()
        history = train(model, tokenizer, ROWS, lengths, **QUICK, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in model.modules())
        found.append(([step["reward"] for step in history], weights(model)))
    (first, own), (second, same), (other, _) = found
    assert first == second != other
    assert torch.equal(own, same)


def test_dropout_takes_no_part():
    """With dropout the policy would differ from its sampler, and ratios of 1 from 1."""
    from peft import LoraConfig, get_peft_model

    found = []
    for dropout in (0.0, 0.5):
        base, tokenizer = models.load_base()
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout))
        grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK)
        found.append(weights(model))
    assert torch.equal(*found)


def test_several_updates_a_step_move_the_ratio_and_beta_holds_it_back():
    def run(**own):
        model, tokenizer = adapted()
        return grpo.train_grpo(model, tokenizer, ROWS, lengths, **{**QUICK, "steps": 3, "lr": 2e-2}, **own)

    one, many = run(beta=1e-9), run(beta=1e-9, updates=6)
    held = run(beta=2.0, updates=6)
    assert one[0]["clipped"] == one[0]["kl"] == 0
    assert many[0]["clipped"] > 0
    assert 0 < held[-1]["kl"] < many[-1]["kl"]
    assert math.isnan(run()[0]["kl"])


def test_answers_that_were_cut_can_be_left_out():
    """All are cut here: nothing is learned then, which is told, and something is without the mask."""
    for train in LOOPS:
        model, tokenizer = adapted()
        before = weights(model)
        with pytest.warns(
            UserWarning, match="in 2 steps in a row every answer was cut at max_new_tokens=5, and"
        ) as told:
            train(model, tokenizer, ROWS, lengths, **QUICK, mask_truncated=True)
        assert len(told) == 1
        assert torch.equal(weights(model), before)
        train(model, tokenizer, ROWS, lengths, **QUICK)
        assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("train", LOOPS)
def test_equal_rewards_change_nothing_and_are_told(train):
    model, tokenizer = adapted()
    before = weights(model)
    settings = {**QUICK, "max_new_tokens": 1, "group": 2, "prompts_per_step": 1}

    def same(prompts, completions, **columns):
        return [0.25] * len(completions)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = train(model, tokenizer, ROWS, same, **{**settings, "steps": grpo.WITHOUT_SPREAD - 1})
    assert [step["groups_without_spread"] for step in history] == [1] * (grpo.WITHOUT_SPREAD - 1)
    assert torch.equal(weights(model), before)
    said = r"in 10 steps in a row .* from 'same' \(the last: 0.25\), .*all advantages"
    with pytest.warns(UserWarning, match=said) as told:
        train(model, tokenizer, ROWS, same, **{**settings, "steps": grpo.WITHOUT_SPREAD + 2})
    assert len([one for one in told if "in a row" in str(one.message)]) == 1


def test_the_best_of_each_group_with_a_spread_are_learned():
    rewards = torch.tensor([[0.0, 2, 1], [1, 1, 1], [3, 0, 3]])
    assert grpo.best_of_groups(rewards).tolist() == [1, 6]
    assert grpo.best_of_groups(torch.zeros(2, 3)).tolist() == []


def test_rejection_sampling_is_a_step_of_cross_entropy_on_the_best():
    model, tokenizer = adapted()
    drawn = []
    history = grpo.train_on_best(
        model, tokenizer, ROWS, lengths, **{**QUICK, "steps": 1}, on_step=lambda *step: drawn.append(step[2])
    )
    fresh, _ = adapted()
    batch, rewards = drawn[0].batch, torch.tensor(lengths(None, drawn[0].completions)).view(2, 3)
    best = grpo.best_of_groups(rewards)
    part = {name: tensor[best] for name, tensor in batch.items()}
    with torch.no_grad():
        expected = fresh(**part).loss.item()  # transformers' own loss, positions counted from the padding on
    assert history[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert history[0]["learned"] == len(best) == 2


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("train", LOOPS)
def test_training_refuses_what_it_cant_do(train):
    model, tokenizer = adapted()
    for name in ("steps", "lr", "group", "prompts_per_step", "max_new_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            train(model, tokenizer, ROWS, lengths, **{**QUICK, name: 0})
    for name in ("steps", "group", "prompts_per_step", "max_new_tokens"):
        with pytest.raises(TypeError, match=name):
            train(model, tokenizer, ROWS, lengths, **{**QUICK, name: 2.5})
    with pytest.raises(ValueError, match="temperature must be positive"):
        train(model, tokenizer, ROWS, lengths, **QUICK, temperature=0)
    with pytest.raises(ValueError, match="group must be at least 2, not 1"):
        train(model, tokenizer, ROWS, lengths, **{**QUICK, "group": 1})
    with pytest.raises(ValueError, match="nothing to train"):
        train(model.requires_grad_(False), tokenizer, ROWS, lengths, **QUICK)


def test_a_readers_own_loss_and_advantages_train_as_the_packages_do():
    def loss(log_probs, old, gains, mask, epsilon):
        seen.append((old.requires_grad, tuple(gains.shape), epsilon))
        return grpo.grpo_loss(log_probs, old, None, gains, mask, epsilon=epsilon).loss

    seen, ends = [], []
    for own in ({}, {"loss": loss, "scale": grpo.advantages}):
        model, tokenizer = adapted()
        history = grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK, updates=2, epsilon=0.3, **own)
        ends.append((weights(model), [step["loss"] for step in history]))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    assert seen == [(False, (6,), 0.3)] * 4


def test_a_loss_of_ones_own_is_what_trains():
    model, tokenizer = adapted()
    before = weights(model)
    history = grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK, loss=lambda p, *_: 0 * p.sum() + 7)
    assert [step["loss"] for step in history] == [7, 7]
    assert torch.equal(weights(model), before)


def test_a_loss_of_ones_own_has_no_divergence():
    model, tokenizer = adapted()
    with pytest.raises(ValueError, match=r"beta is 0.1, and a loss of your own gets no reference: pass beta=0"):
        grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK, beta=0.1, loss=lambda *_: None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows to train on"),
        ([{"question": "?"}], 'row 0 has no "prompt".*question'),
        (["Tell me a story."], 'row 0 has no "prompt"'),
        ([{"prompt": " "}], 'the "prompt" of row 0 is empty'),
        (None, "rows must be a list of mappings"),
        (iter([{"prompt": "a"}]), r"pass list\(rows\)"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b"}], r"row 1 has the columns \['prompt'\] and row 0 has"),
    ],
)
def test_rows_are_checked_before_anything_is_sampled(rows, said):
    model, tokenizer = adapted()

    def never(**_):
        raise AssertionError

    with pytest.raises(ValueError, match=said):
        grpo.train_grpo(model, tokenizer, rows, never, **QUICK)


@pytest.mark.parametrize("train", LOOPS)
def test_a_useless_reward_ends_the_run_before_a_weight_changes(train):
    model, tokenizer = adapted()
    before = weights(model)
    with pytest.raises(RewardError, match="'<lambda>' returned nan for completion 0"):
        train(model, tokenizer, ROWS, lambda **_: [math.nan] * 6, **QUICK)
    assert torch.equal(weights(model), before)
    assert not model.training


def test_settings_of_the_loss_are_refused_in_words():
    model, tokenizer = adapted()
    for setting, said in (
        ({"scale": "std"}, "unknown scale"),
        ({"weighting": "x"}, "unknown weighting"),
        ({"level": "x"}, "unknown level"),
        ({"beta": -1.0}, "beta must be 0 or above"),
        ({"updates": 0}, "updates must be"),
    ):
        with pytest.raises(ValueError, match=said):
            grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK, **setting)


@pytest.mark.parametrize("train", LOOPS)
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": "1e-3"}, "lr must be a number .* YAML reads 1e-3 as text"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"steps": "2"}, "steps must be a number"),
        ({"group": "2"}, "group must be a whole number"),
        ({"seed": None}, "seed must be a whole number .* not None"),
        ({"seed": 1.5}, "seed must be a whole number .* not 1.5"),
        ({"model": None}, "model must be a model, a torch.nn.Module, not None"),
        ({"on_step": lambda numbers: None}, r"on_step is called as on_step\(step, numbers, samples\), .* can't be"),
    ],
)
def test_settings_of_another_kind_are_told_in_words(train, changed, said):
    model, tokenizer = adapted()
    arguments = {"model": model, **QUICK, **changed}
    with pytest.raises(TypeError, match=said):
        train(tokenizer=tokenizer, rows=ROWS, reward=lengths, **arguments)


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"beta": None}, TypeError, "beta must be a number"),
        ({"beta": math.inf}, ValueError, "beta must be finite"),
        ({"epsilon": 2}, ValueError, "epsilon must be at most 1"),
        (
            {"loss": lambda a, b, c, d: a},
            TypeError,
            r"loss is called as loss\(log_probs, old, advantages, mask, epsilon\)",
        ),
        ({"loss": "dr_grpo"}, TypeError, "loss must be a function, called as loss.* not 'dr_grpo'"),
        ({"loss": lambda *_: None}, TypeError, "the loss '<lambda>' returned the NoneType None"),
        ({"loss": lambda *_: 0.5}, TypeError, r"returned the float 0.5, .* without \.item\(\)"),
        ({"loss": lambda p, *_: p.sum(1)}, TypeError, r"returned a tensor of the shape \(6,\)"),
        ({"loss": lambda p, *_: p.detach().sum()}, ValueError, "a number without a gradient"),
        ({"loss": lambda p, *_: p.sum() * math.nan}, Diverged, "the loss '<lambda>' returned nan at step 0"),
        ({"loss": grpo.grpo_loss, "weighting": "grpo"}, ValueError, "a loss of your own gets no weighting"),
        ({"loss": max, "level": "sequence", "epsilon_high": 1}, ValueError, "gets no level and no epsilon_high"),
        ({"scale": lambda rewards: None}, TypeError, "the scale '<lambda>' returned the NoneType None"),
        ({"scale": lambda rewards: rewards.tolist()}, TypeError, "the scale '<lambda>' returned the list"),
        ({"scale": lambda rewards: rewards.mean(1)}, TypeError, r"of the shape \(2,\), .* the shape \(2, 3\)"),
        ({"scale": lambda rewards: rewards.long()}, TypeError, "returned a tensor of torch.int64"),
        (
            {"scale": lambda rewards: rewards * math.nan},
            ValueError,
            "the scale '<lambda>' gave advantages that hold NaN",
        ),
        ({"scale": lambda: None}, TypeError, r"scale is called as scale\(rewards\)"),
        ({"beta": 0.1, "reference": None}, TypeError, "reference must be a function.* leave it out"),
        (
            {"beta": 0.1, "reference": torch.nn.Linear(1, 1)},
            TypeError,
            "reference is a model, Linear, as TRL's ref_model",
        ),
        ({"beta": 0.1, "reference": lambda model: model}, TypeError, r"reference\(model\) must give a block"),
    ],
)
def test_settings_and_functions_of_grpo_are_refused_before_a_weight_changes(changed, kind, said):
    model, tokenizer = adapted()
    before = weights(model)
    with pytest.raises(kind, match=said):
        grpo.train_grpo(model, tokenizer, ROWS, lengths, **{**QUICK, **changed})
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("train", LOOPS)
def test_fewer_prompts_than_a_step_draws_are_all_drawn_and_counted(train):
    model, tokenizer = adapted()
    history = train(model, tokenizer, ROWS[:1], lengths, **{**QUICK, "prompts_per_step": 5})
    assert [step["prompts"] for step in history] == [1, 1]
    model, tokenizer = adapted()
    assert [step["prompts"] for step in train(model, tokenizer, ROWS, lengths, **QUICK)] == [2, 2]


def test_a_reference_needs_an_adapter_and_no_beta_needs_none():
    model, tokenizer = models.load_base()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" in name
    with pytest.raises(RuntimeError, match="no LoRA layers.*reference="):
        grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK, beta=0.1)
    assert len(grpo.train_grpo(model, tokenizer, ROWS, lengths, **QUICK)) == 2


@pytest.mark.parametrize("train", LOOPS)
def test_a_run_that_diverges_says_so(train):
    model, tokenizer = adapted()
    with pytest.raises(Diverged, match="lower learning rate|learning rate below"):
        train(model, tokenizer, ROWS, lengths, **{**QUICK, "lr": 1e22, "steps": 4})
