"""The order of rotated rows: a permutation within heads, that leaves attention's scores as they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.export import ExportError
from utils.export.rope import rotate, unrotate


def test_row_i_and_row_i_plus_half_become_neighbours():
    assert rotate(torch.arange(12), 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_unrotate_undoes_rotate_for_weights_and_biases(heads, half, columns):
    rows = heads * half * 2
    weight = torch.arange(rows * max(columns, 1)).reshape(rows, *([columns] if columns else []))
    assert unrotate(rotate(weight, heads), heads).equal(weight)
    assert sorted(rotate(weight, heads).flatten().tolist()) == list(range(weight.numel()))


def test_pairs_of_neighbours_turn_as_pairs_of_halves_do():
    """Meta's rotation of the reordered rows gives transformers' scores (both by their definitions)."""
    torch.manual_seed(0)
    q, k, d, heads = torch.randn(16), torch.randn(16), 8, 2
    angles = 5.0 * 10000.0 ** (-torch.arange(0, d, 2) / d)

    def halves(x: torch.Tensor) -> torch.Tensor:
        a, b = x.reshape(heads, 2, d // 2).unbind(1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1)

    def neighbours(x: torch.Tensor) -> torch.Tensor:
        a, b = x.reshape(heads, d // 2, 2).unbind(2)
        return torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 2).flatten(1)

    theirs = (halves(q) * k.reshape(heads, d)).sum(1)
    ours = (neighbours(rotate(q, heads)) * rotate(k, heads).reshape(heads, d)).sum(1)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows, heads", [(12, 4), (12, 0), (13, 1), (12, 5)])
def test_rows_that_are_no_heads_are_refused(rows, heads):
    with pytest.raises(ExportError, match="right number of heads"):
        rotate(torch.zeros(rows, 2), heads)
