"""A function as bytes for another process: by its module's name, or, of a notebook's function, as its source.

pickle knows a function by the module that it is in, and a notebook is no module. So the source of a notebook's function
travels, with everything of the notebook that it names: other functions as source too, modules by name, values pickled.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import inspect
import linecache
import pickle
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple


class _Source(NamedTuple):
    """A notebook's function: its source, and what that names, each with its kind ("module", "value" or "source")."""

    name: str
    sources: dict[str, str]
    modules: dict[str, str]
    values: dict[str, Any]


def pack(function: Callable[..., Any]) -> bytes:
    """`function` as bytes that :func:`unpack` makes a function of, in a process that never saw the notebook.

    Raises TypeError for what is no function, and ValueError, naming it, for a lambda, for a function that was made
    inside another one, and for what it uses and can't be sent, such as an open file.
    """
    if not callable(function):
        raise TypeError(f"run needs a function to run on each rank, not {type(function).__name__}: leave out the ()")
    if getattr(function, "__module__", None) != "__main__":
        try:
            return pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            name = getattr(function, "__qualname__", repr(function))
            raise ValueError(f"{name} can't be sent to another process: define it with def, in no function") from error
    found = _Source(getattr(function, "__name__", ""), {}, {}, {})
    _collect(function, found)
    return pickle.dumps(found)


def unpack(packed: bytes) -> Callable[..., Any]:
    """The function that :func:`pack` was given; a notebook's one lives in a namespace with what it names."""
    found = pickle.loads(packed)
    if not isinstance(found, _Source):
        return found
    space: dict[str, Any] = {"__name__": "notebook", **found.values}
    space |= {name: importlib.import_module(module) for name, module in found.modules.items()}
    for name, source in found.sources.items():
        file = f"<{name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), space)  # the reader's own code
    return space[found.name]


class _Packed(NamedTuple):
    """A notebook's function among the arguments."""

    content: bytes


def pack_arguments(arguments: Sequence[Any]) -> bytes:
    """Arguments for the function, pickled; a notebook's functions among them by :func:`pack`. Raises what that raises,
    and ValueError, with its place, for what can't be pickled.
    """
    ready: list[Any] = []
    for place, value in enumerate(arguments, 1):
        own = isinstance(value, FunctionType) and value.__module__ == "__main__"
        ready.append(_Packed(pack(value)) if own else value)
        try:
            pickle.dumps(ready[-1])
        except Exception as error:  # any type's own way of refusing
            raise ValueError(
                f"argument {place}, a {type(value).__name__}, can't be sent to another process: make it inside the "
                "function"
            ) from error
    return pickle.dumps(ready)


def unpack_arguments(packed: bytes) -> list[Any]:
    """What :func:`pack_arguments` was given."""
    return [unpack(value.content) if isinstance(value, _Packed) else value for value in pickle.loads(packed)]


def _collect(function: Any, found: _Source) -> None:
    """Put `function` and all that it names into `found`, what it needs before itself."""
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(function, FunctionType) or name == "<lambda>":
        raise ValueError(f"{name} can't be sent to another process: a function defined with def can")
    if function.__closure__:
        free = ", ".join(function.__code__.co_freevars)
        raise ValueError(f"{name} uses {free} of the function that it was made in: pass {free} as an argument")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ValueError(f"the source of {name} isn't known here: define it in a cell or in a module") from error
    found.sources[name] = source
    for used in sorted(set(_globals(function.__code__)) | set(_at_definition(source))):
        if used in found.sources or used not in function.__globals__:
            continue  # what isn't there is reported by the process, as a NameError where it is used
        value = function.__globals__[used]
        if isinstance(value, ModuleType):
            found.modules[used] = value.__name__
        elif isinstance(value, FunctionType) and value.__module__ == "__main__":
            _collect(value, found)
        else:
            try:
                pickle.dumps(value)
            except Exception as error:  # any type's own way of refusing
                raise ValueError(
                    f"{name} uses {used}, a {type(value).__name__} that can't be sent to another process: make it "
                    "inside the function"
                ) from error
            if getattr(value, "__module__", None) == "__main__":
                raise ValueError(f"{name} uses {used}, whose class is the notebook's own: put the class into a module")
            found.values[used] = value
    found.sources[name] = found.sources.pop(name)  # behind what it needs


def _globals(code: CodeType) -> Iterator[str]:
    """The global names that code reads, in functions within it too; builtins left out."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not hasattr(builtins, instruction.argval):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)


def _at_definition(source: str) -> Iterator[str]:
    """The names that a function's defaults, annotations and decorators read, when it is defined."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            kept = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
            kept += [argument.annotation for argument in ast.walk(node.args) if isinstance(argument, ast.arg)]
            kept.append(node.returns)
            for part in filter(None, kept):
                yield from (name.id for name in ast.walk(part) if isinstance(name, ast.Name))
