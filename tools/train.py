"""One training run from one YAML file, on one process or under a launcher on many.

    python tools/train.py tools/engines/recipe.yaml
    accelerate launch --config_file tools/engines/ddp.yaml tools/train.py tools/engines/recipe.yaml
    python tools/train.py --consolidate CHECKPOINT --output FOLDER      an ordinary PEFT folder from shards

`tools/engines` has the engines: ddp, fsdp2, fsdp2_qlora, zero3. The keys of the file are those of
`utils.train.run_file.RunFile`. Paths are counted from the folder where the command runs. A run that was stopped goes on
from its last checkpoint by the same command, on any number of processes that divides global_batch_size.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def read_recipe(path: str | Path):
    """The run that a YAML file describes. Raises ValueError for what isn't YAML or no run, naming it."""
    import yaml

    from utils.train.run_file import checked_run

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    return checked_run(content, Path(path).name)


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
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the folder of this file, whose `site` would hide Python's own
    sys.exit(main())
