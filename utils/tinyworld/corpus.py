"""The tiny world: every word that the course's small model has ever read.

The world is a picture book. Heroes with names and one trait each have a small adventure with a moral. Besides stories
the corpus holds story requests in chat form, English and French scenes (never side by side: translation is left for
LoRA to teach), and echoes, in which somebody repeats what was said. Echoes are there because *copying decides*: a
base model of the same perplexity that can't copy learns the form of a task and not its content.

Everything follows from a seed. Which split a text belongs to follows from the text itself (:func:`split_of`), so train,
dev and test are disjoint whatever the seeds and sizes.

Attributes:
    PIRATE: The pirate's dictionary: words that are not in it stay as they are.
    USER, ASSISTANT, END, PAD: The special tokens: a turn of the user, a turn of the assistant, the end of a text,
        padding.
    OPENINGS: The three sentences that open a story, each with its wordings.
    PLOTS: What happens in each plot, sentence by sentence, each with its wordings; the marks stand for feelings.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal, NamedTuple

Split = Literal["train", "dev", "test"]


class Noun(NamedTuple):
    """An English noun and its French counterpart with its gender, ``"m"`` or ``"f"``."""

    en: str
    fr: str
    gender: str


class Adjective(NamedTuple):
    """An English adjective and its two French forms; `before` says whether French puts it before the noun."""

    en: str
    masculine: str
    feminine: str
    before: bool


class Place(NamedTuple):
    """A place with the phrase that says "there" in each language ("on the beach", "sur la plage")."""

    name: str
    where: str
    where_fr: str


NAMES = (
    "Lily Tom Mia Ben Sue Max Anna Sam Zoe Tim Ella Jack Lucy Leo Rose Finn Amy Hugo Ivy Oscar Nora Felix Ruby Otto "
    "Kate Noah Jane Paul Emma Carl Lola Dan Mary Bob Clara Fred Alice Jim Daisy Ted"
).split()
ANIMALS = [
    Noun(*x.split())
    for x in (
        "fox renard m|dog chien m|cat chat m|rabbit lapin m|bear ours m|mouse souris f|frog grenouille f|duck canard m|"
        "goat chèvre f|horse cheval m|wolf loup m|hen poule f|turtle tortue f|pig cochon m|cow vache f|sheep mouton m|"
        "monkey singe m|lion lion m|bee abeille f|squirrel écureuil m"
    ).split("|")
]
THINGS = [
    Noun(*x.split())
    for x in (
        "ball ballon m|kite cerf-volant m|hat chapeau m|boat bateau m|doll poupée f|book livre m|drum tambour m|"
        "bell cloche f|key clé f|basket panier m|cup tasse f|lamp lampe f|scarf écharpe f|box boîte f|car voiture f|"
        "coat manteau m|flower fleur f|apple pomme f|spoon cuillère f|stone pierre f"
    ).split("|")
]
COLORS = [
    Adjective(*x.split(), before=False)
    for x in (
        "red rouge rouge|blue bleu bleue|green vert verte|yellow jaune jaune|white blanc blanche|black noir noire|"
        "pink rose rose|brown brun brune"
    ).split("|")
]
SIZES = [
    Adjective(*x.split(), before=True)
    for x in "big grand grande|small petit petite|old vieux vieille|pretty joli jolie".split("|")
]
PLACES = [
    Place(*x.split("/"))
    for x in (
        "forest/in the forest/dans la forêt|garden/in the garden/dans le jardin|village/in the village/dans le village|"
        "river/by the river/près de la rivière|beach/on the beach/sur la plage|farm/on the farm/à la ferme|"
        "school/at the school/à l'école|mountain/on the mountain/sur la montagne|park/in the park/dans le parc|"
        "lake/by the lake/près du lac|field/in the field/dans le champ|castle/in the castle/dans le château"
    ).split("|")
]
VERBS = [
    tuple(x.split("/"))
    for x in (
        "sees/voit|likes/aime|takes/prend|finds/trouve|loses/perd|wants/veut|carries/porte|hides/cache|washes/lave|"
        "draws/dessine|sells/vend|looks for/cherche"
    ).split("|")
]
TRAITS = "brave kind shy clever lazy curious gentle proud funny quiet greedy cheerful".split()
GLAD = "happy glad joyful delighted proud cheerful thankful excited merry pleased".split()
SORRY = "sad upset angry gloomy scared lonely worried miserable cross unhappy".split()
GOOD_EVENTS = [
    "found the lost {thing}", "won the race", "made a new friend", "got {a_color} {thing}", "ate a sweet cake",
    "heard a funny song", "went to the {place}", "saw a rainbow", "got a warm hug", "danced {where}",
    "built a tall tower", "learned to swim",
]  # fmt: skip
BAD_EVENTS = [
    "lost the {thing}", "fell in the mud", "broke the {color} {thing}", "missed the party", "got a bad cold",
    "heard a loud storm", "dropped the cake", "hurt a leg", "had no one to play with", "got stung by a wasp",
    "tore the {color} coat", "got lost {where}",
]  # fmt: skip
MORALS = {
    "lost": "Good friends help each other.",
    "share": "It is nice to share.",
    "lie": "Always tell the truth.",
    "fear": "Be brave and try new things.",
    "greed": "Do not be greedy.",
    "wait": "Good things take time.",
    "work": "Work first and play later.",
    "kind": "Kindness always comes back.",
}
_PIRATE = (
    "the=th' is=be was=be my=me you=ye friend=matey and=an' of=o' found=plundered house=ship played=frolicked "
    "loved=fancied had=boasted saw=spied went=sailed for=fer to=t' There=Thar there=thar named=called in=aboard "
    "lived=anchored toy=treasure morning=dawn got=looted walk=voyage called=hailed Every=Ev'ry every=ev'ry"
)
PIRATE = {plain: spoken for plain, _, spoken in (pair.partition("=") for pair in _PIRATE.split())}

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"


def with_article(phrase: str) -> str:
    """The phrase behind "a" or "an".

    >>> with_article("old bear")
    'an old bear'
    """
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def split_of(text: str) -> Split:
    """The split that a text belongs to, read off its SHA-256: eight parts in ten train, one dev, one test."""
    part = hashlib.sha256(text.encode()).digest()[0]
    return "train" if part < 205 else "dev" if part < 230 else "test"


# ------------------------------------------------------------------------------------------------------- stories


def invented_word(rng: random.Random) -> str:
    """A word that means nothing, such as "bolina": two or three syllables of a consonant and a vowel."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def new_cast(rng: random.Random) -> dict[str, str]:
    """Draw what a story needs: two heroes with names and animals, a toy and its color, two places, a trait and a
    plot.
    """
    animal, other_animal = rng.sample(ANIMALS, 2)
    name, other = rng.sample(NAMES, 2)
    if rng.random() < 0.1:
        name = invented_word(rng).capitalize()
    place, other_place = rng.sample(PLACES, 2)
    color, trait = rng.choice(COLORS).en, rng.choice(TRAITS)
    return {
        "name": name, "other": other, "animal": animal.en, "other_animal": other_animal.en,
        "an_other_animal": with_article(other_animal.en), "thing": rng.choice(THINGS).en, "color": color,
        "a_color": with_article(color), "place": place.name, "where": place.where,
        "Where": place.where[0].upper() + place.where[1:], "other_place": other_place.name,
        "other_where": other_place.where, "trait": trait, "a_trait": with_article(trait),
        "a_size": with_article(rng.choice(["big", "small", "old", "little", "tiny"])), "plot": rng.choice(list(MORALS)),
    }  # fmt: skip


