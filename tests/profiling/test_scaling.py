"""The model of a step's time: held to rows on four GPUs, which gave it no constant, and to arithmetic."""

import dataclasses
import json
import re
import statistics

import pytest
import torch

from utils.models import ROOT
from utils.profiling.scaling import (
    GPU_ROWS,
    Constants,
    Run,
    cost_of,
    counts,
    expected_largest,
    gather_seconds,
    main,
    measured_constants,
    reduce_seconds,
    step_time,
    strong,
    weak,
)
from utils.profiling.several import TWO_GPUS, SeveralRecord

RECORD, TWO = SeveralRecord(), SeveralRecord(TWO_GPUS)
MODELLED = [size for size in RECORD.sizes() if size[0].partition(", ")[2] in GPU_ROWS]
MODELLED = [size for size in MODELLED if size[2] >= 4 and size[:1] != ("DDP, full",)]


@pytest.fixture(scope="module")
def constants() -> Constants:
    return measured_constants()


@pytest.mark.parametrize("size", MODELLED, ids=str)
def test_the_model_is_within_15_percent_of_every_row(size, constants):
    """The rows with four GPUs gave it no constant; the largest error of the first run's six is 8%."""
    way, gpus, batch, checkpointing = size
    measured = RECORD.milliseconds(way, gpus, batch, checkpointing=checkpointing)
    modelled = step_time(Run(way, gpus, batch, checkpointing=checkpointing), constants)
    assert modelled.total == pytest.approx(measured, rel=0.15)


def test_it_says_why_full_fine_tuning_was_faster_than_lora_at_a_small_batch_and_slower_at_a_large_one(constants):
    small = {way: step_time(Run(way, 4, 4), constants) for way in ("FSDP2, LoRA", "FSDP2, full")}
    assert small["FSDP2, full"].total < small["FSDP2, LoRA"].total
    assert small["FSDP2, LoRA"].bound == "host" and small["FSDP2, full"].kernels > small["FSDP2, LoRA"].kernels
    large = {way: step_time(Run(way, 4, 16, checkpointing=True), constants) for way in small}
    assert large["FSDP2, full"].total > large["FSDP2, LoRA"].total
    assert {step.bound for step in large.values()} == {"GPU"}


def test_constants_come_from_one_and_two_gpus_only(constants, tmp_path):
    record = SeveralRecord()
    record.rows = [row for row in record.rows if row["gpus"] < 4]
    assert measured_constants(record) == constants
    assert constants.link == SeveralRecord(TWO_GPUS).speed("all_gather")
    record.rows = [row for row in record.rows if row["gpus"] != 2]
    with pytest.raises(ValueError, match="no row"):
        measured_constants(record)


def test_the_largest_collective_gives_the_links_speed(tmp_path):
    row = {"collective": "all_gather", "gpus": 4, "bytes": 400e6, "milliseconds": {"median": 1.0}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"rows": [row, row | {"bytes": 1e3}, row | {"collective": "all_reduce"}]}))
    assert SeveralRecord(path).speed("all_gather") == pytest.approx(300e9)
    assert SeveralRecord(path).speed("all_reduce") == pytest.approx(600e9), "a ring sends everything twice"
    with pytest.raises(ValueError, match="no all_reduce: tools.measure_gpu several"):
        SeveralRecord().speed("all_reduce")


def errors(record, constants):
    """The model's error in percent, for each row of a record that it has constants for."""
    off = {}
    for way, gpus, batch, checkpointing in record.sizes():
        if way.partition(", ")[2] in GPU_ROWS:
            said = step_time(Run(way, gpus, batch, checkpointing=checkpointing), constants)
            took = record.milliseconds(way, gpus, batch, checkpointing=checkpointing)
            off[way, gpus, batch, checkpointing] = (100 * (said.total / took - 1), said)
    return off


