"""The command line of capstone.py: its options, and one line instead of a traceback when a run stops."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.files import expanded
from utils.train.run_folder import what_is_left
from utils.train.settings import Settings

LITTLE = 1_000_000
EXPORTS = ("gguf", "ollama", "vllm", "hub-dry-run")
MODELS = """the model, by the environment:
  COURSE_PROFILE=small  SmolLM2-135M-Instruct, on a CPU or any card; the choice for a first run on a file of yours
  COURSE_PROFILE=7b     Qwen2.5-7B-Instruct in 4 bits, on a CUDA card of 16 GB
  COURSE_MODEL=NAME     beside one of these, another model or folder
  without it            the course's tiny model, which knows picture-book stories and nothing else"""
TINY = "This is the course's tiny model: it shows how a run goes. For a model that knows language COURSE_PROFILE=small"


def command_line(description: str) -> argparse.ArgumentParser:
    """The parser. Its result has `data`, `out` and every field of :class:`utils.train.settings.Settings`."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=MODELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--data", required=True, type=_place, help="the file: .jsonl, .json, .csv, .tsv or .parquet, also .gz")
    add("--out", required=True, type=_place, help="a new folder for adapter, report and card")
    add("--epochs", type=float, help="passes over the records (default: 3; more below 34 records, fewer above 8,333)")
    add("--steps", type=int, help="or: optimizer steps")
    add(
        "--lr",
        type=float,
        help="the peak learning rate (default: by the model's width, 4e-3 for the tiny model, 2e-4 at 7B)",
    )
    add("--weight-decay", type=float, help="AdamW's, on A and B: a large one, such as 3, forgets less (default: 0)")
    add("--r", type=int, help="the rank (default: 8)")
    add("--alpha", type=float, help="lora_alpha (default: 2 r, with --rslora 2 sqrt(r): a scale of 2)")
    add("--rslora", action="store_true", help="scale by alpha / sqrt(r), not alpha / r (default: off)")
    add("--targets", nargs="+", metavar="NAME", help="layers that get an adapter (default: all-linear)")
    add(
        "--target-parameters",
        nargs="+",
        metavar="NAME",
        help="weights that are no layers and get one too, such as a mixture's experts (default: none)",
    )
    add(
        "--exclude",
        nargs="+",
        metavar="NAME",
        help="parts that get none, such as vision_tower (default: none)",
    )
    add("--batch-size", type=int, help="records at once (default: 8 for the tiny model, 4 for the small one, 2 at 7B)")
    add(
        "--accumulation",
        type=int,
        help="batches in one step (default: as many as make it 8 records; with --batch-size 1)",
    )
    add("--max-length", type=int, help="tokens where a record is cut (default: 1024, or what the model has)")
    add(
        "--held-out",
        type=_held_out,
        help="the share to test with, a number of records, or a file (default: 0.1, at most 200)",
    )
    add(
        "--general",
        metavar="FILE",
        type=_place,
        help="a text file of what the model mustn't forget, some pages of it (default: generated stories)",
    )
    add("--seed", type=int, help="of split, start and order (default: 0)")
    add("--four-bit", action="store_true", help="QLoRA: the base in 4 bits (default: under COURSE_PROFILE=7b)")
    add(
        "--export",
        nargs="+",
        choices=EXPORTS,
        metavar="WHERE",
        help=f"then write it for {', '.join(EXPORTS)} and try it there; of a finished --out that alone (default: none)",
    )
    add("--checkpointing", action="store_true", help="less memory, more time (default: under COURSE_PROFILE=7b)")
    return parser


def loading(profile: str, tokenizer: Any) -> str:
    """What is being loaded, in a line; of the tiny model that it is only that."""
    if profile == "tiny":
        return f"{TINY}\nLoading it ..."
    return f"Loading {tokenizer.name_or_path} ..."


def what_now(given: argparse.Namespace) -> str:
    """The last lines of a run: where things are, how the adapter is asked, and the command of a second run."""
    out = Path(given.out)
    again = ["python", "capstone.py", "--data", given.data, "--out", f"{out}-seed-1", "--seed", "1"]
    return (
        f"{out} holds the adapter, README.md (its card, with these results) and evaluation.json (every answer).\n"
        f'To ask it: the lines under "How to use" in {out / "README.md"}.\n'
        "To see how much is luck, the same with another seed and otherwise the same options: "
        f"{shlex.join(map(str, again))}"
    )


def to_export(given: argparse.Namespace, *, finished: bool = False) -> bool:
    """Whether the adapter is to be exported; with `finished`, whether it is there, so that only that is left."""
    if not getattr(given, "export", None):
        return False
    return not finished or (Path(given.out).is_dir() and (Path(given.out) / "adapter_config.json").is_file())


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings that were given, others at their defaults. Raises ValueError for one that no run can have."""
    fields = {field.name for field in dataclasses.fields(Settings)}
    chosen = {name: value for name, value in vars(given).items() if name in fields}
    if chosen.get("targets") == ["all-linear"]:
        chosen["targets"] = "all-linear"
    return Settings(**chosen).checked()


def _held_out(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return _place(text)


def _place(text: str) -> str:
    """A path, also where the shell left its ~ as it is: it does in quotes, and behind an equals sign."""
    return str(expanded(text)) if text.startswith("~") else text


@contextmanager
def one_line(parser: argparse.ArgumentParser, out: str | Path) -> Iterator[None]:
    """Inside the block, what stops a run ends the program with a line: what it was, what is left and how to go on.

    The exit code is 1, after Ctrl-C 130. What can't be the reader's file, settings or machine goes on as it is.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave(parser, 130, "interrupted", out)
    except (ValueError, OSError, MemoryError) as problem:
        _leave(parser, 1, f"error: {_said(problem, out)}", out)
    except Exception as problem:
        if type(problem).__name__ in ("ModelUnavailable", "OutOfMemoryError") or _is_full(out):
            _leave(parser, 1, f"error: {_said(problem, out)}", out)
        if left := what_is_left(out):
            print(left, file=sys.stderr)
        raise


def _said(problem: BaseException, out: str | Path) -> str:
    if type(problem).__name__ in ("OutOfMemoryError", "MemoryError"):
        return "the memory isn't enough: try a smaller --batch-size or --max-length, or --checkpointing, or --four-bit"
    if _is_full(out):
        return f"the disk that {out} is on is full"
    if isinstance(problem, OSError) and problem.filename and problem.strerror:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem)


def _is_full(out: str | Path) -> bool:
    place = next(folder for folder in (Path(out).resolve(), *Path(out).resolve().parents) if folder.exists())
    there = shutil.disk_usage(place)
    return bool(there.total) and there.free < LITTLE  # a folder of the system's own, as /proc, is on no disk


def _leave(parser: argparse.ArgumentParser, code: int, said: str, out: str | Path) -> None:
    left = what_is_left(out)
    parser.exit(code, "\n" * (code == 130) + said.strip().rstrip(".") + (f". {left}" if left else "") + "\n")
