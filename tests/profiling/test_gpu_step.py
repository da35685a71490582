"""gpu_step: the steps that a GPU's peaks are measured with, on a small model, and what it says without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from utils.profiling import gpu_step
from utils.profiling.memory import Setup, predict

torch.set_num_threads(1)
METHODS = {
    "full": Setup("SmolLM2-135M", "full"),
    "lora": Setup("SmolLM2-135M", "lora", checkpointing=True),
    "qlora": Setup("Llama-2-7B", "qlora"),
}


@pytest.mark.parametrize("setup", METHODS.values(), ids=METHODS)
def test_three_steps_run_and_leave_the_base_as_it_was(setup):
    model = gpu_step.base_model(setup, "cpu", trial=True)
    names = [name for name, _ in model.named_parameters()]
    row = gpu_step.run_one(model, setup, "cpu", trial=True)
    assert set(row["phases"]) == {"forward", "backward", "optimizer"} and row["phase"] in row["phases"]
    assert row["loss"] == pytest.approx(torch.tensor(256.0).log().item(), rel=0.1), "random weights know nothing"
    assert [name for name, _ in model.named_parameters()] == names
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_4_bit_layers_are_bitsandbytes_own_and_the_head_is_kept():
    from bitsandbytes.nn import Linear4bit

    model = gpu_step.base_model(METHODS["qlora"], "cpu", trial=True)
    kinds = {type(module) for name, module in model.named_modules() if name.endswith("_proj")}
    assert kinds == {Linear4bit} and type(model.lm_head) is torch.nn.Linear
    wrapped = gpu_step.adapted(model, METHODS["qlora"])
    assert {type(m).__module__ for n, m in wrapped.named_modules() if n.endswith("q_proj")} == {"peft.tuners.lora.bnb"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_without_a_gpu_the_prediction_stands_alone():
    setup = Setup("SmolLM2-135M", "lora")
    predicted = predict(setup).peak / 1e9
    assert gpu_step.prediction_on_this_gpu(setup) == (
        f"predicted {predicted:.2f} GB; there is no CUDA GPU here to measure it on"
    )


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
@pytest.mark.parametrize("out_of_memory", [False, True])
def test_with_a_gpu_the_sentence_has_both_and_the_difference(monkeypatch, capability, out_of_memory):
    """A GPU played by patches: what is held before the step isn't the step's, and cuBLAS' share is the card's own."""
    setup, held, peaks = Setup("SmolLM2-135M", "lora"), 10**9, {False: 2 * 10**9, True: 3 * 10**9}
    monkeypatch.setattr(gpu_step, "predict", lambda setup: SimpleNamespace(peak=peaks[setup.hopper]))
    row = {"out_of_memory": "CUDA out of memory."} if out_of_memory else {"peak": held + peaks[capability == (9, 0)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(gpu_step, "free", lambda: held)
    monkeypatch.setattr(gpu_step, "base_model", lambda setup, device: None)
    monkeypatch.setattr(gpu_step, "run_one", lambda model, setup, device: row)
    said = gpu_step.prediction_on_this_gpu(setup)
    if out_of_memory:
        assert said.endswith("Some GPU ran out: CUDA out of memory.")
    else:
        assert "measured on Some GPU" in said and said.endswith("off by +0.0%")


def test_what_it_cant_build_is_refused():
    with pytest.raises(ValueError, match="prepared is True"):
        gpu_step.prediction_on_this_gpu(Setup("SmolLM2-135M", "qlora", prepared=True))
