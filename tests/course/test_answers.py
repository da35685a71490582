"""The checks take every right answer that was ever given in another style, and no wrong one; see tools/answers.py."""

import time

import pytest
import torch

from tools.answers import judge, read
from utils.course import checks  # noqa: F401 - registers the exercises
from utils.course.checks.judge import evaluate
from utils.course.checks.registry import registered

EXERCISES = registered()
ANSWERS = read()
each = pytest.mark.parametrize("name", EXERCISES)

# What a learner waits for a verdict on one core: measured below 0.3 s on a quiet one; three times that here, since
# the tests' own machine is busy. Processor time, so that a waiting process doesn't count.
SECONDS = 0.9


@each
def test_right_answers_are_taken_and_wrong_ones_are_not(name):
    torch.set_num_threads(1)
    mine = [answer for answer in ANSWERS if answer.exercise == name]
    assert sum(answer.right for answer in mine) >= 2 and sum(not answer.right for answer in mine) >= 4
    evaluate(EXERCISES[name], EXERCISES[name].reference)  # what torch imports at a first call is none of the verdict's
    misjudged, slow = [], []
    for answer in mine:
        begin = time.process_time()
        verdict = judge(answer)
        slow += [answer.label] * (time.process_time() - begin > SECONDS)
        if verdict.passed != answer.right:
            misjudged.append(f"{answer.label}: {verdict.message or 'passed'}")
        elif not verdict.passed:
            assert verdict.message, f"nothing is said on {answer.label}"
    assert misjudged == [] and slow == []


def test_every_answer_belongs_to_an_exercise_of_its_chapter():
    chapters = {name: found.chapter.removeprefix("ch") for name, found in EXERCISES.items()}
    assert [answer for answer in ANSWERS if chapters.get(answer.exercise) != answer.chapter] == []


def test_no_two_answers_are_the_same():
    sources = [(answer.exercise, answer.source) for answer in ANSWERS]
    assert len(set(sources)) == len(sources)
