"""utils.evaluate.seeds: intervals, exact tests by pairs, and Holm's correction."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.evaluate.seeds import holm, interval, paired


def test_the_interval_is_the_textbooks():
    # NIST's e-Handbook, 1.3.5.2 has the formula; five values with mean 3, deviation 1.5811: 3 +- 2.776 * 0.7071
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((1.037, 4.963), abs=1e-3)


def test_nineteen_of_twenty_intervals_hold_the_mean():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        low, high = interval([draw.gauss(0, 1) for _ in range(12)])
        held += low <= 0 <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.015), "three standard errors of a share of 2,000"


@pytest.mark.parametrize("seeds", [1, 21])
def test_too_few_and_too_many_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match=f"2 to 20 seeds, and got {seeds}"):
        interval([0.5] * seeds)


def test_a_difference_in_every_seed_is_as_rare_as_it_can_be():
    found = paired([x + 1 for x in range(12)], range(12))
    assert found.mean == 1 and found.p == 2 / 4096
    swapped = paired(range(12), [x + 1 for x in range(12)])
    assert (swapped.mean, swapped.p) == (-1, found.p)


def test_no_difference_is_no_finding_and_pairs_are_needed():
    assert paired([1, 2, 3], [1, 2, 3]).p == 1
    with pytest.raises(ValueError, match="got 2 and 3 values"):
        paired([1, 2], [1, 2, 3])


def test_p_is_the_share_of_swaps():
    # 8 swaps of (3, 2, -1): sums 4, 6, 0, 2 and their negatives; 4 or more: 4 of 8
    assert paired([3, 2, 0], [0, 0, 1]).p == 0.5


def test_under_no_effect_p_is_uniform():
    draw = random.Random(1)
    ps = [paired(*([draw.gauss(0, 1) for _ in range(8)] for _ in range(2))).p for _ in range(300)]
    assert sum(p <= 0.05 for p in ps) / 300 == pytest.approx(0.05, abs=0.04), "three standard errors of 300"
    assert statistics.mean(ps) == pytest.approx(0.5, abs=0.06)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_p_and_bonferronis_and_keeps_the_order(ps):
    corrected = holm(ps)
    assert all(p <= c <= min(1, len(ps) * p) + 1e-12 for p, c in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=ps.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)
