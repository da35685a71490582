"""The first run on four GPUs, from its text to the record's form."""

import json
from pathlib import Path

import pytest

from tools.gpu.several_text import elsewhere, record_of
from utils.profiling.several import WAYS, SeveralRecord

TEXT = (Path(__file__).parent / "scale_h200x4.txt").read_text(encoding="utf-8")


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "several.json"
    path.write_text(json.dumps(record_of(TEXT)), encoding="utf-8")
    return SeveralRecord(path)


def test_every_line_of_the_text_is_a_row_with_its_numbers(record):
    lines = [json.loads(line) for line in TEXT.splitlines() if line.startswith("{")]
    assert len(record.rows) == len(lines) == len({row["key"] for row in record.rows}) == 11
    for line, row in zip(lines, record.rows, strict=True):
        assert (row["gpus"], row["batch"], row["checkpointing"]) == (line["gpus"], line["batch"], line["ckpt"])
        assert row["milliseconds"] == {"median": line["ms"], "runs": 10} and row["way"] in WAYS
        assert row["peaks"] == [pytest.approx(line["peak_gib"] * 2**30, abs=1)]
    assert record.head["hardware"] == "4 x NVIDIA H200 (NVLink NV18)"
    assert record.head["versions"] == {"torch": "2.11", "transformers": "5.17", "peft": "0.21"}


def test_the_other_machines_times_are_kept_apart_under_their_names():
    rows = record_of(TEXT)["elsewhere"]["rows"]
    assert [(r["way"].split(", ")[-1], r["gpus"], r["milliseconds"]["median"]) for r in rows] == [
        ("PEFT fp32", 1, 273), ("PEFT 16-bit", 1, 193), ("fused", 1, 225),
        ("PEFT fp32", 2, 276), ("PEFT 16-bit", 2, 247), ("fused", 2, 215),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="1 names"):
        elsewhere("1 GPU: PEFT 3 (2-4); 2 GPUs: 3 (2-4), 5 (4-6)")


@pytest.mark.parametrize(
    ("old", "new", "said"), [('"ms": 281.4', '"ms": 381.4', "14554 tokens/s"), ("ddp-lora", "tp-lora", "'tp-lora'")]
)
def test_a_text_that_contradicts_itself_or_names_an_unknown_way_is_refused(old, new, said):
    with pytest.raises(ValueError, match=said):
        record_of(TEXT.replace(old, new))


def test_a_record_answers_with_times_peaks_and_efficiencies(record):
    assert record.milliseconds("DDP, LoRA", 4) == 314.9
    assert record.peak("FSDP2, LoRA", 4) == pytest.approx(15.43 * 2**30, abs=1)
    assert record.weak_efficiencies("DDP, LoRA", 2) == [pytest.approx(0.878, abs=5e-4)]
    assert record.weak_efficiencies("DDP, LoRA", 4) == [pytest.approx(0.785, abs=5e-4)]
    assert record.line("FSDP2, full", 4).split() == (
        "FSDP2, full 4 4 x 512 285 ms (once) 28,714 tokens/s 24.6 GB".split()
    )
    with pytest.raises(ValueError, match="no row with .*FSDP2, QLoRA"):
        record.milliseconds("FSDP2, QLoRA", 4)
    with pytest.raises(ValueError, match="3 GPUs can't share 16"):
        record.strong_efficiency("DDP, LoRA", 3)


def test_repeats_give_the_median_of_medians_and_the_largest_peak(record):
    first = record.repeats("DDP, LoRA", 4, 4)[0]
    for repeat, (ms, peaks) in enumerate([(300.0, [5, 7]), (330.0, [6, 40 * 10**9])], 1):
        record.rows.append(first | {"repeat": repeat, "milliseconds": {"median": ms}, "peaks": peaks})
    assert record.milliseconds("DDP, LoRA", 4) == 314.9 and record.peak("DDP, LoRA", 4) == 40 * 10**9
    assert "315 ms (300-330)" in record.line("DDP, LoRA", 4)
    record.rows += [
        first | {"gpus": n, "batch": 16 // n, "milliseconds": {"median": m}, "repeat": 9}
        for n, m in ((1, 1000.0), (8, 200.0))
    ]
    assert record.strong_efficiency("DDP, LoRA", 8) == pytest.approx(1000 / 1600)


def test_the_record_says_what_its_script_and_its_other_ms_are():
    record = record_of(TEXT)
    script = (Path(__file__).parent / "scale_spike.py").read_text(encoding="utf-8")
    assert f"torch.manual_seed({record['seed']})" in script and "other_kernels_ms" in script
    assert "may exceed" in record["other_ms"] and record["date"] == "2026-11"
