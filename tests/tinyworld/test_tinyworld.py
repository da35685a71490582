"""The tiny world: the same from a seed, split by prompt, grammatical, and honest about what is unseen."""

import collections
import doctest
import hashlib
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import tinyworld
from utils.data.chat import Example
from utils.tinyworld import BAD_EVENTS, GLAD, GOOD_EVENTS, PIRATE, SORRY, TASKS, UNSEEN, Adjective, Noun, tasks
from utils.tinyworld import corpus as world

QUICK = settings(deadline=None, derandomize=True, max_examples=20)
SPLITS = ("train", "dev", "test")
NOUNS = tinyworld.ANIMALS + tinyworld.THINGS
ADJECTIVES = tinyworld.SIZES + tinyworld.COLORS
FRENCH_VOWELS = "aeiouyàâéèêëîïôùûh"


@pytest.fixture(scope="module")
def corpus():
    """Thousands of texts of every split, both as they are shared out and echo-heavy."""
    texts = [t for split in SPLITS for t in tinyworld.documents(1000, seed=11, split=split)]
    return texts + tinyworld.documents(1000, seed=12, echoes=0.8)


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(5)
    return [tinyworld.sentence_pair(rng) for _ in range(5000)]


@pytest.fixture(scope="module")
def stories():
    rng = random.Random(6)
    return [tinyworld.story(rng) for _ in range(2000)]


# ---------------------------------------------------------------------------------------------------- the same again


def test_doctests():
    results = [doctest.testmod(module) for module in (world, tasks)]
    assert sum(r.attempted for r in results) == 3 and sum(r.failed for r in results) == 0


def test_the_corpus_of_seed_1_is_the_one_that_was_trained_on():
    """Pinned, so that a Python whose `random` draws otherwise is noticed: the splits and prompts would move with it."""
    digest = hashlib.sha256("\0".join(tinyworld.documents(50, seed=1)).encode()).hexdigest()
    assert digest == "0dfb3a3a75efe9613f72dbf235effd574513217c83ec9fa8efbba656cae634b2"


def test_the_held_out_prompts_are_the_ones_that_were_measured():
    text = "\0".join("\0".join(e) for task in TASKS for e in tinyworld.task_examples(task, "test", 200))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "5b9632e7dfb1131fc140446246be3c7fc4b1bcc6b137e35e1d542bf4f7f5971e"
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_documents_and_another_seed_others(split):
    assert tinyworld.documents(30, 4, split=split) == tinyworld.documents(30, 4, split=split)
    assert tinyworld.documents(30, 4, split=split) != tinyworld.documents(30, 5, split=split)
    assert tinyworld.documents(10, 4, split=split) == tinyworld.documents(30, 4, split=split)[:10]


def test_drawing_examples_leaves_pythons_own_random_state_alone():
    random.seed(1)
    before = random.getstate()
    tinyworld.documents(3, 1)
    tinyworld.task_examples("style", "train", 3)
    tinyworld.unseen_word_examples(3)
    assert random.getstate() == before


@pytest.mark.parametrize("task", TASKS)
@QUICK
@given(seed=st.integers(0, 10**9), n=st.integers(1, 30), split=st.sampled_from(SPLITS))
def test_examples_are_distinct_deterministic_and_as_many_as_asked_for(task, seed, n, split):
    examples = tinyworld.task_examples(task, split, n, seed)
    assert len({e.prompt for e in examples}) == n == len(examples)
    assert examples == tinyworld.task_examples(task, split, n, seed)
    assert all(tinyworld.split_of(e.prompt) == split for e in examples)
    assert all(e.prompt.strip() == e.prompt and e.answer.strip() == e.answer and e.answer for e in examples)


