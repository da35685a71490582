"""utils.profiling.memory.predict held to what an H100 allocated, byte for byte to PEFT's own layers, and its guard."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

from tools.gpu import memory as tool
from utils import plots
from utils.models import ASSETS, ROOT, TINY_DIR
from utils.models.configs import llama_config
from utils.profiling import fit, memory_widget
from utils.profiling.memory import GB, KINDS, Setup, predict
from utils.profiling.peak import PeakTracker, rounded

RECORDS = {
    name: json.loads((ASSETS / "measurements" / f"{name}.json").read_text()) for name in ("memory", "memory_held_out")
}
ROWS = {row["key"]: row for record in RECORDS.values() for row in record["rows"]}
FITS = json.loads((ASSETS / "measurements" / "fits.json").read_text())
TECHNIQUES = json.loads((ASSETS / "measurements" / "techniques.json").read_text())["rows"]
LOADING = json.loads((ASSETS / "measurements" / "loading_7b.json").read_text())["rows"]
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
SMALL = llama_config(hidden=64, layers=3, heads=4, kv_heads=2, intermediate=96, vocabulary=300)


def setup_of(row):
    fields = dict(row["setup"])
    if isinstance(fields["target_modules"], list):
        fields["target_modules"] = tuple(fields["target_modules"])
    return Setup(**fields)


# ----------------------------------------------------------------------------------------------------- the recorded


def test_what_was_to_be_measured_was_measured_and_a_quarter_was_kept_apart():
    keys = [tool.name_of(setup) for setup in tool.setups()]
    assert len(set(keys)) == len(keys) >= 28 and set(ROWS) == set(keys)
    assert {row["key"] for row in RECORDS["memory_held_out"]["rows"]} == tool.held_out()
    assert len(tool.held_out()) == len(keys) // 4
    assert tool.held_out() == set(random.Random(6).sample(sorted(keys), len(keys) // 4))
    for record in RECORDS.values():
        assert record["hardware"].startswith("NVIDIA H100") and record["versions"]["torch"] and record["date"]
    assert all("out_of_memory" not in row for row in ROWS.values())


@pytest.mark.parametrize("key", list(ROWS))
def test_the_prediction_is_what_an_h100_allocated(key):
    """The bar is 5%. 1.5% is what we found at worst: what remains are pieces that the allocator doesn't split, and they
    weigh most in the smallest model.
    """
    row = ROWS[key]
    prediction = predict(setup_of(row))
    assert prediction.peak == pytest.approx(row["peak"], rel=0.015)
    assert prediction.phase == row["phase"]
    for phase, size in prediction.phases.items():
        assert size == pytest.approx(row["phases"][phase]["peak"], rel=0.05), phase
    assert prediction.resident == pytest.approx(row["resident"], rel=0.025)
    assert sum(prediction.parts.values()) == prediction.peak and set(prediction.parts) <= set(KINDS)


@pytest.mark.parametrize(
    "row", [r for r in TECHNIQUES if r["pieces"] == 1 and not r["autocast"]], ids=lambda row: row["key"]
)
def test_what_was_measured_later_for_chapter_11_was_predicted(row):
    """Measured when the predictor had long been as it is; the largest error found was 0.43%."""
    assert predict(setup_of(row)).peak == pytest.approx(row["peak"], rel=0.005)


@pytest.mark.parametrize(
    "row", [row for row in LOADING if "LoRA" in row["trains"]], ids=lambda r: f"{r['base']}{r['checkpointing']}"
)
def test_the_prediction_is_what_an_h200_allocated_for_chapter_5(row):
    method = "lora" if row["base"] == "bf16" else "qlora"
    setup = Setup(
        method=method, batch=4, target_modules=QKVO, checkpointing=row["checkpointing"], double="double" in row["base"]
    )
    assert predict(setup).peak == pytest.approx(row["peak"], rel=0.006)


# --------------------------------------------------------------------------------------------- the parts it is made of


def peak_of_peft(setup, adapters):
    """The same step with PEFT's own layers, on the meta device."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from utils.profiling.activations import checkpoint_blocks
    from utils.profiling.meta_layers import register_attention

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            setup.model, dtype=torch.bfloat16, attn_implementation=register_attention()
        )
        config = LoraConfig(r=setup.r, lora_alpha=16, target_modules=setup.target_modules, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapters)
    model.train()
    checkpoint_blocks(model.base_model.model, setup.checkpointing)
    tracker = PeakTracker()
    ids = torch.zeros(setup.batch, setup.length, dtype=torch.long, device="meta")
    tracker.hold([*model.parameters(), *model.buffers(), ids], "resident")
    resident = tracker.total
    with tracker:
        with tracker.during("forward"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        with tracker.during("backward"):
            loss.backward()
    return {phase: peak.total - resident for phase, peak in tracker.peaks.items()}


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_layers_that_stand_in_for_pefts_take_what_pefts_take(checkpointing, adapters):
    setup = Setup(
        SMALL, batch=2, length=40, checkpointing=checkpointing, optimizer="none",
        adapter_dtype=str(adapters).removeprefix("torch."), target_modules=list(QKVO),
    )  # fmt: skip
    prediction, theirs = predict(setup), peak_of_peft(setup, adapters)
    assert {phase: prediction.phases[phase] - prediction.resident for phase in theirs} == theirs


def test_the_tracker_counts_what_lives_and_forgets_what_dies():
    tracker = PeakTracker()
    with tracker, tracker.during("all"):
        a = torch.empty(1000, device="meta")
        b = a.view(10, 100)  # no bytes of its own
        c = a + 1
        del c
        d = torch.empty(1, device="meta", dtype=torch.uint8)
        assert tracker.total == rounded(4000) + 512
    assert tracker.peaks["all"].total == 2 * rounded(4000) and rounded(4000) == 4096
    del a
    assert tracker.total == 4096 + 512, "the view holds the storage"
    del b, d
    assert tracker.total == 0


def test_what_is_remembered_about_shapes_is_what_pytorch_says():
    x = torch.empty(4, 6, device="meta", dtype=torch.bfloat16)
    whole = torch.ones(3, 3, device="meta", dtype=torch.long)
    with PeakTracker():
        for _ in range(2):
            assert (x.t() + 1).stride() == (1, 6) and (x + 1).stride() == (6, 1)
            assert (whole * 1).dtype == torch.long and (whole * 1.0).dtype == torch.float32
            assert (whole * True).dtype == torch.long and x.float().dtype == torch.float32
            assert x.view(24).untyped_storage()._cdata == x.untyped_storage()._cdata
            assert nn.functional.linear(x, x).shape == (4, 4)


def test_a_linear_layers_step_by_hand():
    """Forward: input and output. Backward: the gradients of output, input and weight, while input is saved."""
    layer = nn.Linear(256, 512, bias=False, device="meta")
    tracker = PeakTracker()
    tracker.hold(layer.weight, "weights")
    with tracker:
        x = torch.empty(128, 256, device="meta", requires_grad=True)
        with tracker.during("forward"):
            y = layer(x)
        g = torch.empty_like(y)
        with tracker.during("backward"):
            y.backward(g)
    size_x, size_y, size_w = (4 * n for n in (128 * 256, 128 * 512, 512 * 256))
    assert tracker.peaks["forward"].total == size_w + size_x + size_y
    assert tracker.peaks["backward"].total == 2 * (size_w + size_x + size_y)


def test_more_of_anything_takes_more():
    def peak(**changes):
        return predict(Setup(SMALL, **{"batch": 2, "length": 64, **changes})).peak

    base = peak()
    assert peak(batch=4) > base and peak(length=128) > base and peak(r=16) > base and peak(dtype="float32") > base
    assert peak(checkpointing=True) < base and peak(adapter_dtype="bfloat16") < base
    assert peak(target_modules=("q_proj",)) < base < peak(attention="eager", length=256)
    full = {name: peak(method="full", optimizer=name, batch=1, length=2) for name in ("adamw", "adamw-8bit", "none")}
    assert full["none"] < full["adamw-8bit"] < full["adamw"]


def test_four_bits_are_counted_as_bitsandbytes_stores_them():
    plain = predict(Setup(SMALL, "qlora", double=False, optimizer="none")).parts["weights"]
    model = 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)  # weights of the linear layers, two to a byte, a scale for 64
    kept = 2 * (2 * 300 * 64 + 7 * 64)
    assert plain == pytest.approx(model / 2 + 4 * model / 64 + kept, rel=0.25)  # small tensors are rounded up to 512
    seven = [predict(Setup(method="qlora", double=on, optimizer="none")).parts["weights"] for on in (False, True)]
    measured = [row["weights"] for row in LOADING if row["base"].startswith("NF4") and not row["checkpointing"]]
    assert seven == pytest.approx(measured, rel=3e-4)