def test_the_model_says_of_two_other_gpus_what_chapter_19_says(constants):
    """Its constants are another machine's. Kernels take the same time there; launches are the processor's matter."""
    off = errors(TWO, constants)
    assert len(off) == 30
    assert {size for size, (error, _) in off.items() if abs(error) > 15} == {
        ("DDP, LoRA", 2, 2, False), ("DDP, full", 2, 4, False), ("FSDP2, LoRA", 2, 1, False),
        ("FSDP2, LoRA", 2, 4, False), ("FSDP2, LoRA", 2, 8, False),
    }  # fmt: skip
    by_gpu = {size: error for size, (error, said) in off.items() if said.bound == "GPU"}
    assert [size[0] for size, error in by_gpu.items() if abs(error) > 14.9] == ["DDP, full"]
    assert f"{min(by_gpu.values()):.1f}" == "-15.0"
    assert max(abs(error) for (way, *_), error in by_gpu.items() if "LoRA" in way) < 6
    launched = {size[2]: round(off[size][0]) for size in off if size[:2] == ("FSDP2, LoRA", 2) and not size[3]}
    assert (launched[1], launched[4], launched[8]) == (-22, 25, -20)
    assert round(off["DDP, LoRA", 2, 2, False][0]) == -19
    times = TWO.medians("FSDP2, LoRA", 2)
    assert [round(times[0]), round(times[-1])] == [278, 485]
    assert times[0] < off["FSDP2, LoRA", 2, 4, False][1].total < times[-1]
    assert [round(TWO.speed(name) / 1e9) for name in ("all_gather", "all_reduce")] == [258, 303]


def test_constants_of_the_repeated_record_would_be_no_better(constants):
    """Why they come from the first machine: its rows on four GPUs test them, and the second's growth to two is none."""
    own = measured_constants(TWO)
    assert own.spread == 0 and constants.spread > 0.2
    assert sum(abs(error) > 15 for error, _ in errors(TWO, own).values()) == 8
    assert round(errors(RECORD, own)["DDP, LoRA", 4, 4, False][0]) == -27


def test_a_rings_time_is_its_bytes_and_its_hops():
    assert gather_seconds(8e9, 4, 1e9, 0.0) == pytest.approx(6.0)
    assert reduce_seconds(8e9, 4, 1e9, 0.0) == pytest.approx(12.0)
    assert gather_seconds(0, 513, 1e9, 1e-5) == pytest.approx(512e-5)
    assert gather_seconds(8e9, 1, 1e9) == 0


def test_the_expected_largest_of_n_is_that_of_drawn_numbers():
    drawn = torch.randn(200_000, 8, generator=torch.Generator().manual_seed(0))
    for n in (1, 2, 4, 8):
        assert expected_largest(n) == pytest.approx(float(drawn[:, :n].max(1).values.mean()), abs=0.01)
    assert expected_largest(512) == pytest.approx(3.04, abs=0.01)
    with pytest.raises(ValueError, match="n"):
        expected_largest(0)


def test_launches_are_counted_whatever_the_batch_and_grow_with_adapters_and_checkpointing():
    name = "SmolLM2-135M"
    full, lora, lora_16 = (counts(name, kind, False) for kind in ("full", "LoRA", "LoRA 16-bit"))
    assert lora.operations > lora_16.operations > 1.3 * full.operations
    assert counts(name, "full", True).operations > 1.2 * full.operations
    assert full.groups == lora.groups == 31 and full.parameters == full.trainable == 134_515_008
    assert lora.tensors - full.tensors == 2 * 7 * 30


def test_more_gpus_wait_for_the_slowest_and_slow_hosts_links_show_in_fsdp_first(constants):
    gpus = [1, 2, 4, 8, 16, 64, 512]
    ddp = weak(Run("DDP, LoRA", 1, between=25), constants, gpus)
    assert [step.total for step in ddp] == sorted(step.total for step in ddp)
    assert ddp[-1].bound == "host", "16-bit halves of 160 MB are nothing, even at 25 Gb/s"
    slow, fast = (weak(Run("FSDP2, full", 1, between=gb), constants, gpus) for gb in (25, 400))
    assert slow[3] == fast[3], "in one host nothing goes between hosts"
    assert slow[4].bound == "network" and slow[4].total > 10 * fast[4].total


