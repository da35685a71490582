"""On-policy distillation: the reverse KL and its gradient, equality with TRL's trainer, the teachers, and the loop."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import lora, models
from utils.data.chat import Example, collate, encode, render
from utils.preferences import distill
from utils.preferences.dpo import adapter_off, draws
from utils.preferences.grpo import sample_groups
from utils.preferences.log_probs import completion_mask
from utils.tinyworld import task_examples
from utils.train.loop import Diverged

PROMPTS = ["Please tell me a story.", "Write a short story about Mia.", "Say it like a pirate: Mia went home."]


def shaken(model, std=0.3):
    """The model with an adapter that does something: its B matrices are drawn anew, each by its place."""
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(i))
    return model


def adapted(std=0.3):
    model, tokenizer = models.load_base()
    torch.manual_seed(0)
    lora.inject(model, "all-linear", 4, 8)
    return shaken(model, std), tokenizer


def trained_weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])


@pytest.fixture(scope="module")
def batch():
    return collate(encode(models.load_tokenizer(), task_examples("style", "train", 3)), 0)


# --------------------------------------------------------------------------------------------------------- the loss


def logits_of(seed, rows=2, length=3, vocab=7, scale=3.0):
    return scale * torch.randn(rows, length, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_by_hand():
    student, teacher = torch.tensor([[[0.75, 0.25]]]).log(), torch.tensor([[[0.5, 0.5]]]).log()
    found = distill.reverse_kl(student, teacher, torch.ones(1, 1, dtype=torch.bool))
    assert found.loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)
    assert distill.reverse_kl(teacher, student, torch.ones(1, 1, dtype=torch.bool)).loss.item() == pytest.approx(
        0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-7
    )


@given(st.integers(0, 10_000), st.floats(0.3, 3), st.floats(-20, 20))
@settings(max_examples=50, deadline=None)
def test_it_is_never_negative_zero_for_equals_and_shifts_change_nothing(seed, temperature, shift):
    student, teacher, mask = logits_of(seed), logits_of(seed + 1), torch.ones(2, 3, dtype=torch.bool)
    each = distill.reverse_kl(student, teacher, mask, temperature).each
    assert (each > 0).all()
    assert distill.reverse_kl(student, student + shift, mask, temperature).each.abs().max() < 1e-12
    shifted = distill.reverse_kl(student + shift, teacher, mask, temperature).each
    assert torch.allclose(shifted, each, atol=1e-10)
    cooled = distill.reverse_kl(student / temperature, teacher / temperature, mask).each
    assert torch.allclose(cooled, each, atol=1e-12)


@given(st.integers(0, 10_000), st.floats(0.5, 2))
@settings(max_examples=30, deadline=None)
def test_it_and_its_gradient_are_pytorchs_and_the_formula(seed, temperature):
    student, teacher = logits_of(seed).requires_grad_(), logits_of(seed + 1)
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    found = distill.reverse_kl(student, teacher, mask, temperature)
    found.loss.backward()
    p, log_p = (student / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    log_q = (teacher / temperature).log_softmax(-1)
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * mask
    assert torch.allclose(found.each, kl, atol=1e-12)
    assert found.loss.item() == pytest.approx((kl.sum() / 3).item(), abs=1e-12)
    expected = p * (log_p - log_q - kl[..., None]) * mask[..., None] / 3 / temperature
    assert torch.allclose(student.grad, expected, atol=1e-12)


def test_what_does_not_count_may_hold_anything():
    student, teacher, mask = logits_of(0), logits_of(1), torch.tensor([[1, 0, 1], [1, 1, 0]])
    wanted = distill.reverse_kl(student, teacher, mask)
    student[0, 1], teacher[1, 2] = math.nan, math.inf
    student.requires_grad_()
    found = distill.reverse_kl(student, teacher, mask)
    found.loss.backward()
    assert torch.equal(found.each, wanted.each) and torch.equal(found.loss, wanted.loss)
    assert student.grad[0, 1].abs().max() == 0 and student.grad.isfinite().all()


def test_tokens_masked_in_both_models_are_as_if_they_were_not_there():
    student, teacher, mask = logits_of(0), logits_of(1), torch.ones(2, 3, dtype=torch.bool)
    small = student[..., :5].clone().requires_grad_()
    expected = distill.reverse_kl(small, teacher[..., :5], mask)
    expected.loss.backward()
    student[..., 5:] = teacher[..., 5:] = -math.inf
    student.requires_grad_()
    found = distill.reverse_kl(student, teacher, mask)
    found.loss.backward()
    torch.testing.assert_close(found.each, expected.each, rtol=0, atol=1e-12)
    torch.testing.assert_close(student.grad[..., :5], small.grad, rtol=0, atol=1e-12)
    assert student.grad[..., 5:].abs().max() == 0


@pytest.mark.parametrize(
    ("who", "value", "kind", "text"),
    [
        ("teacher", -math.inf, ValueError, "the teacher's logit is -inf for a token that the student may say"),
        ("teacher", math.nan, Diverged, "the teacher's logits hold NaN"),
        ("student", math.inf, Diverged, "the student's logits hold NaN or infinity"),
    ],
)
def test_logits_without_a_finite_divergence_are_refused(who, value, kind, text):
    logits = {"student": logits_of(0), "teacher": logits_of(1)}
    logits[who][1, 2, 3] = value
    with pytest.raises(kind, match=text):
        distill.reverse_kl(logits["student"], logits["teacher"], torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", ["student_logits", "teacher_logits", "mask"])
def test_logits_and_mask_are_tensors(name):
    arguments = {"student_logits": logits_of(0), "teacher_logits": logits_of(1), "mask": torch.ones(2, 3)}
    arguments[name] = arguments[name].tolist()
    with pytest.raises(TypeError, match=f"{name} must be a tensor, not the list"):
        distill.reverse_kl(**arguments)


def test_half_precision_is_summed_in_float32():
    student, teacher = logits_of(0, vocab=500).bfloat16(), logits_of(1, vocab=500).bfloat16()
    found = distill.reverse_kl(student, teacher, torch.ones(2, 3, dtype=torch.bool))
    exact = distill.reverse_kl(student.double(), teacher.double(), torch.ones(2, 3, dtype=torch.bool))
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "mask", "temperature", "text"),
    [
        ((2, 3, 7), (2, 3, 8), (2, 3), 1.0, "vocabularies"),
        ((2, 3, 7), (2, 2, 7), (2, 3), 1.0, "read the same ids"),
        ((3, 7), (3, 7), (3,), 1.0, r"\(rows, length, vocabulary\)"),
        ((2, 3, 7), (2, 3, 7), (2, 4), 1.0, "cut the last one off the logits"),
        ((2, 3, 7), (2, 3, 7), (2, 3), 0.0, "temperature must be positive"),
        ((2, 3, 7), (2, 3, 7), (2, 3), math.nan, "temperature must be positive"),
    ],
)
def test_what_the_loss_refuses(student, teacher, mask, temperature, text):
    with pytest.raises(ValueError, match=text):
        distill.reverse_kl(torch.zeros(student), torch.zeros(teacher), torch.ones(mask, dtype=torch.bool), temperature)


def test_a_mask_without_a_token_is_refused():
    with pytest.raises(ValueError, match="leaves no token"):
        distill.reverse_kl(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))


# -------------------------------------------------------------------------------------------------------------- TRL


def trl_trainer(model, teacher, folder, **arguments):
    """TRL's DistillationTrainer on PROMPTS in one batch, on the CPU."""
    from datasets import Dataset, disable_progress_bars
    from trl import DistillationConfig, DistillationTrainer

    disable_progress_bars()
    config = DistillationConfig(
        str(folder), per_device_train_batch_size=len(PROMPTS), max_completion_length=24, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
        **{name: value for name, value in arguments.items() if name != "peft_config"},
    )  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    return DistillationTrainer(
        model, teacher, config, train_dataset=Dataset.from_list(rows), processing_class=models.load_tokenizer(),
        peft_config=arguments.get("peft_config"),
    )  # fmt: skip


