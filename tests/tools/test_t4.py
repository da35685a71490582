"""tools/gpu/t4.py: torch says what it says on a T4, in every Python that is started with the stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tools.gpu import t4
from utils.models import ROOT
from utils.profiling import fit

GB = 1_000_000_000


def card(total=141 * GB, free=139 * GB, reserved=2 * GB, cards=2):
    """What the stand-in touches of torch, on a large card."""
    set_to, queued = {}, []
    real = SimpleNamespace(name="NVIDIA H200", total_memory=total, major=9, minor=0, multi_processor_count=132)
    cuda = SimpleNamespace(
        is_bf16_supported=lambda including_emulation=True: True,
        get_device_properties=lambda device=None: real,
        mem_get_info=lambda device=None: (free, total),
        memory_reserved=lambda device=None: reserved,
        device_count=lambda: cards,
        set_per_process_memory_fraction=lambda fraction, device: set_to.update({device: fraction}),
        _lazy_call=queued.append,
    )

    def get_device_capability(device=None):  # as torch's own does, it asks for the properties by their public name
        properties = cuda.get_device_properties(device)
        return properties.major, properties.minor

    cuda.get_device_capability = get_device_capability
    return SimpleNamespace(cuda=cuda), set_to, queued


def test_torch_says_what_it_says_on_a_t4_and_whose_card_it_is():
    torch, _, _ = card()
    t4.put_in_force(torch)
    cuda = torch.cuda
    assert cuda.get_device_capability() == cuda.get_device_capability(0) == (7, 5)
    assert not cuda.is_bf16_supported() and not cuda.is_bf16_supported(including_emulation=False)
    found = cuda.get_device_properties(0)
    assert (found.total_memory, found.major, found.minor, found.multi_processor_count) == (15_600_000_000, 7, 5, 132)
    assert found.name == "NVIDIA H200 standing in for a T4" and cuda.stand_in == "T4"
    assert cuda.mem_get_info() == (15_600_000_000 - 810_000_000 - 2 * GB, 15_600_000_000)
    with pytest.raises(AttributeError):
        _ = found.no_such_thing


def test_triton_compiles_for_the_card_that_is_there():
    """Told 7.5, it compiled kernels that the card can't run (chapter 14, on an H200)."""
    torch, _, _ = card()
    t4.put_in_force(torch)
    driver = {"__name__": "triton.backends.nvidia.driver", "asked": torch.cuda.get_device_capability}
    exec("found = asked(0)", driver)
    assert driver["found"] == (9, 0)


def test_what_others_took_of_the_card_and_a_full_limit_leave_less():
    for free, reserved, left in ((3 * GB, 2 * GB, 3 * GB), (100 * GB, 20 * GB, 0)):
        torch, _, _ = card(free=free, reserved=reserved)
        t4.put_in_force(torch)
        assert torch.cuda.mem_get_info()[0] == left


def test_the_allocator_is_limited_on_every_card_when_cuda_is_first_used_and_once():
    torch, set_to, queued = card()
    t4.put_in_force(torch)
    t4.put_in_force(torch)
    assert len(queued) == 1 and not set_to, "importing torch alone must not start CUDA"
    queued[0]()
    assert set_to == {0: pytest.approx(14.79 / 141), 1: pytest.approx(14.79 / 141)}
    torch, set_to, queued = card(total=8 * GB, cards=1)
    t4.put_in_force(torch)
    queued[0]()
    assert set_to == {0: 1.0}


def test_the_room_is_what_the_estimator_takes_it_for():
    assert t4.ROOM == t4.TOTAL - fit.CONTEXT


LOOKS = "import importlib.util; importlib.util.find_spec('torch'); import torch; print(torch.cuda.stand_in)"


def test_a_library_that_only_looks_for_torch_first_changes_nothing():
    """accelerate and transformers do, and torch came without the stand-in in two chapters."""
    command = [sys.executable, "-c", LOOKS]
    environment = t4.environment({**os.environ, "PYTHONPATH": str(ROOT)})
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "T4"


SAYS = """
import json, subprocess, sys
asked = "import torch; print(torch.cuda.is_bf16_supported(), torch.cuda.get_device_capability(), end=' ')"
asked += "; import utils.models.device as d; print(d.compute_dtype('cuda'), d.weights_dtype('cuda'), "
asked += "d.trainer_precision('cuda')['fp16'], torch.cuda.is_initialized())"
exec(asked)
sys.stdout.flush()
subprocess.run([sys.executable, "-c", asked], check=True)
"""


def test_a_started_python_and_the_one_that_it_starts_have_it_and_others_do_not(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.hidden = 'was run'\n")
    before = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=t4.environment(before),
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for code in (SAYS, "print(hidden)")
    ]
    line = "False (7, 5) torch.float16 torch.float32 True False"
    assert said == [[line, line], ["was run"]]
    assert t4.VARIABLE not in before and "at_start" not in before["PYTHONPATH"]
    off = {name: value for name, value in t4.environment(before).items() if name != t4.VARIABLE}
    code = "import torch; print(hasattr(torch.cuda, 'stand_in'))"
    done = subprocess.run([sys.executable, "-c", code], env=off, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_torch_that_is_there_already_is_changed_at_once(monkeypatch):
    torch, _, queued = card()
    monkeypatch.setitem(sys.modules, "torch", torch)
    t4.when_torch_comes()
    assert torch.cuda.stand_in == "T4" and len(queued) == 1
