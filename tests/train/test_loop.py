"""The training loop and its pieces: what a step does, what is refused, what is left as it was."""

import math
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.small_llama import small
from utils import lora, models
from utils.data.chat import Example
from utils.evaluate.metrics import exact_match
from utils.tinyworld import task_examples
from utils.train import loop as training
from utils.train.loop import Diverged, Stepper, in_mode, seeded, train

torch.set_num_threads(1)

EXAMPLES = [
    Example("Say it like a pirate: Zoe was a shy fox.", "Arr! Zoe be a shy fox."),
    Example("Is this good or bad? Tom won the race.", "good"),
    Example("Say it in French: The fox sees a red apple.", "Le renard voit une pomme rouge."),
]


# ------------------------------------------------------------------------------------------------------------- training


def test_the_rate_rises_for_ten_steps_and_falls_along_a_line():
    steps = 100
    factors = [training.learning_rate_factor(step, steps) for step in range(steps)]
    assert factors[0] == pytest.approx(0.1) and 0 < min(factors) == factors[-1] == pytest.approx(0.01)
    assert factors[:10] == sorted(factors[:10]) and factors[9:] == sorted(factors[9:], reverse=True)
    drops = [a - b for a, b in zip(factors[10:], factors[11:], strict=False)]
    assert drops == pytest.approx([0.01] * len(drops))
    assert all(0 < training.learning_rate_factor(s, n) <= 1 for n in (1, 2, 9) for s in range(n))


def test_training_lowers_the_loss_and_touches_what_is_trainable_only(tokenizer):
    model = models.load_base()[0]
    lora.inject(model, "all-linear", 4, 8)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(model, tokenizer, task_examples("sentiment", "train", 50), steps=25, lr=4e-3, progress=False)
    assert len(losses) == 25 and all(math.isfinite(x) for x in losses)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lora_" not in name), name
        assert parameter.grad is None


def test_everything_is_trained_when_everything_is_trainable(tokenizer):
    model = small()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, tokenizer, EXAMPLES, steps=2, lr=1e-3, progress=False)
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_same_seed_gives_the_same_losses_and_weights(tokenizer):
    examples = task_examples("style", "train", 60)

    draws = iter((1, 5, 9))

    def run(seed):
        model = small()
        lora.inject(model, "all-linear", 2, 4, 0.2)
        torch.rand(next(draws))  # what was drawn before training must not count, dropout included
        losses = train(model, tokenizer, examples, steps=4, lr=1e-3, batch_size=4, seed=seed, progress=False)
        return losses, [p.detach() for p in model.parameters() if p.requires_grad]

    first, second, third = run(5), run(5), run(6)
    assert first[0] == second[0] != third[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_the_gradients_are_clipped_before_the_step(tokenizer, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def recorded(parameters, limit):
        before = clip(parameters, limit)
        norms.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item())
        return before

    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", recorded)
    train(small(), tokenizer, EXAMPLES, steps=2, lr=1e-3, progress=False)
    assert len(norms) == 2 and max(norms) <= 1.0001


@pytest.mark.slow
def test_what_the_lessons_print_is_the_same_on_one_thread_and_two(tokenizer):
    """Threads change the order of float32 sums, and thus the 6th digit; printed are two."""
    threads, printed = torch.get_num_threads(), []
    test = task_examples("sentiment", "test", 20)
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            model = models.load_base()[0]
            torch.manual_seed(0)
            lora.inject(model, "all-linear", 4, 8)
            losses = train(
                model, tokenizer, task_examples("sentiment", "train", 200), steps=12, lr=4e-3, progress=False
            )
            printed.append(([round(x, 2) for x in losses], round(exact_match(model, tokenizer, test), 2)))
    finally:
        torch.set_num_threads(threads)
    assert printed[0][0] == pytest.approx(printed[1][0], abs=0.0101)  # a rounding edge may lie between two
    assert printed[0][1] == printed[1][1]


def test_a_bar_is_shown_unless_it_is_not_wanted(tokenizer, capsys):
    train(small(), tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False)
    assert capsys.readouterr() == ("", "")
    train(small(), tokenizer, EXAMPLES, steps=1, lr=1e-3)
    assert "training" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- errors


def unchanged(model, before):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be positive and finite, not 0"),
        ({"steps": -1}, "steps must be positive and finite, not -1"),
        ({"batch_size": 0}, "batch_size must be positive and finite, not 0"),
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0"),
        ({"lr": math.nan}, "lr must be positive and finite, not nan"),
        ({"lr": math.inf}, "lr must be positive and finite, not inf"),
        ({"rows": []}, "no examples"),
        ({"rows": [EXAMPLES[0], Example("", "x")]}, "number 2 of 2: .*prompt is empty"),
        ({"rows": [{"instruction": "x", "answer": "y"}]}, "number 1 of 1: .*output is missing"),
    ],
)
def test_what_cannot_be_trained_on_is_named(tokenizer, changes, words):
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    arguments = {"rows": EXAMPLES, "steps": 2, "lr": 1e-3, "progress": False} | changes
    with pytest.raises(ValueError, match=words):
        train(model, tokenizer, arguments.pop("rows"), **arguments)
    assert unchanged(model, before)


