"""A piece of work in a process of its own, killed before a step of it on the disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

STEPS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "tempfile.mkdtemp"}  # audit events

POSSIBLE = hasattr(os, "fork")


def killed(work: Callable[[], object], kill_at: int) -> bool:
    """Run `work` in a process of its own, which SIGKILL ends before its step `kill_at`; whether it got so far."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL)
        return status != 0
    steps = 0

    def step(event: str, _: object) -> None:
        nonlocal steps
        if event not in STEPS:
            return
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(step)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