def peft_config():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def from_trl(inputs):
    """What TRL generated, padded on the left and on the right, in the form of utils.data.chat.collate."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    learned = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
    rows = [
        (row[(on == 1) & (own == 0)].tolist(), row[own == 1].tolist())
        for row, on, own in zip(ids, mask, learned, strict=True)
    ]
    return collate(rows, models.load_tokenizer().pad_token_id)


def theirs_and_ours(folder, **arguments):
    """Loss and gradients of TRL's trainer on its student's own answers, and of ours on the same."""
    trainer = trl_trainer(models.load_base()[0], models.load_base()[0], folder, peft_config=peft_config(), **arguments)
    model = shaken(trainer.model).train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = distill.distillation_loss(model, from_trl(inputs), adapter_off, arguments.get("temperature", 1.0))
    found.loss.backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, found.loss.item(), own, inputs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_every_gradient_are_trls(temperature, tmp_path):
    theirs, gradients, ours, own, inputs = theirs_and_ours(tmp_path, temperature=temperature)
    assert inputs["completion_mask"].sum() >= 24
    assert theirs > 0.05  # or the comparison would be one of two zeros
    # float32: TRL sums online, by stretches of the vocabulary, and divides the sum over the tokens
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(gradients) == len(own) == 56
    for name, gradient in gradients.items():
        assert gradient.norm() > 0
        assert (own[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_trls_other_divergences_are_others(tmp_path):
    theirs, _, ours, _, _ = theirs_and_ours(tmp_path, beta=0.0)
    assert abs(theirs - ours) > 0.05 * ours


def test_trls_defaults_are_the_reverse_kl_over_the_whole_vocabulary():
    from trl import DistillationConfig

    fields = DistillationConfig.__dataclass_fields__
    defaults = {name: fields[name].default for name in ("beta", "temperature", "top_k", "top_p", "disable_dropout")}
    assert defaults == {"beta": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "disable_dropout": False}


def test_a_base_that_is_trls_student_and_teacher_teaches_nothing(tmp_path):
    """The adapter is put into the base in place, so the teacher has it too."""
    base, _ = models.load_base()
    trainer = trl_trainer(base, base, tmp_path, peft_config=peft_config())
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert trainer.compute_loss(shaken(trainer.model), inputs).item() == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="LoRA changes a base in place"):
        distill.train_distillation(
            trainer.model, models.load_tokenizer(), PROMPTS, teacher=base, steps=1, lr=1e-3, progress=False
        )


# --------------------------------------------------------------------------------------------------------- teachers


def test_the_adapter_off_is_the_base_and_only_the_student_gets_a_gradient(batch):
    model, _ = adapted()
    base = models.load_base()[0].requires_grad_(True).train()
    found = distill.distillation_loss(model, batch)
    other = distill.distillation_loss(model, batch, base)
    assert found.loss.item() > 0.01
    assert torch.equal(found.each, other.each)
    other.loss.backward()
    assert all(p.grad is None for p in base.parameters()) and base.training
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_only_the_answers_count(batch):
    model, _ = adapted()
    found = distill.distillation_loss(model, batch)
    counted = completion_mask(batch)
    assert ((found.each > 0) == counted).all()
    alone = {name: tensor[:1, : int(batch["attention_mask"][0].sum())] for name, tensor in batch.items()}
    each = distill.distillation_loss(model, alone).each[0]
    own = found.each[0, counted[0]]
    assert len(own) == len(each) and torch.allclose(own, each, atol=1e-5)  # padded and alone, float32


def test_a_teacher_of_another_vocabulary_is_refused(batch):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, _ = adapted()
    config = copy.deepcopy(model.config).to_dict() | {"vocab_size": model.config.vocab_size + 8}
    other = LlamaForCausalLM(LlamaConfig(**config))
    with pytest.raises(ValueError, match="vocabularies"):
        distill.distillation_loss(model, batch, other)


# --------------------------------------------------------------------------------------------------------- the loop


def short(model, tokenizer, prompts=PROMPTS, **more):
    settings = {"steps": 2, "lr": 1e-3, "batch_size": 2, "max_new_tokens": 8, "progress": False} | more
    return distill.train_distillation(model, tokenizer, prompts, **settings)


def test_the_student_comes_back_to_the_base():
    model, tokenizer = adapted()
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    history = short(model, tokenizer, steps=50, lr=2e-2, batch_size=3, max_new_tokens=16)
    first, last = (sum(one["kl"] for one in part) / 5 for part in (history[:5], history[-5:]))
    assert last < 0.6 * first
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert not model.training


def test_an_adapter_that_learned_nothing_is_its_own_teacher():
    model, tokenizer = adapted(0.0)
    before = trained_weights(model)
    history = short(model, tokenizer)
    assert max(abs(one["loss"]) for one in history) < 1e-7
    assert torch.equal(trained_weights(model), before)


def test_a_step_is_one_on_the_answers_it_sampled():
    """The first step by hand: AdamW's first step goes by the sign of the gradient of distillation_loss."""
    seen = []
    model, tokenizer = adapted()

    def spy(asked):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        return adapter_off(asked)

    (one,) = short(model, tokenizer, teacher=spy, steps=1, batch_size=3, max_new_tokens=12)
    assert len(seen) == 1
    start, _ = adapted()
    (part,) = draws(PROMPTS, 1, 3, 0)
    samples = sample_groups(start, tokenizer, part, 1, 12, 1.0, torch.Generator().manual_seed(0))
    found = distill.distillation_loss(start.eval(), samples.batch)
    assert found.loss.item() == pytest.approx(one["kl"], abs=1e-6)
    found.loss.backward()
    for name, parameter in start.named_parameters():
        if parameter.requires_grad:
            moved = model.get_parameter(name).detach() - seen[0][name]
            strong = parameter.grad.abs() > 1e-4
            assert (moved[strong].sign() == -parameter.grad[strong].sign()).all(), name


