"""decoding against transformers: the processors to the bit, the loop token by token; and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from utils.data.chat import render
from utils.inference import decoding
from utils.inference.streaming import TextStream
from utils.models import load_base
from utils.tinyworld import task_examples

ROWS = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]])


@st.composite
def random_logits(draw, ties=True):
    """Logits of any sharpness; half of them rounded, so that many tie."""
    batch, vocab = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(batch, vocab, generator=generator) * draw(st.sampled_from([0.0, 0.3, 1.0, 5.0, 30.0]))
    return logits.round() if ties and draw(st.booleans()) else logits


def same(ours, theirs):
    assert torch.equal(ours, theirs), (ours, theirs)


many = settings(max_examples=150, deadline=None)
share = st.one_of(st.sampled_from([1e-6, 0.5, 0.999999, 1.0]), st.floats(0.001, 1.0))


@many
@given(random_logits(), st.floats(0.01, 50.0))
def test_temperature_is_transformers(logits, temperature):
    same(decoding.with_temperature(logits, temperature), TemperatureLogitsWarper(temperature)(None, logits))


@many
@given(random_logits(), st.integers(1, 60))
def test_top_k_is_transformers(logits, k):
    ours = decoding.top_k(logits, k)
    same(ours, TopKLogitsWarper(k)(None, logits))
    assert (ours.isfinite().sum(dim=1) >= min(k, logits.shape[1])).all()


@many
@given(random_logits(), share)
def test_top_p_is_transformers(logits, p):
    ours = decoding.top_p(logits, p)
    same(ours, TopPLogitsWarper(p)(None, logits))
    kept = logits.softmax(dim=1).masked_fill(ours.isinf(), 0).sum(dim=1)
    assert (kept >= p - 1e-5).all()


@many
@given(random_logits(), share)
def test_min_p_is_transformers(logits, p):
    same(decoding.min_p(logits, p), MinPLogitsWarper(p)(None, logits))


@many
@given(random_logits(), st.floats(0.1, 5.0), st.data())
def test_the_repetition_penalty_is_transformers(logits, penalty, data):
    length = data.draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    seen = torch.randint(0, logits.shape[1], (len(logits), length), generator=generator)
    same(decoding.repetition_penalty(logits, seen, penalty), RepetitionPenaltyLogitsProcessor(penalty)(seen, logits))


@many
@given(random_logits(), st.floats(0.1, 5.0), st.integers(1, 20), share, share)
def test_all_together_are_transformers_in_its_order(logits, temperature, k, p, minimum):
    seen = torch.zeros((len(logits), 1), dtype=torch.long)
    ours = decoding.processed(logits, seen, temperature=temperature, k=k, p=p, minimum=minimum, penalty=1.3)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(seen, logits)
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(k),
        TopPLogitsWarper(p),
        MinPLogitsWarper(minimum),
    ):
        theirs = warper(None, theirs)
    same(ours, theirs)
    assert ours.isfinite().any(dim=1).all(), "nothing is left to draw from"


def test_what_is_changed_is_a_copy():
    kept = ROWS.clone()
    seen = torch.tensor([[1], [2]])
    decoding.processed(ROWS, seen, temperature=0.5, k=2, p=0.5, minimum=0.5, penalty=2.0)
    assert torch.equal(ROWS, kept)


def test_ties():
    assert decoding.greedy(ROWS).tolist() == [1, 0]
    assert decoding.top_k(ROWS, 1).isfinite().sum(dim=1).tolist() == [1, 4], "top-k keeps all that tie"
    assert decoding.top_p(ROWS, 0.5).isfinite().sum(dim=1).tolist() == [1, 2], "top-p cuts through a tie"
    assert decoding.min_p(ROWS, 1.0).isfinite().sum(dim=1).tolist() == [1, 4]


def test_edges_that_change_nothing():
    for unchanged in (
        decoding.top_p(ROWS, 1.0),
        decoding.top_k(ROWS, 99),
        decoding.min_p(ROWS, 0.0),
        decoding.with_temperature(ROWS, 1.0),
        decoding.repetition_penalty(ROWS, torch.tensor([[1], [2]]), 1.0),
    ):
        assert torch.equal(unchanged, ROWS)


def test_a_token_seen_twice_is_penalized_once_and_a_negative_logit_falls():
    found = decoding.repetition_penalty(ROWS[:1], torch.tensor([[1, 1, 3]]), 2.0)
    assert found.tolist() == [[1.0, 1.5, 2.0, -2.0]]


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.inf, math.nan, True, "1"])
def test_temperatures_that_are_refused(value):
    with pytest.raises(ValueError, match="temperature"):
        decoding.with_temperature(ROWS, value)


@pytest.mark.parametrize(
    ("function", "value", "said"),
    [
        *[(decoding.top_k, value, "top_k is a whole number") for value in (0, -1, 2.0, True)],
        *[(decoding.top_p, value, "top_p is a") for value in (0, -0.1, 1.01, 90, math.nan)],
        *[(decoding.min_p, value, "min_p is a share") for value in (-0.1, 1.01, math.nan)],
    ],
)
def test_values_that_are_refused(function, value, said):
    with pytest.raises(ValueError, match=said):
        function(ROWS, value)


@pytest.mark.parametrize("penalty", [0.0, -1.0, math.inf, math.nan])
def test_penalties_that_are_refused(penalty):
    with pytest.raises(ValueError, match="repetition_penalty must be above 0"):
        decoding.repetition_penalty(ROWS, torch.tensor([[1], [2]]), penalty)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ([[1]], "2 rows of logits"),
        ([[1], [4]], "outside of the vocabulary"),
        ([[1], [-1]], "outside of the vocabulary"),
    ],
)
def test_seen_ids_that_are_refused(seen, said):
    with pytest.raises(ValueError, match=said):
        decoding.repetition_penalty(ROWS, torch.tensor(seen), 1.5)


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(1, 2, 3), torch.ones(2, 3, dtype=torch.long), [[1.0]]])
def test_what_are_no_logits_is_refused(logits):
    with pytest.raises(ValueError, match="output.logits"):
        decoding.greedy(logits)


# ------------------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def base():
    torch.set_num_threads(1)
    return load_base(torch.float64)


@pytest.fixture(scope="module")
def batch(base):
    """Six prompts of different lengths, padded on the left."""
    texts = [
        render(base[1], e.prompt)
        for task in ("style", "sentiment", "summarization")
        for e in task_examples(task, "test", 2)
    ]
    padded = base[1](texts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    assert not padded.attention_mask.all()
    return padded


def transformers_answer(base, batch, **settings):
    output = base[0].generate(**batch, max_new_tokens=30, **settings)
    return output[:, batch.input_ids.shape[1] :]


def options(base):
    return {"max_new_tokens": 30, "eos_id": base[1].eos_token_id, "pad_id": base[1].pad_token_id}


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_loop_is_transformers_token_by_token(base, batch, use_cache):
    ours = decoding.generate(base[0], **batch, **options(base), use_cache=use_cache)
    assert torch.equal(ours.ids, transformers_answer(base, batch, do_sample=False))


def test_padding_moves_no_position_of_a_model_that_counts_them():
    """Llama sees only how far apart two tokens are; GPT-2 has a vector for each position, counted without padding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(50)  # so that a wrong position changes the answer
    ids = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, :1] = 0
    for use_cache in (True, False):
        ours = decoding.generate(
            model, ids * mask, mask, max_new_tokens=12, eos_id=1, pad_id=0, use_cache=use_cache
        ).ids
        theirs = model.generate(
            ids * mask, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0
        )
        assert torch.equal(ours, theirs[:, 9:])
        assert len(ours.unique()) > 5, "an answer of one token would prove little"


