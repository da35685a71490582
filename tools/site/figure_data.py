"""What the website's figures ask the model: held-out prompts with their answers, for the figures "mixing" and "rank".

python -m tools.site.figure_data        writes site/figures/mixing/examples.json and site/figures/rank/examples.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from utils.tinyworld import TASKS, task_examples
from utils.tinyworld.tasks import Task

FIGURES = Path(__file__).resolve().parents[2] / "site" / "figures"
MIXING, RANK = 8, 40


def held_out(task: Task, count: int) -> list[dict[str, str]]:
    """`count` prompts that no training sees, with the right answers."""
    return [example._asdict() for example in task_examples(task, "test", count)]


def files() -> dict[Path, str]:
    """The figures' files and what they hold."""
    data = {
        FIGURES / "mixing" / "examples.json": {task: held_out(task, MIXING) for task in TASKS},
        FIGURES / "rank" / "examples.json": held_out("style", RANK),
    }
    return {path: json.dumps(rows, ensure_ascii=False, indent=1) + "\n" for path, rows in data.items()}


def write(texts: Mapping[Path, str]) -> None:
    """Write files, each with its text, in folders that are made."""
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(files())
