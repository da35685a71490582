"""Asking and marking: greedy answers, exact match and perplexity, and the model's mode."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.small_llama import small
from utils import models
from utils.data import chat
from utils.data.chat import Example, encode
from utils.evaluate import metrics
from utils.evaluate.gates import copy_accuracy
from utils.evaluate.merged_answers import answered
from utils.evaluate.metrics import answer, chrf, complete, exact_match, perplexity, wilson
from utils.evaluate.report import evaluate
from utils.models.ends import end_ids
from utils.tinyworld import ASSISTANT, END, PAD, USER
from utils.train.loop import train

torch.set_num_threads(1)

EXAMPLES = [
    Example("Say it like a pirate: Zoe was a shy fox.", "Arr! Zoe be a shy fox."),
    Example("Is this good or bad? Tom won the race.", "good"),
    Example("Say it in French: The fox sees a red apple.", "Le renard voit une pomme rouge."),
]


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


def conversation(example):
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "ask",
    [
        lambda *loaded: complete(*loaded, ["x"], max_new_tokens=1),
        lambda *loaded: exact_match(*loaded, EXAMPLES[:1]),
        lambda *loaded: perplexity(*loaded, ["The fox sees a red apple."] * 3, window=16),
        lambda *loaded: evaluate(*loaded, EXAMPLES[:1], max_new_tokens=2),
        lambda *loaded: copy_accuracy(*loaded, n=1),
        lambda *loaded: answered(*loaded, EXAMPLES[:1]),
    ],
)
def test_asking_has_no_dropout_and_leaves_the_mode_of_every_module(tokenizer, mode, ask):
    model, seen = small().train(mode), []
    model.model.norm.train(not mode)  # a module of its own mind
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(any(modes(model))))
    before = modes(model)
    ask(model, tokenizer)
    assert modes(model) == before
    assert seen and not any(seen)


def test_the_mode_comes_back_after_an_error(tokenizer):
    model = small()
    with pytest.raises(ValueError, match="max_new_tokens"):
        complete(model, tokenizer, ["x"], max_new_tokens=0)
    assert all(modes(model))


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
    assert prompts == [conversation(e)[:1] for e in EXAMPLES]
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


# ------------------------------------------------------------------------------------- how an answer ends; records


def test_an_answer_ends_at_any_of_several_end_marks(tokenizer):
    """Instruct models have two, such as <|eot_id|> and <|end_of_text|>; generation stops at either."""
    model = models.load_base()[0]
    prompts = [e.prompt for e in EXAMPLES]
    free = answer(model, tokenizer, prompts, max_new_tokens=12)
    assert not any(a.stopped for a in free) and all(a.tokens == 12 for a in free), "or the next lines prove nothing"
    ids = tokenizer(free[0].text, add_special_tokens=False).input_ids
    second = ids[5]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, second]
    assert end_ids(model, tokenizer) == {tokenizer.eos_token_id, second}
    cut = answer(model, tokenizer, prompts, max_new_tokens=12)
    assert cut[0].stopped and cut[0].tokens == ids.index(second) < 12
    assert cut[0].text == tokenizer.decode(ids[: ids.index(second)]).strip()
    assert evaluate(model, tokenizer, EXAMPLES[:1], max_new_tokens=12).replies[0][2:5] == cut[0]


@pytest.mark.parametrize("configured", [None, 1, [1]])
def test_the_end_marks_of_a_model_with_one(tokenizer, configured):
    model = small()
    model.generation_config.eos_token_id = configured
    assert end_ids(model, tokenizer) == {tokenizer.eos_token_id} == {1}


def test_stop_strings_end_an_answer_and_padding_behind_them_is_not_counted(base, tokenizer):
    prompts = [e.prompt for e in EXAMPLES]
    free = answer(base, tokenizer, prompts, max_new_tokens=12)
    stop = free[0].text[5:9]
    found = answer(base, tokenizer, prompts, max_new_tokens=12, stop_strings=[stop])
    alone = answer(base, tokenizer, prompts[:1], max_new_tokens=12, stop_strings=stop)
    assert found[0] == alone[0]
    assert (
        found[0].stopped and found[0].tokens < 12 and stop in found[0].text and free[0].text.startswith(found[0].text)
    )
    assert found[0].tokens == len(tokenizer(found[0].text, add_special_tokens=False).input_ids)
    for was, now in zip(free, found, strict=True):
        assert now == was or stop in now.text


@pytest.mark.parametrize("setting", [{"num_return_sequences": 2, "do_sample": True}, {"return_dict_in_generate": True}])
def test_settings_that_give_something_else_than_an_answer_a_prompt_are_refused(base, tokenizer, setting):
    with pytest.raises(ValueError, match="one answer to each prompt"):
        complete(base, tokenizer, [e.prompt for e in EXAMPLES], **setting)


def test_a_conversation_is_asked_with_all_its_turns(base, tokenizer):
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Arr!"}]
    talk = [*turns, {"role": "user", "content": EXAMPLES[0].prompt}]
    (said,) = complete(base, tokenizer, [talk], max_new_tokens=12)
    ids = tokenizer(chat.render(tokenizer, talk), add_special_tokens=False, return_tensors="pt")
    whole = base.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert said == tokenizer.decode(whole[0, ids.input_ids.shape[1] :], skip_special_tokens=True).strip()
    assert said != complete(base, tokenizer, [EXAMPLES[0].prompt], max_new_tokens=12)[0]


def test_records_are_marked_as_examples_are(tokenizer):
    model = models.load_base()[0]
    records = [{"instruction": e.prompt, "output": f" {e.answer}\n"} for e in EXAMPLES]
    train(model, tokenizer, EXAMPLES, steps=25, lr=2e-3, progress=False)
    assert exact_match(model, tokenizer, records) == 1.0
    with pytest.raises(ValueError, match="number 2 of 2 is a plain prompt"):
        exact_match(model, tokenizer, [EXAMPLES[0], {"prompt": "He likes to s", "completion": "ing."}])


@pytest.mark.parametrize(
    "right, count, low, high",
    [(0, 10, 0, 0.2775), (3, 3, 0.4385, 1), (5, 10, 0.2366, 0.7634), (263, 300, 0.8347, 0.9092)],
)
def test_wilsons_interval_is_the_published_one(right, count, low, high):
    """As statsmodels' proportion_confint(..., method="wilson") gives it."""
    assert wilson(right, count) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_the_share_and_stays_within_bounds(count, data):
    right = data.draw(st.integers(0, count))
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1 and low < high
    for wrong in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="is no share"):
            wilson(*wrong)


def test_chrf_is_of_any_language_and_between_0_and_100():
    assert chrf("The same text.", "The same text.") == pytest.approx(100) and chrf("xyz", "AAA BBB") == 0
    assert 0 < chrf("東京は日本の都市です", "東京は日本の首都です") < 100 and chrf("", "yes") == 0