@pytest.mark.parametrize("task", TASKS)
@QUICK
@given(seeds=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_no_prompt_is_in_two_splits_whatever_the_seeds(task, seeds):
    prompts = [
        {e.prompt for e in tinyworld.task_examples(task, split, 60, seed)}
        for split, seed in zip(SPLITS, seeds, strict=True)
    ]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


@QUICK
@given(seeds=st.tuples(*[st.integers(0, 10**6)] * 3), echoes=st.floats(0, 1))
def test_no_text_of_the_corpus_is_in_two_splits(seeds, echoes):
    parts = [set(tinyworld.documents(40, seed, echoes, split)) for split, seed in zip(SPLITS, seeds, strict=True)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_the_splits_hold_about_eight_one_and_one_parts_in_ten():
    shares = collections.Counter(tinyworld.split_of(str(i)) for i in range(20_000))
    # split_of cuts one byte at 205 and 230 of 256; 1% is over three standard deviations of 20,000 draws.
    for split, bytes_of_256 in (("train", 205), ("dev", 25), ("test", 26)):
        assert abs(shares[split] / 20_000 - bytes_of_256 / 256) < 0.01


def test_the_corpus_teaches_no_task(corpus):
    """The base may not have read a prompt, a translation side by side, or pirate speech."""
    for text in corpus:
        for opening in ("Is this good or bad?", "Say it in French", "Moral:", "Say it like a pirate", "Arr!"):
            assert opening not in text


@pytest.mark.parametrize("french", [False, True])
def test_a_scene_is_in_one_language(french):
    rng = random.Random(1)
    for _ in range(300):
        words = set(re.findall(r"\w+", tinyworld.scene(rng, french).lower()))
        assert not words & ({"the", "a", "an"} if french else {"le", "la", "l", "un", "une"})


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("poetry", "train", 3), ["unknown task 'poetry'", *TASKS]),
        (("style", "validation", 3), ["unknown split 'validation'", *SPLITS]),
        (("style", "train", 0), ["at least 1, not 0"]),
        (("style", "train", -2), ["at least 1, not -2"]),
    ],
)
def test_what_cannot_be_asked_for_is_named(arguments, words):
    with pytest.raises(ValueError) as error:
        tinyworld.task_examples(*arguments)
    assert all(word in str(error.value) for word in words)


def test_asking_for_more_than_the_world_holds_says_how_many_there_are(monkeypatch):
    def small(rng):
        return Example(f"prompt {rng.randrange(40)}", "answer")

    there_are = sum(tinyworld.split_of(f"prompt {i}") == "train" for i in range(40))
    assert 20 < there_are < 40
    monkeypatch.setitem(tasks._MAKERS, "style", small)
    assert len(tinyworld.task_examples("style", "train", there_are)) == there_are
    with pytest.raises(ValueError, match=rf"no {there_are + 1} different examples of style .*it gave {there_are}\)"):
        tinyworld.task_examples("style", "train", there_are + 1)


# ----------------------------------------------------------------------------------------------------------- grammar


def english_slips(text):
    return re.findall(r"\b[Aa] [aeiouAEIOU]\w*|\b[Aa]n [^\W_aeiouAEIOU]\w*", text)


def french_slips(text):
    elided = re.findall(rf"\b(?:[Ll]e|[Ll]a|[Vv]ieux) [{FRENCH_VOWELS}]\w*", text)
    return elided + re.findall(rf"\b[Ll]['’][^{FRENCH_VOWELS}]\w*|\b[Vv]ieil [^{FRENCH_VOWELS}]\w*", text)


def test_the_slip_finders_find_slips():
    for slip in ("She had a old hat.", "A apple fell.", "an red kite", "An bear"):
        assert english_slips(slip)
    for slip in ("le ours dort", "La abeille", "le écureuil", "un vieux ours", "l'chat", "un vieil chat"):
        assert french_slips(slip)
    assert not english_slips("An old bear saw a red apple and an owl.")
    assert not french_slips("L'ours voit un vieil écureuil et le vieux chat.")


def test_an_stands_before_each_vowel():
    assert [tinyworld.with_article(f"{x}dle fox").split()[0] for x in "aeioubdtz"] == ["an"] * 5 + ["a"] * 4


def test_a_and_an_in_every_english_text(corpus, pairs, stories):
    prompts = [e.prompt for task in TASKS for e in tinyworld.task_examples(task, "train", 1000)]
    slips = [s for text in [*corpus, *stories, *prompts, *(en for en, _ in pairs)] for s in english_slips(text)]
    assert slips == []


def test_elision_in_every_french_text(corpus, pairs):
    slips = [s for text in [*corpus, *(fr for _, fr in pairs)] for s in french_slips(text)]
    assert slips == []


def test_every_noun_with_every_adjective_says_what_a_grammar_would_say():
    """Definite and indefinite, from the tables alone: article, form and place of the adjective."""
    for noun in NOUNS:
        for adjective in [None, *ADJECTIVES]:
            for definite in (False, True):
                phrase = world._Phrase(definite, noun, adjective)
                masculine = noun.gender == "m"
                words = phrase.french().replace("l'", "l' ").split(" ")
                starts_with_vowel = words[1][0] in FRENCH_VOWELS
                if definite:
                    assert words[0] == ("l'" if starts_with_vowel else "le" if masculine else "la")
                else:
                    assert words[0] == ("un" if masculine else "une")
                if adjective is None:
                    assert words[1:] == [noun.fr]
                    continue
                form = adjective.masculine if masculine else adjective.feminine
                if (form, adjective.before) == ("vieux", True) and noun.fr[0] in FRENCH_VOWELS:
                    form = "vieil"
                assert words[1:] == ([form, noun.fr] if adjective.before else [noun.fr, form])
                english = phrase.english().split(" ", 1)
                assert english[1] == f"{adjective.en} {noun.en}"


