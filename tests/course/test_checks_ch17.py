"""What chapter 17's checks say about answers that two mistakes could explain."""

import pytest
import torch

from utils.course.checks import judge, registry


def left(W):
    return torch.linalg.svd(W, full_matrices=False).U


def wrong_axis_then_cut(base, tuned, threshold, leading):
    return int(((left(base).T @ left(tuned)).abs().amax(dim=1)[:leading] < threshold).sum())


def exchanged(base, tuned, threshold, leading):
    return int(((left(tuned).T @ left(base)[:, :leading]).abs().amax(dim=0) < threshold).sum())


def rows(base, tuned, threshold, leading):
    return int(((left(base) @ left(tuned)[:leading].T).abs().amax(dim=0) < threshold).sum())


def of_the_update(base, tuned, threshold, leading):
    return int(((left(base).T @ left(tuned - base)[:, :leading]).abs().amax(dim=0) < threshold).sum())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (wrong_axis_then_cut, ("wrong axis", "dim=0")),
        (exchanged, ("exchanged",)),
        (rows, ("rows of U", "U[:, :leading]")),
        (of_the_update, ("the update's singular vectors",)),
    ],
)
def test_an_intruder_counted_along_the_wrong_axis_is_told_so(answer, said):
    result = judge.evaluate(registry.find("count_intruders"), answer)
    assert result.state == judge.NOT_RIGHT and result.named
    assert all(words in result.message for words in said)