def test_a_model_with_nothing_to_train(tokenizer):
    with pytest.raises(ValueError, match="nothing to train.*requires_grad"):
        train(small().requires_grad_(False), tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False)


def injected(**settings):
    model = small()
    lora.inject(model, ["q_proj"], 2, 4, **settings)
    return model


def spoil(model, name, value):
    with torch.no_grad():
        model.get_parameter(name)[0] = value
    return model


def switched_off(model):
    for layer in lora.lora_layers(model).values():
        layer.enabled = False
    return model


def peft_merged():
    model = get_peft_model(small(), LoraConfig(target_modules=["q_proj"], r=2))
    model.merge_adapter()
    return model


Q, NORM = "model.layers.0.self_attn.q_proj", "model.norm.weight"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lora.merge(model := injected()) or model, f"adapter of {Q} is merged.*unmerge it first"),
        (lambda: lora.lora_layers(model := injected())[Q].merge() or model, f"adapter of {Q} is merged"),
        (peft_merged, f"adapter of .*{Q} is merged"),
        (lambda: switched_off(injected()), "the loss depends on no trainable parameter"),
        (lambda: spoil(small(), NORM, math.nan), f"{NORM} holds NaN or infinity before training.*load the model"),
        (lambda: spoil(injected(), f"{Q}.base_layer.weight", math.inf), f"{Q}.base_layer.weight holds NaN"),
        (lambda: spoil(injected(), f"{Q}.lora_B", math.nan), f"{Q}.lora_B holds NaN.*load the adapter"),
        (lambda: small().half(), "to be trained in float16.*widen_trainable"),
    ],
)
def test_a_model_that_cant_be_trained_is_told_before_the_first_step(tokenizer, make, said):
    model = make()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=said) as caught:
        train(model, tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False)
    assert not isinstance(caught.value, Diverged)
    assert all(
        torch.equal(p.nan_to_num(7.0), q.nan_to_num(7.0)) for p, q in zip(model.parameters(), before, strict=True)
    )


def test_a_token_beyond_the_embedding_is_told_before_the_first_step_and_resizing_mends_it():
    tokenizer, model = models.load_tokenizer(), small()
    tokenizer.add_tokens(["<brand-new>"])
    rows = [*EXAMPLES, Example("Say it: <brand-new>", "yes")]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"'<brand-new>' with the id 1024.*1024 rows.*resize_token_embeddings"):
        train(model, tokenizer, rows, steps=9, lr=1e-3, batch_size=1, progress=False)
    assert unchanged(model, before)
    assert train(model, tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False), "the token is in no example"
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert train(model, tokenizer, rows, steps=1, lr=1e-3, progress=False)


def test_a_pad_token_beyond_the_embedding_counts_too():
    tokenizer = models.load_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad-new>"})
    with pytest.raises(ValueError, match="'<pad-new>' with the id 1024"):
        train(small(), tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False)


