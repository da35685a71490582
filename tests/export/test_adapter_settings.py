"""Settings that can't be are refused by whatever takes an adapter elsewhere, in words; what passes can be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.export.adapters_of_all_kinds import copied, saved, settings
from tests.small_llama import small
from utils.export.adapter_settings import scaling
from utils.export.errors import ExportError
from utils.export.gguf import to_gguf
from utils.export.hub import hub_dry_run
from utils.export.mlx import to_mlx
from utils.export.preflight_report import preflight
from utils.export.preflight_rules import TARGETS
from utils.lora.adapter_config import CONFIG, SETTINGS
from utils.lora.checkpoint import WEIGHTS
from utils.train.consolidate import check_whole

NAN = float("nan")
DAMAGES = {
    "r": ("4", None, [4], True, 4.0, 0, -4, NAN, {}),
    "lora_alpha": ("8", None, [8], True, 0, -8, NAN, float("inf"), 10**400, {}),
    "rank_pattern": ([4], "q_proj", 4, {"q_proj": "4"}, {"q_proj": 0}, {"q_proj": True}, {"(": 4}, {")": 4}),
    "alpha_pattern": ([8], "q", 8, {"q_proj": "8"}, {"q_proj": NAN}, {"q_proj": [8]}, {"q_proj": None}, {"[": 8}),
    "use_rslora": ("false", 1, [True]),
    "use_dora": ("no", 0),
    "fan_in_fan_out": ("no",),
    "lora_bias": (2,),
    "use_qalora": ("no",),
    "bias": ("some", None, True, ["all"]),
    "modules_to_save": (3, [3], True, "embed_tokens"),
    "target_parameters": (3, {"a": 1}, "experts"),
    "trainable_token_indices": ("5", ["5"], {"embed_tokens": [-1]}, 5),
    "init_lora_weights": (3, ["pissa"]),
    "target_modules": (3, "(", [None]),
    "base_model_name_or_path": (3, ["a"], False),
}  # fmt: skip
CASES = [(key, value) for key, values in DAMAGES.items() for value in values]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return saved("plain", tmp_path_factory.mktemp("plain") / "plain", name="owner/base")


def takers(folder: Path, out: Path) -> dict:
    """Everything that takes an adapter's folder elsewhere."""
    writers = {
        "to_gguf": lambda: to_gguf(folder, out / "a.gguf", "f32", base=small()),
        "to_mlx": lambda: to_mlx(folder, out / "mlx"),
        "hub_dry_run": lambda: hub_dry_run(folder, "me/pirate", out / "hub"),
        "check_whole": lambda: check_whole(folder),
    }
    return writers | {target: lambda target=target: preflight(folder, target) for target in TARGETS}


@pytest.mark.parametrize("key, value", CASES, ids=[f"{key}={str(value)[:20]!r}" for key, value in CASES])
def test_a_setting_that_cant_be_is_refused_by_all_in_the_same_words(plain, tmp_path, key, value):
    folder = copied(plain, tmp_path / "damaged", **{key: value})
    for take in takers(folder, tmp_path).values():
        with pytest.raises(
            ValueError, match=rf"adapter_config\.json is damaged \({key} must be {SETTINGS[key][1][:9]}"
        ):
            take()
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"], "nothing was written"


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_setting_that_is_needed_and_left_out_is_refused_by_all(plain, tmp_path, key):
    folder = copied(plain, tmp_path / "damaged")
    config = json.loads((folder / CONFIG).read_text())
    del config[key]
    (folder / CONFIG).write_text(json.dumps(config))
    for take in takers(folder, tmp_path).values():
        with pytest.raises(ValueError, match=f"doesn't say {key}"):
            take()


@pytest.mark.parametrize("changed", [{"r": 3}, {"rank_pattern": {"q_proj": 2}}, {"rank_pattern": {r".*\.v_proj": 9}}])
def test_a_rank_that_isnt_the_matrices_is_refused_by_preflight_as_by_the_writer(plain, tmp_path, changed):
    folder = copied(plain, tmp_path / "changed", **changed)
    for take in (lambda: to_gguf(folder, tmp_path / "a.gguf", base=small()), *(
        lambda target=target: preflight(folder, target) for target in TARGETS
    )):  # fmt: skip
        with pytest.raises(ValueError, match=r"says (rank \d for|r=3).*matrices.*the settings were changed"):
            take()


