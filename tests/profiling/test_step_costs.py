"""Chapter 21's records: where they are from, what they may be quoted for, and the goals, missed ones included."""

import importlib
import json

import pytest
import torch

from utils.models import ASSETS, ROOT
from utils.profiling.step_costs import LayerRecord, StepRecord, layer_step
from utils.profiling.traffic import operations

LAYER, SECOND, STEP = LayerRecord(), LayerRecord("layer_h200"), StepRecord()
SIZES = [(4096, 4096), (4096, 11008), (11008, 4096)]
PEFT, SIXTEEN, TOGETHER = "PEFT as it comes", "PEFT, 16-bit adapters", "fast, together"


def median(row):
    return next(row[unit]["median"] for unit in ("microseconds", "milliseconds") if unit in row)


@pytest.mark.parametrize(("record", "gpu"), [(LAYER, "H200"), (SECOND, "H200"), (STEP, "H200")])
def test_a_record_says_where_when_and_with_what_and_every_time_has_its_spread(record, gpu):
    head = record.head
    assert (
        gpu in head["hardware"]
        and "TRIAL" not in head["what"]
        and head["date"]
        and head["commit"]
        and head["seed"] == 0
    )
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
    off = LAYER.row("fast", 8192, d_in, d_out)["off"]  # the record ended before smaller sizes
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


def times(way, targets="none", batch=8, over="frozen"):
    """A way's median over another's, from the rows themselves."""
    one, other = STEP.row(way, targets, batch), STEP.row(over, batch=batch)
    assert one["length"] == other["length"] == 512
    return median(one) / median(other)


def test_the_record_of_steps_has_every_planned_row_and_the_same_settings():
    step = importlib.import_module("tools.gpu.step")
    assert [row["key"] for row in STEP.rows] == [plan.key for plan in step.plans()]
    assert (STEP.head["rank"], STEP.head["lora_alpha"]) == (16, 32) == (step.R, step.ALPHA)


@pytest.mark.parametrize("batch", [4, 8])
def test_a_ratio_is_of_the_medians_and_a_line_has_time_spread_and_peak(batch):
    row = STEP.row("full", batch=batch)
    assert STEP.ratio("full", batch=batch) == times("full", batch=batch)
    line = STEP.line("full", batch=batch)
    assert f"{median(row):.0f} ms" in line and f"{row['peak_mib'] * 2**20 / 1e9:.1f} GB" in line


@pytest.mark.parametrize(("targets", "peft_over_full"), [("q,k,v,o", 0.87), ("all-linear", 1.12)])
def test_what_the_first_screen_says_of_whole_steps(targets, peft_over_full):
    ways = TOGETHER, SIXTEEN, f"{PEFT}, autocast", PEFT
    fused, sixteen, autocast, peft = (times(way, targets) for way in ways)
    full = times("full")
    assert 1 <= fused < sixteen < autocast < min(peft, full)
    assert peft / full == pytest.approx(peft_over_full, abs=0.01)
    for batch in (4, 8):
        peaks = [STEP.row(way, targets, batch)["peak_mib"] for way in (TOGETHER, PEFT)]
        assert peaks[0] < peaks[1]


def test_most_of_the_gain_is_the_adapters_dtype_and_a_step_gains_less_than_a_layer():
    peft, sixteen, fused, alone = (median(STEP.row(way, "all-linear")) for way in (PEFT, SIXTEEN, TOGETHER, "fast"))
    assert 0.7 < (peft - sixteen) / (peft - fused) < 0.9
    assert fused < STEP.row("fast", "all-linear")["milliseconds"]["lower"] and alone < sixteen
    assert peft / fused < 0.75 * median(LAYER.row(PEFT)) / median(LAYER.row("fast"))


def test_ratios_are_read_where_repeats_agree():
    def apart(way, targets, batch):
        return abs(median(STEP.row(f"{way}, again", targets, batch)) / median(STEP.row(way, targets, batch)) - 1)

    settings = ("frozen", "none"), (PEFT, "all-linear"), (TOGETHER, "all-linear")
    assert max(apart(*setting, 8) for setting in settings) < 0.005
    assert apart(TOGETHER, "all-linear", 4) > 0.2, "launches: no ratio of LoRA's ways at 4 x 512 is quoted"


