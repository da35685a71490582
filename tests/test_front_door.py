"""What a package of utils/ exports can be had, and nothing else can."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

from utils.front_door import front_door
from utils.models import ROOT

PACKAGES = sorted(
    f"utils.{path.parent.name}"
    for path in ROOT.glob("utils/*/__init__.py")
    if "front_door(" in path.read_text(encoding="utf-8")
)


def test_most_packages_have_one():
    assert len(PACKAGES) >= 8


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_there_once_and_no_other_is(name):
    package = import_module(name)
    assert package.__all__ == dir(package) == sorted(set(package.__all__)) and len(package.__all__) > 1
    for exported in package.__all__:
        assert getattr(package, exported) is not None
        # a module of the same name would be what the second one to ask gets
        assert not isinstance(getattr(package, exported), ModuleType), f"{name}.{exported}"
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_a_name_is_taken_from_its_module_when_it_is_asked_for():
    get, names, exported = front_door("utils.lora", {"layer": "LoRALinear inject", "lowrank": "svd"})
    assert names() == exported == ["LoRALinear", "inject", "svd"]
    assert get("inject") is import_module("utils.lora.layer").inject
    with pytest.raises(AttributeError):
        get("layer")
