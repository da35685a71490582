"""What this package refuses, in words for a learner: prompts and rows, tensors, functions of one's own.

Nothing here changes anything. Numbers are :mod:`utils.lora.refusals`'s, for every package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from utils.train.loop import Diverged


def name_of(function: Any) -> str:
    """What errors and tables call a function, a reward among them: its name, or its class's."""
    return getattr(function, "__name__", None) or type(function).__name__


def shown(value: Any) -> str:
    """A value in an error: its first 160 characters."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


# ------------------------------------------------------------------------------------------------ prompts and rows


def check_list(name: str, values: Any, of: str) -> None:
    """Raise ValueError unless `values` has a length and an order, as lists, tuples and a Dataset of Hugging Face's do;
    one string isn't a list of strings. `of` says of what the list is to be. An empty one is fine."""
    if isinstance(values, str | bytes):
        raise ValueError(
            f"{name} is one text, {shown(values)}, and would be taken letter by letter: pass a list of {of}"
        )
    if isinstance(values, Iterator):
        raise ValueError(f"{name} can be gone through only once: pass list({name}), a list of {of}")
    if isinstance(values, Mapping | Set) or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        raise ValueError(f"{name} must be a list of {of}, not {shown(values)}")


def _check_words(where: str, value: Any) -> None:
    """Raise ValueError unless `value` is a user's words, a string with something in it."""
    if isinstance(value, str):
        if value.strip():
            return
        raise ValueError(f"{where} is empty, {value!r}: leave it out, or write what the user asks")
    advice = ""
    if isinstance(value, Sequence) and value and isinstance(value[-1], Mapping) and "content" in value[-1]:
        advice = ': that is a conversation, so take its "content". The chat template is put around the words later'
    elif isinstance(value, Mapping) and "prompt" in value:
        advice = ': that is a row, so take its "prompt"'
    raise ValueError(f"{where} must be the user's words as a string, not {shown(value)}{advice}")


def check_prompts(prompts: Any) -> None:
    """Raise ValueError unless `prompts` is a list of strings, at least one and none of them empty."""
    check_list("prompts", prompts, "texts")
    if not len(prompts):
        raise ValueError("there are no prompts to answer: pass a list of texts")
    for number, prompt in enumerate(prompts):
        _check_words(f"prompt {number}", prompt)


def check_rows(rows: Any) -> list[str]:
    """The names of the columns beside ``prompt``. Raises ValueError unless `rows` is a list of mappings with the same
    columns, at least one, each with a prompt that :func:`check_prompts` would take."""
    wanted = 'mappings with a "prompt"'
    check_list("rows", rows, wanted)
    if not len(rows):
        raise ValueError(f"there are no rows to train on: pass {wanted}")
    first: list[Any] = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or "prompt" not in row:
            raise ValueError(f'row {number} has no "prompt", the words of the user as a string: {shown(row)}')
        _check_words(f'the "prompt" of row {number}', row["prompt"])
        if odd := [name for name in row if not isinstance(name, str)]:
            raise ValueError(
                f"row {number} has a column called {shown(odd[0])}: a reward gets columns by name, a string"
            )
        first = first or list(row)
        if set(row) != set(first):
            raise ValueError(
                f"row {number} has the columns {sorted(row)} and row 0 has {sorted(first)}: a reward gets each "
                "column as a list with an entry for every sample, so all rows need the same"
            )
    return [name for name in first if name != "prompt"]


# -------------------------------------------------------------------------------------------------------- tensors


def check_tensors(**values: Any) -> None:
    """Raise TypeError, with its name, for what is no tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, not the {type(value).__name__} {shown(value)}")


# ---------------------------------------------------------------------------------------------- functions of one's own


def check_called(name: str, function: Any, *arguments: str, advice: str = "") -> None:
    """Raise TypeError unless `function`, the argument `name`, can be called with as many arguments, which are named
    for the error only. `advice` is what to pass in the place of no function."""
    form = f"{name}({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"{name} must be a function, called as {form}, not {shown(function)}{advice}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{name} is called as {form}, which {name_of(function)!r} can't be: {error}") from None


def check_reference(reference: Any) -> None:
    """Raise TypeError unless `reference` is a function of the model, such as utils.preferences.dpo.adapter_off."""
    advice = ": leave it out, and the reference is the model with its adapter off"
    if isinstance(reference, nn.Module):
        raise TypeError(
            f"reference is a model, {type(reference).__name__}, as TRL's ref_model; here it is a function that gives a "
            f"block in which the trained model itself is the reference{advice}"
        )
    check_called("reference", reference, "model", advice=advice)


def opened(name: str, function: Callable[[Any], AbstractContextManager], model: Any) -> AbstractContextManager:
    """The block that ``function(model)`` gives, `name` being ``reference`` or ``teacher``. Raises TypeError when what
    it gives is nothing for a ``with``."""
    block = function(model)
    if not (hasattr(type(block), "__enter__") and hasattr(type(block), "__exit__")):
        raise TypeError(
            f"{name}(model) must give a block for `with`, as adapter_off does, and {name_of(function)!r} returned "
            f"{shown(block)}: write @contextlib.contextmanager over it, and yield where the model has changed"
        )
    return block


def check_given(name: str, function: Any, value: Any, shape: tuple[int, ...], advice: str) -> None:
    """Raise TypeError unless `value`, what the `function` given as `name` returned, is a tensor of floating point
    numbers and of this shape. `advice` says how it becomes one."""
    if not isinstance(value, Tensor):
        what = f"the {type(value).__name__} {shown(value)}"
    elif not value.is_floating_point():
        what = f"a tensor of {value.dtype}"
    elif tuple(value.shape) != shape:
        what = f"a tensor of the shape {tuple(value.shape)}"
    else:
        return
    raise TypeError(
        f"the {name} {name_of(function)!r} returned {what}, and a tensor of floating point numbers of the shape "
        f"{shape} is needed: {advice}"
    )


def check_own_loss(function: Any, loss: Any, step: int, *inputs: Tensor) -> Tensor:
    """The loss that a function of one's own gave at `step` from `inputs`, once it can be trained on.

    Raises TypeError unless it is a tensor of shape (), ValueError when it has no gradient, and
    :class:`~utils.train.loop.Diverged` when it isn't finite though all `inputs` are. Where they aren't the fault isn't
    the loss's, and the optimizer's step names it.
    """
    check_given("loss", function, loss, (), "return its mean as it was computed, without .item() or numpy")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss {name_of(function)!r} returned a number without a gradient, so nothing can be learned: compute "
            "it from the log-probabilities that it gets, without .item(), .detach(), torch.tensor(...) or numpy"
        )
    if not bool(loss.isfinite()) and all(bool(one.isfinite().all()) for one in inputs):
        raise Diverged(
            f"the loss {name_of(function)!r} returned {loss.item()} at step {step}, and all that it got was finite: "
            "look for a division by 0, a logarithm of 0 or an exponential that overflows, behind the first steps also "
            "for too high a learning rate"
        )
    return loss