@pytest.mark.parametrize("changes", [{"heads": 7}, {"kv_heads": 3}, {"layers": 0}])
def test_a_llama_that_cant_be_is_refused(changes):
    with pytest.raises(ValueError, match="no Llama has"):
        llama_config(**{"hidden": 64, "layers": 2, "heads": 4, "intermediate": 96, "vocabulary": 300, **changes})


def test_the_tiny_model_is_found_in_its_folder():
    prediction = predict(Setup(TINY_DIR, "full", 2, 16, "float32"))
    weights = sum(p.numel() for p in nn.ModuleList([_tiny()]).parameters()) * 4
    assert prediction.parts["weights"] == pytest.approx(weights, rel=0.02)


def _tiny():
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY_DIR))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "dora"}, "unknown method 'dora'"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"attention": "flash"}, "unknown attention"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"batch": 0}, "not 0 of 512"),
        ({"r": 0}, "at least 1, not 0"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Setup(**changes)


# -------------------------------------------------------------------------------------------------------- does it fit


def test_the_guard_lets_pass_what_fits_and_says_what_would():
    small = Setup(SMALL, batch=1, length=16)
    assert fit.refuse_too_large(small, 1).peak == predict(small).peak
    large = Setup(SMALL, "full", batch=64, length=512)
    with pytest.raises(fit.DoesNotFit, match=r"needs about .* It would fit with") as caught:
        fit.refuse_too_large(large, 1)
    assert caught.value.needed > caught.value.room == 10**9
    with pytest.raises(fit.DoesNotFit, match="take a smaller model"):
        fit.refuse_too_large(large, 0.1)
    with pytest.raises(ValueError, match="more than -1"):
        fit.refuse_too_large(small, -1)


def test_the_guards_margins_say_of_each_measured_step_whether_it_ran():
    """The steps of fits.json ran, or ran out of memory, on an H100 whose allocator had a smaller card's size for
    its limit. The margins were chosen with this record: a first choice, which it names, let one step pass that failed.
    """
    for row in FITS["rows"]:
        assert (fit.needed(row["predicted"]) <= row["card_gb"] * GB) == row["ran"], row["key"]
        assert row["outside"] <= fit.CONTEXT + 5_000_000
        assert not row["ran"] or row["reserved"] <= fit.GAPS * row["peak"]
        assert predict(setup_of(row)).peak == pytest.approx(row["predicted"], rel=0.002)
    assert {row["ran"] for row in FITS["rows"]} == {True, False}


def test_the_straight_line_between_two_batches_is_never_too_low():
    setup = Setup(SMALL, "full", length=32)
    found = fit.what_fits(setup, ways={"full": {}}, cards=(1,), batches=(1, 2, 4, 8, 16))[0]
    for batch, needs in found.needs.items():
        exact = fit.needed(predict(dataclasses.replace(setup, batch=batch)).peak) / GB
        assert exact <= needs + 1e-9 and needs == pytest.approx(exact, rel=0.05)
    assert found.largest == {1: 16}


def test_the_table_shows_a_dash_where_nothing_fits():
    fits = [fit.Fit("LoRA", {1: 9.0, 2: 20.0}, {8: None, 12: 1, 24: 2})]
    assert fit.table(fits).split() == ["8", "GB", "12", "GB", "24", "GB", "LoRA", "-", "1", "2+"]


def test_the_command_line(capsys):
    sizes = "hidden=64,layers=2,heads=4,kv_heads=2,intermediate=96,vocabulary=300"
    fit.main(["--sizes", sizes, "--method", "qlora", "--targets", "q_proj,v_proj", "--card", "8"])
    out = capsys.readouterr().out
    assert out.startswith("peak ") and "weights" in out and "backward" in out
    for arguments, words in (
        (["--sizes", sizes, "--card", "0.1"], "smaller model"),
        (["--sizes", "hidden=64"], "can't be read"),
        (["--sizes", sizes, "--targets", "q_porj"], "q_porj"),
    ):
        with pytest.raises(SystemExit, match=words):
            fit.main(arguments)


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "utils.profiling.memory", "--sizes", "hidden=64,layers=2,heads=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: --sizes")