OPENINGS = (
    (
        "Once upon a time, there was {a_trait} {animal} named {name}.",
        "{name} was {a_trait} {animal}.",
        "One day, {a_trait} {animal} named {name} went for a walk.",
        "Long ago, {a_trait} {animal} called {name} lived near the {place}.",
    ),
    (
        "{name} lived {where}.",
        "{name} loved to play {where}.",
        "Every day {name} went to the {place}.",
        "{name} had {a_size} house near the {place}.",
    ),
    (
        "{name} had {a_color} {thing}.",
        "The favorite toy of {name} was {a_color} {thing}.",
        "One morning {name} got {a_color} {thing}.",
        "{Where}, {name} saw {a_color} {thing}.",
    ),
)

_MEET = (
    "Then {name} met {an_other_animal} named {other}.",
    "{other} the {other_animal} came by.",
    "A friend, {other} the {other_animal}, came to visit.",
)
_SORRY, _OTHER_SORRY = "<sorry>", "<other sorry>"
PLOTS: dict[str, tuple[tuple[str, ...] | str, ...]] = {
    "lost": (
        ("One day the {thing} was gone.", "But {name} lost the {thing}.", "The wind took the {thing} away."),
        _SORRY,
        _MEET,
        (
            '"Do not cry," said {other}. "I will help you look."',
            '"What is wrong?" asked {other}. "I lost my {thing}," said {name}.',
        ),
        (
            "They looked {other_where} and found the {thing} under a tree.",
            "{other} found the {thing} {other_where}.",
            "They looked all day and found the {thing} near the {other_place}.",
        ),
    ),
    "share": (
        _MEET,
        ('"May I play with your {thing}?" asked {other}.', "{other} wanted to play with the {color} {thing}."),
        ('"No! It is mine," said {name}.', "{name} did not want to share."),
        _OTHER_SORRY,
        ("{name} saw this and gave the {thing} to {other}.", 'Then {name} said, "Let us play together."'),
    ),
    "lie": (
        ("{name} broke a cup with the {thing}.", "{name} played with the {thing} and broke a lamp."),
        (
            '"Did you do this?" asked {other} the {other_animal}. "No," said {name}.',
            "{name} told {other} the {other_animal} that the wind did it.",
        ),
        _SORRY,
        ('At last {name} said, "I am sorry. I did it."', "That night {name} told {other} the truth."),
        ("{other} was not angry and gave {name} a hug.", '"Thank you for telling me," said {other}.'),
    ),
    "fear": (
        (
            "The {thing} fell into a hole, but {name} was afraid of the dark.",
            "{name} wanted to go to the {other_place}, but {name} was afraid.",
        ),
        _SORRY,
        _MEET,
        ('"You can do it," said {other}.', '"I will go with you," said {other}.'),
        (
            "{name} took one step, and then one more, and it was not so bad.",
            "{name} closed both eyes and jumped, and it was fun.",
        ),
    ),
    "greed": (
        (
            "{other} the {other_animal} had a basket of cakes.",
            "There were ten cakes on the table of {other} the {other_animal}.",
        ),
        ('"Take one," said {other}, but {name} took them all.', "{name} ate all the cakes and did not stop."),
        ("Soon {name} had a bad tummy ache.", "Then {name} felt very sick."),
        _SORRY,
        ('"I will only take one next time," said {name}.', '"One is enough," said {other}.'),
    ),
    "wait": (
        ("{name} put a seed in the ground next to the {thing}.", "{other} the {other_animal} gave {name} a tiny seed."),
        ("{name} looked at it every day, but nothing grew.", '"Why does it not grow?" asked {name}.'),
        _SORRY,
        ('"Wait and give it water," said {other}.', "{other} told {name} to wait for the sun."),
        ("After many days a big flower grew.", "In the spring it was a tall tree."),
    ),
    "work": (
        (
            "It was time to clean the house, but {name} only played with the {thing}.",
            "{name} slept all summer and did no work.",
        ),
        (
            "{other} the {other_animal} worked hard every day.",
            '"You must work before you play," said {other} the {other_animal}.',
        ),
        ("Then winter came, and {name} had no food.", "Then the rain came, and the house of {name} was wet and dirty."),
        _SORRY,
        ("{other} gave {name} some bread and they worked together.", "Next time {name} did the work first."),
    ),
    "kind": (
        (
            "On the way, {name} saw {an_other_animal} named {other} who was stuck in a hole.",
            "{other} the {other_animal} was cold and hungry.",
        ),
        ("{name} helped {other} and gave away the {thing}.", "{name} gave {other} some soup and the {color} {thing}."),
        ('"Thank you," said {other}. "I will not forget."', "{other} said thank you and went away."),
        ("Later {name} was lost {other_where}.", "One night {name} fell into a hole."),
        ("{other} came and showed {name} the way home.", "{other} heard the cry and saved {name}."),
    ),
}