def test_rows_are_learned_beside_it_and_the_sum_is_minimised():
    rows = task_examples("style", "train", 20)
    model, tokenizer = adapted()
    history = short(model, tokenizer, rows=rows, rows_per_step=4, steps=3)
    for one in history:
        assert one["task_loss"] > 0
        assert one["loss"] == pytest.approx(one["kl"] + one["task_loss"], rel=1e-5)
        assert one["trained"] > one["taught"]
    alone = short(*adapted(), steps=3)
    assert all(one["task_loss"] == 0 and one["trained"] == one["taught"] for one in alone)
    assert alone[0]["kl"] == pytest.approx(history[0]["kl"], rel=1e-5)  # the same answers, before the first step


def test_the_history_counts_lengths_and_ends():
    model, tokenizer = adapted(0.0)
    called = []
    history = short(model, tokenizer, steps=2, max_new_tokens=3, batch_size=3, on_step=called.append)
    assert called == history
    longest = max(len(tokenizer(render(tokenizer, p), add_special_tokens=False).input_ids) for p in PROMPTS)
    for one in history:  # a story is never three tokens long
        assert (one["length"], one["stopped"]) == (3, 0)
        assert one["sampled"] == 3 * (longest + 2)  # the last token is never read
        assert one["taught"] == 3 * (longest + 3)