def test_full_fine_tuning_in_float32_takes_more_time_and_twice_the_memory():
    exact, rounded = STEP.row("full, float32, autocast", batch=4), STEP.row("full", batch=4)
    assert 1.2 < median(exact) / median(rounded) < 1.4
    assert 2 < exact["peak_mib"] / rounded["peak_mib"] < 2.1


def test_triton_did_not_shorten_the_layer():
    for end in ("", ", graph"):
        assert median(LAYER.row(f"fast, Triton{end}")) > median(LAYER.row(f"fast{end}"))


def test_the_first_screens_table_is_the_record():
    lesson = (ROOT / "lessons" / "21_what_a_lora_step_costs.md").read_text(encoding="utf-8")
    head = "| way | call | ms | over the frozen model | GB |\n|---|---|---|---|---|\n"
    written = [line.split(" | ")[-3:] for line in lesson.partition(head)[2].partition("\n\n")[0].splitlines()]
    ways = [("frozen", "none"), ("full", "none")]
    ways += [(way, "all-linear") for way in (PEFT, f"{PEFT}, autocast", SIXTEEN, f"{SIXTEEN}, autocast", TOGETHER)]
    rows = [STEP.row(*way) for way in ways]
    assert [[cell.strip(" |") for cell in line] for line in written] == [
        [f"{median(row):.0f}", f"{times(*way):.2f}", f"{row['peak_mib'] * 2**20 / 1e9:.0f}"]
        for way, row in zip(ways, rows, strict=True)
    ]


def test_the_count_of_bytes_predicts_a_lower_bound():
    from peft import LoraConfig, get_peft_model
    from torch import nn

    def with_peft(linear):
        return get_peft_model(nn.Sequential(linear), LoraConfig(r=16, lora_alpha=32, target_modules=["0"]))

    floor = LAYER.least(operations(layer_step(lambda linear: linear.requires_grad_(False))))
    ratio = LAYER.least(operations(layer_step(with_peft))) / floor
    assert 0.7 * LAYER.row(PEFT)["ratio"] < ratio < LAYER.row(PEFT)["ratio"]


def test_what_was_not_measured_is_not_made_up():
    with pytest.raises(ValueError, match="0 rows"):
        LAYER.row("fast", tokens=123)
    with pytest.raises(ValueError, match="0 rows"):
        STEP.row(TOGETHER, "all-linear", batch=3)


def test_missing_parentheses_move_a_quarter_of_a_gigabyte_more():
    from utils.lora import LoRALinear

    def moved(with_parentheses):
        class Layer(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, W, A, B):
                h = 2.0 * (x @ A.T) if with_parentheses else 2.0 * x @ A.T
                ctx.save_for_backward(x, h, W, A, B)
                return (h @ B.T).addmm_(x, W.T)

            @staticmethod
            def backward(ctx, g):
                x, h, W, A, B = ctx.saved_tensors
                q = 2.0 * (g @ B) if with_parentheses else 2.0 * g @ B
                return (q @ A).addmm_(g, W), None, q.T @ x, g.T @ h

        def wrap(linear):
            layer = LoRALinear(linear, r=16, lora_alpha=32)
            layer.compute = lambda of, x: Layer.apply(x, of.weight, of.lora_A.bfloat16(), of.lora_B.bfloat16())
            return layer

        return operations(layer_step(wrap))

    for right, gigabytes in ((False, 1.145), (True, 0.877)):
        assert sum(op.moved for op in moved(right)) / 1e9 == pytest.approx(gigabytes, abs=0.001)
    extra = sum(op.moved for op in moved(False)) - sum(op.moved for op in moved(True))
    assert extra == pytest.approx(4 * 8192 * 4096 * 2, rel=0.01), "x read and written once more, and g"


def copies(found):
    return sum(op.name == "_to_copy" for op in found)


