"""Python runs this at its start where this folder is on PYTHONPATH: it puts the stand-in for a T4 in force.

:func:`tools.gpu.t4.environment` sets both, so a notebook's kernel and every Python that a cell starts have it. A
sitecustomize that this one hides is run as well.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_here = Path(__file__).parent
_hidden = PathFinder.find_spec("sitecustomize", [p for p in sys.path if p and Path(p).resolve() != _here.resolve()])
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(module_from_spec(_hidden))

if os.environ.get("COURSE_STAND_IN") == "T4":
    from tools.gpu.t4 import when_torch_comes

    when_torch_comes()