def test_finished_rows_are_padded_and_the_loop_ends_with_the_last(base, batch):
    """Stopping is made to happen early: the end mark is a token that some rows write soon."""
    free = decoding.generate(base[0], **batch, **options(base)).ids
    stop = int(free[0, 3])
    ours = decoding.generate(base[0], **batch, **options(base) | {"eos_id": stop}).ids
    assert torch.equal(ours, transformers_answer(base, batch, do_sample=False, eos_token_id=stop))
    first = ours[0].tolist()
    end = first.index(stop)
    assert end <= 3 and set(first[end + 1 :]) <= {base[1].pad_token_id}


@pytest.mark.parametrize("form", ["list", "tuple", "tensor", "the model's own", "the model's own list", "none at all"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_several_eos_tokens_end_a_row_as_in_transformers(base, batch, form, use_cache):
    """Llama-3, Qwen and Gemma ship a list of EOS tokens in their generation_config."""
    free = decoding.generate(base[0], **batch, **options(base)).ids
    ends = [int(free[0, 3]), int(free[1, 5])]
    model = copy.copy(base[0])
    model.generation_config = copy.deepcopy(base[0].generation_config)
    given = {"list": ends, "tuple": tuple(ends), "tensor": torch.tensor(ends)}.get(form)
    if form.startswith("the model"):
        model.generation_config.eos_token_id = ends if form.endswith("list") else ends[0]
    if form == "none at all":
        model.generation_config.eos_token_id = None
    ours = decoding.generate(model, **batch, **options(base) | {"eos_id": given}, use_cache=use_cache).ids
    theirs = transformers_answer(
        (model,),
        batch,
        do_sample=False,
        pad_token_id=base[1].pad_token_id,
        **({} if given is None else {"eos_token_id": given}),
    )
    assert torch.equal(ours, theirs)
    if form == "none at all":
        assert ours.shape[1] == 30
    else:
        assert base[1].pad_token_id in ours[0], "the row was to end early"


@pytest.mark.parametrize("eos_id", ["<|end|>", 1.0, True, [1, None], ["2"]])
def test_an_eos_id_that_is_no_id_is_refused(base, batch, eos_id):
    with pytest.raises(TypeError, match="eos_id is the id of the EOS token, or a list of ids"):
        decoding.generate(base[0], **batch, **options(base) | {"eos_id": eos_id})


@pytest.mark.parametrize("row", range(3))
def test_a_prompt_alone_is_answered_as_in_the_batch(base, batch, row):
    alone = batch.input_ids[row][batch.attention_mask[row].bool()][None]
    ours = decoding.generate(base[0], alone, **options(base)).ids[0]
    together = decoding.generate(base[0], **batch, **options(base)).ids[row]
    assert torch.equal(ours, together[: len(ours)])


def test_the_cache_computes_each_position_once(base):
    ids = torch.randint(2, 900, (2, 11), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 5, "eos_id": -1, "pad_id": 0}
    with_cache = decoding.generate(base[0], ids, **settings)
    without = decoding.generate(base[0], ids, **settings, use_cache=False)
    assert with_cache.computed == 2 * (11 + 4)
    assert without.computed == 2 * (11 + 12 + 13 + 14 + 15)
    assert torch.equal(with_cache.ids, without.ids)


def test_sampling_with_a_penalty_and_filters_is_transformers(base, batch):
    """Both draw with torch.multinomial from the same probabilities, so the same seed draws the same tokens."""
    torch.manual_seed(3)
    choose = decoding.sampler(temperature=1.7, k=20, p=0.9, minimum=0.02, penalty=1.2)
    ours = decoding.generate(base[0], **batch, **options(base), choose=choose)
    torch.manual_seed(3)
    theirs = transformers_answer(
        base, batch, do_sample=True, temperature=1.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2
    )
    assert torch.equal(ours.ids, theirs)


def test_a_generator_decides_the_samples(base, batch):
    def draw(seed):
        choose = decoding.sampler(torch.Generator().manual_seed(seed), temperature=2.0)
        return decoding.generate(base[0], **batch, **options(base), choose=choose).ids

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_padding_on_the_right_is_refused(base, batch):
    with pytest.raises(ValueError, match="padding_side='left'"):
        decoding.generate(base[0], batch.input_ids.flip(1), batch.attention_mask.flip(1), **options(base))


@pytest.mark.parametrize(
    ("ids", "mask", "new", "said"),
    [
        (torch.ones(1, 0, dtype=torch.long), None, 3, "and at least one token"),
        (torch.ones(4, dtype=torch.long), None, 3, "shape"),
        (torch.ones(1, 4, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), 3, "the mask has the shape"),
        (torch.ones(1, 4, dtype=torch.long), None, 0, "max_new_tokens must be at least 1"),
    ],
)
def test_inputs_that_are_refused(base, ids, mask, new, said):
    with pytest.raises(ValueError, match=said):
        decoding.generate(base[0], ids, mask, max_new_tokens=new, eos_id=1, pad_id=0)


@pytest.mark.parametrize(
    ("count", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        (float("nan"), TypeError),
        (float("inf"), TypeError),
        ("3", TypeError),
    ],
)
def test_how_many_tokens_is_a_whole_number(base, tokenizer, count, error):
    ids = tokenizer("The fox", return_tensors="pt").input_ids
    with pytest.raises(error, match="max_new_tokens must be"):
        decoding.generate(base, ids, max_new_tokens=count, pad_id=tokenizer.pad_token_id)
    with pytest.raises(error, match="max_new_tokens must be"):
        TextStream(base, tokenizer, "The fox", max_new_tokens=count)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_is_drawn_from_logits_that_are_no_numbers(value):
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    with pytest.raises(ValueError, match="no token can be drawn"):
        decoding.sampler()(logits, torch.zeros(2, 1, dtype=torch.long))
