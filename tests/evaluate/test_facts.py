"""Made-up facts: halves, wordings and strangers, and what counts as an answer in the taught form."""

import pytest

from utils.evaluate.facts import home_facts, says_a_home


def test_half_is_taught_in_two_wordings_and_the_new_wording_asks_the_other_half():
    made = home_facts(10)
    assert len(made.train) == 15
    taught = {e.prompt for e in made.train}
    assert {e.prompt for e in made.tests["as taught"]} <= taught
    for kind in ("new wording", "other way round", "stranger"):
        assert not {e.prompt for e in made.tests[kind]} & taught
    answers = {e.answer for e in made.train}
    assert {e.answer for e in made.tests["new wording"]} <= answers
    assert not {e.answer for e in made.tests["stranger"]} & answers
    assert [len(made.tests[k]) for k in ("as taught", "new wording", "other way round", "stranger")] == [10, 5, 10, 10]


def test_the_seed_decides_and_one_creature_is_too_few():
    assert home_facts(6, seed=1) == home_facts(6, seed=1) != home_facts(6, seed=2)
    with pytest.raises(ValueError, match="at least 2"):
        home_facts(1)


def test_any_home_of_the_creature_that_was_asked_for_counts():
    assert says_a_home("Where does Zuvo live?", "Zuvo lives in the forest.")
    assert says_a_home("What is the home of Zuvo?", "Zuvo lives by the lake.")
    assert not says_a_home("Where does Zuvo live?", "Lily lives in the forest.")
    assert not says_a_home("Where does Zuvo live?", "Zuvo lives on the moon.")
    made = home_facts(5)
    assert all(says_a_home(e.prompt, e.answer) for e in made.train)
