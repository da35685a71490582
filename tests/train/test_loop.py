"""The training loop, and asking and marking: what is trained on, what is refused, and the same numbers again."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from utils import lora, models
from utils.data import chat
from utils.data.chat import IGNORED, Example, batches, collate, encode
from utils.evaluate import metrics
from utils.evaluate.metrics import complete, exact_match, perplexity
from utils.tinyworld import ASSISTANT, END, PAD, USER, task_examples
from utils.train import loop as training
from utils.train.loop import train

torch.set_num_threads(1)

EXAMPLES = [
    Example("Say it like a pirate: Zoe was a shy fox.", "Arr! Zoe be a shy fox."),
    Example("Is this good or bad? Tom won the race.", "good"),
    Example("Say it in French: The fox sees a red apple.", "Le renard voit une pomme rouge."),
]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_base()[1]


@pytest.fixture(scope="module")
def base():
    """For tests that don't change it."""
    return models.load_base()[0]


def small(seed=0):
    """An untrained Llama of one narrow layer with the course's vocabulary: quick to train for a few steps."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=None, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


# ------------------------------------------------------------------------------------------------ what is trained on


def test_an_example_is_the_chat_form_and_its_end_mark(tokenizer):
    for example, (prompt, answer) in zip(EXAMPLES, encode(tokenizer, EXAMPLES), strict=True):
        assert tokenizer.decode(prompt) == f"{USER}{example.prompt}{ASSISTANT}"
        assert tokenizer.decode(answer) == f"{example.answer}{END}"
        assert answer[-1] == tokenizer.eos_token_id and answer.count(tokenizer.eos_token_id) == 1


def test_the_ids_are_those_of_the_whole_conversation(tokenizer):
    for example, (prompt, answer) in zip(EXAMPLES, encode(tokenizer, EXAMPLES), strict=True):
        assert tokenizer.apply_chat_template(conversation(example), return_dict=True)["input_ids"] == prompt + answer


def test_only_the_answer_and_its_end_mark_have_labels(tokenizer):
    encoded = encode(tokenizer, EXAMPLES)
    batch = collate(encoded, tokenizer.pad_token_id)
    longest = max(len(p) + len(a) for p, a in encoded)
    assert {t.shape for t in batch.values()} == {(3, longest)}
    for row, (prompt, answer) in enumerate(encoded):
        padding = longest - len(prompt) - len(answer)
        ids, labels, mask = (batch[key][row].tolist() for key in ("input_ids", "labels", "attention_mask"))
        assert ids == prompt + answer + [tokenizer.pad_token_id] * padding
        assert labels == [IGNORED] * len(prompt) + answer + [IGNORED] * padding
        assert mask == [1] * (longest - padding) + [0] * padding
    assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == PAD


def test_the_loss_is_the_mean_over_the_answers_tokens_whatever_the_padding(base, tokenizer):
    encoded = encode(tokenizer, EXAMPLES)
    with torch.no_grad():
        together = base(**collate(encoded, tokenizer.pad_token_id)).loss
        total, count = 0.0, 0
        for prompt, answer in encoded:
            logits = base(input_ids=torch.tensor([prompt + answer])).logits[0]
            places = logits[len(prompt) - 1 : -1]  # what stands before each token of the answer
            total += F.cross_entropy(places, torch.tensor(answer), reduction="sum").item()
            count += len(answer)
    # float32 in another order of sums: the logits differ by about 1e-5.
    assert together.item() == pytest.approx(total / count, rel=1e-5)


def conversation(example):
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]


def test_the_chat_template_marks_the_assistants_tokens_for_trl(tokenizer):
    """TRL's assistant_only_loss reads this mask; it must be exactly the labels that we train on."""
    for example, (prompt, answer) in zip(EXAMPLES, encode(tokenizer, EXAMPLES), strict=True):
        marked = tokenizer.apply_chat_template(
            conversation(example), return_assistant_tokens_mask=True, return_dict=True
        )  # fmt: skip
        assert marked["input_ids"] == prompt + answer
        assert marked["assistant_masks"] == [0] * len(prompt) + [1] * len(answer)