@pytest.mark.parametrize(
    "changed",
    [{"lora_alpha": 1e13}, {"alpha_pattern": {"q_proj": 1e30}}, {"lora_alpha": 5 * 10**13, "use_rslora": True}],
)
def test_a_scaling_that_no_model_computes_with_is_refused_without_a_number_being_read(plain, tmp_path, changed):
    folder = copied(plain, tmp_path / "changed", **changed)
    for take in (lambda: to_gguf(folder, tmp_path / "a.gguf", base=small()), lambda: preflight(folder, "vllm")):
        with pytest.raises(ValueError, match="no model can compute with that"):
            take()


def test_a_matrix_that_is_missing_or_is_none_is_named(plain, tmp_path):
    folder = copied(plain, tmp_path / "half")
    tensors = load_file(folder / WEIGHTS)
    first = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="only one of lora_A and lora_B for model"):
        preflight(folder, "vllm")
    name = first.replace("lora_B", "lora_A")
    save_file(tensors | {name: torch.tensor(1.0)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"lora_A\.weight of shape \(\), which is no matrix's"):
        preflight(folder, "vllm")
    with pytest.raises(ValueError, match="matri"):
        to_gguf(folder, tmp_path / "a.gguf", base=small())


def test_sound_settings_that_look_odd_pass(plain, tmp_path):
    odd = {"rank_pattern": {r"model\.layers\.\d+\.self_attn\.q_proj": 4}, "alpha_pattern": {}, "lora_alpha": 7.5,
           "use_rslora": None, "modules_to_save": [], "target_parameters": None}  # fmt: skip
    folder = copied(plain, tmp_path / "odd", **odd)
    assert not preflight(folder, "vllm").findings
    assert to_gguf(folder, tmp_path / "a.gguf", base=small()).is_file()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@trials(max_examples=150, deadline=None)
@given(key=st.sampled_from([*SETTINGS, "peft_type", "layer_replication", "alora_invocation_tokens"]), value=JSON)
@example(key="use_qalora", value=True)
@example(key="use_bdlora", value={"nblocks": 2})
def test_whatever_a_setting_says_the_preflight_answers_or_refuses_in_words(plain, tmp_path_factory, key, value):
    """And what it passes without a refusal can be written, or is refused for what it is and not as damaged."""
    folder = tmp_path_factory.mktemp("any") / "adapter"
    copied(plain, folder, **{key: value})
    try:
        answer = preflight(folder, "llama.cpp")
        str(preflight(folder, "sglang"))
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error)
        with pytest.raises((ValueError, FileNotFoundError)):
            to_gguf(folder, folder.parent / "a.gguf", "f32", base=small())
        return
    try:
        to_gguf(folder, folder.parent / "a.gguf", "f32", base=small())
    except ExportError:
        assert answer.refused or answer.wrong  # "wrong" is what llama.cpp's own converter writes all the same
    except ValueError as error:
        assert "target_modules" in str(error), "which layers are meant: a question that no header answers"
    else:
        assert not answer.refused


def test_a_pattern_is_looked_up_as_peft_does():
    found = {"lora_alpha": 8, "alpha_pattern": {"q_proj": 2, r"layers\.1\..*": 4}}
    assert scaling(found, "model.layers.0.self_attn.q_proj", 2) == 1
    assert scaling(found, "model.layers.1.mlp.up_proj", 2) == 2
    assert scaling(found, "model.layers.0.mlp.up_proj", 2) == 4
    assert scaling(found | {"use_rslora": True}, "model.layers.0.mlp.up_proj", 4) == 4


def test_another_methods_settings_are_its_own(tmp_path):
    folder = settings(saved("vera", tmp_path / "vera"), r="8")
    assert [one.name for one in preflight(folder, "vllm").refused] == ["method"]
