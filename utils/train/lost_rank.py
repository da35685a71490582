"""What a process of a run says when another one is gone, instead of a long trace from inside a collective.

A launcher (torchrun, accelerate launch) ends the whole run when one process dies, by SIGTERM to the others. They are
inside a collective then, in C++, where Python's handlers don't run; so a thread hears the signal. Under gloo they may
notice first, by an exception about a closed connection.

Attributes:
    CLOSED: What such exceptions say, of gloo and of NCCL.
    WAIT: Seconds that a process with such an exception gives the launcher to stop it. If it raised at once, the
        launcher would call it the cause.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CLOSED = ("Connection closed by peer", "Connection reset", "Broken pipe", "Socket Timeout", "remote process exited")
WAIT = 10.0


@contextmanager
def says_when_another_ends(what_is_left: Callable[[], str]) -> Iterator[None]:
    """Within the block, on SIGTERM one sentence goes to stderr, with that of `what_is_left`, and this process ends with
    status 143 (128 + SIGTERM). An exception that a lost process causes waits for that signal; when none comes, as from
    a launcher on another host than the lost process, the sentence is said and the exception raised.

    Only for the main thread, and only in a process that a launcher started (`WORLD_SIZE` above 1); elsewhere the block
    runs as it is. `what_is_left` may do nothing collective: the others are gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # what C's handler does is write to the pipe
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(read_end, what_is_left), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in CLOSED):
            time.sleep(WAIT)
            _say(what_is_left)
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(write_end)


def _listen(read_end: int, what_is_left: Callable[[], str]) -> None:
    while heard := os.read(read_end, 1):
        if heard[0] == signal.SIGTERM:
            _say(what_is_left)
            os._exit(128 + signal.SIGTERM)
    os.close(read_end)


def _say(what_is_left: Callable[[], str]) -> None:
    rank, world = os.environ.get("RANK", "?"), os.environ.get("WORLD_SIZE", "?")
    try:
        left = what_is_left()
    except OSError as error:
        left = f"What is left can't be read ({error})"
    sys.stderr.write(
        f"\nRank {rank} of {world} stops, because another process of this run has ended: see the launcher's lines "
        "below for which. An exit code of -9 is SIGKILL, most often the system's when memory ran out. "
        f"{left or 'There is no checkpoint yet'}.\n"
    )
    sys.stderr.flush()
