"""Chapter 18's records: where they are from, what they may be quoted for, and the goals, missed ones included."""

import importlib
import json

import pytest
import torch

from utils.models import ASSETS
from utils.profiling.step_costs import LayerRecord, StepRecord, deep_gradients, layer_step
from utils.profiling.traffic import operations

LAYER, SECOND, STEP = LayerRecord(), LayerRecord("layer_h200"), StepRecord()
SIZES = [(4096, 4096), (4096, 11008), (11008, 4096)]
PEFT, TOGETHER = "PEFT as it comes", "fast, together"


def median(row):
    return next(row[unit]["median"] for unit in ("microseconds", "milliseconds") if unit in row)


@pytest.mark.parametrize(("record", "gpu"), [(LAYER, "H100"), (SECOND, "H200"), (STEP, "H100")])
def test_a_record_says_where_when_and_with_what_and_every_time_has_its_spread(record, gpu):
    head = record.head
    assert gpu in head["hardware"] and head["date"] and head["commit"] and head["seed"] == 0
    assert {"torch", "transformers", "peft", "cuda"} <= head["versions"].keys()
    assert len({row["key"] for row in record.rows}) == len(record.rows)
    for row in record.rows:
        for unit in ("microseconds", "milliseconds"):
            if unit in row:
                took = row[unit]
                assert 0 < took["lower"] <= took["median"] <= took["upper"] and took["runs"] >= 8


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_a_layers_results_are_pefts_within_bf16_rounding(d_in, d_out):
    roundings = {"y": 5, "dx": 5, "dA": 3, "dB": 3}  # as tests/lora/test_fused.py derives them
    for tokens in (512, 2048, 8192):
        off = LAYER.row("fast", tokens, d_in, d_out)["off"]
        assert all(off[name] <= count * 2**-9 for name, count in roundings.items())


@pytest.mark.parametrize(("d_in", "d_out", "over_floor", "faster"), [(*s, *b) for s, b in zip(SIZES, (
    (1.35, 1.9),  # the goal was 1.20 over the floor: missed by the square layer alone, met by three together
    (1.20, 1.9),
    (1.20, 1.8),  # the goal was 1.9 times as fast as PEFT: missed here
), strict=True)])  # fmt: skip
def test_the_layer_at_8192_tokens(d_in, d_out, over_floor, faster):
    floor, ours, peft = (LAYER.row(way, 8192, d_in, d_out) for way in ("frozen", "fast", PEFT))
    assert median(ours) <= over_floor * median(floor)
    assert median(peft) >= faster * median(ours)
    assert ours["peak_mib"] <= 1.02 * floor["peak_mib"] and peft["peak_mib"] >= 3 * ours["peak_mib"]


def test_a_compiled_plain_layer_is_slower_and_keeps_more_than_the_fast_one():
    ours = SECOND.row("fast", compiled=True)
    for way in ("plain, compiled", "plain, 16-bit, compiled"):
        theirs = SECOND.row(way, compiled=True)
        assert theirs["microseconds"]["lower"] > ours["microseconds"]["upper"]
        assert theirs["peak_mib"] > 1.4 * ours["peak_mib"]


def test_three_layers_together_stay_within_the_goal():
    assert median(LAYER.three(TOGETHER)) <= 1.20 * median(LAYER.three("frozen"))
    assert median(LAYER.three(PEFT)) >= 1.9 * median(LAYER.three(TOGETHER))


@pytest.mark.parametrize("targets", ["q,k,v,o", "all-linear"])
def test_a_whole_step_is_a_quarter_faster_than_pefts_and_takes_less_memory(targets):
    ours, peft = STEP.row(targets, TOGETHER), STEP.row(targets, PEFT)
    assert median(peft) >= 1.25 * median(ours)
    assert ours["peak_mib"] < peft["peak_mib"]
    assert ours["batch"] == peft["batch"] == 4 and ours["length"] == peft["length"] == 512


def test_the_count_of_bytes_predicts_a_lower_bound():
    from peft import LoraConfig, get_peft_model
    from torch import nn

    def with_peft(linear):
        return get_peft_model(nn.Sequential(linear), LoraConfig(r=16, lora_alpha=32, target_modules=["0"]))

    floor = LAYER.least(operations(layer_step(lambda linear: linear.requires_grad_(False))))
    ratio = LAYER.least(operations(layer_step(with_peft))) / floor
    assert 0.75 * LAYER.row(PEFT)["ratio"] < ratio < LAYER.row(PEFT)["ratio"]


def test_what_was_not_measured_is_not_made_up():
    with pytest.raises(ValueError, match="0 rows"):
        LAYER.row("fast", tokens=123)
    with pytest.raises(ValueError, match="0 rows"):
        STEP.row("all-linear", TOGETHER, checkpointing=True)


def test_deep_gradients_are_the_same_model_for_everybody():
    from utils.lora import inject
    from utils.lora.fused import use_fused

    def plain(model):
        inject(model, ["q_proj", "down_proj"], 4, 8)
        return model

    def fast(model):
        use_fused(plain(model))
        return model

    one, other = (deep_gradients(how, torch.float64, layers=2) for how in (plain, fast))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_tools_run_in_trial_and_go_on_where_they_stopped(tmp_path, capsys):
    layer = importlib.import_module("tools.gpu.layer")

    layer.run(tmp_path, True, 60.0)
    before = json.loads((tmp_path / "layer.json").read_text())
    assert any(row.get("way") == "fast" for row in before["rows"])
    capsys.readouterr()
    layer.run(tmp_path, True, 60.0)
    assert json.loads((tmp_path / "layer.json").read_text())["rows"] == before["rows"]
    assert capsys.readouterr().out == ""
    assert not (ASSETS / "measurements" / ".layer.json").exists()
