"""The plugin that checks annotated shapes is at work, and it sees what is wrong."""

from __future__ import annotations

import pytest
import torch

from tests.shapes import WrongShape, checked
from utils.lora.merging import merge_weight

ANNOTATED = """
from __future__ import annotations
from jaxtyping import Float, Int
from torch import Tensor

def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    return (a @ b).T if len(a) == 5 else a @ b

def looked_up(ids: dict[str, Int[Tensor, "batch length"]] | None) -> int:
    return 0

def unshaped(x: list[str]) -> int:
    return 0
"""


@pytest.fixture
def functions():
    names: dict = {}
    exec(ANNOTATED, names)
    return {name: checked(names[name], names) for name in ("product", "looked_up", "unshaped")}


def test_utils_is_checked():
    assert merge_weight.__wrapped__ is not None
    assert merge_weight(torch.zeros(3, 4), torch.ones(2, 4), torch.ones(3, 2), 1.0).shape == (3, 4)


def test_a_right_call_passes_and_a_wrong_result_is_seen(functions):
    product = functions["product"]
    assert product(torch.zeros(2, 3), torch.zeros(3, 4)).shape == (2, 4)
    with pytest.raises(WrongShape, match=r"product: return is torch.Size\(\[4, 5\]\)"):
        product(torch.zeros(5, 3), torch.zeros(3, 4))
    with pytest.raises(WrongShape, match="product: a is"):
        product(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long))


def test_containers_and_unions_are_looked_into(functions):
    functions["looked_up"](None)
    functions["looked_up"]({"ids": torch.zeros(2, 3, dtype=torch.long)})
    with pytest.raises(WrongShape, match="looked_up"):
        functions["looked_up"]({"ids": torch.zeros(2, dtype=torch.long)})


def test_what_a_function_raises_itself_comes_first(functions):
    with pytest.raises(RuntimeError):
        functions["product"](torch.zeros(2, 3), torch.zeros(4, 4))
    assert not hasattr(functions["unshaped"], "__wrapped__")
