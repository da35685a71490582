"""Chapter 11's exercises: the study's space and budget, the optimizer's bytes; the clinic's diagnoses."""

from __future__ import annotations

from utils.checks.core import Mistake, exercise  # noqa: F401

# ======================================================================================= the study and memory


# ======================================================================================= the clinic
