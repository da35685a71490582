"""The script on chapter 9's first screen, run as a file of its own on a reader's records, outside the repository."""

import json
import os
import re
import subprocess
import sys

import pytest

from utils.models import ASSETS
from utils.models.device import ROOT


def script() -> str:
    """The code cells before the second section, one after the other."""
    lesson = (ROOT / "lessons" / "09_sft_training.md").read_text(encoding="utf-8")
    opening = lesson[: lesson.index("\n## ")]
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", opening, re.M | re.S))


def with_own(code: str, **values: str) -> str:
    """The script with other values for names such as MODEL, and without the import that finds the course's files."""
    for name, value in values.items():
        code, changed = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.M)
        assert changed == 1, name
    code, changed = re.subn(r"^from utils\.models import ASSETS.*\n", "", code, flags=re.M)
    assert changed == 1 and "utils" not in code, "own data needs nothing of the course"
    return code


@pytest.mark.slow
def test_the_script_runs_as_a_file_on_a_readers_records_and_leaves_an_adapter(tmp_path):
    records = [
        {"instruction": f"Say number {i}." + " The day was warm and the sky was blue." * (60 if i < 10 else 1),
         "output": f"The number is {i}."}
        for i in range(40)
    ]  # fmt: skip
    for i in range(0, 40, 4):  # some people have chats
        asked, answer = records[i].values()
        turns = [("user", "Hello."), ("assistant", "Hello!"), ("user", asked), ("assistant", answer)]
        records[i] = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    code = with_own(script(), MODEL=(ASSETS / "tiny-llama").as_posix(), FILE="mine.jsonl")
    (tmp_path / "train.py").write_text(code, encoding="utf-8")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env={**alone, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept, at_limit, steps = map(
        int, re.search(r"36 -> (\d+) training examples, (\d+) .*\n(\d+) steps", done.stdout).groups()
    )
    assert 26 <= kept <= 30, "the long prompts' answers are cut off, the examples dropped, and that is printed"
    assert at_limit == 0 and steps == 3 * -(-kept // 8)
    assert re.search(r"held-out loss \d", done.stdout) and "Say number" in done.stdout.splitlines()[-1]
    out = tmp_path / "scratch" / "pirate"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (out / "adapter").iterdir()}
    checkpoints = {int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*")}
    assert steps in checkpoints, "to go on from after a crash"


def test_what_the_lesson_says_of_the_knobs_and_of_200_examples_holds_seed_by_seed():
    record = json.loads((ASSETS / "measurements" / "sft.json").read_text(encoding="utf-8"))
    knobs = record["knobs"]
    rates = [
        knobs[name] for name in ("learning rate 0.0002", "learning rate 0.0006", "learning rate 0.002", "unchanged")
    ]
    for lower, higher in zip(rates, rates[1:], strict=False):
        assert all(a <= b for a, b in zip(lower, higher, strict=True))
    assert rates[2] == [0.42, 0.115, 0.135] and not any(rates[0] + rates[1])
    assert all(a > b for a, b in zip(knobs["no warm-up"], knobs["unchanged"], strict=True))
    assert knobs["batch 4 x 2 accumulated"] == knobs["unchanged"]
    assert round(100 * max(max(scores) - min(scores) for scores in knobs.values()), 1) == 30.5

    few, many = ([rows[-1]["unseen"] for rows in record["overfit"][count]] for count in ("200", "4000"))
    assert all(a > b for a, b in zip(few, many, strict=True)) and (few, many) == ([0.33, 0.36, 0.15], [0.03, 0.2, 0.07])