def test_each_turn_of_a_longer_conversation_is_marked(tokenizer):
    messages = conversation(EXAMPLES[0]) + conversation(EXAMPLES[1])
    marked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    pieces = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(pieces) == f"{EXAMPLES[0].answer}{END}{EXAMPLES[1].answer}{END}"


def test_a_role_that_the_model_does_not_know_is_refused(tokenizer):
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be kind."}], tokenize=False)


def test_batches_hold_different_examples_and_follow_the_seed(tokenizer):
    examples = task_examples("style", "train", 40)
    rows = encode(tokenizer, examples)

    def drawn(seed, size=8):
        return [b["input_ids"].tolist() for b in batches(tokenizer, examples, steps=4, batch_size=size, seed=seed)]

    assert len(drawn(0)) == 4 and all(len(batch) == 8 for batch in drawn(0))
    assert drawn(0) == drawn(0) != drawn(1)
    for batch in drawn(0):
        assert len({tuple(row) for row in batch}) == 8
        for row in batch:
            assert any(row[: len(p) + len(a)] == p + a for p, a in rows)
    assert [len(batch) for batch in drawn(0, size=100)] == [40] * 4


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
        clip(parameters, limit)
        norms.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item())

    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", recorded)
    train(small(), tokenizer, EXAMPLES, steps=2, lr=1e-3, progress=False)
    assert len(norms) == 2 and max(norms) <= 1.0001


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
        ({"steps": 0}, "steps must be positive, not 0"),
        ({"steps": -1}, "steps must be positive, not -1"),
        ({"batch_size": 0}, "batch_size must be positive, not 0"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"examples": []}, "no examples"),
        ({"examples": [EXAMPLES[0], Example("", "x")]}, "example 1 has no prompt"),
        ({"examples": [Example("x", "")]}, "example 0 has no answer"),
        ({"examples": [Example("x", " \n")]}, "example 0 has no answer"),
        ({"examples": [Example(None, "x")]}, "example 0 has no prompt"),
        ({"examples": [Example("x", 3)]}, "example 0 has no answer"),
        ({"examples": [{"prompt": "x", "answer": "y"}]}, "example 0 has no prompt"),
        ({"examples": [None]}, "example 0 has no prompt"),
    ],
)
def test_what_cannot_be_trained_on_is_named(tokenizer, changes, words):
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    arguments = {"examples": EXAMPLES, "steps": 2, "lr": 1e-3, "progress": False} | changes
    with pytest.raises(ValueError, match=words):
        train(model, tokenizer, arguments.pop("examples"), **arguments)
    assert unchanged(model, before)


def test_a_model_with_nothing_to_train(tokenizer):
    with pytest.raises(ValueError, match="nothing to train.*requires_grad"):
        train(small().requires_grad_(False), tokenizer, EXAMPLES, steps=1, lr=1e-3, progress=False)


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(tokenizer):
    model = small()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    before = model.model.embed_tokens.weight.clone()
    with pytest.raises(ValueError, match="not a number any more at step 0.*below 0.5"):
        train(model, tokenizer, EXAMPLES, steps=3, lr=0.5, progress=False)
    assert torch.equal(model.model.embed_tokens.weight, before)


# -------------------------------------------------------------------------------------------------- asking and marking


def test_answers_do_not_depend_on_the_batch(base, tokenizer):
    """Prompts of different lengths are padded on the left; each answer must be that of its prompt alone."""
    prompts = [e.prompt for e in EXAMPLES] + ["Tell me a story about Zoe the fox.", "Please tell me a story."]
    assert len({len(tokenizer(p).input_ids) for p in prompts}) > 3
    alone = [complete(base, tokenizer, [p], max_new_tokens=20)[0] for p in prompts]
    assert complete(base, tokenizer, prompts, max_new_tokens=20) == alone
    assert complete(base, tokenizer, prompts, max_new_tokens=20, batch_size=2) == alone
    assert len(set(alone)) == len(alone) and all(alone)