def test_strong_scaling_ends_where_the_host_is_the_limit(constants):
    steps = strong(Run("DDP, LoRA", 1), constants, [1, 2, 4, 8, 16], total=64)
    assert steps[0].bound == "GPU" and steps[-1].bound == "host"
    assert steps[0].total / steps[-1].total < 14
    with pytest.raises(ValueError, match="64 sequences .* 5, 7 GPUs"):
        strong(Run("DDP, LoRA", 1), constants, [4, 5, 7], total=64)


def test_a_runs_cost_is_its_steps_on_the_clock(constants):
    run = Run("DDP, LoRA", 4)
    cost = cost_of(100 * run.tokens, run, constants, price=2.5)
    assert cost.hours == pytest.approx(100 * step_time(run, constants).total / 3.6e6)
    assert cost.money == pytest.approx(2.5 * cost.gpu_hours) and cost.gpu_hours == pytest.approx(4 * cost.hours)
    with pytest.raises(ValueError, match="a price of 0 or more"):
        cost_of(1e6, run, constants, price=-1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"way": "FSDP2, QLoRA"}, "no constants for .*FSDP2, full"), ({"gpus": 0}, "gpus"), ({"between": 0}, "0 Gb/s")],
)
def test_a_run_without_constants_or_sense_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(Run("DDP, LoRA", 2), **changes)


def test_the_first_runs_spread_is_what_two_gpus_show_and_four_confirm(constants):
    ratios = [RECORD.milliseconds(way, 4) / RECORD.milliseconds(way, 1) for way in ("DDP, LoRA", "FSDP2, LoRA")]
    assert statistics.mean(ratios) == pytest.approx(1 + constants.spread * expected_largest(4), rel=0.1)


def test_the_command_line_says_the_pace_the_cost_and_the_link(capsys):
    main("--gpus 16 --between 25 --tokens 1e9 --price 2 --way".split() + ["FSDP2, LoRA"])
    said = capsys.readouterr().out
    assert "the pace is the network's" in said and "GPU hours" in said and "at 2 for a GPU's hour" in said
    assert "link 258 GB/s" in said
    with pytest.raises(SystemExit, match="error: no constants for the way 'DDP, DoRA'"):
        main(["--way", "DDP, DoRA"])


def chapter():
    return " ".join((ROOT / "lessons" / "19_several_gpus.md").read_text(encoding="utf-8").split())


def test_the_first_screen_of_chapter_19_is_the_records():
    text = (ROOT / "lessons" / "19_several_gpus.md").read_text(encoding="utf-8")
    cells = r"^\| (DDP|FSDP2), ([^|]+) \| (\d) \| (\d+) \| ([\d,]+) \(([^)]+)\) \| ([\d.]+|-) \|$"
    rows = re.findall(cells, text, re.M)
    assert len(rows) == 15
    for engine, method, gpus, batch, ms, spread, gb in rows:
        record = RECORD if gpus == "4" else TWO
        asked: dict = {"way": f"{engine}, {method.removesuffix(', checkpointing')}", "gpus": int(gpus)}
        asked |= {"batch": int(batch), "checkpointing": method.endswith(", checkpointing")}
        took, times = record.milliseconds(**asked), record.medians(**asked)
        assert len(times) in ((2, 3, 4) if gpus == "2" else (1,)), asked
        assert spread == (f"{times[0]:,.0f}-{times[-1]:,.0f}" if gpus == "2" else "once"), asked
        peak = "-" if "graphs" in method else f"{record.peak(**asked) / 1e9:.1f}"
        assert f"{took:,.0f}" == ms and peak == gb, asked


