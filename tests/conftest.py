"""What tests share: the tokenizer, the tiny base model and its guard, a registry of exercises; and no record."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from tests.warm import warm_python
from utils.course import progress
from utils.course.checks import core, registry
from utils.models import load_base, load_tokenizer

os.environ[progress.VARIABLE] = "off"  # what tests check, in processes that they start too, is nobody's progress


def pytest_collection(session: pytest.Session) -> None:
    """Python's garbage collector needn't look at what is imported and collected before the first test, neither now nor
    later: a million objects of PyTorch, transformers and pytest, half a second each time, and Optuna and accelerate ask
    for a full collection by themselves.
    """
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """From here on it collects, but for what is here already."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny model's tokenizer, loaded once in a process. A test that changes one loads its own."""
    return load_tokenizer()


@pytest.fixture(scope="session")
def warm():
    """A Python that begins with TRL, PEFT and transformers imported: the path of a program."""
    with warm_python() as python:
        yield python


@pytest.fixture(scope="session")
def loaded_base():
    """The tiny model, loaded once in a process; tests ask for `base` or `fresh_base`."""
    return load_base()[0]


def state_of(model: nn.Module) -> tuple[object, ...]:
    """What a test must leave as it was: modules, modes, hooks, and each parameter's version and need of a gradient.

    A tensor's version counts its changes in place; a parameter that was exchanged is another object.
    """
    modules = [
        (name, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    ]
    parameters = [
        (name, id(p), p._version, p.data_ptr(), p.requires_grad, p.grad is None) for name, p in model.named_parameters()
    ]
    return (*modules, *parameters)


@pytest.fixture
def base(loaded_base, request) -> Iterator[nn.Module]:
    """The tiny model for tests that only read it: the test fails that leaves it changed."""
    before = state_of(loaded_base)
    yield loaded_base
    changed = [new for old, new in zip(before, state_of(loaded_base), strict=False) if old != new]
    assert not changed, f"{request.node.nodeid} changed the shared model, ask for fresh_base: {changed[:3]}"


@pytest.fixture
def fresh_base(loaded_base) -> Callable[[], nn.Module]:
    """Makes copies of the tiny model, each for its test to change."""
    return lambda: copy.deepcopy(loaded_base)


@pytest.fixture
def own_registry(monkeypatch):
    """Each test registers its own exercises, in a kernel in which nothing has been tried."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(core, "_kernel", core._Kernel())
    monkeypatch.setattr(progress, "STRICT", False)
    torch.set_num_threads(1)