def test_an_answer_holds_no_prompt_and_no_marks(base, tokenizer):
    (answer,) = complete(base, tokenizer, ["Tell me a story about Zoe the fox."], max_new_tokens=40)
    assert "Tell me" not in answer and "Zoe" in answer
    assert not any(mark in answer for mark in (USER, ASSISTANT, END, PAD))
    assert answer == answer.strip()


def test_answers_are_greedy(base, tokenizer):
    prompt = "Tell me a story about Zoe the fox."
    ids = tokenizer(chat.render(tokenizer, prompt), add_special_tokens=False).input_ids
    start = len(ids)
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert complete(base, tokenizer, [prompt], max_new_tokens=12) == [tokenizer.decode(ids[start:]).strip()]


@pytest.mark.parametrize("mode", [True, False])
def test_asking_leaves_the_models_mode(tokenizer, mode):
    model = small().train(mode)
    complete(model, tokenizer, ["x"], max_new_tokens=1)
    assert model.training == mode


def test_without_prompts_there_are_no_answers(base, tokenizer):
    for nothing in ([], "a text where a list of texts belongs"):
        with pytest.raises(ValueError, match="no prompts"):
            complete(base, tokenizer, nothing)
    with pytest.raises(ValueError, match="no examples"):
        exact_match(base, tokenizer, [])


def test_exact_match_counts_to_the_letter(monkeypatch, base, tokenizer):
    said = ["Arr! Zoe be a shy fox.", "Good", "Le renard voit une pomme rouge"]
    asked = []

    def answers(model, tokenizer, prompts, max_new_tokens):
        asked.append((prompts, max_new_tokens))
        return said

    monkeypatch.setattr(metrics, "complete", answers)
    assert exact_match(base, tokenizer, EXAMPLES) == pytest.approx(1 / 3)
    ((prompts, room),) = asked
    assert prompts == [e.prompt for e in EXAMPLES]
    assert room > max(len(answer) for _, answer in encode(tokenizer, EXAMPLES))
    said[1:] = [e.answer for e in EXAMPLES[1:]]
    assert exact_match(base, tokenizer, EXAMPLES) == 1.0


def test_exact_match_of_a_model_that_learnt_three_answers_by_heart(tokenizer):
    model = models.load_base()[0]
    train(model, tokenizer, EXAMPLES, steps=25, lr=2e-3, progress=False)
    assert exact_match(model, tokenizer, EXAMPLES) == 1.0
    other = [e._replace(answer=e.answer + "!") for e in EXAMPLES]
    assert exact_match(model, tokenizer, other[:1] + EXAMPLES[1:]) == pytest.approx(2 / 3)


def test_perplexity_is_the_exponential_of_the_mean_loss(tokenizer):
    model, texts = small().eval(), ["The fox sees a red apple.", "A bear hides the old kite."] * 4
    window = 15
    row = [i for t in texts for i in [*tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id]]
    windows = len(row) // window
    assert windows >= 3 and len(row) % window  # a tail that doesn't fill a window isn't read
    losses = []
    for ids in torch.tensor(row[: windows * window]).view(-1, window):
        with torch.no_grad():
            losses.append(F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:]))
    expected = torch.stack(losses).mean().exp().item()
    # float32 sums in another order
    assert perplexity(model, tokenizer, texts, window=window) == pytest.approx(expected, rel=1e-5)


def test_an_untrained_model_is_as_perplexed_as_a_dice_of_its_vocabulary(tokenizer):
    model = small().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert perplexity(model, tokenizer, ["The fox sees a red apple."] * 3, window=16) == pytest.approx(1024, rel=1e-4)


def test_texts_that_fill_no_window(base, tokenizer):
    with pytest.raises(ValueError, match="less than one window of 256"):
        perplexity(base, tokenizer, ["The fox."])
