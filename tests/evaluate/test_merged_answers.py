"""One pass says what generating says, and a new process answers the same without PEFT."""

import subprocess

import pytest
import torch

from utils.evaluate import merged_answers
from utils.evaluate.merged_answers import Answered, answered, answers_in_new_process
from utils.evaluate.metrics import complete, exact_match
from utils.lora.checkpoint import load_adapter
from utils.lora.merging import merge_files
from utils.models import load_base, profile
from utils.tinyworld import task_examples
from utils.train.adapter_cache import trained_adapter

torch.set_num_threads(1)
FOLDER = trained_adapter("style", profile())
EXAMPLES = task_examples("style", "test", 20)


@pytest.mark.parametrize("task", ["style", "sentiment", "translation"])
def test_one_pass_says_what_generating_would_say(task):
    examples = task_examples(task, "test", 60)
    model, tokenizer = load_base()
    base = answered(model, tokenizer, examples)
    assert base.accuracy == exact_match(model, tokenizer, examples) <= 0.05
    load_adapter(model, trained_adapter(task, profile()))
    found = answered(model, tokenizer, examples)
    answers = complete(model, tokenizer, [e.prompt for e in examples])
    assert found.right.tolist() == [a == e.answer for a, e in zip(answers, examples, strict=True)]
    assert found.changes(found) == (0, 0, 0, 0, 0)
    changes = base.changes(found)
    assert (changes.lost, changes.won) == (int((found.right & ~base.right).sum()), 0) and min(changes[:2]) > 0


def test_batches_do_not_matter_and_the_order_is_kept():
    model, tokenizer = load_base()
    load_adapter(model, FOLDER)
    whole, parts = (answered(model, tokenizer, EXAMPLES, batch_size=n) for n in (20, 7))
    assert parts.changes(whole).drift < 1e-5 and torch.equal(parts.right, whole.right)
    alone = answered(model, tokenizer, EXAMPLES[3:4])
    assert torch.equal(alone.right, whole.right[3:4])


def test_changes_are_counted_by_hand():
    reference = Answered(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), torch.tensor([True, False, False]))
    other = Answered(torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 3.0]]), torch.tensor([False, True, False]))
    p = torch.tensor([2.0, 0.0], dtype=torch.float64).softmax(0)
    found = other.changes(reference)
    assert found.nats == pytest.approx(
        2 * (p[0] - p[1]).item() / 3
    )  # the two exchange their probabilities at one token
    assert (found.tokens, found.lost, found.won) == (1, 1, 1)
    assert found.drift == pytest.approx((8 / (2 + 2 + 4.5)) ** 0.5)


def test_a_shift_of_the_logits_is_no_change():
    torch.manual_seed(0)
    reference = Answered(torch.randn(7, 9), torch.ones(3, dtype=torch.bool))
    other = Answered(reference.logits + torch.randn(7, 9), reference.right)
    shifted = Answered(other.logits + 5 + torch.randn(7, 1), reference.right)
    assert shifted.changes(reference) == pytest.approx(other.changes(reference), rel=1e-5)
    assert Answered(reference.logits + 5, reference.right).changes(reference) == pytest.approx((0,) * 5, abs=1e-6)


def test_what_can_not_be_compared():
    reference = Answered(torch.randn(7, 9), torch.ones(3, dtype=torch.bool))
    for other in (Answered(reference.logits[:6], reference.right), Answered(reference.logits, reference.right[:2])):
        with pytest.raises(ValueError, match="ask both models the same"):
            other.changes(reference)


def test_no_examples():
    model, tokenizer = load_base()
    with pytest.raises(ValueError, match="no examples"):
        answered(model, tokenizer, [])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, tokenizer = load_base()
    merge_files(model, FOLDER)
    folder = tmp_path_factory.mktemp("merged")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts = [e.prompt for e in EXAMPLES]
    return folder, prompts, complete(model, tokenizer, prompts, max_new_tokens=12)


def test_a_saved_merge_answers_the_same_in_a_process_without_peft(saved):
    folder, prompts, answers = saved
    assert answers_in_new_process(folder, prompts, max_new_tokens=12) == answers


def test_another_model_answers_otherwise(saved, tmp_path):
    """The negative control."""
    _, prompts, answers = saved
    model, tokenizer = load_base()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert answers_in_new_process(tmp_path, prompts, max_new_tokens=12) != answers


def test_what_the_new_process_can_not_do(saved, tmp_path, monkeypatch):
    folder, prompts, _ = saved
    with pytest.raises(FileNotFoundError, match="save the model there first"):
        answers_in_new_process(tmp_path, prompts)
    for nothing in ([], "one text"):
        with pytest.raises(ValueError, match="no prompts"):
            answers_in_new_process(folder, nothing)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="the new process failed: .*Error"):
        answers_in_new_process(tmp_path, prompts)

    def slow(*_, timeout, **__):
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(merged_answers.subprocess, "run", slow)
    with pytest.raises(RuntimeError, match="more than 3 seconds"):
        answers_in_new_process(folder, prompts, timeout=3)


def test_the_new_process_can_not_import_peft(saved, monkeypatch):
    folder, prompts, _ = saved
    monkeypatch.setattr(
        merged_answers, "_CHILD", merged_answers._CHILD.replace("import json, sys\n", "import json, sys, builtins\n")
    )
    monkeypatch.setattr(merged_answers, "_CHILD", merged_answers._CHILD + "\nimport peft\n")
    with pytest.raises(RuntimeError, match="the new process failed: .*peft"):
        answers_in_new_process(folder, prompts[:1], max_new_tokens=2)
