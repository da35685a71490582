"""The harness's task holds the course's prompts, and where both have measured they agree."""

import json

from tools.harness import OUT, write_task
from utils.tinyworld import task_examples


def test_the_task_is_the_courses_prompts_and_answers(tmp_path):
    assert write_task(tmp_path, "style", 5) == "course_style"
    config = json.loads((tmp_path / "course_style.yaml").read_text(encoding="utf-8"))
    data = config["dataset_kwargs"]["data_files"]["test"]
    rows = [json.loads(line) for line in open(data, encoding="utf-8")]
    assert [(row["prompt"], row["answer"]) for row in rows] == [
        (e.prompt, e.answer) for e in task_examples("style", "test", 5)
    ]
    assert config["output_type"] == "generate_until" and config["generation_kwargs"]["do_sample"] is False


def test_the_harness_and_the_course_mark_alike():
    record = json.loads(OUT.read_text(encoding="utf-8"))
    assert len(record["rows"]) == 8 and record["prompts"] == 200
    assert [row["harness"] for row in record["rows"]] == [row["course"] for row in record["rows"]]
    assert any(0 < row["course"] < 1 for row in record["rows"])