def test_the_figure_has_a_curve_for_each_way_and_a_level_for_each_card():
    figure = plots.batches_and_cards({"LoRA": {1: 10.0, 2: 20.0}, "QLoRA": {1: 5.0, 2: 8.0}}, (8, 24), title="t")
    ax = figure.axes[0]
    assert len(ax.lines) == 4 and [text.get_text() for text in ax.texts] == ["8 GB card", "24 GB card"]
    with pytest.raises(ValueError, match="no series"):
        plots.batches_and_cards({}, (8,), title="t")
    with pytest.raises(ValueError, match="no card"):
        plots.batches_and_cards({"LoRA": {1: 10.0}}, (), title="t")


def test_the_widget_answers_and_says_what_is_wrong(capsys):
    said = memory_widget.answer(model=SMALL, method="lora", batch=1, length=16)
    assert said.startswith("peak ") and said.endswith("fits on a card of 8 GB")
    assert memory_widget.answer(batch=0).startswith("Can't predict: a step needs at least one")
    memory_widget.explore(live=False)
    assert "No widgets here" in capsys.readouterr().out


def test_the_widget_has_a_control_for_each_field_and_predicts_on_a_click(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(memory_widget, "answer", lambda **fields: f"asked {sorted(fields)}")
    *_, button, text = memory_widget.widgets().children
    button.click()
    assert text.value == "asked ['batch', 'checkpointing', 'length', 'method', 'model', 'r']" and not button.disabled
