"""Whether code runs in a notebook, where a page keeps what is shown, or in a terminal."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Whether IPython runs with a kernel: in a notebook, and neither in a script nor in IPython in a terminal."""
    if "IPython" not in sys.modules:  # a kernel has imported it long before
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
