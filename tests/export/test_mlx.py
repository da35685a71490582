"""An adapter as mlx-lm has it: the same update as PEFT's by the file alone, and run by mlx-lm where it is there."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.export.adapters_of_all_kinds import KINDS, copied, saved, settings
from tests.small_llama import small
from utils.export.errors import ExportError
from utils.export.mlx import MLX_WEIGHTS, to_mlx
from utils.export.preflight_report import preflight

LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]


def update(folder: Path, name: str) -> torch.Tensor:
    """What mlx-lm computes of a layer's two matrices: scale * (lora_a @ lora_b), transposed to (out, in)."""
    scale = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["lora_parameters"]["scale"]
    tensors = load_file(folder / MLX_WEIGHTS)
    return scale * (tensors[f"{name}.lora_a"].double() @ tensors[f"{name}.lora_b"].double()).T


@pytest.mark.parametrize("kind", ["plain", "rank 16", "rslora", "alpha_pattern", "rank_pattern", "pattern"])
def test_its_update_is_pefts(kind, tmp_path):
    folder = saved(kind, tmp_path / "peft")
    model = peft.PeftModel.from_pretrained(small(), folder)
    to_mlx(folder, tmp_path / "mlx")
    for name in LAYERS:
        wanted = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default").double()
        # float32 products of four to sixteen terms below 1: some units of 2**-24 each
        torch.testing.assert_close(update(tmp_path / "mlx", name), wanted, atol=1e-6, rtol=0)


def test_a_lower_rank_is_filled_up_and_dora_keeps_its_lengths(tmp_path):
    to_mlx(saved("rank_pattern", tmp_path / "a"), tmp_path / "mixed")
    tensors = load_file(tmp_path / "mixed" / MLX_WEIGHTS)
    assert tensors[f"{LAYERS[0]}.lora_a"].shape == (32, 4), "q_proj has rank 2 in PEFT's file"
    assert not tensors[f"{LAYERS[0]}.lora_a"][:, 2:].any() and not tensors[f"{LAYERS[0]}.lora_b"][2:].any()
    to_mlx(saved("dora", tmp_path / "b"), tmp_path / "dora")
    assert json.loads((tmp_path / "dora" / "adapter_config.json").read_text())["fine_tune_type"] == "dora"
    lengths = load_file(tmp_path / "b" / "adapter_model.safetensors")
    wanted = next(tensor for name, tensor in lengths.items() if "q_proj.lora_magnitude_vector" in name)
    assert torch.equal(load_file(tmp_path / "dora" / MLX_WEIGHTS)[f"{LAYERS[0]}.m"], wanted.flatten())


def test_the_settings_name_layers_scale_and_base(tmp_path):
    to_mlx(saved("rslora", tmp_path / "a", name="owner/base"), tmp_path / "mlx")
    said = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert said["model"] == "owner/base" and said["fine_tune_type"] == "lora"
    assert said["lora_parameters"] == {"rank": 4, "scale": 4.0, "dropout": 0.0, "keys": LAYERS}, "8 / sqrt(4)"


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_preflight_says_is_what_is_refused(kind, tmp_path):
    folder = saved(kind, tmp_path / "peft")
    found = preflight(folder, "mlx")
    if found.refused or found.wrong:
        with pytest.raises(ExportError, match=r"MLX (refuses|would get wrong) peft: .*Instead:"):
            to_mlx(folder, tmp_path / "mlx")
        assert not (tmp_path / "mlx").exists()
    else:
        to_mlx(folder, tmp_path / "mlx")


def test_nothing_is_lost_or_left(tmp_path):
    folder = saved("plain", tmp_path / "peft")
    with pytest.raises(ExportError, match=r"own folder, whose adapter_config\.json would be lost"):
        to_mlx(folder, folder)
    broken = copied(folder, tmp_path / "broken")
    data = bytearray((broken / "adapter_model.safetensors").read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"  # NaN
    (broken / "adapter_model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="NaN"):
        to_mlx(broken, tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


@pytest.mark.parametrize("kind", ["plain", "rslora", "alpha_pattern", "rank_pattern", "dora"])
def test_mlx_lm_computes_what_peft_does(kind, tmp_path):
    mx = pytest.importorskip("mlx.core", reason="MLX isn't installed here")
    mlx_lm = pytest.importorskip("mlx_lm.utils", reason="mlx-lm isn't installed here")
    folder = settings(saved(kind, tmp_path / "peft"))
    base = small().eval()
    base.save_pretrained(tmp_path / "base")
    model, _ = mlx_lm.load_model(Path(tmp_path / "base"))
    model = mlx_lm.load_adapters(model, str(to_mlx(folder, tmp_path / "mlx")))
    got = torch.tensor(model(mx.arange(8)[None]).tolist())
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(base, folder).eval()(torch.arange(8)[None]).logits
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)  # float32, one block; measured 2e-7 to 6e-7
