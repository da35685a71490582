"""GRPO against TRL's GRPOTrainer: advantages, loss, every gradient, the metrics, and whole optimizer steps.

TRL is given our completions through its `rollout_func`, so that both have the same tokens to learn from. Both compute
in float32 and differ in the order of their sums: TRL projects to logits in tiles and without padding, and counts
positions from the padding on.
"""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from utils import models
from utils.preferences import grpo
from utils.preferences.dpo import adapter_off, draws
from utils.preferences.log_probs import completion_log_probs, completion_mask
from utils.train.loop import learning_rate_factor

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")

PROMPTS = ["Tell me a story about a fox.", "Tell me a story about a brave bear.", "Tell me a story.", "Say hello."]
GROUP, LENGTH, TEMPERATURE = 4, 14, 0.8
GRADIENT = 1e-4  # of a gradient's norm; the largest seen is 2e-5
LOSS = 1e-5  # some two hundred float32 terms of size 1; the largest seen is 1e-6


def letters(prompts, completions, **columns):
    """A reward with a spread within most groups: how many letters e a completion has."""
    return [float(text.count("e")) for text in completions]


def shake(model, std, seed=0):
    """Add noise to every matrix B, as an update would."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                parameter += std * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + i))


def ids_of(samples):
    """The prompts' and the completions' token ids without padding, as TRL's `rollout_func` returns them."""
    width = samples.batch["input_ids"].shape[1] - completion_mask(samples.batch).shape[1]
    prompts, completions = [], []
    for ids, mask in zip(samples.batch["input_ids"], samples.batch["attention_mask"].bool(), strict=True):
        prompts.append(ids[:width][mask[:width]].tolist())
        completions.append(ids[width:][mask[width:]].tolist())
    return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}


def base_and_tokenizer():
    """The tiny model, for which a full stop ends a text too: so that some completions end and others are cut."""
    base, tokenizer = models.load_base()
    (stop,) = tokenizer.encode(".", add_special_tokens=False)[-1:]
    base.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    return base, tokenizer


def trainer_on(prompts, output_dir, rollout, **settings):
    """TRL's GRPOTrainer on the CPU, one batch a step, that learns from what `rollout` returns.

    It puts the adapter on itself: of an adapter that it is given it copies the start, and takes that as the reference.
    """
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    unset = {"gradient_checkpointing": None}  # TRL's default is True, and any value under this old name warns
    args = GRPOConfig(
        output_dir=str(output_dir), per_device_train_batch_size=len(PROMPTS) * GROUP, num_generations=GROUP,
        max_completion_length=LENGTH, temperature=TEMPERATURE, shuffle_dataset=False, use_cpu=True, bf16=False,
        dataloader_pin_memory=False, report_to="none", save_strategy="no",
        disable_tqdm=True, **unset, **settings,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])

    def reward(prompts, completions, **columns):
        return letters(None, [completion[0]["content"] for completion in completions])

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    base, tokenizer = base_and_tokenizer()
    return GRPOTrainer(
        model=base, peft_config=config, reward_funcs=reward, args=args, train_dataset=rows,
        processing_class=tokenizer, rollout_func=rollout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """TRL's trainer, whose adapter already does something, and samples of its model: what it is fed with."""
    fed = []
    trainer = trainer_on(PROMPTS, tmp_path_factory.mktemp("trl"), lambda *_: ids_of(fed[0]), beta=0.1)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model
    shake(model, 0.05)
    generator = torch.Generator().manual_seed(0)
    fed.append(grpo.sample_groups(model, trainer.processing_class, PROMPTS, GROUP, LENGTH, TEMPERATURE, generator))
    assert 0 < fed[0].stopped.sum() < len(fed[0].stopped), "some completions end, some are cut"
    assert len(set(fed[0].lengths.tolist())) > 2
    return SimpleNamespace(model=model, samples=fed[0], trainer=trainer)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def moved(model, std):
    """Inside the block the adapter is another one, as after an update."""
    before = copy.deepcopy({name: p.data for name, p in model.named_parameters() if "lora_B" in name})
    shake(model, std, seed=100)
    try:
        yield
    finally:
        for name, value in before.items():
            model.get_parameter(name).data = value


def compare(both, *, weighting, scale, level, beta, std, truncated=False, epsilon_high=None):
    """Loss, gradients and metrics of both, `std` away from where the completions were sampled. Returns the clipped
    share and the largest relative difference of a gradient."""
    trainer, model, samples = both.trainer, both.model, both.samples
    trainer.loss_type, trainer.scale_rewards, trainer.importance_sampling_level = weighting, scale, level
    trainer.beta, trainer.mask_truncated_completions = beta, truncated
    trainer.epsilon_high = trainer.epsilon_low if epsilon_high is None else epsilon_high
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in samples.prompts]
    inputs = trainer._generate_and_score_completions(rows)

    rewards = torch.tensor(letters(None, samples.completions)).view(-1, GROUP)
    gains = grpo.advantages(rewards, scale).flatten()
    torch.testing.assert_close(gains, inputs["advantages"], rtol=1e-5, atol=1e-6)
    mask = completion_mask(samples.batch)
    if truncated:
        mask = mask & samples.stopped[:, None]
    with torch.no_grad():
        old = completion_log_probs(model, samples.batch, TEMPERATURE)
        with adapter_off(model):
            reference = completion_log_probs(model, samples.batch, TEMPERATURE)
        inputs["old_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
            model, torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1), inputs["completion_ids"].shape[1],
        )[0]  # fmt: skip
    with moved(model, std):
        theirs = trainer._compute_loss(model, inputs)
        expected = gradients(model, theirs)
        log_probs = completion_log_probs(model, samples.batch, TEMPERATURE)
        ours = grpo.grpo_loss(
            log_probs, old, reference if beta else None, gains, mask, beta=beta, epsilon_high=epsilon_high,
            weighting=weighting, level=level, max_length=LENGTH,
        )  # fmt: skip
        found = gradients(model, ours.loss)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert ours.loss.item() == pytest.approx(theirs.item(), abs=LOSS)
    assert ours.clipped.item() == pytest.approx(metrics["clip_ratio/region_mean"], abs=1e-6)
    if beta:
        assert ours.kl.item() == pytest.approx(metrics["kl"], abs=1e-5)
    assert len(expected) == 56
    worst = max(float((found[name] - g).norm() / g.norm()) for name, g in expected.items())
    assert worst <= GRADIENT
    return ours.clipped.item(), worst