def test_the_findings_under_chapter_19s_table_are_the_records():
    text, large = chapter(), {"batch": 16, "checkpointing": True}
    first = [TWO.repeats("FSDP2, LoRA", 2, n)[0] for n in (1, 2, 4, 8)]
    later = TWO.repeats("FSDP2, LoRA", 2)[1:]
    assert not any("day" in row for row in first) and all("day" in row for row in later), "of one machine, of another"
    times = [f"{row['milliseconds']['median']:.0f}" for row in (*first, *later)]
    assert "took {}, {}, {} and {} ms for 1, 2, 4 and 8 sequences, on another {} and {} for 4".format(*times) in text
    filled = TWO.repeats("DDP, LoRA", 2, **large)[0]["profile"]["other_ms"]
    assert f"{filled:,.0f} of DDP's {TWO.milliseconds('DDP, LoRA', 2, **large):,.0f} ms" in text
    assert f"With 4 they fill {first[2]['profile']['other_ms']:.0f} of FSDP2's" in text
    default, sixteen, fused = (TWO.milliseconds(f"DDP, LoRA{name}", 2, **large) for name in ("", " 16-bit", " fused"))
    autocast = TWO.milliseconds("DDP, LoRA autocast", 2, **large)
    assert f"{default:,.0f} ms in float32, {autocast:.0f} under autocast, {sixteen:.0f} with 16-bit adapters" in text
    assert f"16-bit adapters, {fused:.0f} with our fused layer" in text and round(fused / default, 2) == 0.67
    small = [TWO.milliseconds(way, 2) for way in ("DDP, LoRA", "DDP, LoRA autocast")]
    assert abs(small[0] - small[1]) < 2, "With 4 autocast gains nothing"
    under = [TWO.milliseconds(f"FSDP2, LoRA{name}", 2, **large) for name in ("", " fused")]
    assert round(1 - fused / sixteen, 2) == round(1 - under[1] / under[0], 2) == 0.09
    assert [len(TWO.medians(f"{e}, LoRA fused", 2, **large)) for e in ("DDP", "FSDP2")] == [3, 2]
    sharded, quantized = (TWO.milliseconds(way, 2, **large) for way in ("FSDP2, LoRA", "FSDP2, QLoRA"))
    assert f"{sharded:.0f} ms against DDP's {sixteen:.0f}" in text and round(quantized / sharded, 2) == 1.02
    one, two = TWO.milliseconds("DDP, LoRA", 1, 16), TWO.milliseconds("DDP, LoRA", 2, 8)
    shared = RECORD.milliseconds("DDP, LoRA", 4)
    assert f"took {one:.0f} ms on one GPU, {two:.0f} as 8 on each of two and {shared:.0f} as 4 on each of four" in text
    plain, light = TWO.medians("DDP, LoRA", 2), TWO.medians("DDP, LoRA fused", 2)
    assert f"{light[0]:.0f} to {light[-1]:.0f} and {plain[0]:.0f} to {plain[-1]:.0f} ms don't overlap" in text
    halves = statistics.median(light), statistics.median(plain)
    assert light[-1] < plain[0] and round(1 - halves[0] / halves[1], 2) == 0.26
    blocks, graphs = (TWO.medians(f"DDP, LoRA {name}", 2) for name in ("compiled", "CUDA graphs"))
    (that_day,) = (row["milliseconds"]["median"] for row in TWO.repeats("DDP, LoRA", 2) if row["repeat"] == 3)
    assert {row["day"] for way in ("compiled", "CUDA graphs") for row in TWO.repeats(f"DDP, LoRA {way}", 2)} == {
        TWO.repeats("DDP, LoRA", 2)[3]["day"]
    }
    told = "{:.0f} to {:.0f} ms, and {:.0f} to {:.0f} as CUDA graphs (their memory isn't comparable), against {:.0f} "
    assert told.format(blocks[0], blocks[-1], *graphs, that_day) + "without on the same day (once)" in text
    fewer, all_, once_more = (TWO.profile(f"DDP, LoRA{name}", 2) for name in (" compiled", "", " CUDA graphs"))
    spent = [all_["other_ms"], fewer["other_ms"], once_more["other_ms"]]
    assert "from {:.0f} to {:.0f} ms, and to {:.0f} as graphs".format(*spent) in text
    assert round(fewer["other_kernels"] / all_["other_kernels"], 1) == 0.5 and blocks[-1] < plain[0]
    once = TWO.milliseconds("DDP, LoRA compiled", 1)
    assert f"One GPU took {once:.0f} ms compiled (once)" in text and once > blocks[-1]
    narrow = TWO.medians("DDP, LoRA 16-bit", 2)
    assert narrow[0] < plain[0] and narrow[-1] > plain[-1], "not settled"
    pairs = [
        [round(row["milliseconds"]["median"]) for row in TWO.repeats(way, 2) if row["repeat"]]
        for way in ("FSDP2, QLoRA", "FSDP2, LoRA")
    ]
    assert pairs == [[355, 417], [310, 278]], "slower in both repeats of one machine"
    assert round(TWO.peak("FSDP2, QLoRA", 2) / TWO.peak("FSDP2, LoRA", 2), 2) == 0.75
    kept = {way: TWO.weak_efficiencies(way, 2, **large) for way in ("DDP, LoRA", "FSDP2, LoRA")}
    assert min(kept["DDP, LoRA"]) > 0.99 and round(min(kept["FSDP2, LoRA"]), 2) == 0.94
    assert min(TWO.weak_efficiencies("FSDP2, LoRA", 2)) > 1.1
    many, few = (TWO.repeats(way, 2)[0]["profile"]["other_kernels"] for way in ("FSDP2, LoRA", "FSDP2, full"))
    assert f"({many:,} kernels, not {few:,})" in text
    waited = [TWO.nccl("DDP, LoRA 16-bit", 2), TWO.nccl("DDP, LoRA 16-bit", 2, **large)]
    assert "took {:.0f} ms here and {:.0f} with 16 sequences".format(*waited) in text
    assert f"still shows {TWO.nccl('FSDP2, QLoRA', 2, **large):.0f} with 16" in text
    assert f"and DDP under autocast {TWO.nccl('DDP, LoRA autocast', 2, **large):.0f}" in text