def test_under_autocast_peft_can_leave_the_copies_out_and_nothing_else_changes():
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from torch import nn

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["0"], init_lora_weights=False)
    layer = get_peft_model(nn.Sequential(nn.Linear(96, 64, bias=False, dtype=torch.bfloat16)), config)
    given, g = torch.randn(32, 96).bfloat16(), torch.randn(32, 64).bfloat16()
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}

    def measured(off):
        x, results = given.clone().requires_grad_(), []

        def step():
            with torch.autocast("cpu", torch.bfloat16), disable_input_dtype_casting(layer, active=off):
                results.append(layer(x))
            results[0].backward(g)

        layer.zero_grad()
        return copies(operations(step)), [*results, x.grad, *(p.grad.clone() for p in trained)]

    (as_it_comes, first), (without, second) = measured(False), measured(True)
    assert as_it_comes == without + 4
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="dtype"), disable_input_dtype_casting(layer):
        layer(given)


def test_the_copies_can_go_in_an_sft_trainer_that_checkpoints(tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from peft.helpers import disable_input_dtype_casting
    from trl import SFTConfig, SFTTrainer

    from utils.models import load_base

    rows = Dataset.from_list([{"text": f"the cat number {i} sits on the mat"} for i in range(8)])

    def measured(off):
        model, tokenizer = load_base(torch.bfloat16)
        args = SFTConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, logging_steps=1, learning_rate=1e-3,
            bf16=True, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=config)
        assert args.gradient_checkpointing, "TRL's default"
        assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
        with disable_input_dtype_casting(trainer.model, active=off):
            count = copies(operations(trainer.train))
        return count, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    (as_it_comes, first), (without, second) = measured(False), measured(True)
    assert len(first) == 2 and first == second and without < 0.7 * as_it_comes


def test_the_layers_tool_runs_in_trial_and_goes_on_where_it_stopped(tmp_path, capsys):
    layer = importlib.import_module("tools.gpu.layer")

    layer.run(tmp_path, True, 60.0)
    before = json.loads((tmp_path / "layer.json").read_text())
    rows = {row["way"]: row for row in before["rows"] if "d_in" in row and "way" in row}
    assert rows.keys() >= {"frozen", "full", "fast", PEFT, f"{PEFT}, autocast"} and "TRIAL" in before["what"]
    assert rows[PEFT]["off"]["dA"] < rows[f"{PEFT}, autocast"]["off"]["dA"], "autocast rounds what float32 doesn't"
    assert "off" not in rows["full"]
    capsys.readouterr()
    layer.run(tmp_path, True, 60.0)
    assert json.loads((tmp_path / "layer.json").read_text())["rows"] == before["rows"]
    assert capsys.readouterr().out == ""
    assert not (ASSETS / "measurements" / ".layer.json").exists()


def test_every_way_of_a_step_starts_from_the_same_base_and_leaves_it_frozen(tmp_path):
    step = importlib.import_module("tools.gpu.step")
    record = importlib.import_module("tools.gpu.record").Record(tmp_path / "step.json", "a trial", seed=0)
    model = step.base_model(True, torch.device("cpu")).requires_grad_(False)
    names, keep = set(model.state_dict()), {}
    ways = ("frozen", PEFT, f"{PEFT}, autocast", "PEFT, 16-bit adapters", TOGETHER, "full, no optimizer", "full")
    for way in ways:
        targets = "none" if way.startswith(("frozen", "full")) else "all-linear"
        step.measure(model, record, step.Plan(2, 16, targets, way), steps=4, keep=keep)
        assert set(model.state_dict()) == names and not any(p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in model.parameters())
    rows = {row["way"]: row for row in record.rows}
    assert rows["full, no optimizer"]["loss"] == rows["full"]["loss"] == rows["frozen"]["loss"], "nothing moved before"
    for way in ways[2:5]:
        assert rows[way]["loss"] == pytest.approx(rows[PEFT]["loss"], rel=2e-3)
        assert 0 < rows[way]["gradients_off_peft"] < 0.05
    assert {row["milliseconds"]["runs"] for row in record.rows} == {4}
