"""For the tests of the checks: a registry and a kernel of a test's own."""

import pytest
import torch

from tests.course.delta import register_delta
from utils.course.checks import core, registry
from utils.course.checks.registry import Mistake, exercise


@pytest.fixture
def own_registry(monkeypatch):
    """Each test registers its own exercises, in a kernel in which nothing has been tried."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(core, "_kernel", core._Kernel())
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def delta(own_registry):
    register_delta()


@pytest.fixture
def count(own_registry):
    exercise("count", reference=2048, mistakes=[Mistake(4096, "each factor counts once")])