def test_the_tables_themselves():
    genders = collections.Counter(noun.gender for noun in NOUNS)
    assert set(genders) == {"m", "f"} and min(genders.values()) >= 10
    assert len({noun.en for noun in NOUNS}) == len({noun.fr for noun in NOUNS}) == len(NOUNS)
    invariant = {"rouge", "jaune", "rose"}
    for adjective in ADJECTIVES:  # French makes the feminine with an -e, or not at all after an -e
        assert adjective.feminine.endswith("e")
        assert (adjective.masculine == adjective.feminine) == (adjective.masculine in invariant)
    # What a dictionary says of a few that are easily mistaken.
    by_word = {noun.fr: noun.gender for noun in NOUNS}
    for word, gender in {
        "souris": "f",
        "clé": "f",
        "manteau": "m",
        "écharpe": "f",
        "livre": "m",
        "pierre": "f",
    }.items():
        assert by_word[word] == gender


def test_old_bear_in_both_languages():
    bear, old = Noun("bear", "ours", "m"), Adjective("old", "vieux", "vieille", True)
    assert world._Phrase(True, bear, old).french() == "le vieil ours"
    assert world._Phrase(True, bear, None).french() == "l'ours"
    assert world._Phrase(False, bear, old).english() == "an old bear"


def test_pairs_say_the_same_of_the_same_things(pairs):
    """Each English noun's counterpart stands in the French sentence, with its gender's article and adjectives."""
    for english, french in pairs:
        said = french.lower().replace("l'", "l' ").rstrip(".").split(" ")
        words = english.rstrip(".").lower().split(" ")
        for nouns in (tinyworld.ANIMALS, tinyworld.THINGS):
            (noun,) = [n for n in nouns if n.en in words]
            assert noun.fr in said
            at = said.index(noun.fr)
            around = said[max(0, at - 2) : at] + said[at + 1 : at + 2]
            wrong = {"un", "le"} if noun.gender == "f" else {"une", "la"}
            forms = {a.masculine if noun.gender == "f" else a.feminine for a in ADJECTIVES}
            forms -= {a.masculine for a in ADJECTIVES if a.masculine == a.feminine}
            assert not forms & set(around), french
            assert not wrong & set(said[max(0, at - 2) : at]), french
        verb_fr = [fr for en, fr in tinyworld.VERBS if f" {en} " in english]
        assert len(verb_fr) == 1 and f" {verb_fr[0]} " in french


def test_nothing_unfilled_and_no_stray_spaces(corpus, pairs, stories):
    examples = [part for task in TASKS for e in tinyworld.task_examples(task, "dev", 500) for part in e]
    for text in [*corpus, *stories, *examples, *(side for pair in pairs for side in pair)]:
        assert not re.search(r"[{}]|  |^ | $|\n| [.,!?]|\.\.|<sorry>|<glad>|<other sorry>", text), text


def test_every_sentence_begins_with_a_capital_and_ends_with_a_mark(pairs, stories):
    for text in [*stories, *(side for pair in pairs for side in pair)]:
        sentences = re.findall(r"""[^.!?]+[.!?]["]?""", text)
        assert "".join(sentences) == text
        for sentence in sentences:
            first = sentence.strip().lstrip('"')
            quoted_middle = re.match(r"(said|asked) ", first)  # "Who is it?" asked Tom.
            assert first[0].isupper() or quoted_middle, sentence


def test_stories_are_of_their_cast():
    rng = random.Random(2)
    for _ in range(300):
        cast = tinyworld.new_cast(rng)
        text = tinyworld.story(rng, cast)
        assert cast["name"] in text and cast["other"] in text
        assert cast["name"] != cast["other"] and cast["animal"] != cast["other_animal"]
        strangers = {n for n in tinyworld.NAMES if re.search(rf"\b{n}\b", text)} - {cast["name"], cast["other"]}
        # Rose and Ruby would be names as well as words only in lower case: no stranger may be named.
        assert not strangers, text


