"""Every record of assets/measurements says what wrote it, when, and from which seeds: the README promises it."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.gpu import record as gpu_record

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "assets" / "measurements").glob("*.json"))
MODULE = re.compile(r"(?:python -m |python3 )?([\w/.]+)")
DAY = re.compile(r"20\d\d-\d\d(-\d\d)?( \(.+\))?")


def _heads(content):
    """The record's own head; of a record that several commands write in turn, each one's."""
    return [content] if "what" in content or "threads" in content else list(content.values())


def _seeds(content):
    """All values under `seed` and `seeds`; in lists of choosing and reporting seeds, those."""
    if isinstance(content, dict):
        found = [v for k, v in content.items() if k in ("seed", "seeds", "choose", "report")]
        return found + [seed for value in content.values() for seed in _seeds(value)]
    return [seed for value in content for seed in _seeds(value)] if isinstance(content, list) else []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_its_tool_its_day_and_its_seeds(path):
    for head in _heads(json.loads(path.read_text(encoding="utf-8"))):
        assert DAY.fullmatch(head["date"]), "a day; with a note where the tool wrote none"
        named = MODULE.match(head["tool"]).group(1)
        file = named if named.endswith(".py") else named.replace(".", "/") + ".py"
        assert (ROOT / file).is_file() or (ROOT / file.removesuffix(".py") / "__main__.py").is_file(), head["tool"]
        assert _seeds(head), "the seeds; an empty list where nothing is drawn"


def test_a_record_of_a_gpu_names_the_command_that_runs(tmp_path, monkeypatch):
    main = SimpleNamespace(__spec__=importlib.util.find_spec("tools.measure_gpu"))
    monkeypatch.setitem(gpu_record.sys.modules, "__main__", main)
    assert gpu_record.Record(tmp_path / "x.json", "a trial", seed=0).head["tool"] == "python -m tools.measure_gpu"
