"""One rank's memory under DDP and FSDP2: held to the record of several GPUs, and to what each engine does."""

import dataclasses
from functools import cache

import pytest
import torch
from torch import nn

from utils.models.configs import llama_config
from utils.profiling.fit import main
from utils.profiling.memory import KINDS, Setup, predict
from utils.profiling.ranks import blocks_of, predict_rank, share_of
from utils.profiling.several import TWO_GPUS, SeveralRecord

RECORD = SeveralRecord()
SMALL = Setup(
    llama_config(vocabulary=512, hidden=256, intermediate=512, layers=6, heads=4),
    batch=2, length=64, adapter_dtype="bfloat16", optimizer="adamw-fused",
)  # fmt: skip


@cache
def predicted(way, gpus, batch, checkpointing):
    engine, what = way.split(", ")
    method = {"full": "full", "QLoRA": "qlora"}.get(what, "lora")
    sixteen = engine == "FSDP2" or "16-bit" in what
    setup = Setup(
        "Llama-2-7B", method, batch, 512, r=16, adapter_dtype="bfloat16" if sixteen else "float32",
        optimizer="adamw-fused", checkpointing=checkpointing, double=False,
    )  # fmt: skip
    return predict_rank(setup, engine, gpus)


LATER = SeveralRecord(TWO_GPUS)
FOLLOWED = [
    (record, *size)
    for record in (RECORD, LATER)
    for size in record.sizes()
    if not any(word in size[0] for word in ("fused", "autocast", "compiled", "CUDA graphs"))
]


@pytest.mark.parametrize(
    ("record", "way", "gpus", "batch", "checkpointing"),
    [pytest.param(*one, id=f"{'later' if one[0] is LATER else 'first'}: {one[1:]}") for one in FOLLOWED],
)
def test_a_ranks_peak_is_what_its_gpu_allocated(record, way, gpus, batch, checkpointing):
    """Nothing was fitted to these: the largest error of the first run's eleven rows is 1.2%, of the repeated record's
    33 sizes 3.5%, FSDP2 of LoRA with one sequence."""
    prediction = predicted(way, 1 if way.startswith("DDP") else gpus, batch, checkpointing)
    measured = record.peak(way, gpus, batch, checkpointing=checkpointing)
    assert prediction.peak == pytest.approx(measured, rel=0.015 if record is RECORD else 0.04)
    assert sum(prediction.parts.values()) == prediction.peak and set(prediction.parts) <= set(KINDS)


def test_ddp_holds_what_one_gpu_holds_and_the_gradients_once_more():
    alone, rank = predict(SMALL), predict_rank(SMALL, "DDP", 8)
    assert rank.peak - alone.peak == rank.parts["communication"] == rank.resident - alone.resident
    trainable = 6 * 8 * (4 * (256 + 256) + 3 * (256 + 512))
    assert rank.parts["communication"] == pytest.approx(2 * trainable, rel=0.02)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_fsdp_holds_a_share_between_steps_and_gives_back_all_that_it_gathered(method):
    setup = dataclasses.replace(SMALL, method=method)
    alone, shared = predict(setup), predict_rank(setup, "FSDP2", 4)
    fixed = alone.moments["optimizer"]["kernels' workspace"]
    left = shared.moments["optimizer"]
    assert left.get("gathered weights", 0) == left.get("communication", 0) == 0
    if method != "qlora":  # its scales are buffers
        assert (shared.resident - fixed) / (alone.resident - fixed) == pytest.approx(0.25, abs=0.02)
    else:
        assert 0.25 < (shared.resident - fixed) / (alone.resident - fixed) < 0.45
    grads = [p.moments["optimizer"].get("gradients", 0) for p in (shared, alone)]
    assert grads[0] / grads[1] == pytest.approx(0.25, abs=0.03)


def test_checkpointing_under_fsdp_saves_activations():
    plain, light = (
        predict_rank(dataclasses.replace(SMALL, method="full", batch=32, checkpointing=on), "FSDP2", 2)
        for on in (False, True)
    )
    assert light.peak < plain.peak and light.kept < plain.kept / 2 and light.resident == plain.resident


def test_more_gpus_need_less_each_until_a_rank_has_less_than_a_row():
    setup = dataclasses.replace(SMALL, method="full")
    two, four, many, too_many = (predict_rank(setup, "FSDP2", n).peak for n in (2, 4, 64, 1024))
    assert two > four > many > 0.8 * four, "what is gathered and the activations stay"
    assert too_many > many, "256 rows are padded to 1024"


def test_a_share_is_rounded_up_to_whole_rows():
    assert share_of(torch.empty(10, 4), 4) == 3 * 4 * 4
    assert share_of(torch.empty(3), 8) == 4 and share_of(torch.empty(()), 8) == 4


def test_blocks_are_the_longest_list_and_a_model_without_one_is_refused():
    model = nn.ModuleDict({"few": nn.ModuleList([nn.Linear(1, 1)]), "many": nn.ModuleList([nn.Linear(1, 1)] * 3)})
    assert len(blocks_of(model)) == 3
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        blocks_of(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("changes", "engine", "gpus", "said"),
    [
        ({}, "FSDP1", 2, "'FSDP1'.*DDP, FSDP2"),
        ({}, "FSDP2", 0, "gpus"),
        ({"adapter_dtype": "float32"}, "FSDP2", 2, "autocast_adapter_dtype=False"),
        ({"optimizer": "adamw-8bit"}, "FSDP2", 2, "not 'adamw-8bit'"),
    ],
)
def test_what_cannot_be_spread_so_is_refused(changes, engine, gpus, said):
    with pytest.raises(ValueError, match=said):
        predict_rank(dataclasses.replace(SMALL, **changes), engine, gpus)


def test_the_command_line_says_what_a_rank_needs_and_refuses_a_card_that_is_too_small(capsys):
    sizes = "vocabulary=512,hidden=256,intermediate=512,layers=6,heads=4,kv_heads=4"
    given = ["--sizes", sizes, "--engine", "FSDP2", "--gpus", "2", "--adapter-dtype", "bfloat16"]
    main(given)
    assert "gathered weights" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="each rank needs about .* take more GPUs"):
        main([*given, "--card", "0.5"])
    with pytest.raises(SystemExit, match="--engine and --gpus go together"):
        main(given[:4])
