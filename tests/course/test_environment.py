"""Chapter 0's report: complete, honest about what is missing, and fit to be pasted in public."""

import getpass
import platform
import socket
import tomllib
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from utils.course import environment


def test_this_environment_can_run_the_course():
    report = environment.report()
    assert report.ready, str(report)
    assert str(report).endswith("GO: this machine can run the course.")


def test_every_package_of_the_course_has_its_line():
    project = tomllib.loads((environment.ROOT / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(text).name for text in project["dependencies"]}
    seen = {row.what for row in environment.report().rows}
    assert wanted | {"Python", "system", "Colab", "processors", "memory", "device", "bf16"} == seen


def test_nothing_private_is_in_it():
    text = str(environment.report())
    assert "/" not in text.replace("and/or", "")
    assert "\\" not in text
    for private in (socket.gethostname(), getpass.getuser()):
        assert private not in text.split()


def test_a_missing_package_is_a_no_go_with_the_command_that_mends_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", missing)
    report = environment.Report((environment.package_row(Requirement("peft>=0.18,<1")),))
    assert not report.ready
    assert "NO  peft  missing" in str(report)
    assert 'NO-GO. What to do:\n- peft: pip install "peft<1,>=0.18"' in str(report)


@pytest.mark.parametrize(("found", "fine"), [("0.17.9", False), ("0.18", True), ("0.21.2", True), ("1.0", False)])
def test_a_version_is_held_against_its_range(monkeypatch, found, fine):
    monkeypatch.setattr(environment, "version", lambda name: found)
    row = environment.package_row(Requirement("peft>=0.18,<1"))
    assert (row.advice == "") == fine
    assert found in row.found


def test_an_old_python_is_a_no_go(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.8.10")
    row = environment.python_row(">=3.11")
    assert row.found == "3.8.10"
    assert ">=3.11" in row.advice


def test_too_little_memory_is_a_no_go(monkeypatch):
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: SimpleNamespace(total=2_000_000_000))
    (row,) = [row for row in environment.machine_rows() if row.what == "memory"]
    assert row.found == "2.0 GB"
    assert "4 GB are needed" in row.advice


@pytest.mark.parametrize(("native", "expected"), [(True, "yes"), (False, "no: on this GPU use float16 or float32")])
def test_a_gpu_says_whether_it_has_bf16(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name="Tesla T4", total_memory=15_800_000_000)
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    device, bf16 = environment.device_rows()
    assert device.found == "CUDA: Tesla T4, 15.8 GB"
    assert bf16.found == expected
    assert not device.advice + bf16.advice, "no GPU and no bf16 are facts, not faults"
