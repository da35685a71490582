"""Tests that many exercises share, for what comparing results can't judge: gradients, and the "without ..." of a task.

Each function makes a test for ``exercise(test=...)``: called with the answer, it raises :class:`Wrong` with the
sentence for the learner. Operations are watched while the answer runs; its source is never read.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.course.checks.calls import fresh, seed
from utils.course.checks.compare import difference
from utils.course.checks.describe import is_tensor_or_array
from utils.course.checks.registry import Wrong

Make = Callable[[], tuple[Any, ...]]
Test = Callable[[Any], None]

_CUT = ".detach(), .item(), torch.no_grad() or a new tensor made of numbers cuts it off"


def numbers_within(relative: float) -> Callable[[Any, Any], bool | str]:
    """A ``compare`` for results that hang on the order of sums in few digits: numbers this near to each other are the
    same. For all else, kinds among it, the usual comparison decides."""

    def compare(expected: Any, got: Any) -> bool | str:
        if isinstance(expected, float) and isinstance(got, int | float) and not isinstance(got, bool):
            if math.isclose(expected, got, rel_tol=relative, abs_tol=1e-9):
                return True
        return difference(expected, got) or True

    return compare


def float32_will_do(expected: Any, got: Any) -> bool | str:
    """A ``compare`` for tensors in float64: a float32 result is as good where it agrees within float32's tolerance."""
    single = isinstance(got, Tensor) and got.dtype == torch.float32
    return difference(expected, got, any_dtype=single) or True


def same_loss(expected: Any, got: Any) -> bool | str:
    """A ``compare`` for what is trained through, as `float32_will_do`: the right number that is no tensor is told to
    stay one. Made a tensor again, it would have no gradient."""
    array = is_tensor_or_array(got)
    if isinstance(got, Tensor) or not (array or isinstance(got, numbers.Real)) or isinstance(got, bool):
        return float32_will_do(expected, got)
    if float32_will_do(expected, torch.as_tensor(got, dtype=torch.float32)) is not True:
        return difference(expected, got) or True
    numpy = type(got).__module__ == "numpy"
    is_ = f"a numpy {'array' if array else 'number'}" if numpy else "a Python number"
    how = "compute it in torch, without .numpy()" if numpy else "keep it a tensor, without .item() or float(...)"
    return f"the value is right, but it is {is_}, which has no gradient, and a loss is trained through: {how}."


def same_factors(expected: Any, got: Any) -> bool | str:
    """A ``compare`` for a pair of factors ``(A, B)``: any two of the expected shapes and dtype will do whose product
    ``B @ A`` is the expected one's."""
    if not _is_pair(expected) or not _is_pair(got):
        return difference(expected, got) or True
    A, B = expected
    shapes = tuple(got[0].shape), tuple(got[1].shape)
    if shapes != (tuple(A.shape), tuple(B.shape)):
        return f"A {tuple(A.shape)} and B {tuple(B.shape)} are asked for, and yours are {shapes[0]} and {shapes[1]}."
    said = difference(B @ A, got[1] @ got[0])
    return True if said is None else f"your B @ A is not the one that is asked for: {said}"


def _is_pair(answer: Any) -> bool:
    factors = answer if isinstance(answer, tuple | list) and len(answer) == 2 else ()
    matrices = all(isinstance(factor, Tensor) and factor.ndim == 2 for factor in factors)
    return bool(factors) and matrices and answer[1].shape[1] == answer[0].shape[0]


def same_gradients(reference: Callable[..., Any], make: Make, names: Sequence[str], frozen: Sequence[str] = ()) -> Test:
    """The result can be trained through: a backward pass gives the arguments the reference's gradients.

    make: the arguments of one call. names: of all arguments, in their order; those that are floating-point tensors
    are differentiated, and those in a list. A module among the arguments has the gradients of its parameters compared,
    those that train. frozen: the arguments that nobody trains, such as a teacher's: an answer may cut them off. A
    gradient that went through a result of a coarser dtype than the argument's is compared in that dtype.
    """
    trains = [name not in frozen for name in names]

    def test(answer: Any) -> None:
        expected, got = _gradients(reference, make, trains), _gradients(answer, make, trains)
        if isinstance(got, str):
            raise Wrong(got)
        for place, (want, have) in enumerate(zip(expected, got, strict=True)):
            for wanted, had in zip(want, have, strict=True):
                if wanted is not None and had is None:
                    raise Wrong(f"no gradient reaches {names[place]} through your result: {_CUT}.")
                if (said := wanted is not None and difference(wanted, had, any_dtype=True)) and had is not None:
                    raise Wrong(f"your result is right, but the gradient of {names[place]} through it is not: {said}")

    return test


