"""The exercises' checks: ``check``, ``hint``, ``solution`` and ``progress``, from :mod:`utils.course.checks.core`.

Importing this package registers every chapter's exercises: each module beside this file that is called
``chNN``.
"""

from importlib import import_module
from pkgutil import iter_modules
from re import fullmatch

from utils.course.checks.core import check, hint, progress, solution

__all__ = ["check", "hint", "progress", "solution"]

for _name in sorted(module.name for module in iter_modules(__path__)):
    if fullmatch(r"ch\d\d", _name):
        import_module(f"{__name__}.{_name}")