def test_what_chapter_19_says_before_its_cells_is_the_models(constants):
    text = chapter()
    slow = dataclasses.replace(constants, link=25e9)

    def slower(way, batch=4):
        fast, pcie = (step_time(Run(way, 4, batch, checkpointing=batch > 4), on).total for on in (constants, slow))
        return pcie / fast

    assert "our model adds 91% to LoRA's step with 4, and 12% with 16" in text
    assert [round(slower("FSDP2, LoRA", batch), 2) for batch in (4, 16)] == [1.91, 1.12]
    assert "1.9 times as long for LoRA and 4 times for full fine-tuning; DDP's stays" in text
    assert round(slower("FSDP2, full"), 1) == 4.0 and slower("DDP, LoRA") == 1
    by_network = [step_time(Run("DDP, LoRA", 16, between=gb), constants).total for gb in (5, 10, 400)]
    assert by_network[0] > by_network[1] == by_network[2], "from 10 Gb/s a host up"


def test_fsdp2_between_hosts_passes_ddp_only_with_wider_adapters(constants):
    def took(way, between):
        return step_time(Run(way, 16, 16, checkpointing=True, between=between), constants).total

    assert took("FSDP2, LoRA", 100) > took("DDP, LoRA", 25) > took("FSDP2, LoRA", 200)
    assert took("FSDP2, LoRA", 200) > 1.2 * took("FSDP2, LoRA", 400)
    assert all(took("FSDP2, LoRA", gb) >= 0.999 * took("DDP, LoRA 16-bit", 25) for gb in (100, 200, 400, 1e5))


def test_one_gpus_limit_is_the_host_by_construction(constants):
    """What the page says of the model: DDP's step on one GPU is put in as launches, so it can't be evidence of them."""
    step = step_time(Run("DDP, LoRA", 1), constants)
    assert step.bound == "host" and step.host == pytest.approx(RECORD.milliseconds("DDP, LoRA", 1), rel=1e-6)