def _gradients(function: Callable[..., Any], make: Make, trains: Sequence[bool]) -> list[list[Tensor | None]] | str:
    """The gradients of each argument's tensors, or what is in the way of a backward pass."""
    seed()
    arguments = tuple(fresh(argument) for argument in make())
    leaves = [_trained(argument) if trained else [] for argument, trained in zip(arguments, trains, strict=True)]
    seed()
    with torch.enable_grad():
        results = [leaf for leaf in tree_leaves(function(*arguments)) if isinstance(leaf, Tensor)]
        floating = [result for result in results if result.is_floating_point()]
        if not any(result.requires_grad for result in floating):
            return f"no gradient passes through your result, so nothing could be trained through it: {_CUT}."
        # Another weight for each number: a plain sum would hide what is in the wrong place.
        weights = (torch.linspace(0.5, 2.0, result.numel(), dtype=result.dtype) for result in floating)
        total = sum((r * w.view(r.shape)).sum() for r, w in zip(floating, weights, strict=True))
        torch.as_tensor(total).backward()
    coarsest = max((result.dtype for result in floating), key=lambda dtype: torch.finfo(dtype).eps)
    return [[_rounded(leaf.grad, coarsest) for leaf in of_one] for of_one in leaves]


def _rounded(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The gradient in `dtype`, if that has fewer digits."""
    coarser = gradient is not None and torch.finfo(dtype).eps > torch.finfo(gradient.dtype).eps
    return gradient.to(dtype) if gradient is not None and coarser else gradient


def _trained(argument: Any) -> list[Tensor]:
    if isinstance(argument, torch.nn.Module):
        return [parameter for parameter in argument.parameters() if parameter.requires_grad]
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return [argument.requires_grad_()]
    return [leaf for item in argument for leaf in _trained(item)] if isinstance(argument, list | tuple) else []


def without_matrix(make: Make, shape: tuple[int, int], words: str) -> Test:
    """No tensor of this shape, or of its transpose, is computed; dimensions of one, such as einsum makes, are passed
    over. Take sizes that are all different, and not the shape of an argument's own matrix alone: views of what is there
    already don't count. words: what the task forbids."""

    def test(answer: Any) -> None:
        shapes = (tuple(size for size in found if size != 1) for found in _made(answer, make))
        made = [found for found in shapes if found in (shape, shape[::-1])]
        if made:
            raise Wrong(f"you make {words}, a tensor of shape {made[0]}, which the task wants to do without.")

    return test


def without_loop(small: Make, large: Make, words: str) -> Test:
    """As many operations for the larger input as for the smaller. words: what is gone through one by one."""

    def test(answer: Any) -> None:
        few, many = len(_made(answer, small)), len(_made(answer, large))
        if many > few:
            raise Wrong(
                f"your code goes through {words} one by one ({few} operations of torch for the small input, {many} for "
                "the large one): one operation can take them all."
            )

    return test


def without_autograd(make: Make) -> Test:
    """The answer computes its gradients itself."""

    def test(answer: Any) -> None:
        seed()
        used: list[str] = []
        engine = torch.autograd.graph._engine_run_backward

        def watched(*arguments: Any, **named: Any) -> Any:
            used.append("backward")
            return engine(*arguments, **named)

        with mock.patch("torch.autograd._engine_run_backward", watched), torch.enable_grad():
            answer(*(fresh(argument) for argument in make()))
        if used:
            raise Wrong("you let autograd do it; the task is to write down the products of matrices yourself.")

    return test


def _made(answer: Any, make: Make) -> list[tuple[int, ...]]:
    """The shapes of all tensors that the answer's operations compute: views of what is there are left out."""
    seed()
    arguments = tuple(fresh(argument) for argument in make())
    with _Shapes() as watch:
        answer(*arguments)
    return watch.shapes


class _Shapes(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to keep the compiler out, torch would import it, which takes a second."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.shapes += [tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result
