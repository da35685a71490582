"""Write the course's instruction data, assets/data/instructions, anew: the same bytes every time.

    python -m tools.make_dataset [--out FOLDER]

The records come from utils.tinyworld, whose tasks follow from a seed. Train and test share no prompt, because the split
that a prompt belongs to follows from its text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from utils.data.chat import Example
from utils.files import replaced_folder
from utils.tinyworld import TASKS, task_examples

ROOT = Path(__file__).resolve().parents[1]

OUT = ROOT / "assets" / "data" / "instructions"
PER_TASK = {"train": 450, "test": 50}
INSTRUCTIONS = {
    "sentiment": "Is this good or bad?",
    "translation": "Say it in French:",
    "summarization": "Moral:",
    "style": "Say it like a pirate:",
}

CARD = """---
license: apache-2.0
language: [en, fr]
task_categories: [text-generation]
size_categories: [1K<n<10K]
---

# The instruction data of lora-zero-to-hero

{train:,} records to train on (`train.jsonl`) and {test:,} to test with (`test.jsonl`), of four small tasks in equal
parts, one JSON object a line:

    {example}

| field | what it holds |
|---|---|
| instruction | what to do; there are four: {instructions} |
| input | the text to do it with, never empty |
| output | the one right answer |
| task | {tasks} |

The user's turn is `instruction`, a space, `input`. The tasks take turns, so that the first n records hold each alike.

**How it was made.** `python -m tools.make_dataset` writes these files from `utils/tinyworld/`, the generator of the
picture-book world that the course's tiny model knows, with a fixed seed and the same bytes every time. No person wrote
or labelled a record and none is about a person.

**Splits.** A prompt belongs to train or to test by its SHA-256, so the two share no prompt, and no record is in a file
twice. They do share words and sentence patterns: a high score on the test says that the task was learnt within this
world, and nothing about other texts.

**Limits.** The sentences are simple, the French is correct within the generator's few rules, and *good* and *bad* mean
what a picture book means by them. The data is made for lessons.

**Licence.** Apache-2.0, like the code that generates it.
"""


def record(task: str, example: Example) -> dict[str, str]:
    """An example as an instruction record. Raises ValueError when its prompt doesn't begin with the instruction."""
    instruction = INSTRUCTIONS[task]
    if not example.prompt.startswith(f"{instruction} "):
        raise ValueError(f"a prompt of {task} no longer begins with {instruction!r}: {example.prompt!r}")
    text = example.prompt.removeprefix(f"{instruction} ")
    return {"instruction": instruction, "input": text, "output": example.answer, "task": task}


def split(name: str) -> list[dict[str, str]]:
    """The records of "train" or "test"; the tasks take turns."""
    by_task = [[record(task, e) for e in task_examples(task, name, PER_TASK[name])] for task in TASKS]
    return [r for turn in zip(*by_task, strict=True) for r in turn]


def write(out: Path) -> None:
    """Write both files and the card into `out`; an interruption leaves the old ones."""
    splits = {name: split(name) for name in PER_TASK}
    with replaced_folder(out) as scratch:
        for name, records in splits.items():
            lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
            (scratch / f"{name}.jsonl").write_bytes(lines.encode("utf-8"))
        card = CARD.format(
            train=len(splits["train"]), test=len(splits["test"]),
            example=json.dumps(splits["train"][-1], ensure_ascii=False),
            instructions=", ".join(f"*{i}*" for i in INSTRUCTIONS.values()), tasks=", ".join(INSTRUCTIONS),
        )  # fmt: skip
        (scratch / "README.md").write_bytes(card.encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write into")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