ENDINGS = (
    "They played until the sun went down.",
    "From that day on, they were best friends.",
    "They went home and had dinner.",
    "And they lived happily {where}.",
    "That night, {name} slept very well.",
)


def _feeling(rng: random.Random, cast: dict[str, str], who: str, good: bool) -> str:
    feeling = rng.choice(GLAD if good else SORRY)
    event = rng.choice(GOOD_EVENTS if good else BAD_EVENTS).format(**cast)
    reaction = ("smiled", "began to sing") if good else ("cried", "sat down and cried")
    return rng.choice(
        (
            f"{who} was {feeling}.",
            f"{who} felt {feeling} and {reaction[0]}.",
            f"{who} was so {feeling} that {who} {reaction[1]}.",
            f"{who} {event}, and {who} was {feeling}.",
            f"{who} felt {feeling}.",
        )
    )


def opening(rng: random.Random, cast: dict[str, str]) -> list[str]:
    """The three sentences that open a story."""
    return [rng.choice(wordings).format(**cast) for wordings in OPENINGS]


def middle(rng: random.Random, cast: dict[str, str], feelings: bool = True) -> list[str]:
    """What happens, by the cast's plot; with `feelings` also how the heroes felt about it."""
    sentences = []
    for wordings in PLOTS[cast["plot"]]:
        if not isinstance(wordings, str):
            sentences.append(rng.choice(wordings).format(**cast))
        elif feelings:
            who = cast["other"] if wordings == _OTHER_SORRY else cast["name"]
            sentences.append(_feeling(rng, cast, who, good=False))
    if feelings:
        sentences.append(_feeling(rng, cast, cast["name"], good=True))
    return sentences


