"""Chapter 0's report: complete, honest about what is missing, and fit to be pasted in public."""

import getpass
import platform
import re
import socket
import tomllib
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from utils.course import environment
from utils.models.configs import SHAPES
from utils.profiling import memory
from utils.profiling.fit import needed


def test_this_environment_can_run_the_course():
    report = environment.report()
    assert report.ready, str(report)
    assert str(report).endswith("GO: this machine can run the course.")


def test_every_package_of_the_course_has_its_line():
    project = tomllib.loads((environment.ROOT / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(text).name for text in project["dependencies"]}
    seen = {row.what for row in environment.report().rows}
    assert wanted | {"Python", "system", "host", "processors", "memory", "device", "bf16"} == seen


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
        torch.cuda,
        "get_device_properties",
        lambda i: SimpleNamespace(name="Tesla T4", total_memory=15_800_000_000, major=7),
    )
    monkeypatch.setattr(environment, "what_trains", lambda room, bf16, hopper: f"{room} {bf16} {hopper}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    device, bf16, fits = environment.device_rows()
    assert fits.found == f"15800000000 {native} False"
    assert device.found == "CUDA: Tesla T4, 15.8 GB"
    assert bf16.found == expected
    assert not device.advice + bf16.advice, "no GPU and no bf16 are facts, not faults"


@pytest.mark.parametrize(("bf16", "dtypes"), [(False, {"float32", "float16"}), (True, {"bfloat16"})])
def test_what_trains_on_a_gpu_is_what_the_estimator_says_in_the_dtypes_that_it_has(monkeypatch, bf16, dtypes):
    asked = []

    def predict(step):
        asked.append(step)
        bytes_each = {"lora": 4 if step.dtype == "float32" else 2, "qlora": 0.7}[step.method]
        return SimpleNamespace(peak=SHAPES[step.model] * bytes_each)

    monkeypatch.setattr(memory, "predict", predict)
    said = environment.what_trains(15_600_000_000, bf16=bf16)
    assert {step.dtype for step in asked} == dtypes and all(step.checkpointing for step in asked)
    lora, qlora = re.fullmatch(r"LoRA up to (\S+) \([\d.]+ GB\), QLoRA up to (\S+) \([\d.]+ GB\)", said).groups()
    for way, largest in (("lora", lora), ("qlora", qlora)):
        needs = {step.model: needed(predict(step).peak) for step in list(asked) if step.method == way}
        assert needs[largest] <= 15_600_000_000 < min(size for size in needs.values() if size > needs[largest])
    assert (lora, qlora) == (("Llama-3.2-3B", "Llama-2-13B") if not bf16 else ("Llama-2-7B", "Llama-2-13B"))


def test_a_gpu_on_which_nothing_trains_is_told_so(monkeypatch):
    monkeypatch.setattr(memory, "predict", lambda step: SimpleNamespace(peak=9e9))
    assert environment.what_trains(2_000_000_000, bf16=True) == "LoRA up to nothing, QLoRA up to nothing"
