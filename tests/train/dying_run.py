"""A run as tools/train.py makes it, whose rank DIE_RANK kills itself with SIGKILL as step DIE_STEP begins; with
NO_SHARDING one that leaves accelerate as it is on CPUs."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools import train  # noqa: E402
from utils.train import engine_run  # noqa: E402


def killing(make):
    def at_the_engine(adapter):
        callback = make(adapter)

        def on_step_begin(args, state, control, **kwargs):
            if state.global_step + 1 == int(os.environ.get("DIE_STEP", "0")) and engine_run.ranks().rank == int(
                os.environ["DIE_RANK"]
            ):
                print(f"killed at {time.time()}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        callback.on_step_begin = on_step_begin
        return callback

    return at_the_engine


if __name__ == "__main__":
    engine_run.at_the_engine = killing(engine_run.at_the_engine)
    if "NO_SHARDING" in os.environ:
        engine_run.shard_on_cpu = lambda: False
    sys.exit(train.main())