def story(rng: random.Random, cast: dict[str, str] | None = None) -> str:
    """A story of ten sentences or so; three in ten say their moral at the end."""
    cast = cast or new_cast(rng)
    sentences = opening(rng, cast) + middle(rng, cast) + [rng.choice(ENDINGS).format(**cast)]
    if rng.random() < 0.3:
        sentences.append(MORALS[cast["plot"]])
    return " ".join(sentences)


def story_request(rng: random.Random, cast: dict[str, str]) -> str:
    """What a user says to be told a story about this cast."""
    wordings = (
        "Tell me a story about {a_trait} {animal} named {name}.",
        "Write a story about {name} the {animal}.",
        "Tell me a story about {a_color} {thing}.",
        "Please tell me a story.",
        "Write a short story about {name}.",
    )
    return rng.choice(wordings).format(**cast)


# -------------------------------------------------------------------------------------------------- two languages


class _Phrase(NamedTuple):
    definite: bool
    noun: Noun
    adjective: Adjective | None

    def english(self) -> str:
        words = f"{self.adjective.en} {self.noun.en}" if self.adjective else self.noun.en
        return f"the {words}" if self.definite else with_article(words)

    def french(self) -> str:
        noun, masculine, adjective = self.noun.fr, self.noun.gender == "m", self.adjective
        words = noun
        if adjective:
            form = adjective.masculine if masculine else adjective.feminine
            if form == "vieux" and noun[0] in "aeiouéh":
                form = "vieil"
            words = f"{form} {noun}" if adjective.before else f"{noun} {form}"
        if not self.definite:
            return f"{'un' if masculine else 'une'} {words}"
        if words[0] in "aeiouéh":
            return f"l'{words}"
        return f"{'le' if masculine else 'la'} {words}"


