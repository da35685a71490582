"""Exercises that several tests of the checks register."""

import pytest

from tests.course.delta import register_delta
from utils.course.checks.registry import Mistake, exercise


@pytest.fixture
def delta(own_registry):
    register_delta()


@pytest.fixture
def count(own_registry):
    exercise("count", reference=2048, mistakes=[Mistake(4096, "each factor counts once")])
