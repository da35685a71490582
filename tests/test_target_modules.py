"""Proposals and matches against PEFT itself, on a tiny model of every architecture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, TaskType, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS_OWN

from utils.target_modules import (
    ARCHITECTURES,
    check_targets,
    match_targets,
    propose_targets,
    tiny_random,
    unmatched,
)

EXPECTED = {
    "Llama": (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]),
    "Mistral": (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]),
    "Qwen3": (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]),
    "Gemma3": (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]),
    "Phi": (["q_proj", "k_proj", "v_proj", "dense"], ["fc1", "fc2"]),
    "Phi3": (["o_proj", "qkv_proj"], ["gate_up_proj", "down_proj"]),
    "GPT-2": (["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
    "GPT-NeoX": (["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "BLOOM": (["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "OPT": (["k_proj", "v_proj", "q_proj", "out_proj"], ["fc1", "fc2"]),
    "Falcon": (["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "T5": (["q", "k", "v", "o"], ["wi", "wo"]),
}
MODELS = {name: tiny_random(name) for name in ARCHITECTURES}


def wrapped(architecture, targets, **more):
    proposal = propose_targets(MODELS[architecture])
    task = TaskType.SEQ_2_SEQ_LM if architecture == "T5" else TaskType.CAUSAL_LM
    config = LoraConfig(r=2, target_modules=targets, task_type=task, fan_in_fan_out=proposal.conv1d, **more)
    return get_peft_model(tiny_random(architecture), config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_proposals_are_these_names(architecture):
    proposal = propose_targets(MODELS[architecture])
    assert (sorted(proposal.attention), sorted(proposal.mlp)) == tuple(map(sorted, EXPECTED[architecture]))
    assert proposal.conv1d is (architecture == "GPT-2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", ["attention", "mlp", "all"])
def test_peft_wraps_exactly_what_was_proposed(architecture, part):
    targets = getattr(propose_targets(MODELS[architecture]), part)
    ours = sorted(name for names in match_targets(MODELS[architecture], targets).values() for name in names)
    assert ours == sorted(wrapped(architecture, targets).targeted_module_names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_is_pefts_all_linear_and_what_is_proposed(architecture):
    model = MODELS[architecture]
    everything = match_targets(model, "all-linear")["all-linear"]
    assert sorted(everything) == sorted(wrapped(architecture, "all-linear").targeted_module_names)
    proposed = match_targets(model, propose_targets(model).all)
    assert sorted(n for names in proposed.values() for n in names) == sorted(everything)


@pytest.mark.parametrize(
    ("architecture", "key"),
    [("Llama", "llama"), ("GPT-NeoX", "gpt_neox"), ("BLOOM", "bloom"), ("T5", "t5"), ("OPT", "opt"), ("GPT-2", "gpt2")],
)
def test_pefts_own_defaults_are_among_the_proposals(architecture, key):
    assert not unmatched(MODELS[architecture], list(PEFTS_OWN[key]))
    assert {n.split(".")[-1] for n in propose_targets(MODELS[architecture]).all} >= set(PEFTS_OWN[key])


def test_c_proj_of_gpt2_is_in_attention_and_in_the_mlp():
    found = match_targets(MODELS["GPT-2"], ["c_proj"])["c_proj"]
    assert sorted({name.split(".")[-2] for name in found}) == ["attn", "mlp"]
    assert sorted(wrapped("GPT-2", ["c_proj"]).targeted_module_names) == sorted(found)


def test_the_guides_names_dont_exist_in_neox():
    assert unmatched(MODELS["GPT-NeoX"], ["c_attn", "c_proj"]) == ["c_attn", "c_proj"]


def test_a_misspelt_name_is_refused_with_the_nearest_where_peft_says_nothing():
    peft = wrapped("Llama", ["q_proj", "v_porj"])
    assert all(name.endswith("q_proj") for name in peft.targeted_module_names)
    with pytest.raises(ValueError, match=r"'v_porj' \(did you mean 'v_proj'\?\).*are called down_proj, gate_proj"):
        check_targets(MODELS["Llama"], ["q_proj", "v_porj"])
    with pytest.raises(ValueError, match="is empty"):
        check_targets(MODELS["Llama"], [])
    with pytest.raises(ValueError, match="matches no linear layer: 'layers.9.*'"):
        check_targets(MODELS["Llama"], "layers.9.*")


ASKED = ["q_proj", "proj", "self_attn.q_proj", "layers.1.mlp.up_proj", "o_proj", "lm_head", "mlp", "norm", "q_pro", ""]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(ASKED), min_size=1, max_size=4, unique=True))
def test_matching_is_pefts_for_any_list(targets):
    ours = {n for names in match_targets(MODELS["Llama"], targets).values() for n in names}
    linear_only = [t for t in targets if t not in ("mlp", "norm")]  # PEFT raises for a module it can't wrap
    ours_only = {n for names in match_targets(MODELS["Llama"], linear_only).values() for n in names}
    assert ours == ours_only
    if ours:
        assert set(wrapped("Llama", linear_only).targeted_module_names) == ours


@pytest.mark.parametrize("regex", [r".*q_proj", r".*\.layers\.1\..*(up|down)_proj", r"model\.layers\.0\.mlp\.gate_proj"])
def test_a_text_is_a_regular_expression_as_in_peft(regex):
    ours = match_targets(MODELS["Llama"], regex)[regex]
    assert ours and sorted(ours) == sorted(wrapped("Llama", regex).targeted_module_names)


def test_tiny_models_are_the_same_each_time_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    again = tiny_random("Llama")
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), MODELS["Llama"].parameters(), strict=True))
    with pytest.raises(ValueError, match="no tiny 'Lama' here: choose one of Llama"):
        tiny_random("Lama")


def test_a_model_without_blocks_gives_no_proposal():
    with pytest.raises(ValueError, match="no linear layers in numbered blocks"):
        propose_targets(torch.nn.Sequential(torch.nn.Linear(2, 2)))
