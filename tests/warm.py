"""Python processes that begin with TRL, PEFT and transformers imported, for tests that start many.

Importing them takes seven seconds of a core, more than six training steps of the tiny model, and a launcher starts two
processes each time. :func:`warm_python` imports them once, in a server that forks. The path that it gives is called as
Python is, with a script or with ``-m``, and what it starts is a process of its own, with the caller's folder,
variables, input and output, and one thread. The course's own modules are imported anew in each. Signals go through both
ways, SIGKILL too.

Only where processes can be forked and a file descriptor stands for one, which is Linux; elsewhere it is Python itself.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LIBRARIES = "from trl import SFTConfig, SFTTrainer; import accelerate.commands.launch, bitsandbytes, peft"


@contextmanager
def warm_python(imports: str = LIBRARIES) -> Iterator[str]:
    """The path of a program that is called as Python is, while the block runs; `imports` is what it begins with."""
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    with tempfile.TemporaryDirectory(prefix="warm") as folder:  # short: a socket's path has at most 107 bytes
        address, program = f"{folder}/socket", Path(folder) / "python"
        words = [sys.executable, "-IS", __file__, "call", address]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)
        command = [sys.executable, __file__, "serve", address, imports]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # read as PyTorch is imported
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdin is not None
            if server.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the server of warm processes ended with exit code {server.wait()}")
            try:
                yield str(program)
            finally:
                server.stdin.close()  # it ends at that, and also when this process is killed


# ------------------------------------------------------------------------------------------------- what is called


def _call(address: str, words: list[str]) -> NoReturn:
    """Have a process started, hand signals on to it, and end as it does."""
    with socket.socket(socket.AF_UNIX) as server:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        server.connect(address)
        job = json.dumps({"words": words, "folder": os.getcwd(), "variables": dict(os.environ)}).encode()
        socket.send_fds(server, [len(job).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(job)
        said = server.recv(16)
    if not said:
        sys.exit("the server of warm processes is gone")
    if (status := int(said)) < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


# ------------------------------------------------------------------------------------------------------ the server


def _serve(address: str, imports: str) -> list[str] | None:
    """Fork for each caller until the input ends. In the process that was forked to run it gives the words of the call,
    in the server None.
    """
    exec(imports, {})
    gc.collect()
    gc.freeze()  # else a full collection in a forked process looks at, and so copies, all of it
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listening, 0], [], [])
            if 0 in ready:
                return None
            caller, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                return _watch(caller)
            caller.close()
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                pass


def _watch(caller: socket.socket) -> list[str]:
    """Fork once more: the child gives the words of the call; this process hands signals to it and its end back."""
    size, files, _, _ = socket.recv_fds(caller, 8, 3)
    text = caller.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    if (child := os.fork()) == 0:
        caller.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        job = json.loads(text)
        os.environ.clear()
        os.environ.update(job["variables"])
        os.chdir(job["folder"])
        sys.stdout.reconfigure(line_buffering=True)
        return job["words"]
    for file in (0, *files):
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([caller, ended], [], [])[0]):
        assert ready == [caller]
        number = caller.recv(1)
        os.kill(child, number[0] if number else signal.SIGKILL)
        if not number:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    try:
        caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    except OSError:  # the caller was killed
        pass
    os._exit(0)


def _run(words: list[str]) -> None:
    """As Python runs ``-m module arguments`` or ``script arguments``; ``-u`` is the case anyway."""
    words = words[1:] if words[0] == "-u" else words
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "call":
        _call(sys.argv[2], sys.argv[3:])
    called = _serve(*sys.argv[2:])
    if called is not None:
        _run(called)
