"""utils.evaluate.report and utils.course.model_card: what a report says is what the model did."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.data.records import BadRecords
from utils.evaluate.metrics import exact_match, perplexity
from utils.evaluate.report import (
    FEW,
    SHORT,
    Evaluation,
    Reply,
    change,
    comparison,
    comparison_table,
    evaluate,
    luck,
    share,
    verdict,
)
from utils.models import load_base, profile
from utils.tinyworld import task_examples
from utils.train.adapter_cache import trained_adapter
from utils.train.own_data import general_texts

EXAMPLES = task_examples("style", "test", 12)
RECORDS = [{"instruction": e.prompt, "output": e.answer} for e in EXAMPLES]


@pytest.fixture(scope="module")
def loaded():
    from peft import PeftModel

    base, tokenizer = load_base()
    return PeftModel.from_pretrained(base, trained_adapter("style", profile())).eval(), tokenizer


@pytest.fixture(scope="module")
def both(loaded) -> tuple[Evaluation, Evaluation]:
    model, tokenizer = loaded
    after = evaluate(model, tokenizer, RECORDS, general=general_texts())
    with model.disable_adapter():
        return evaluate(model, tokenizer, RECORDS, general=general_texts()), after


def test_right_answers_are_those_of_exact_match_and_batches_dont_matter(loaded, both):
    model, tokenizer = loaded
    assert both[1].exact == exact_match(model, tokenizer, EXAMPLES) > 0.9
    small = evaluate(model, tokenizer, EXAMPLES, batch_size=5)
    assert [r.answer for r in small.replies] == [r.answer for r in both[1].replies]
    assert math.isclose(small.loss, both[1].loss, rel_tol=1e-3) and small.general is None


def test_the_loss_is_the_models_own(loaded, both):
    """Token by token over all records, not a mean of the records' means."""
    from utils.data.chat import collate, encode

    model, tokenizer = loaded
    encoded = encode(tokenizer, EXAMPLES)
    with torch.inference_mode():
        theirs = model(**collate(encoded, tokenizer.pad_token_id)).loss.item()
    assert math.isclose(both[1].loss, theirs, rel_tol=1e-4)


def test_forgetting_is_the_perplexity_with_the_adapter_on_and_off(loaded, both):
    model, tokenizer = loaded
    assert both[0].general == perplexity(load_base()[0], tokenizer, general_texts())
    assert both[1].general == pytest.approx(perplexity(model, tokenizer, general_texts()))
    assert both[1].general > 1.1 * both[0].general


def test_the_adapter_stops_and_a_limit_is_a_limit(loaded, both):
    model, tokenizer = loaded
    assert both[1].stop_rate == 1 and both[1].mean_tokens < 40
    cut = evaluate(model, tokenizer, RECORDS[:3], max_new_tokens=4)
    assert cut.stop_rate == 0 and cut.mean_tokens == 4 and cut.exact == 0


def test_an_answer_has_room_for_sixteen_tokens_more_than_the_longest_wanted(loaded):
    """The adapter's answer takes `length` tokens and an end mark: it stops by itself when 16 more let it, not at 15."""
    model, tokenizer = loaded
    (whole,) = evaluate(model, tokenizer, RECORDS[:1]).replies
    ids = tokenizer(whole.answer, add_special_tokens=False).input_ids
    assert whole.stopped and whole.right and len(ids) == whole.tokens > 17
    for wanted, stopped in ((whole.tokens + 1 - 16, True), (whole.tokens - 16, False)):
        text = tokenizer.decode(ids[:wanted])
        assert len(tokenizer(text.strip(), add_special_tokens=False).input_ids) == wanted
        record = {"instruction": RECORDS[0]["instruction"], "output": text}
        (reply,) = evaluate(model, tokenizer, [record]).replies
        assert (reply.stopped, reply.right) == (stopped, False)


def test_a_conversation_is_asked_with_all_its_turns(loaded):
    model, tokenizer = loaded
    turns = [("user", "Hi."), ("assistant", "Arr!"), ("user", EXAMPLES[0].prompt), ("assistant", EXAMPLES[0].answer)]
    talk = {"messages": [{"role": role, "content": content} for role, content in turns]}
    alone = evaluate(model, tokenizer, RECORDS[:1])
    found = evaluate(model, tokenizer, [talk])
    assert found.replies[0].prompt == EXAMPLES[0].prompt and found.loss != alone.loss


@pytest.mark.parametrize("records, error, said", [([], ValueError, "no records"), ([{"a": 1}], BadRecords, "missing")])
def test_what_cant_be_evaluated_is_refused(loaded, records, error, said):
    with pytest.raises(error, match=said):
        evaluate(*loaded, records)


def test_luck_by_hand():
    assert luck(0, 0) == luck(3, 3) == 1 and luck(5, 0) == luck(0, 5) == 2 / 32
    assert luck(9, 1) == 2 * (1 + 10) / 1024
    with pytest.raises(ValueError, match="at least 0"):
        luck(-1, 3)


@given(st.integers(0, 40), st.integers(0, 40))
def test_luck_is_a_probability_and_falls_with_the_difference(a, b):
    assert 0 < luck(a, b) <= 1 and luck(a, b) == luck(b, a)
    assert luck(a + b + 1, b) <= luck(a + b, b) + 1e-12


