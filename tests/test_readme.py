"""The README says what is there: its chapters are the lessons, its table of tasks is the recorded one."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_chapters_are_the_lessons_in_order():
    """That each row has its lesson's title and minutes is a house rule of the build."""
    rows = re.findall(r"^\| \d\d \| \[.*?\]\(notebooks/(.*?)\.ipynb\) \|", README, re.MULTILINE)
    assert rows == [lesson.stem for lesson in sorted((ROOT / "lessons").glob("[0-9]*.md"))]


def test_the_table_of_tasks_is_the_recorded_one():
    recorded = json.loads((ROOT / "assets" / "measurements" / "tasks.json").read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\| (sentiment|translation|summarization|style)\b.*? \| (.*?)% \| (.*?)%(.*) \|$", README, re.MULTILINE
    )
    assert [task for task, *_ in rows] == ["sentiment", "translation", "summarization", "style"]
    for task, base, adapter, rest in rows:
        assert float(base) == 100 * recorded[task]["base"]
        assert float(adapter) == 100 * recorded[task]["adapter"]
        if task == "sentiment":
            assert f"({100 * recorded[task]['unseen_words']}% with words that it was never trained on)" in rest


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\((.*?)\)", README) if "://" not in link]
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link