def _phrase(rng: random.Random, nouns: list[Noun]) -> _Phrase:
    adjective = rng.choice(SIZES if rng.random() < 0.4 else COLORS) if rng.random() < 0.6 else None
    return _Phrase(rng.random() < 0.5, rng.choice(nouns), adjective)


def sentence_pair(rng: random.Random) -> tuple[str, str]:
    """A sentence in English and the same in French.

    >>> sentence_pair(random.Random(3))
    ('A black sheep hides the ball by the river.', 'Un mouton noir cache le ballon près de la rivière.')
    """
    subject, thing, (verb, verb_fr) = _phrase(rng, ANIMALS), _phrase(rng, THINGS), rng.choice(VERBS)
    english, french = f"{subject.english()} {verb} {thing.english()}", f"{subject.french()} {verb_fr} {thing.french()}"
    if rng.random() < 0.5:
        place = rng.choice(PLACES)
        english, french = f"{english} {place.where}", f"{french} {place.where_fr}"
    return english[0].upper() + english[1:] + ".", french[0].upper() + french[1:] + "."


def scene(rng: random.Random, french: bool) -> str:
    """Three to seven sentences in one language that have nothing to do with each other."""
    return " ".join(sentence_pair(rng)[french] for _ in range(rng.randint(3, 7)))


# ---------------------------------------------------------------------------------------------------------- corpus


def random_words(rng: random.Random, n: int) -> str:
    """`n` words in no order, some of them invented: nothing but memory of the text itself can repeat them."""
    known = (NAMES, [a.en for a in ANIMALS], [t.en for t in THINGS], [c.en for c in COLORS], TRAITS, GLAD, SORRY)
    return " ".join(invented_word(rng) if rng.random() < 0.2 else rng.choice(rng.choice(known)) for _ in range(n))


def echo(rng: random.Random) -> str:
    """One to three things that are said and said again, word for word."""
    said = []
    for _ in range(rng.randint(1, 3)):
        what = rng.choice(
            (
                lambda: random_words(rng, rng.randint(3, 14)),
                lambda: sentence_pair(rng)[rng.random() < 0.4],
                lambda: rng.choice(opening(rng, new_cast(rng))),
            )
        )()
        a, b = rng.sample(NAMES, 2)
        frame = rng.choice(
            (
                '"{what}" said {a}. "{what}" said {b}.',
                "The parrot heard: {what} The parrot said: {what}",
                "{a} reads: {what} {b} reads: {what}",
                "{what} {what}",
            )
        )
        said.append(frame.format(what=what, a=a, b=b))
    return " ".join(said)


def document(rng: random.Random, echoes: float = 0.25) -> str:
    """One text of the corpus, without its end mark: an echo with probability `echoes`, else a story or a scene."""
    if rng.random() < echoes:
        return echo(rng)
    kind = rng.random()
    if kind < 0.2:
        return scene(rng, french=kind < 0.12)
    cast = new_cast(rng)
    if kind < 0.5:
        return f"{USER}{story_request(rng, cast)}{ASSISTANT}{story(rng, cast)}"
    return story(rng, cast)


def documents(n: int, seed: int, echoes: float = 0.25, split: Split = "train") -> list[str]:
    """`n` texts of the corpus that belong to `split`, the same for the same seed."""
    rng, texts = random.Random(seed), []
    while len(texts) < n:
        text = document(rng, echoes)
        if split_of(text) == split:
            texts.append(text)
    return texts