def reply(prompt: str, right: bool) -> Reply:
    return Reply(prompt, "yes", "yes" if right else "no", 3, True)


def test_the_change_counts_both_directions_and_refuses_other_records():
    before = Evaluation((reply("a", True), reply("b", False), reply("c", False)), 2.0, None)
    after = Evaluation((reply("a", False), reply("b", True), reply("c", True)), 1.0, None)
    assert change(before, after) == (2, 1, 1.0)
    with pytest.raises(ValueError, match="different records"):
        change(before, Evaluation(after.replies[::-1], 1.0, None))


def test_the_report_says_what_was_found(both):
    text = comparison(*both, examples=2)
    assert "| exact match | 0 of 12 | 12 of 12 |" in text and "| chrF of the answer, 0 to 100 | " in text
    assert f"- wanted: {EXAMPLES[1].answer}" in text and f"- adapter: {EXAMPLES[1].answer}" in text
    assert EXAMPLES[2].answer not in text and "| perplexity of other texts |" in text
    assert [row[0] for row in comparison_table(*(Evaluation(e.replies, e.loss, None) for e in both))] == [
        "exact match", "chrF of the answer, 0 to 100", "loss (nats per token of the answer)",
        "perplexity of the answer", "answers that end by themselves", "mean length (tokens)",
    ]  # fmt: skip


def evaluation(answers, wanted="yes", loss=1.0) -> Evaluation:
    return Evaluation(tuple(Reply(f"p{n}", wanted, a, 3, True) for n, a in enumerate(answers)), loss, None)


@pytest.mark.parametrize("count", [1, 3, 12, FEW - 1])
def test_a_few_records_get_no_percentage_and_no_probability(count):
    text = comparison(evaluation(["no"] * count), evaluation(["yes"] * count), examples=0)
    assert f"| exact match | 0 of {count} | {count} of {count} |" in text
    assert "%" not in text and "probability" not in text and "too few to tell this from luck; it takes 20" in text


def test_many_records_get_both_with_an_interval():
    text = comparison(evaluation(["no"] * 45), evaluation(["yes"] * 40 + ["no"] * 5), examples=0)
    assert "| exact match | 0 of 45 (0%, 0 to 8) | 40 of 45 (89%, 77 to 95) |" in text
    assert "40 answers turned right and 0 turned wrong. Fair coins" in text and "less than 0.001" in text
    assert share(20, 20) == "20 of 20 (100%, 84 to 100)"


def test_exact_match_is_left_out_where_answers_are_long():
    """By chrF the same records are compared: nearer or further, with the same test."""
    wanted = "The contract ends on the last day of the month after the one in which notice was given. " * 2
    assert len(wanted) > SHORT
    before, after = evaluation(["Once upon a time."] * 30, wanted), evaluation([wanted[:120]] * 29 + [""], wanted)
    assert [row[0] for row in comparison_table(before, after)][:2] == [
        "chrF of the answer, 0 to 100", "loss (nats per token of the answer)",
    ]  # fmt: skip
    assert after.chrf > 3 * before.chrf and change(before, after)[:2] == (29, 1)
    assert verdict(before, after).startswith("By chrF 29 answers came nearer to the wanted one and 1 moved away. Fair")
    assert evaluation(["x"] * 9 + [wanted], "one\nline").short is False and evaluation(["x"], "one line").short


def test_examples_show_the_turns_before_and_the_system_prompt():
    earlier = (("system", "Be a pirate."), ("user", "Hi."), ("assistant", "Arr!"))
    reply = Reply("And now?", "Sail.", "Sail.", 3, True, earlier)
    text = comparison(Evaluation((reply,), 1, None), Evaluation((reply,), 1, None))
    assert "> system: Be a pirate.  \n> user: Hi.  \n> assistant: Arr!  \n> user: And now?\n" in text


def test_the_perplexity_is_that_of_the_loss_and_texts_are_named():
    both = [Evaluation((reply("a", True),), math.log(8), g, "40 stories") for g in (2.0, 3.0)]
    table = {row[0]: row[1:] for row in comparison_table(*both)}
    assert table["perplexity of the answer"] == ("8", "8") and table["perplexity of 40 stories"] == ("2.00", "3.00")


def test_records_longer_than_the_model_are_left_out_and_counted(loaded):
    model, tokenizer = loaded
    long = {"instruction": "a b c " * 400, "output": "yes"}
    near = {"instruction": RECORDS[0]["instruction"] + " lake" * 440, "output": RECORDS[0]["output"]}
    found = evaluate(model, tokenizer, [long, RECORDS[0], near, RECORDS[1]])
    assert found.too_long == 1 and [r.prompt for r in found.replies][::2] == [r["instruction"] for r in RECORDS[:2]]
    assert "1 more have more tokens than the model has positions" in comparison(found, found)
    assert found.replies[0].right and found.replies[1].tokens <= 512
    with pytest.raises(
        ValueError, match=r"each of the 1 records .* more tokens than the model has positions \(512\): shorten"
    ):
        evaluate(model, tokenizer, [long])
