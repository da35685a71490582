"""What a package of utils/ exports, imported when it is asked for.

``from utils.lora import LoRALinear`` imports :mod:`utils.lora.layer` and nothing beside it. With ordinary imports in a
package's ``__init__`` every module of the package would be imported with the first one, and PEFT, TRL and matplotlib
with them (see https://peps.python.org/pep-0562/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def front_door(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of `package`. `exports`: module -> the names it gives, by blanks.

    Asking for a name that isn't exported raises AttributeError, as everywhere.
    """
    home = {name: module for module, names in exports.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    names = sorted(home)
    return get, lambda: names, names
