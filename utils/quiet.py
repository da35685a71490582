"""Four warnings of other libraries that the course has no use for, silenced where a notebook begins.

The setup cell of every notebook calls :func:`quiet_upstream`, since a notebook stores what it prints to standard error,
and these lines depend on the processor or on a library's version. Importing utils silences nothing.
"""

from __future__ import annotations

import logging
import warnings


def quiet_upstream() -> None:
    """Silence four upstream warnings for this process.

    - bitsandbytes, on processors with AVX512-bf16: that an optional, downloadable kernel is missing;
    - PEFT 0.21: that it asks transformers for a property by its old name;
    - PyTorch, at the first backward pass on a GPU: that its own thread had no CUDA context yet, and gets one;
    - transformers' Trainer: that checkpoints less than a second apart are ordered by their numbers.
    """
    quiet_bitsandbytes()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")
    logging.getLogger("transformers.trainer_utils").addFilter(_not_about_mtime)


def _not_about_mtime(record: logging.LogRecord) -> bool:
    return "mtime may not be reliable" not in record.getMessage()


def quiet_bitsandbytes() -> None:
    """Silence the first of them alone; loading a model in 4 bits does."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
