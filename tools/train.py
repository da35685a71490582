"""One training run from one YAML file, on one process or under a launcher on many.

    python tools/train.py tools/engines/recipe.yaml
    accelerate launch --config_file tools/engines/ddp.yaml tools/train.py tools/engines/recipe.yaml
    python tools/train.py --consolidate CHECKPOINT --output FOLDER      an ordinary PEFT folder from shards

`tools/engines` has the engines: ddp, fsdp2, fsdp2_qlora, zero3. The keys of the file are those of
`utils.train.run_file.RunFile`. Paths are counted from the folder where the command runs. A run that was stopped goes on
from its last checkpoint by the same command under the same engine, on any number of processes that divides
global_batch_size; under ZeRO-3 on the same number.

Attributes:
    SAID_ONCE: Seconds that the other processes of a host wait for its first to say what is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAID_ONCE = 10.0


def read_recipe(path: str | Path):
    """The run that a YAML file describes. Raises what :func:`tools.run_yaml.read_yaml` and
    :func:`utils.train.run_file.checked_run` raise."""
    from tools.run_yaml import read_yaml
    from utils.train.run_file import checked_run

    return checked_run(read_yaml(path), Path(path).name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="the YAML file of the run")
    parser.add_argument("--output", help="the adapter's folder, in the place of the file's")
    parser.add_argument("--consolidate", metavar="CHECKPOINT", help="make a PEFT folder of this checkpoint")
    args = parser.parse_args(arguments)
    try:
        if args.consolidate:
            if not args.output:
                parser.error("--consolidate needs --output")
            from utils.train.consolidate import consolidate

            print(f"The adapter is in {consolidate(args.consolidate, args.output)}")
            return 0
        if not args.recipe:
            parser.error("the recipe's file is missing")
        run = read_recipe(args.recipe)
        if args.output:
            run = dataclasses.replace(run, output=args.output)

        from utils.train import engine_run

        folder = engine_run.train(run)
        if engine_run.ranks().main:
            print(f"The adapter is in {folder}")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SAID_ONCE)  # a mistake in the file is every process's: the first says it, the launcher stops us
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the folder of this file, whose `site` would hide Python's own
    sys.exit(main())
