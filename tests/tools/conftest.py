"""The trial lesson, built once."""

import shutil
from dataclasses import replace

import pytest

from tests.tools.trial import LESSON, course_at
from tools.build.__main__ import main


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The trial lesson, built once; tests that change something copy it."""
    course = course_at(tmp_path_factory.mktemp("course"), **{"00_trial": LESSON})
    assert main([], course) == 0
    return course


@pytest.fixture
def copied(built, tmp_path):
    shutil.copytree(built.root, tmp_path / "copy")
    return replace(built, root=tmp_path / "copy")