def test_weights_that_the_last_step_spoils_are_told(tokenizer):
    """The loss is of the weights before the step, so it is finite."""
    model = small()
    with pytest.raises(Diverged, match="last step left weights that aren't finite.*below 0.001"):
        train(
            model, tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False,
            after_step=lambda _: spoil(model, NORM, math.inf),
        )  # fmt: skip


def test_a_float16_run_whose_every_step_was_left_out_is_told(tokenizer):
    model = injected().half()
    models.widen_trainable(model)
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda g: g + math.inf)
    with pytest.raises(Diverged, match="overflowed in each of the 2 steps.*nothing was learnt"):
        train(model, tokenizer, EXAMPLES, steps=2, lr=1e-3, progress=False)


# What breaks a run, as a hook on the last norm's weight or on the model's output: what is named, and its value.
BROKEN = [
    (lambda model: scale_loss(model, math.nan), "loss is nan"),
    (lambda model: scale_loss(model, math.inf), "loss is inf"),
    (lambda model: scale_loss(model, -math.inf), "loss is -inf"),
    (lambda model: model.model.norm.weight.register_hook(lambda g: g * math.nan), "gradient's norm is nan"),
    (lambda model: model.model.norm.weight.register_hook(lambda g: g.abs() + math.inf), "gradient's norm is inf"),
]


def scale_loss(model, factor):
    def scaled(module, inputs, output):
        output.loss = output.loss * factor

    model.register_forward_hook(scaled)