def test_echoes_hold_something_twice():
    rng = random.Random(3)
    for _ in range(300):
        assert re.search(r"(\b\w[^\"]{8,}).*\1", tinyworld.echo(rng))


# ------------------------------------------------------------------------------------------------------------- tasks


def words_of(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def test_sentiment_is_balanced_and_labels_what_is_said():
    examples = tinyworld.task_examples("sentiment", "train", 4000)
    share = sum(e.answer == "good" for e in examples) / 4000
    assert abs(share - 0.5) < 0.04  # five standard deviations of 4,000 throws of a coin
    assert {e.answer for e in examples} == {"good", "bad"}
    said = {"good": set(GLAD), "bad": set(SORRY)}
    for e in examples:
        other = said["bad" if e.answer == "good" else "good"]
        assert not words_of(e.prompt) & other, e


def test_unseen_words_are_never_in_an_ordinary_example():
    ordinary = {
        w for split in SPLITS for e in tinyworld.task_examples("sentiment", split, 3000) for w in words_of(e.prompt)
    }
    feelings = {*GLAD[-UNSEEN:], *SORRY[-UNSEEN:]}
    events = {"danced", "built", "tower", "learned", "swim", "stung", "wasp", "tore"}
    assert all(any(w in words_of(e) for e in GOOD_EVENTS[-UNSEEN:] + BAD_EVENTS[-UNSEEN:]) for w in events)
    assert not ordinary & (feelings | events)
    seen = {*GLAD[:-UNSEEN], *SORRY[:-UNSEEN]}
    unseen = tinyworld.unseen_word_examples(300)
    for e in unseen:
        assert words_of(e.prompt) & (feelings | events) or "got lost" in e.prompt, e
        assert not words_of(e.prompt) & seen, e
    assert all("got lost" not in e.prompt for e in tinyworld.task_examples("sentiment", "train", 3000))
    share = sum(e.answer == "good" for e in unseen) / 300
    assert abs(share - 0.5) < 0.12  # four standard deviations of 300 throws of a coin
    assert len({e.prompt for e in unseen}) == 300
    assert unseen == tinyworld.unseen_word_examples(300) != tinyworld.unseen_word_examples(300, seed=1)


def test_summaries_are_the_plots_morals_and_none_is_rare():
    examples = tinyworld.task_examples("summarization", "train", 800)
    answers = collections.Counter(e.answer for e in examples)
    assert set(answers) == set(tinyworld.MORALS.values())
    assert min(answers.values()) > 800 / len(answers) / 2
    assert all(e.answer not in e.prompt for e in examples)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(words=st.lists(st.sampled_from([*PIRATE, "Zoe", "sheep", "blue", "sang"]), min_size=1, max_size=12))
def test_a_pirate_changes_the_words_of_the_dictionary_and_no_others(words):
    said = tinyworld.pirate(" ".join(words) + ".")
    assert said.startswith("Arr! ") and said.endswith(".")
    back = said.removeprefix("Arr! ").removesuffix(".").split(" ")
    assert back == [PIRATE.get(w, w) for w in words]


def test_pirates_keep_punctuation_and_speak_like_pirates():
    assert tinyworld.pirate("Once, the fox was there.") == "Arr! Once, th' fox be thar."
    assert tinyworld.pirate("Nothing here changes.") == "Arr! Nothing here changes."
    assert tinyworld.pirate("then other") == "Arr! then other"  # "the" inside a word is left alone
    for e in tinyworld.task_examples("style", "test", 500):
        sentence = e.prompt.removeprefix("Say it like a pirate: ")
        assert e.answer == tinyworld.pirate(sentence) and e.answer != f"Arr! {sentence}"


def test_prompts_fit_the_base_models_context_with_room():
    """Short prompts keep the training runs of the lessons within their seconds."""
    longest = max(len(e.prompt) + len(e.answer) for task in TASKS for e in tinyworld.task_examples(task, "train", 1000))
    assert longest < 700


def test_two_questions_share_their_stories():
    both = tinyworld.moral_and_hero("test", 40)
    assert [e.prompt for e in both["moral"]] == [e.prompt for e in both["hero"]]
    rows = tinyworld.task_examples("summarization", "test", 40)
    assert [f"Moral: {e.prompt}" for e in both["moral"]] == [row.prompt for row in rows]
    assert [e.answer for e in both["moral"]] == [row.answer for row in rows]
    assert all(e.answer in tinyworld.NAMES and e.answer in e.prompt for e in both["hero"])
    assert len({e.answer for e in both["hero"]}) > 10
