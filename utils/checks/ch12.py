"""Chapter 12's exercises: the variants of LoRA, and what an update does."""

from __future__ import annotations

from utils.checks.core import Mistake, Wrong, exercise  # noqa: F401

# ------------------------------------------------------------------------------------------ variants (parts 1 and 2)


# ------------------------------------------------------------------------------------------- effects (parts 3 and 4)
