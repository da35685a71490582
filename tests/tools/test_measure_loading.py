"""The record of what a GPU allocated, held against the arithmetic that chapter 6 teaches."""

import json
import subprocess
import sys

import pytest
import torch

from utils.models import ASSETS, ROOT
from utils.profiling import memory
from utils.profiling.memory import Setup, predict

RECORD = json.loads((ASSETS / "measurements" / "loading_7b.json").read_text())
ROWS = {(row["base"], row["trains"], row["checkpointing"]): row for row in RECORD["rows"]}
LORA, FULL = "LoRA r=8 q,k,v,o", "everything, no optimizer"
QUANTIZED, KEPT, TRAINABLE = 6_476_005_376, 262_410_240, 8_388_608


def test_every_setting_was_measured_once():
    bases = [("bf16", FULL), ("bf16", LORA), ("NF4", LORA), ("NF4, double quantization", LORA)]
    assert set(ROWS) == {(*base, on) for base in bases for on in (False, True)} and len(ROWS) == len(RECORD["rows"])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("base", ["bf16", "NF4", "NF4, double quantization"])
def test_the_gpu_allocates_what_is_counted(base, checkpointing):
    row = ROWS[base, LORA, checkpointing]
    if base == "bf16":
        state = memory.lora(QUANTIZED + KEPT, TRAINABLE)
    else:
        state = memory.qlora(QUANTIZED, KEPT, TRAINABLE, double="double" in base)
    assert row["weights"] == pytest.approx(state.weights - 4 * TRAINABLE, rel=3e-4)
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    kept = predict(Setup(batch=4, target_modules=attention, checkpointing=checkpointing)).kept
    passing = row["peak"] - state.total - kept
    assert 0 < passing < memory.GB, "the peak holds besides what the backward pass needs in passing"


def test_the_gpus_codes_are_those_of_nf4_but_for_roundings():
    for found in RECORD["nf4_differences_from_cuda"].values():
        assert found["codes"] <= 1e-6 * found["of codes"] and found["scales"] == 0
        assert found["8-bit scales, nearest"] == 0 < found["8-bit scales"] < 0.005 * found["of scales"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_without_a_gpu_the_tool_says_so():
    command = [sys.executable, "-m", "tools.measure_loading"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "error: this measures a GPU, and there is none here"
