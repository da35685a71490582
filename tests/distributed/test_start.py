"""Functions run in several processes: results, prints, errors, a time limit, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from utils.distributed import start
from utils.distributed.start import RankFailed, TookTooLong, run, stop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left():
    yield
    stop()
    assert not start._standing


def test_results_come_by_rank_and_prints_with_their_rank(capsys):
    results = run(_sum, torch.tensor([1.0]), processes=2)
    assert results == [(0, 3.0), (1, 3.0)]
    assert capsys.readouterr().out == "rank 0: I am 0\nrank 0: of 2\nrank 1: I am 1\nrank 1: of 2\n"


def _sum(tensor):
    print(f"I am {dist.get_rank()}\nof {dist.get_world_size()}")
    tensor *= 1 + dist.get_rank()
    dist.all_reduce(tensor)
    return dist.get_rank(), tensor.item()


def test_the_processes_stay_and_three_use_the_two_that_are_there():
    before, again = run(os.getpid), run(os.getpid, processes=3)
    assert again[:2] == before and len(set(again)) == 3 and os.getpid() not in again
    assert run(os.getpid) == before


def test_the_seed_is_the_same_on_all_ranks_and_in_each_run():
    first, second = run(_drawn)
    assert first == second == run(_drawn)[0]


def _drawn():
    return torch.rand(3).tolist()


def test_an_error_says_rank_type_text_and_line_and_the_next_run_works():
    with pytest.raises(RankFailed, match="rank 1 of 2 failed, ZeroDivisionError: division by zero") as caught:
        run(_fails)
    assert caught.value.rank == 1 and caught.value.kind == "ZeroDivisionError" and "in _fails" in str(caught.value)
    assert "worker.py" not in str(caught.value)
    assert run(_drawn)


def _fails():
    if dist.get_rank() == 1:
        raise ZeroDivisionError("division by zero")
    dist.all_reduce(torch.ones(1))  # waits for rank 1, and is not what is reported


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_rank_is_told_at_once():
    began = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1 of 2 failed, its process was killed by signal 9"):
        run(_killed, seconds=60)
    assert time.monotonic() - began < 30


def _killed():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def test_the_time_limit_says_who_waits_where():
    with pytest.raises(
        TookTooLong, match=r"not done after 1 s: rank 0 is in _alone, line \d+, which called all_reduce. Done: rank 1"
    ):
        run(_alone, seconds=1)


def _alone():
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))


def test_a_collective_gives_up_after_timeout():
    with pytest.raises(RankFailed, match="(?i)timed out") as caught:
        run(_alone, seconds=30, timeout=1)
    assert caught.value.rank == 0


def test_two_programs_at_once_do_not_meet():
    """A port of their own would clash here; each meets in a file of its own."""
    code = (
        "import torch.distributed as dist; from utils.distributed import run\n"
        "from tests.distributed.test_start import _sum\nimport torch\n"
        "if __name__ == '__main__': print(run(_sum, torch.ones(1), show=False))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    assert [p.communicate(timeout=120)[0].decode().strip() for p in both] == ["[(0, 3.0), (1, 3.0)]"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which processes are alive")
def test_a_process_ends_with_its_parent():
    code = (
        "import os; from utils.distributed import run\n"
        "if __name__ == '__main__': print(*run(os.getpid), flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    left = [int(pid) for pid in done.stdout.split()]
    until = time.monotonic() + 20
    while any(_is_alive(pid) for pid in left) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(left) == 2 and not any(_is_alive(pid) for pid in left)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(("wrong", "said"), [({"processes": 0}, "at least one process"), ({"seconds": 0}, "above 0")])
def test_numbers_that_make_no_run_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        run(_drawn, **wrong)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="leave out the \\(\\)"):
        run(3)