def test_the_same_seed_gives_the_same_run_whatever_torch_drew_before():
    runs = []
    for seed in (0, 0, 1):
        model, tokenizer = adapted()
        torch.rand(seed + len(runs))
        history = short(model, tokenizer, seed=seed, batch_size=1)
        runs.append((history, trained_weights(model)))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def test_temperature_reaches_sampling_and_loss():
    first = [short(*adapted(), steps=1, temperature=t, max_new_tokens=1, batch_size=3)[0]["kl"] for t in (1.0, 4.0)]
    assert first[1] < first[0]  # one token behind the same prompts: at temperature 4 both are nearly uniform


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": "Please tell me a story."}, "prompts is one text"),
        ({"prompts": ["Tell me a story.", " "]}, "prompt 1 is empty"),
        ({"prompts": [1, 2]}, "prompt 0 must be the user's words as a string, not 1"),
        ({"prompts": [{"prompt": "Hi"}]}, 'that is a row, so take its "prompt"'),
        ({"prompts": None}, "prompts must be a list of texts, not None"),
        ({"rows": None}, "rows must be a list of examples, not None"),
        ({"prompts": ["story " * 600]}, "no room for an answer"),
        ({"rows": [Example("Hi", " ")]}, "answer is empty"),
    ],
)
def test_what_the_loop_refuses(how, text):
    model, tokenizer = adapted()
    before = trained_weights(model)
    with pytest.raises(ValueError, match=text):
        short(model, tokenizer, **how)
    assert torch.equal(trained_weights(model), before)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"lr": "1e-3"}, "lr must be a number"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"batch_size": "2"}, "batch_size must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"model": None}, "model must be a model"),
        ({"teacher": None}, "teacher must be a function.* not None: leave it out"),
        ({"teacher": "base"}, "teacher must be a function.* not 'base': leave it out"),
        ({"teacher": lambda: None}, r"teacher is called as teacher\(model\)"),
        ({"teacher": lambda model: None}, r"teacher\(model\) must give a block"),
        ({"on_step": lambda step, numbers: None}, r"on_step is called as on_step\(numbers\)"),
    ],
)
def test_what_is_of_another_kind_is_told_in_words(how, text):
    model, tokenizer = adapted()
    before = trained_weights(model)
    with pytest.raises(TypeError, match=text):
        short(
            how.get("model", model) if "model" in how else model,
            tokenizer,
            **{k: v for k, v in how.items() if k != "model"},
        )
    assert torch.equal(trained_weights(model), before)


def test_fewer_prompts_than_a_step_draws_are_all_drawn_and_counted():
    assert [one["prompts"] for one in short(*adapted(), batch_size=100)] == [3, 3]
    assert [one["prompts"] for one in short(*adapted())] == [2, 2]


def test_a_model_without_an_adapter_or_without_anything_to_train_is_refused():
    base, tokenizer = models.load_base()
    base.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        short(base, tokenizer)
    base.requires_grad_(True)
    with pytest.raises(RuntimeError, match="has no LoRA layers.*teacher="):
        short(base, tokenizer)
    with pytest.raises(ValueError, match="holds the parameters"):
        short(base, tokenizer, teacher=base)


def test_a_run_that_diverges_says_so():
    model, tokenizer = adapted()
    with pytest.raises(ValueError, match="no token can be drawn"):  # it samples before it computes a loss
        short(model, tokenizer, lr=1e12, steps=5)
    model, tokenizer = adapted()
    teacher = models.load_base()[0]
    with torch.no_grad():
        teacher.lm_head.weight[:, 0] = math.nan
    with pytest.raises(Diverged, match="the teacher's logits hold NaN or infinity"):
        short(model, tokenizer, teacher=teacher)
