"""Packing: several documents in one row, so that no place is spent on padding.

A row of documents is safe to train on under two conditions. Positions begin again at 0 with every document, and no
document attends to one before it in the row. :func:`pack` sees to the first and gives what the second needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.data.chat import IGNORED


@dataclass(frozen=True)
class PackedRow:
    """Documents behind each other: `input_ids`, `labels` and `position_ids` are equally long.

    `boundaries` holds where each document begins, and at last the row's length, so that document i is
    ``input_ids[boundaries[i]:boundaries[i + 1]]``. The label at each beginning is IGNORED: nothing before it in the row
    should predict it.
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    boundaries: list[int]

    def batch(self) -> dict[str, Int[Tensor, "1 length"]]:
        """The row as a batch of one. It has no attention mask: transformers reads the documents off `position_ids`,
        if the model is called with ``use_cache=False``.
        """
        return {name: torch.tensor([getattr(self, name)]) for name in ("input_ids", "labels", "position_ids")}


def pack(sequences: Sequence[Sequence[int] | tuple[list[int], list[int]]], length: int) -> list[PackedRow]:
    """Put documents into as few rows of at most `length` tokens as best-fit-decreasing finds; none is cut.

    A document is a list of token ids, which are their own labels, or a pair of ids and labels. The longest go first,
    each into the fullest row that still has room (TRL's strategy "bfd"). Raises ValueError when there are no documents,
    one is empty, ids and labels differ in length, or a document is longer than `length`.
    """
    if length < 1:
        raise ValueError(f"a row needs room for at least one token, not {length}")
    documents = [_document(i, s) for i, s in enumerate(sequences)]
    if not documents:
        raise ValueError("there are no documents to pack")
    longest = max(len(ids) for ids, _ in documents)
    if longest > length:
        too_long = sum(len(ids) > length for ids, _ in documents)
        raise ValueError(
            f"{too_long} of {len(documents)} documents are longer than a row of {length} tokens; the longest has "
            f"{longest}. Choose a length of {longest} or more, or cut or drop those first"
        )
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(documents)), key=lambda i: -len(documents[i][0])):
        size = len(documents[i][0])
        fitting = [row for row, left in enumerate(room) if left >= size]
        if fitting:
            best = min(fitting, key=lambda row: room[row])
            rows[best].append(i)
            room[best] -= size
        else:
            rows.append([i])
            room.append(length - size)
    return [_row([documents[i] for i in row]) for row in rows]


def _document(number: int, sequence: Sequence[int] | tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    pair = isinstance(sequence, tuple) and len(sequence) == 2 and isinstance(sequence[0], list)
    ids, labels = cast(tuple[Sequence[int], Sequence[int]], sequence if pair else (sequence, sequence))
    if not len(ids):
        raise ValueError(f"document {number} is empty")
    if len(ids) != len(labels):
        raise ValueError(f"document {number} has {len(ids)} ids and {len(labels)} labels: each token needs its label")
    return list(ids), list(labels)


def _row(documents: Sequence[tuple[list[int], list[int]]]) -> PackedRow:
    ids, labels, positions, boundaries = [], [], [], [0]
    for document, its_labels in documents:
        ids += document
        labels += [IGNORED, *its_labels[1:]]
        positions += range(len(document))
        boundaries.append(len(ids))
    return PackedRow(ids, labels, positions, boundaries)


def block_diagonal_mask(boundaries: Sequence[int]) -> Bool[Tensor, "1 1 length length"]:
    """Which token (row) may attend to which (column): those of its own document up to itself.

    A model of transformers takes it as ``attention_mask`` with the attention implementations eager and sdpa. Raises
    ValueError when the boundaries don't begin at 0 or don't rise.
    """
    if (
        len(boundaries) < 2
        or boundaries[0] != 0
        or any(a >= b for a, b in zip(boundaries, boundaries[1:], strict=False))
    ):
        raise ValueError(f"boundaries begin at 0 and rise to the row's length, not {list(boundaries)}")
    sizes = torch.tensor(boundaries).diff()
    document = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    same = document[:, None] == document[None, :]
    return (same & torch.ones_like(same).tril())[None, None]
