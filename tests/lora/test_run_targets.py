"""utils.lora.run_targets: names that mean nothing are refused without weights, and what they miss is said."""

from __future__ import annotations

import pytest

from utils.lora.run_targets import look_at_targets, skeleton
from utils.lora.target_modules import tiny_random
from utils.models.configs import real_config


def bare(name: str):
    return skeleton(tiny_random(name).config) if name != "Llava" else tiny_random(name)


def test_a_skeleton_has_names_and_no_data():
    model = skeleton(real_config("Llama-2-7B"))
    assert {p.device.type for p in model.parameters()} == {"meta"} and look_at_targets(model, "all-linear") == []


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("Llama", {"targets": ["q_proj", "v_prj"]}, "'v_prj' matches no module. Did you mean"),
        ("Llama", {"parameters": ["experts.up"]}, "'experts.up' is no weight of this LlamaForCausalLM, which has no"),
        ("gpt-oss", {"parameters": ["experts.up"]}, "its experts are called down_proj, gate_up_proj"),
        ("Llama", {"exclude": ["vision"]}, "--exclude vision names no part"),
        ("Llama", {"targets": ["q_proj"], "exclude": ["self_attn"]}, "leaves no layer that could get an adapter"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, given, said):
    with pytest.raises(ValueError, match=said):
        look_at_targets(bare(name), **{"targets": "all-linear", **given})


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("gpt-oss", {}, "leaves out the experts .*--target-parameters mlp.experts.gate_up_proj mlp.experts.down_proj"),
        ("gpt-oss", {"parameters": PARAMETERS}, None),
        ("gpt-oss", {"targets": ["q_proj"]}, None),
        ("Mixtral", {}, None),  # PEFT reads "all-linear" of it as the experts too
        ("Llava", {}, "takes in model.vision_tower, which reads no text: --exclude vision_tower"),
        ("Llava", {"exclude": ["vision_tower"]}, None),
    ],
)
def test_what_all_linear_misses_or_takes_in_is_said(name, given, said):
    import re

    found = look_at_targets(bare(name), **{"targets": "all-linear", **given})
    assert len(found) == (said is not None)
    assert not found or (found[0].startswith("Look: ") and re.search(said, found[0]))