@pytest.mark.parametrize(("break_it", "said"), BROKEN)
def test_what_is_no_finite_number_stops_before_it_reaches_the_weights(tokenizer, break_it, said):
    model = small()
    break_it(model)
    before = [p.detach().clone() for p in model.parameters()]
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    with pytest.raises(Diverged, match=f"{said} at step 0, .*the learning rate isn't the cause"):
        train(model, tokenizer, EXAMPLES, steps=3, lr=0.5, progress=False)
    assert all(
        torch.equal(p.nan_to_num(7.0), q.nan_to_num(7.0)) for p, q in zip(model.parameters(), before, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state) and [m.training for m in model.modules()] == modes
    assert issubclass(Diverged, ValueError)


def test_the_learning_rate_is_advised_upon_once_a_step_was_taken(tokenizer):
    model = small()
    with pytest.raises(Diverged, match="at step 1, no finite number any more: try a learning rate below 0.5"):
        train(
            model,
            tokenizer,
            EXAMPLES,
            steps=3,
            lr=0.5,
            progress=False,
            after_step=lambda _: scale_loss(model, math.inf),
        )


def test_an_added_loss_that_is_infinite_counts_too(tokenizer):
    with pytest.raises(Diverged, match="loss is inf at step 0"):
        train(small(), tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False, extra_loss=lambda: torch.tensor(math.inf))


# ------------------------------------------------------------------------------------------ what is left as it was


def test_training_leaves_the_random_state_alone(tokenizer):
    """Dropout is drawn, and drawn by the seed, yet whoever draws next gets what they would have got."""
    model = small()
    lora.inject(model, "all-linear", 2, 4, 0.2)
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.rand(3).tolist(), random.random()
    torch.manual_seed(7)
    random.seed(7)
    train(model, tokenizer, EXAMPLES, steps=2, lr=1e-3, progress=False)
    assert (torch.rand(3).tolist(), random.random()) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_leaves_the_gpus_random_state_alone(tokenizer):
    losses, drawn = [], []
    for _ in range(2):
        model = small()
        lora.inject(model, "all-linear", 2, 4, 0.2)
        torch.cuda.manual_seed(7)
        losses.append(train(model.cuda(), tokenizer, EXAMPLES, steps=2, lr=1e-3, progress=False))
        drawn.append(torch.rand(3, device="cuda").tolist())
        torch.rand(5, device="cuda")  # the second run begins elsewhere, and must draw the same
    torch.cuda.manual_seed(7)
    assert drawn[0] == drawn[1] == torch.rand(3, device="cuda").tolist()
    assert losses[0] == losses[1]


def test_the_seed_draws_what_manual_seed_would():
    """So that runs from before this block existed can be repeated."""
    model = small()
    torch.manual_seed(3)
    expected = torch.rand(4)
    with seeded(3, model):
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_training_leaves_the_mode_of_every_module(tokenizer, mode):
    model, seen = small().train(mode), []
    model.model.norm.train(not mode)
    model.lm_head.register_forward_hook(lambda *_: seen.append(all(m.training for m in model.modules())))
    before = [m.training for m in model.modules()]
    train(model, tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False)
    assert seen == [True] and [m.training for m in model.modules()] == before


def test_in_mode_gives_the_mode_back_after_an_error():
    model = small().eval()
    with pytest.raises(ZeroDivisionError), in_mode(model, True):
        assert model.training
        raise ZeroDivisionError
    assert not any(m.training for m in model.modules())


# --------------------------------------------------------------------------------------------------- one step alone


class Line(nn.Module):
    """Two numbers, of which a loss may use one or none, and a frozen weight that says in which dtype it computes."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.used, self.idle = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(5.0))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)


def test_a_weight_without_a_gradient_does_not_decay():
    """Adam's step is the rate times the gradient's sign; with decay, a weight whose gradient is zero would shrink."""
    model = Line()
    stepper = Stepper(model, lr=0.1)
    for _ in range(3):
        stepper.step(model.used + 0 * model.idle)
        stepper.clear()
    assert model.idle.item() == 5.0
    assert model.used.item() == pytest.approx(3.0 - 3 * 0.1, rel=1e-6)


def test_groups_and_schedule_multiply():
    model = Line()
    groups = [{"params": [model.used], "lr": 0.1}, {"params": [model.idle], "lr": 0.2}]
    stepper = Stepper(model, lr=1.0, groups=groups, schedule=lambda step: (1.0, 0.5)[step])
    moved = []
    for _ in range(2):
        before = model.used.item(), model.idle.item()
        stepper.step(model.used - model.idle)
        stepper.clear()
        moved.append([model.used.item() - before[0], model.idle.item() - before[1]])
    assert moved[0] == pytest.approx([-0.1, 0.2], rel=1e-5) and moved[1] == pytest.approx([-0.05, 0.1], rel=1e-5)


def test_the_norm_returned_is_the_one_before_clipping_and_the_gradients_stay():
    for most, kept in ((1.0, 1.0), (None, 6.0), (100.0, 6.0)):
        model = Line()
        stepper = Stepper(model, lr=1e-3, max_grad_norm=most)
        assert stepper.step(model.used**2) == pytest.approx(6.0)
        assert model.used.grad.item() == pytest.approx(kept, rel=1e-5) and model.idle.grad is None
        stepper.clear()
        assert model.used.grad is None


def test_in_float16_the_loss_is_scaled_and_the_norm_is_not():
    model = Line(torch.float16)
    stepper, seen = Stepper(model, lr=1e-3), []
    model.used.register_hook(lambda g: seen.append(g.item()))
    assert stepper.step(model.used**2) == pytest.approx(6.0)
    assert seen == [6.0 * 65536], "the scaler's first scale is 2^16"


def test_in_float16_an_overflow_is_a_step_left_out_until_nothing_is_scaled_any_more():
    model = Line(torch.float16)
    stepper = Stepper(model, lr=1e-3)
    model.used.register_hook(lambda g: g.half().float())  # float16 ends at 65,504
    norms = []
    for _ in range(8):
        norms.append(stepper.step(model.used**2))
        stepper.clear()
    assert math.isinf(norms[0]) and norms[-1] == pytest.approx(6.0, rel=1e-2), "scaled by less until it fits"
    model.used.register_hook(lambda g: g + math.inf)
    value = model.used.item()
    with pytest.raises(Diverged, match="gradient's norm is"):
        for _ in range(40):
            stepper.step(model.used**2)
            stepper.clear()
    assert model.used.item() == value


def test_a_model_that_trains_nothing_takes_steps_of_nothing():
    """As in transformers' Trainer, where an adapter was loaded without is_trainable=True."""
    model = Line(torch.float16).requires_grad_(False)
    open_end = torch.ones((), requires_grad=True)
    assert Stepper(model, lr=1e-3).step(open_end * 2) == 0.0