@pytest.mark.parametrize("level", get_args(grpo.Level))
@pytest.mark.parametrize("scale", get_args(grpo.Scale))
@pytest.mark.parametrize("weighting", get_args(grpo.Weighting))
def test_advantages_loss_gradients_and_metrics_are_trls(both, weighting, scale, level):
    settings = {"weighting": weighting, "scale": scale, "level": level}
    first, _ = compare(both, **settings, beta=0.0, std=0.0)
    assert first == 0
    compare(both, **settings, beta=0.1, std=0.0)
    later, _ = compare(both, **settings, beta=0.0, std=0.1)
    assert later > 0.05, "an update away the clipping bites"
    compare(both, **settings, beta=0.1, std=0.1)


@pytest.mark.parametrize("settings", [{"truncated": True}, {"epsilon_high": 0.28}])
def test_masked_truncation_and_a_wider_clip_above_are_trls(both, settings):
    plain = {"weighting": "dapo", "scale": "group", "level": "token", "beta": 0.1, "std": 0.1}
    assert compare(both, **plain, **settings)[0] != compare(both, **plain)[0]


# ------------------------------------------------------------------------------------------------ whole training steps


def test_training_takes_trls_steps(tmp_path):
    """Two steps of two updates each with TRL's own loop, on the completions that ours sampled: prices and clips too."""
    steps, updates, seed = 2, 2, 3
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    prompts = [row["prompt"] for drawn in draws(rows, steps, len(PROMPTS), seed) for row in drawn]
    fed = []
    trainer = trainer_on(
        prompts, tmp_path, lambda *_: ids_of(fed.pop(0)), beta=0.1, num_iterations=updates, max_steps=steps * updates,
        learning_rate=1e-2, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1,
    )  # fmt: skip
    model = trainer.model
    shake(model, 0.05)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    history = grpo.train_grpo(
        model, trainer.processing_class, rows, letters, steps=steps, lr=1e-2, group=GROUP, beta=0.1, updates=updates,
        max_new_tokens=LENGTH, temperature=TEMPERATURE, seed=seed, progress=False,
        on_step=lambda step, numbers, samples: fed.append(samples),
    )  # fmt: skip
    ours = {name: model.get_parameter(name).detach() - before[name] for name in names}
    assert history[1]["clipped"] > 0

    with torch.no_grad():
        for name in names:
            model.get_parameter(name).copy_(before[name])
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda step: learning_rate_factor(step, steps * updates)
    )
    trainer.train()
    assert not fed
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for i, step in enumerate(history):
        own = logs[i * updates : (i + 1) * updates]
        assert step["reward"] == pytest.approx(own[0]["reward"], rel=1e-5)
        assert step["reward_std"] == pytest.approx(own[0]["reward_std"], rel=1e-5)
        assert step["length"] == pytest.approx(own[0]["completions/mean_length"])
        assert step["stopped"] == pytest.approx(1 - own[0]["completions/clipped_ratio"])
        assert step["groups_without_spread"] / len(PROMPTS) == pytest.approx(own[0]["frac_reward_zero_std"])
        for key, theirs in {"loss": "loss", "kl": "kl", "clipped": "clip_ratio/region_mean"}.items():
            assert step[key] == pytest.approx(sum(log[theirs] for log in own) / updates, abs=2e-4), key
    assert len(names) == 56
    for name in names:
        theirs = model.get_parameter(name).detach() - before[name]
        # Adam divides by a gradient's size, so rounding counts where it is tiny: 0.0023 is the most seen.
        assert (theirs - ours[name]).norm() <= 0.01 * theirs.norm(), name
