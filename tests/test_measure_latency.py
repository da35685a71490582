"""utils.latency and the record of tools/measure_latency.py: what is in it, and what it may be quoted for."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys

import pytest
import torch
from transformers.utils import ModelOutput

from utils import latency
from utils.model_forms import FORMS
from utils.models import ASSETS, ROOT

sys.path.insert(0, str(ROOT / "tools"))

import measure_latency as tool  # noqa: E402

RECORD = json.loads((ASSETS / "measurements" / "latency.json").read_text())


def rows_of(part):
    return {(row["targets"], row["form"], row["batch"]): row for row in RECORD[part]["rows"]}


@pytest.mark.parametrize("part", ["cpu", "gpu"])
def test_every_setting_was_measured_once_and_the_record_says_where(part):
    record, rows = RECORD[part], rows_of(part)
    forms = [form for form in FORMS if part == "gpu" or "16 bits" not in form]
    assert set(rows) == {(t, f, b) for t in tool.TARGETS for f in forms for b in tool.BATCHES}
    assert len(rows) == len(record["rows"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", record["date"]) and record["hardware"] and record["seed"] == tool.SEED
    assert set(record["versions"]) == {"torch", "transformers", "peft"} and record["prompt"] and record["new_tokens"]
    for row in rows.values():
        for phase in ("prefill", "decode"):
            assert 0 < row[phase]["lower"] <= row[phase]["median"] <= row[phase]["upper"] and row[phase]["runs"] >= 8


@pytest.mark.parametrize("targets", list(tool.TARGETS))
def test_where_the_gpu_works_the_record_is_steady_and_merging_costs_nothing(targets):
    """Prefill of eight texts: what chapter 10 quotes. The rest is the CPU's launches, and noisy."""
    times = {form: rows_of("gpu")[targets, form, 8]["prefill"]["median"] for form in FORMS}
    assert times["base again"] == pytest.approx(times["base"], rel=0.01)
    assert times["merge_and_unload"] == pytest.approx(times["base"], rel=0.01)
    assert times["merge_adapter"] == pytest.approx(times["base"], rel=0.02)
    assert times["base"] * 1.05 < times["adapter in 16 bits"] < times["adapter"]


@pytest.mark.parametrize("targets", list(tool.TARGETS))
@pytest.mark.parametrize("batch", tool.BATCHES)
def test_an_unmerged_adapter_decodes_at_more_than_the_guides_cost(targets, batch):
    rows = rows_of("gpu")
    assert rows[targets, "adapter", batch]["decode"]["lower"] > 1.5 * rows[targets, "base", batch]["decode"]["upper"]


def test_the_spread_is_median_and_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    found = latency.spread(values)
    assert found == (3.0, 2.0, 4.0, 5) and found.median == statistics.median(values)
    with pytest.raises(ValueError, match="at least 4"):
        latency.spread(values[:3])


class Counting:
    """A model that notes what goes through it, and has its cache under the name of before transformers 5.24."""

    def __init__(self):
        self.shapes = []

    def __call__(self, input_ids, use_cache, past_key_values=None, logits_to_keep=0):
        self.shapes.append((tuple(input_ids.shape), past_key_values))
        return ModelOutput(logits=torch.zeros(len(input_ids), 1, 5), past_key_values="cache")


def test_a_round_is_one_prefill_and_a_pass_for_each_token_and_warm_up_does_not_count():
    model = Counting()
    found = latency.measure(model, torch.ones(2, 7, dtype=torch.long), new_tokens=3, rounds=4, warm_up=2)
    assert model.shapes == 6 * [((2, 7), None), *3 * [((2, 1), "cache")]]
    assert found.prefill.runs == found.decode.runs == 4


@pytest.mark.parametrize("settings", [{"rounds": 3}, {"new_tokens": 0}])
def test_too_little_to_measure_is_refused(settings):
    with pytest.raises(ValueError, match="at least 4 rounds of 1 token"):
        latency.measure(Counting(), torch.ones(1, 2, dtype=torch.long), **settings)


def test_in_turns_every_way_is_called_in_every_round():
    calls = []
    works = {name: lambda n=name: calls.append(n) or (float(len(calls)), 1.0) for name in "ab"}
    found = latency.in_turns(works, rounds=4, warm_up=1)
    assert calls == ["a", "b"] * 5
    assert found["a"].prefill == latency.spread([3.0, 5.0, 7.0, 9.0]) and found["b"].decode.median == 1.0
    with pytest.raises(ValueError, match="at least 4"):
        latency.in_turns(works, rounds=3, warm_up=1)


def test_the_table_has_every_form_and_its_ratio_to_the_base():
    spreads = [latency.Spread(value, value, value, 4) for value in (2.0, 4.0, 3.0, 1.0)]
    found = {"base": latency.Latency(*spreads[:2]), "adapter": latency.Latency(*spreads[2:])}
    lines = latency.table(found, "Some GPU").splitlines()
    assert [line.split()[0] for line in lines] == ["Some", "base", "adapter"]
    assert lines[1].split()[1:] == ["2.00", "1.00", "4.00", "1.00"]
    assert lines[2].split()[1:] == ["3.00", "1.50", "1.00", "0.25"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_without_a_gpu_it_says_so():
    assert latency.on_this_gpu() == "there is no CUDA GPU here to measure"


def test_a_record_keeps_its_other_part(tmp_path):
    tool.write(tmp_path / "latency.json", {"gpu": {"a": 1}, "cpu": {"b": 1}})
    tool.write(tmp_path / "latency.json", {"cpu": {"b": 2}})
    assert json.loads((tmp_path / "latency.json").read_text()) == {"gpu": {"a": 1}, "cpu": {"b": 2}}
    assert [file.name for file in tmp_path.iterdir()] == ["latency.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "3"], "error: --rounds is 3; at least 4 give a spread"),
        pytest.param(
            ["--gpu"],
            "error: --gpu measures a GPU, and there is none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure"),
        ),
    ],
)
def test_what_can_not_be_measured_is_said(arguments, said):
    command = [sys.executable, "tools/measure_latency.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == said
