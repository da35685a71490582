"""The tool that measures several GPUs: its plan, its reading of a trace, and two gloo processes of a tiny model."""

import json
import time

import pytest

from tools.gpu import several
from tools.gpu.several import FEW, REPEATS, SIZES, WAYS, Plan, communication, counts_here, plans
from utils.profiling.several import SeveralRecord


def test_every_row_has_a_key_and_what_is_compared_has_repeats():
    keys = [plan.key for repeat in range(REPEATS) for n in (4, 2, 1) for plan in plans(n, repeat)]
    assert len(keys) == len(set(keys))
    first = {(p.way, p.batch, p.checkpointing) for p in plans(4, 0)}
    for way in WAYS:
        assert (way, *SIZES[0]) in first
    assert {b for w, b, c in first if w == "DDP, LoRA" and not c} == {1, 2, 4, 8, 16}, "strong scaling needs them"
    for way in set(WAYS) - set(FEW):
        for batch, checkpointing in SIZES[:2]:
            assert all(Plan(way, 2, batch, checkpointing, n) in set(plans(2, n)) for n in range(REPEATS))


def test_counts_are_those_of_the_machine_that_were_asked_for(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert counts_here(False) == [2, 1]
    monkeypatch.setenv("COURSE_GPUS", "4,1")
    assert counts_here(False) == [1]
    monkeypatch.setenv("COURSE_GPUS", "4")
    with pytest.raises(ValueError, match="has 2 GPUs and COURSE_GPUS asks for 4"):
        counts_here(False)


def test_a_trace_gives_nccls_time_and_the_bytes_of_each_collective():
    def kernel(name, microseconds, **about):
        return {"cat": "kernel", "name": name, "dur": microseconds, "args": about}

    gather = {"Collective name": "_allgather_base", "In msg nelems": 10, "Out msg nelems": 40, "dtype": "BFloat16"}
    reduce = {"Collective name": "allreduce", "In msg nelems": 5, "Out msg nelems": 5, "dtype": "Float"}
    found = communication([
        kernel("gemm", 3000), kernel("ncclDevKernel_AllGather", 1500, **gather), {"cat": "cpu_op", "name": "nccl:x"},
        kernel("ncclDevKernel_AllGather", 500, **gather), kernel("ncclDevKernel_AllReduce", 250, **reduce),
        {"name": "no category"},
    ])  # fmt: skip
    assert (found["nccl_ms"], found["other_ms"], found["other_kernels"]) == (2.25, 3.0, 1)
    assert found["collectives"] == {
        "_allgather_base": {"calls": 2, "bytes": 160, "milliseconds": 2.0},
        "allreduce": {"calls": 1, "bytes": 20, "milliseconds": 0.25},
    }


@pytest.mark.slow
def test_two_processes_measure_and_a_way_that_fails_is_a_row_and_no_end(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = [
        Plan("DDP, LoRA", 2, 4, False, 0), Plan("FSDP2, LoRA", 2, 4, False, 0), Plan("FSDP2, LoRA", 2, 16, True, 0),
        Plan("FSDP2, LoRA fused", 2, 4, False, 0), Plan("FSDP2, QLoRA", 2, 4, False, 0),
        Plan("FSDP2, full", 2, 4, False, 0), Plan("DDP, QLoRA by nobody", 2, 4, False, 0),
    ]  # fmt: skip
    order = [wanted[-1], *wanted[:-1]]
    several._all_ranks(2, order, tmp_path, True, time.time() + 240)
    several._all_ranks(2, order[1:], tmp_path, True, time.time() + 240)
    head = json.loads((tmp_path / "several_gpus.json").read_text(encoding="utf-8"))
    rows = {row["key"]: row for row in head["rows"] if "way" in row}
    assert head["what"].startswith("TRIAL") and set(rows) == {plan.key for plan in wanted}
    assert rows[wanted[-1].key]["failed"]
    record = SeveralRecord(tmp_path / "several_gpus.json")
    assert len(record.rows) == 6 and {c["collective"] for c in record.collectives} == {"all_reduce", "all_gather"}
    for row in record.rows:
        assert len(row["peaks"]) == 2 and row["milliseconds"]["runs"] == 4 and row["host_ms"] > 0
        assert 5.4 < row["loss"] < 5.8, "a tiny model of 256 tokens that knows nothing: ln 256 is 5.55"
