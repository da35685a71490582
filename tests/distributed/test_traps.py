"""Each trap is one in the installed versions, and its cure cures it. A row that fails here has to leave the lesson."""

from __future__ import annotations

import pytest

from utils.distributed.start import stop
from utils.distributed.traps import TRAPS, spring

SEEN = {
    "trained in two dtypes under FSDP2": (
        "AssertionError: FSDP expects uniform original parameter dtype", "it trains",
    ),
    "DDP before PEFT": (
        "the ranks' gradients differ by up to 1.3 times rank 0's largest",
        "the ranks' gradients differ by up to 0.0 times rank 0's largest",
    ),
    "reentrant checkpointing under DDP": (
        "RuntimeError: Expected to mark a variable ready only once", "56 of 56 adapter matrices have their gradient",
    ),
    "one rank's shard saved": (
        "r=8, and the saved A has the shape (4, 192)", "r=8, and the saved A has the shape (8, 192)",
    ),
    "saved before it is gathered": (
        "the file has 56 tensors and 0 numbers", "the file has 56 tensors and 108,544 numbers",
    ),
    "tied head in modules_to_save": (
        "after a step the head is 0.001 from the embedding", "after a step the head is 0.000 from the embedding",
    ),
    "a rank without tokens": (
        "the mean gradient is nan, and 1.0 is right", "the mean gradient is 1.0, and 1.0 is right",
    ),
    "the same dropout on all ranks": (
        "100% of the mask is the same on both ranks", "82% of the mask is the same on both ranks",
    ),
    "only rank 0 evaluates": ("RuntimeError: Timed out waiting 2000ms", "both ranks have a loss, 7.0"),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left():
    yield
    stop()


def test_each_has_its_line():
    assert SEEN.keys() == TRAPS.keys()


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_springs_and_its_cure_holds(name):
    assert spring(name) == SEEN[name]


@pytest.mark.parametrize("name", [name for name, trap in TRAPS.items() if trap.alone])
def test_three_are_the_wrappers_and_spring_on_one_process_as_well(name):
    assert spring(name, 1) == SEEN[name]


def test_the_others_need_two():
    assert sum(trap.alone for trap in TRAPS.values()) == 3
    with pytest.raises(ValueError, match="needs 2 processes, not 1"):
        spring("DDP before PEFT", 1)
