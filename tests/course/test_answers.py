"""The checks take every right answer that was ever given in another style, and no wrong one; see tools/answers.py."""

import time

import pytest
import torch

from tools.answers import Answer, Verdict, judge, read
from utils.course import checks  # noqa: F401 - registers the exercises
from utils.course.checks.judge import evaluate
from utils.course.checks.registry import registered

EXERCISES = registered()
ANSWERS = read()
each = pytest.mark.parametrize("name", EXERCISES)

# A learner waits less than 0.3 s for a verdict on a quiet core, which tools.answers prints. Here other tests run beside
# this one, so the bound is for what hangs: processor time, and a second try before it counts.
SECONDS = 1.5


def timed(answer: Answer) -> tuple[Verdict, float]:
    begin = time.process_time()
    return judge(answer), time.process_time() - begin


@each
def test_right_answers_are_taken_and_wrong_ones_are_not(name):
    torch.set_num_threads(1)
    mine = [answer for answer in ANSWERS if answer.exercise == name]
    assert sum(answer.right for answer in mine) >= 2 and sum(not answer.right for answer in mine) >= 4
    evaluate(EXERCISES[name], EXERCISES[name].reference)  # what torch imports at a first call is none of the verdict's
    misjudged, slow = [], []
    for answer in mine:
        verdict, seconds = timed(answer)
        slow += [answer.label] * (seconds > SECONDS and timed(answer)[1] > SECONDS)
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
