"""Run a function in several processes of one gloo group, from a notebook, and bring back what they made of it.

The processes stay for the next call, since importing PyTorch takes longer than most of what a page runs. They meet
through a file in a temporary folder and not at a port, so that two notebooks, or two tests, never take each other's.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.distributed.portable import pack, pack_arguments
from utils.distributed.worker import Job, Reply

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class RankFailed(RuntimeError):
    """A rank raised, or its process ended. rank: which; kind: the exception's type, or "ended"; said: its text."""

    def __init__(self, rank: int, world: int, kind: str, said: str, stack: str = "") -> None:
        self.rank, self.kind, self.said = rank, kind, said
        what = f"its process {said}" if kind == "ended" else f"{kind}: {said}"
        super().__init__(f"rank {rank} of {world} failed, {what}" + (f"\n{stack.rstrip()}" if stack else ""))


class TookTooLong(TimeoutError):
    """The ranks weren't done in time. where: for each rank that wasn't, what it was waiting in."""

    def __init__(self, seconds: float, world: int, where: dict[int, str]) -> None:
        self.where = where
        done = [str(rank) for rank in range(world) if rank not in where]
        stuck = "; ".join(f"rank {rank} {said}" for rank, said in where.items())
        over = f". Done: rank {', '.join(done)}" if done else ""
        super().__init__(f"not done after {seconds:g} s: {stuck}{over}")


class _Process:
    """A worker process, with a thread that reads its replies."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        if name := LOOPBACK.get(sys.platform):
            environment.setdefault("GLOO_SOCKET_IFNAME", name)  # else gloo asks for the address of the machine's name
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from utils.distributed.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )
        self.replies: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        try:
            while True:
                self.replies.put(pickle.load(self.process.stdout))
        except Exception:  # the pipe's end, or what is no reply: either way nothing more comes
            self.replies.put(None)

    def send(self, job: Job | None) -> None:
        """Hand a job over; a process that has ended is noticed when its reply is awaited."""
        assert self.process.stdin is not None
        try:
            pickle.dump(job, self.process.stdin)
            self.process.stdin.flush()
        except OSError:
            pass

    def ended(self) -> str:
        """In words how the process ended, with the last line that it wrote to stderr."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "sent what is no reply"
        last = self.written().strip().splitlines()[-1:]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return how + (f"; its last line: {last[0]}" if last and code >= 0 else "")

    def written(self) -> str:
        """All that the process wrote to stderr."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass
        self.log.close()


_standing: list[_Process] = []


def stop() -> None:
    """End the processes that wait for another call; the next :func:`run` starts new ones."""
    while _standing:
        _standing.pop().kill()


atexit.register(stop)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    processes: int = 2,
    seconds: float = 60.0,
    timeout: float | None = None,
    show: bool = True,
) -> list[Any]:
    """Call ``function(*arguments)`` in `processes` processes of one gloo group, and return their results by rank.

    The processes see no GPU. In the function ``torch.distributed`` is ready: ``dist.get_rank()`` tells the ranks apart,
    and torch's seed is 0 on all of them. It may be a module's or the notebook's own; tensors among arguments and
    results travel as copies. What a rank prints is printed here when all are done, in the order of ranks, with its rank
    before each line (`show`).
    seconds: the time limit, from when all processes are up. timeout: how long a collective waits for the other ranks
    before it raises (None: longer than `seconds`).

    Raises ValueError for fewer than one process and for what can't be sent, :class:`RankFailed` when a rank raises or
    its process ends, with its traceback, and :class:`TookTooLong`, which says where each rank waits. After either all
    processes are ended, so that the next call begins anew.
    """
    if processes < 1 or seconds <= 0:
        raise ValueError(f"at least one process and a time above 0, not processes={processes} and seconds={seconds}")
    packed, given = pack(function), pack_arguments(arguments)
    try:
        group = _started(processes)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            meet = str(Path(folder) / "meet")
            for rank, process in enumerate(group):
                process.send(Job(packed, given, rank, processes, meet, seconds, timeout or seconds + 60))
            replies = _gathered(group, seconds)
            for process in group:
                process.send(None)
    except BaseException:  # KeyboardInterrupt too: a rank may hang
        stop()
        raise
    if show:
        for rank, reply in enumerate(replies):
            for line in reply.printed.splitlines():
                print(f"rank {rank}: {line}")
    return [pickle.loads(reply.result) for reply in replies if reply.result is not None]


def _started(count: int) -> list[_Process]:
    """The first `count` processes, alive and with PyTorch imported."""
    if any(process.process.poll() is not None for process in _standing):
        stop()
    new = [_Process() for _ in range(count - len(_standing))]
    _standing.extend(new)
    until = time.monotonic() + START_SECONDS
    for process in new:
        try:
            ready = process.replies.get(timeout=max(0.1, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"a process didn't start within {START_SECONDS:.0f} s: is the machine busy?") from None
        if ready is None:
            raise RuntimeError(f"a process {process.ended()}")
    return _standing[:count]


def _gathered(group: list[_Process], seconds: float) -> list[Reply]:
    """Each rank's reply. Raises :class:`RankFailed` for the first that fails, and :class:`TookTooLong`."""
    replies: dict[int, Reply] = {}
    until, failed = time.monotonic() + seconds, {}
    while len(replies) < len(group):
        for rank, process in enumerate(group):
            if rank in replies or rank in failed or process.replies.empty():
                continue
            reply = process.replies.get()
            if reply is None:
                failed[rank] = RankFailed(rank, len(group), "ended", process.ended())
            elif reply.error:
                failed[rank] = RankFailed(rank, len(group), *reply.error)
            else:
                replies[rank] = reply
            if failed:  # a killed rank makes others raise: what ended is the cause, else the first that raised
                until = min(until, time.monotonic() + 0.5)
        if len(replies) + len(failed) == len(group) and failed or time.monotonic() > until:
            break
        time.sleep(0.002)
    if failed:
        raise next((error for error in failed.values() if error.kind == "ended"), next(iter(failed.values())))
    late = [rank for rank in range(len(group)) if rank not in replies]
    if late:
        time.sleep(0.7)  # the processes write their stacks at the same moment
        where = {rank: _waiting(group[rank].written()) for rank in late}
        raise TookTooLong(seconds, len(group), where)
    return [replies[rank] for rank in range(len(group))]


_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (\S+)$', re.M)


def _waiting(stderr: str) -> str:
    """Where a rank is, from the stacks that faulthandler wrote: the innermost call, and the reader's line."""
    stacks = re.split(r"^(?:Current thread|Thread) .*$", stderr.rpartition("Timeout (")[2], flags=re.M)
    for stack in stacks:
        frames = _FRAME.findall(stack)
        outer = next((i for i, (file, _, _) in enumerate(frames) if Path(file).name == "worker.py"), 0)
        for index, (file, line, name) in enumerate(frames[:outer]):
            if "site-packages" in file or file.startswith(sys.base_prefix):
                continue
            inner = next((called for _, _, called in reversed(frames[:index]) if called != "wrapper"), "")
            return f"is in {name}, line {line}" + (f", which called {inner}" if inner else "")
    return "is in its function"
