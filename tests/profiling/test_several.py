"""The record of two GPUs with its repeats, the committed file: what is read from it, and what chapter 19 says of it."""

import json
import statistics

import pytest

from utils.distributed import step_bytes
from utils.profiling.several import TWO_GPUS, SeveralRecord

TWO = SeveralRecord(TWO_GPUS)
LARGE = {"batch": 16, "checkpointing": True}
BLOCKS, REST, ADAPTER = 6_476_267_520, 262_148_096, 39_976_960
NORMS = 64 * 4096


def test_repeats_are_the_rows_of_one_size_whichever_machine_they_ran_on():
    for way, gpus, batch, checkpointing in TWO.sizes():
        rows = TWO.repeats(way, gpus, batch, checkpointing=checkpointing)
        assert [row["repeat"] for row in rows] == list(range(len(rows)))
        times = TWO.medians(way, gpus, batch, checkpointing=checkpointing)
        assert times == sorted(times)
        took = TWO.milliseconds(way, gpus, batch, checkpointing=checkpointing)
        assert took == statistics.median(times)
        line = TWO.line(way, gpus, batch, checkpointing=checkpointing)
        assert f"{took:.0f} ms {'(once)' if len(rows) == 1 else f'({times[0]:.0f}-{times[-1]:.0f})'}" in line
    assert TWO.medians("FSDP2, LoRA", 2) == [277.686, TWO.milliseconds("FSDP2, LoRA", 2), 485.34]
    assert TWO.line("DDP, LoRA", 2).split() == "DDP, LoRA 2 4 x 512 246 ms (234-265) 16,624 tokens/s 33.0 GB".split()


def test_weak_scaling_divides_times_of_one_machine_only():
    """Four repeats on two GPUs, the first and the last on other machines than the time on one: two efficiencies."""
    alone = TWO.milliseconds("DDP, LoRA", 1)
    later = [row for row in TWO.repeats("DDP, LoRA", 2) if row.get("day") == "2026-11-29"]
    assert len(later) == 2
    assert TWO.weak_efficiencies("DDP, LoRA", 2) == sorted(alone / row["milliseconds"]["median"] for row in later)
    with pytest.raises(ValueError, match="1 and 2 GPUs were measured on two machines"):
        TWO.weak_efficiencies("DDP, LoRA", 2, 8)
    assert TWO.strong_efficiency("DDP, LoRA", 2) == pytest.approx(841.193 / (2 * 443.163))


def test_the_profilers_bytes_are_those_that_are_counted():
    """To the byte, for every way and size that was profiled: a 4-bit weight stored as bfloat16 is a quarter of it."""
    stored = (BLOCKS - NORMS) // 4 + NORMS
    profiled = [row for row in TWO.rows if row["gpus"] == 2 and "profile" in row]
    assert len(profiled) == 19 and {row["way"] for row in profiled} == TWO.ways()
    for row in profiled:
        engine, _, kind = row["way"].partition(", ")
        way = f"{engine[:4].strip('2').lower()}-{'full' if kind == 'full' else 'lora'}"
        blocks = stored if kind == "QLoRA" else BLOCKS
        wide = engine == "DDP" and kind not in ("LoRA 16-bit", "full")
        counted = step_bytes(way, blocks=blocks, rest=REST, adapter=ADAPTER, world=2, gradient=4 if wide else 2)
        seen = TWO.exchanged(row["way"], 2, row["batch"], checkpointing=row["checkpointing"])
        assert seen == counted, row["key"]
        assert TWO.nccl(row["way"], 2, row["batch"], checkpointing=row["checkpointing"]) > 0
    with pytest.raises(ValueError, match="the profiler didn't run for DDP, LoRA on 2 GPUs with 8"):
        TWO.exchanged("DDP, LoRA", 2, 8)
    assert TWO.exchanged("FSDP2, LoRA", 1).sent == 0


def test_a_large_batch_repeats_and_a_small_one_does_not():
    """What the chapter says: within 1% at 16 x 512 with checkpointing, on two machines too; up to 75% at 4 x 512."""
    apart: dict[int, list[float]] = {4: [], 16: []}
    for way, gpus, batch, checkpointing in TWO.sizes():
        times = TWO.medians(way, gpus, batch, checkpointing=checkpointing)
        if len(times) > 1:
            apart[batch].append(times[-1] / times[0] - 1)
    assert len(apart[16]) == 8 and max(apart[16]) < 0.01
    assert len(apart[4]) == 11 and round(max(apart[4]), 2) == 0.75 and sum(each > 0.1 for each in apart[4]) == 8


def test_full_fine_tuning_was_the_faster_in_every_repeat_of_a_small_batch_and_in_none_of_a_large_one():
    small, large = (
        [
            [row["milliseconds"]["median"] for row in TWO.repeats(way, 2, **size)]
            for way in ("FSDP2, LoRA", "FSDP2, full")
        ]
        for size in ({}, LARGE)
    )
    assert [round(lora / full - 1, 2) for lora, full in zip(*small, strict=True)] == [0.51, 0.14, 0.04]
    assert [round(full / lora - 1, 2) for lora, full in zip(*large, strict=True)] == [0.04, 0.04, 0.04]


def test_a_record_without_days_is_one_machines(tmp_path):
    row = {"way": "DDP, LoRA", "batch": 4, "length": 512, "checkpointing": False, "repeat": 0}
    rows = [row | {"gpus": gpus, "milliseconds": {"median": ms}} for gpus, ms in ((1, 100.0), (2, 125.0))]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert SeveralRecord(path).weak_efficiencies("DDP, LoRA", 2) == [0.8]
    path.write_text(json.dumps({"rows": [rows[0], rows[1] | {"day": "2026-11-29"}]}), encoding="utf-8")
    with pytest.raises(ValueError, match="two machines"):
        SeveralRecord(path).weak_efficiencies("DDP, LoRA", 2)
