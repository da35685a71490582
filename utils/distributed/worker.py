"""One of the processes that :mod:`utils.distributed.start` runs functions in: jobs on stdin, replies on stdout.

A process isn't bound to a rank: each job says rank, number of ranks and the file where they meet. What the function
prints is kept and goes back with its result; what C++ code writes goes to stderr, which the parent keeps in a file.
"""

from __future__ import annotations

import faulthandler
import io
import os
import pickle
import sys
import traceback
from contextlib import redirect_stdout
from datetime import timedelta
from typing import Any, BinaryIO, NamedTuple


class Job(NamedTuple):
    """A call to make as one rank of `world`. meet: the file through which the ranks find each other.

    function, arguments: by :mod:`utils.distributed.portable`. seconds: after so many the stack is written to stderr.
    timeout: seconds that a collective waits for the other ranks.
    """

    function: bytes
    arguments: bytes
    rank: int
    world: int
    meet: str
    seconds: float
    timeout: float


class Reply(NamedTuple):
    """How a job ended. printed: what it printed. result: pickled, None after an error.

    error: the exception's type, its text and its traceback from the reader's function on; None when all went well.
    """

    printed: str
    result: bytes | None
    error: tuple[str, str, str] | None


def perform(job: Job) -> Reply:
    """Join the group, call the function, and reply. The group stays until the parent says that all ranks are done."""
    import torch
    import torch.distributed as dist

    from utils.distributed.portable import unpack, unpack_arguments

    printed = io.StringIO()
    try:
        store = dist.FileStore(job.meet, job.world)
        dist.init_process_group(
            "gloo", store=store, rank=job.rank, world_size=job.world, timeout=timedelta(seconds=job.timeout)
        )
        torch.manual_seed(0)
        faulthandler.dump_traceback_later(job.seconds, exit=False)
        with redirect_stdout(printed):
            result = unpack(job.function)(*unpack_arguments(job.arguments))
        return Reply(printed.getvalue(), pickle.dumps(result), None)
    except BaseException as error:  # a rank's sys.exit too has to be told to the notebook
        stack = traceback.extract_tb(error.__traceback__)[1:]
        return Reply(
            printed.getvalue(), None, (type(error).__name__, str(error), "".join(traceback.format_list(stack)))
        )
    finally:
        faulthandler.cancel_dump_traceback_later()


def serve(jobs: BinaryIO, replies: BinaryIO) -> None:
    """Take jobs until the parent closes the pipe. None in the place of a job: all ranks are done, leave the group."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    _send(replies, "ready")
    while True:
        try:
            job: Job | None = pickle.load(jobs)
        except EOFError:
            return
        if job is not None:
            _send(replies, perform(job))
        elif dist.is_initialized():
            dist.destroy_process_group()


def _send(replies: BinaryIO, what: Any) -> None:
    pickle.dump(what, replies)
    replies.flush()


def main() -> None:
    """Serve on this process's own pipes."""
    channel = os.fdopen(os.dup(1), "wb")  # what is printed past redirect_stdout must not get between the replies
    os.dup2(2, 1)
    serve(sys.stdin.buffer, channel)
