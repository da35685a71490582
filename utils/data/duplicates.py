"""Texts that are nearly the same: found by the shingles that they share, without comparing every pair.

A shingle is a run of :data:`WIDTH` bytes, kept as a hash. Shingles that many texts have, such as those of an
instruction that stands in front of every record, say nothing and don't count. Two texts are nearly the same when they
agree in small letters and without punctuation, or share :data:`ALIKE` of their shingles (Jaccard's index).

Attributes:
    WIDTH: Bytes of a shingle.
    ALIKE: The share of common shingles, among all of both texts, from which on two texts are nearly the same.
    SAMPLE: So many shingles of a text are kept at most; of longer texts those whose hash ends in zeros.
    COMMON: A shingle in more than this share of the texts (and in more than :data:`FEW`) doesn't count.
    KEYS: By so many of its rarest shingles that another text has too a text is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from utils.data.rows import SILENT

WIDTH = 8
ALIKE = 0.8
SAMPLE = 256
COMMON = 0.1
FEW = 5
KEYS = 4

_PUNCTUATION = re.compile(r"""[\s.,;:!?"'()\[\]{}`´’‘“”„…«»¿¡]+""")
_FACTORS = np.array([pow(0x9E3779B1, i + 1, 2**32) for i in range(WIDTH)], dtype=np.uint32)


def plain_form(text: str) -> str:
    """The text in small letters, every run of punctuation and white space one space."""
    return _PUNCTUATION.sub(" ", text.casefold()).strip()


def _shingles(plain: str) -> np.ndarray:
    """The hashes of a text's shingles, each once and sorted."""
    data = np.frombuffer(plain.encode(errors="replace"), dtype=np.uint8).astype(np.uint32)
    count = len(data) - WIDTH + 1
    if count < 1:
        return np.empty(0, dtype=np.uint32)
    hashes = np.zeros(count, dtype=np.uint32)
    for i, factor in enumerate(_FACTORS):
        hashes += data[i : i + count] * factor
    hashes ^= hashes >> np.uint32(15)
    hashes *= np.uint32(0x2C1B3C6D)
    hashes ^= hashes >> np.uint32(12)
    if count > SAMPLE:  # the same hashes of every text, so that what two share stays what they share
        zeros = (count // SAMPLE).bit_length()
        hashes = hashes[hashes & np.uint32((1 << zeros) - 1) == 0]
    hashes.sort()
    return hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]


def near_duplicates(texts: Sequence[str]) -> list[int]:
    """For each text the place of the first one that is nearly the same: its own, when there is none before it.

    Likeness is passed on: when the second is nearly the first and the third nearly the second, all three have the first
    one's place. Raises TypeError for what is no text, with its place.
    """
    from tqdm.auto import tqdm

    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {place} is {text!r}, not a text")

    first = list(range(len(texts)))

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = first[place]
        return place

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        first[high] = low

    forms: dict[str, int] = {}
    for place, text in enumerate(texts):
        form = plain_form(text) or text
        if form in forms:
            first[place] = forms[form]
        else:
            forms[form] = place
    places = list(forms.values())
    bar = tqdm(forms, desc="near duplicates", delay=SILENT, leave=False)
    sets = _telling([_shingles(form) for form in bar])
    known: dict[int, int] = {}
    for number, (hashes, keys) in enumerate(sets):
        for key in keys:
            other = known.setdefault(key, number)
            if other != number and root(places[number]) != root(places[other]) and _alike(hashes, sets[other][0]):
                join(places[number], places[other])
    return [root(place) for place in range(len(texts))]


def _telling(sets: list[np.ndarray]) -> list[tuple[np.ndarray, list[int]]]:
    """Each set without the hashes that many of the sets hold, and the keys by which it is looked up."""
    if not sets:
        return []
    every = np.concatenate(sets)
    _, number, counts = np.unique(every, return_inverse=True, return_counts=True)
    count = counts[number]
    telling = count <= max(FEW, COMMON * len(sets))
    ranked = count.astype(np.uint64) << np.uint64(32) | every  # the rarest first
    found, begin = [], 0
    for own in sets:
        end = begin + len(own)
        shared = np.sort(ranked[begin:end][telling[begin:end] & (count[begin:end] > 1)])
        found.append((own[telling[begin:end]], shared[:KEYS].tolist()))
        begin = end
    return found


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared >= ALIKE * (len(a) + len(b) - shared)
