"""A pytest plugin: what went through a function of utils/ had the shapes and dtypes that its annotations name.

Without it an annotation such as ``Float[Tensor, "r d_in"]`` is a comment that can rot. Here every call that returned is
looked at: jaxtyping holds one name to one size within a call, and beartype looks into unions and containers. A call
that raised is left alone, since refusing a wrong shape is what many functions are tested for. Annotations without a
shape are the type checker's.

`pyproject.toml` loads the plugin with ``-p``, so that it comes before any module of utils/.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from beartype.door import is_bearable
from jaxtyping import jaxtyped

SHAPED = re.compile(r"\b(Float|Float32|Int|Int8|UInt8|Bool)\[")


class WrongShape(AssertionError):
    """A value that its annotation doesn't describe."""


def checked(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """`function`, or what also checks its shaped arguments and its result after each call. `names` are its globals."""
    texts = {k: v for k, v in getattr(function, "__annotations__", {}).items() if isinstance(v, str)}
    texts = {name: text for name, text in texts.items() if SHAPED.search(text)}
    if not texts or inspect.isgeneratorfunction(function):
        return function
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if not hints:  # now every name that an annotation uses is there
            hints.update({name: eval(text, names) for name, text in texts.items()})
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        values = {**bound.arguments, "return": result}
        with jaxtyped("context"):
            for name, hint in hints.items():
                if not is_bearable(values[name], hint):
                    found = getattr(values[name], "shape", values[name])
                    raise WrongShape(f"{function.__qualname__}: {name} is {found}, not {texts[name]}")
        return result

    return call


def check_module(module: ModuleType) -> None:
    """Put :func:`checked` around every function and method that `module` defines."""
    names = vars(module)
    for name, thing in list(names.items()):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            setattr(module, name, checked(thing, names))
        elif inspect.isclass(thing):
            for attribute, method in list(vars(thing).items()):
                if inspect.isfunction(method):
                    setattr(thing, attribute, checked(method, names))


class Finder(MetaPathFinder):
    """Finds the modules of utils/ as Python does, and checks each as soon as it has been run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] != "utils":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_check(module: ModuleType) -> None:
                run(module)
                check_module(module)

            spec.loader.exec_module = run_and_check
        return spec


def pytest_configure() -> None:
    """Begin, in this process and in each worker."""
    sys.meta_path.insert(0, Finder())
