"""The README says what is there: its chapters are the lessons, its table of tasks is the recorded one."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_chapters_are_the_lessons_with_their_titles_and_minutes():
    rows = re.findall(r"^\| (\d\d) \| \[(.*?)\]\(notebooks/(.*?)\.ipynb\) \| .*? \| (\d+) \|$", README, re.MULTILINE)
    lessons = sorted((ROOT / "lessons").glob("[0-9]*.md"))
    assert [stem for _, _, stem, _ in rows] == [lesson.stem for lesson in lessons]
    for (number, title, stem, minutes), lesson in zip(rows, lessons, strict=True):
        text = lesson.read_text(encoding="utf-8")
        assert stem.startswith(number)
        assert f"# Chapter {int(number)}: {title}\n" in text
        assert f"\nAbout {minutes} minutes." in text


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
