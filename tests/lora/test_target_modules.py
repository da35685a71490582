"""The proposals are held against PEFT on every architecture; the check of a list against PEFT's own matching."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.architectures import EXPERTS, SMALL, on_meta, peft_adapts
from utils.lora.target_modules import (
    ARCHITECTURES,
    MIXED,
    Proposal,
    check_targets,
    converted,
    find_targets,
    is_linear,
    match_targets,
    propose_targets,
    tiny_random,
    upcycled,
)
from utils.models import load_base

torch.set_num_threads(1)

MODERN = (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"])
FUSED = (["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"])
EXPECTED = {
    "Llama": MODERN,
    "Mistral": MODERN,
    "Qwen2": MODERN,
    "Qwen3": MODERN,
    "Gemma": MODERN,
    "Phi": (["q_proj", "k_proj", "v_proj", "dense"], ["fc1", "fc2"]),
    "Phi-3": (["qkv_proj", "o_proj"], ["gate_up_proj", "down_proj"]),
    "GPT-2": (["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
    "GPT-NeoX": FUSED,
    "BLOOM": FUSED,
    "OPT": (["q_proj", "k_proj", "v_proj", "out_proj"], ["fc1", "fc2"]),
    "Falcon": FUSED,
    "T5": (["q", "k", "v", "o"], ["wi", "wo"]),
}


def peft_model(model, **settings):
    from peft import LoraConfig, get_peft_model

    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    return get_peft_model(model, LoraConfig(**{"task_type": task} | settings))


def inputs(model):
    ids = torch.arange(3, 11)[None]
    return {"input_ids": ids, "labels": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


# -------------------------------------------------------------------------------------------------------- tiny models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_are_tiny_seeded_and_leave_the_random_state_alone(architecture):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, again, other = tiny_random(architecture), tiny_random(architecture), tiny_random(architecture, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in one.parameters()) < 100_000
    assert not one.training
    with torch.inference_mode():
        first, second, third = (m(**inputs(m)).logits for m in (one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("architecture", MIXED)
def test_mixed_models_are_tiny_too_and_their_proposals_fields_are_taken_by_peft(architecture):
    base = tiny_random(architecture)
    assert sum(p.numel() for p in base.parameters()) < 200_000
    assert fields_adapt(base, propose_targets(base).fields)


def test_an_upcycled_llama_computes_what_the_llama_does_until_an_expert_changes():
    base, _ = load_base()
    mixture = upcycled(base)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        assert torch.allclose(mixture(ids).logits, base(ids).logits, atol=1e-4)
        mixture.model.layers[0].mlp.experts.down_proj[0] *= 2
        assert not torch.allclose(mixture(ids).logits, base(ids).logits, atol=1e-2)
    experts = sum(p.numel() for n, p in mixture.named_parameters() if "experts" in n)
    assert experts == 4 * sum(p.numel() for n, p in base.named_parameters() if "mlp" in n)
    with pytest.raises(ValueError, match="this is a gpt2"):
        upcycled(tiny_random("GPT-2"))


def test_unknown_architecture_names_the_near_one():
    with pytest.raises(ValueError, match=r"'Lama'.*did you mean 'Llama'\?.*GPT-NeoX"):
        tiny_random("Lama")


# ----------------------------------------------------------------------------------------------------------- proposing


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_proposal_is_what_a_person_would_write(architecture):
    proposal = propose_targets(tiny_random(architecture))
    attention, mlp = EXPECTED[architecture]
    assert sorted(proposal.attention) == sorted(attention)
    assert sorted(proposal.mlp) == sorted(mlp)
    assert proposal.other == proposal.parameters == []
    assert proposal.conv1d == (architecture == "GPT-2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("group", ["attention", "mlp", "targets"])
def test_peft_targets_what_was_proposed_and_trains_it(architecture, group, recwarn):
    base = tiny_random(architecture)
    proposal = propose_targets(base)
    wanted = getattr(proposal, group)
    names = check_targets(base, wanted)
    model = peft_model(base, target_modules=wanted, r=2, fan_in_fan_out=proposal.conv1d, init_lora_weights=False)
    assert model.targeted_module_names == names
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]
    model(**inputs(base)).logits.square().sum().backward()
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        assert layer.lora_A.default.weight.grad.abs().sum() > 0, f"{name} takes no part in the computation"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_groups_together_are_pefts_all_linear(architecture):
    base = tiny_random(architecture)
    proposal = propose_targets(base)
    mine = check_targets(base, proposal.targets)
    assert match_targets(base, "all-linear") == {"all-linear": mine}
    everything = peft_model(tiny_random(architecture), target_modules="all-linear", r=2, fan_in_fan_out=proposal.conv1d)
    assert everything.targeted_module_names == mine


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pefts_own_default_is_part_of_the_proposal(architecture):
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as defaults

    base = tiny_random(architecture)
    kind = base.config.model_type
    if kind not in defaults:
        assert architecture == "Phi-3"  # then PEFT asks for target_modules, and a proposal is needed
        with pytest.raises(ValueError, match="target_modules"):
            peft_model(base)
        return
    theirs = set(check_targets(base, defaults[kind]))
    proposed = set(check_targets(base, propose_targets(base).targets))
    assert theirs < proposed


def test_the_guides_names_for_neox_match_nothing_there():
    base = tiny_random("GPT-NeoX")
    assert match_targets(base, ["c_attn", "c_proj"]) == {"c_attn": [], "c_proj": []}
    with pytest.raises(ValueError, match="not found in the base model"):
        peft_model(base, target_modules=["c_attn", "c_proj"])


def test_gpt2s_c_proj_is_attention_and_mlp():
    base = tiny_random("GPT-2")
    assert match_targets(base, ["c_proj"])["c_proj"] == [
        f"transformer.h.{i}.{part}.c_proj" for i in range(2) for part in ("attn", "mlp")
    ]
    only_attention = match_targets(base, ["attn.c_proj"])["attn.c_proj"]
    assert only_attention == ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]


def test_conv1d_wants_fan_in_fan_out():
    with pytest.warns(UserWarning, match="fan_in_fan_out is set to False but the target module is `Conv1D`"):
        model = peft_model(tiny_random("GPT-2"), target_modules=["c_attn"])
    assert model.base_model.model.transformer.h[0].attn.c_attn.fan_in_fan_out  # PEFT puts it right, with a warning


def test_t5_trains_with_any_task_type_and_loads_with_the_right_one_only(tmp_path):
    from peft import AutoPeftModelForSeq2SeqLM

    ids = torch.arange(3, 11)[None]
    targets = propose_targets(tiny_random("T5")).attention
    losses = {}
    for task in ("SEQ_2_SEQ_LM", "CAUSAL_LM"):
        model = peft_model(tiny_random("T5"), target_modules=targets, task_type=task)
        losses[task] = model(input_ids=ids, labels=ids).loss.item()
        model.save_pretrained(tmp_path / task, save_embedding_layers=False)
    assert losses["SEQ_2_SEQ_LM"] == losses["CAUSAL_LM"]
    with pytest.raises(ValueError, match="Expected target PEFT class: PeftModelForCausalLM"):
        AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "CAUSAL_LM")


def test_a_classifiers_head_trains_only_when_the_task_type_says_so():
    from transformers import AutoModelForSequenceClassification

    config = tiny_random("Llama").config
    trained = {}
    for task in ("SEQ_CLS", None):
        model = peft_model(
            AutoModelForSequenceClassification.from_config(config), target_modules=["q_proj"], task_type=task
        )
        trained[task] = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert trained == {"SEQ_CLS": ["base_model.model.score.modules_to_save.default.weight"], None: []}


def test_proposal_on_the_courses_own_model():
    proposal = propose_targets(load_base()[0])
    assert proposal == Proposal(*MODERN, [], False)


def test_state_space_layers_are_neither_attention_nor_mlp():
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    proposal = propose_targets(AutoModelForCausalLM.from_config(config))
    assert (proposal.attention, proposal.mlp, proposal.parameters) == ([], [], [])
    assert proposal.other == ["in_proj"], "the kernels take the others' weights and don't call them"


def test_experts_that_are_parameters_are_named_and_peft_takes_them():
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, head_dim=4,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config)
    proposal = propose_targets(base)
    assert proposal.mlp == []
    assert proposal.parameters == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = peft_model(base, target_modules=proposal.attention, target_parameters=proposal.parameters, r=2)
    assert len(model.targeted_parameter_names) == 4


def test_where_no_short_name_is_unambiguous_the_full_names_are_listed():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    base = BertModel(config)
    proposal = propose_targets(base)
    assert "attention.output.dense" in proposal.attention  # "dense" and "output.dense" mean MLP layers as well
    assert {"intermediate.dense", "encoder.layer.0.output.dense", "encoder.layer.1.output.dense"} == set(proposal.mlp)
    attention, mlp = check_targets(base, proposal.attention), check_targets(base, proposal.mlp)
    assert not set(attention) & set(mlp)
    assert "pooler.dense" not in attention + mlp  # outside the blocks, though PEFT's all-linear takes it


def test_one_block_is_enough_and_a_name_outside_the_blocks_makes_an_end_ambiguous():
    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(4, 4)
            self.blocks = nn.ModuleList([nn.ModuleDict({"ff": nn.ModuleDict({"up": nn.Linear(4, 8)})})])
            self.blocks[0]["ff"]["down"] = nn.Linear(8, 4)

    assert propose_targets(Toy()).mlp == ["ff.up", "down"]


def test_no_blocks_and_adapters_are_refused():
    with pytest.raises(ValueError, match="Sequential has no nn.ModuleList of blocks"):
        propose_targets(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="has a PEFT adapter already"):
        propose_targets(peft_model(tiny_random("Llama"), target_modules=["q_proj"]))


# ------------------------------------------------------------------------------------------------------------ matching

LLAMA = tiny_random("Llama")
NAMES = [name for name, _ in LLAMA.named_modules() if name]
ENDS = sorted({".".join(name.split(".")[-k:]) for name in NAMES for k in (1, 2, 3)})
LINEAR = {name for name, module in LLAMA.named_modules() if is_linear(module)}


def targeted_by_peft(targets) -> list[str]:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=targets)
    return [name for name in NAMES if check_target_module_exists(config, name)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*ENDS, "q_porj", "proj", "layers", "0"]), min_size=1, max_size=4))
def test_a_list_matches_what_peft_matches(targets):
    found = {name for names in match_targets(LLAMA, targets).values() for name in names}
    assert [name for name in NAMES if name in found] == targeted_by_peft(targets)


@pytest.mark.parametrize(
    "expression",
    [r".*\.q_proj", r"model\.layers\.1\..*_proj", "q_proj", r".*mlp\.(gate|up)_proj", r".*\.layers\.[01]\.self_attn"],
)
def test_an_expression_matches_what_peft_matches(expression):
    assert match_targets(LLAMA, expression)[expression] == targeted_by_peft(expression)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*ENDS, "q_porj", "qproj", "mlp_proj"]), min_size=1, max_size=4))
def test_check_accepts_exactly_lists_whose_every_entry_means_linear_layers(targets):
    matches = match_targets(LLAMA, targets)
    good = all(names and set(names) <= LINEAR for names in matches.values())
    try:
        names = check_targets(LLAMA, targets)
    except ValueError:
        assert not good
    else:
        assert good
        assert names == [n for n in NAMES if any(n in found for found in matches.values())]


def test_a_misspelt_name_beside_a_right_one_passes_peft_and_not_the_check(recwarn):
    model = peft_model(tiny_random("Llama"), target_modules=["q_proj", "v_porj"])
    assert not [w for w in recwarn if "v_porj" in str(w.message)]
    assert len(model.targeted_module_names) == 2
    found = match_targets(LLAMA, ["q_proj", "v_porj"])
    assert found["q_proj"] and found["v_porj"] == []
    with pytest.raises(ValueError, match=r"'v_porj' matches no module\. Did you mean 'v_proj'.*gate_proj"):
        check_targets(LLAMA, ["q_proj", "v_porj"])


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("q_proj", r"write \['q_proj'\]"),
        (r".*q_prj", "matches no module's whole name, such as 'model.layers.0.self_attn.q_proj'"),
        ([r".*\.q_proj"], "in a list it is a name and no regular expression"),
        (["attn.q_proj"], "a layer called 'q_proj' is there, as 'model.layers.0.self_attn.q_proj'"),
        (["self_attn"], "a LlamaAttention and no linear layer"),
        (["embed_tokens"], "an? Embedding and no linear layer"),
        ([], "target_modules is empty"),
        ("(", "isn't one"),
        (["xyz", "q_porj"], "'xyz' matches no module.*'q_porj' matches no module"),
    ],
)
def test_what_is_wrong_is_said(targets, words):
    with pytest.raises(ValueError, match=words):
        check_targets(LLAMA, targets)


@pytest.mark.parametrize("read", [match_targets, find_targets, check_targets])
@pytest.mark.parametrize(
    ("targets", "said"), [(["q_proj", 3], "holds 3"), ([None], "holds None"), (5, "not 5"), (None, "not None")]
)
def test_names_are_text(read, targets, said):
    with pytest.raises(TypeError, match=said):
        read(LLAMA, targets)


# ----------------------------------------------------------- parity with PEFT: experts, state spaces, pictures, classes

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


IMAGE_TEXT = "AutoModelForImageTextToText"


def expert_model(kind):
    return on_meta(EXPERTS[kind])


def llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SMALL))


def fields_adapt(model, fields):
    """What PEFT adapts when it is given these fields: the names of modules and parameters."""
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        made = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **fields))
    return {*made.targeted_module_names, *made.targeted_parameter_names}


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@pytest.mark.parametrize("targets", ["all-linear", ATTENTION, ["q", "wo", "c_fc", "fc1"], r".*\.(0|1)\..*proj.*"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_matched_is_what_peft_adapts(architecture, targets):
    model = tiny_random(architecture)
    matched = {name for names in match_targets(model, targets).values() for name in names}
    if not matched:
        with pytest.raises(ValueError, match="not found in the base model"):
            peft_adapts(model, targets)
        return
    assert matched == peft_adapts(model, targets)[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # PEFT's, of what a list names in vain
@pytest.mark.parametrize(
    "targets",
    ["all-linear", ATTENTION, ["q_proj", "gate"], ["w1", "w2", "w3"], ["gate_proj", "up_proj", "o_proj"], r".*\.o_proj",
     r".*\.(q_proj|gate_proj|up_proj)", ["down_proj", "model.layers.1.self_attn.q_proj"]],
)  # fmt: skip
@pytest.mark.parametrize("kind", EXPERTS)
def test_of_a_mixture_of_experts_the_same_modules_and_parameters_are_matched(kind, targets):
    model = expert_model(kind)
    matched = {name for names in match_targets(model, targets).values() for name in names}
    _, parameters = converted(model, targets)
    if not matched:
        with pytest.raises(ValueError, match="not found in the base model"):
            peft_adapts(model, targets)
        return
    if kind == "Qwen2Moe" and targets == [
        "q_proj",
        "gate",
    ]:  # no conversion there, so the router stays a module, and no linear one
        with pytest.raises(ValueError, match="no linear layer"):
            check_targets(model, targets)
        with pytest.raises(ValueError, match="not supported"):
            peft_adapts(model, targets)
        return
    sizes = {name: 4 * sum(m.weight.shape) for name, m in model.named_modules() if name in matched}
    for name, factor in parameters.items():
        shape = model.get_parameter(name).shape
        sizes[name] = 4 * factor * (1 if len(shape) == 2 else shape[0]) * sum(shape[-2:])
    adapted, count = peft_adapts(model, targets)
    assert matched == adapted
    assert sum(sizes.values()) == count


def test_one_of_two_fused_matrices_is_refused_as_in_peft():
    with pytest.raises(ValueError, match="gate_proj without also targeting up_proj"):
        match_targets(expert_model("Qwen3Moe"), ["gate_proj"])


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
@pytest.mark.parametrize("targets", ["all-linear", ["o_proj", "gate_proj", "up_proj"]])
def test_what_peft_adapts_through_parameters_our_lora_refuses_by_name(kind, targets):
    model = expert_model(kind)
    if kind == "Mixtral" and targets != "all-linear":
        targets = ["o_proj", "w1", "w3"]
    with pytest.raises(ValueError, match="weights of the experts and the router too, .* target_parameters"):
        find_targets(model, targets)
    assert len(find_targets(model, ["o_proj"])) == 2


@pytest.mark.parametrize("kind", ["GptOss", "Qwen2Moe"])
def test_experts_that_all_linear_leaves_out_are_told(kind):
    model = expert_model(kind)
    with pytest.warns(UserWarning, match='"all-linear" leaves out the experts.*gate_up_proj.*target_parameters'):
        names = find_targets(model, "all-linear")
    assert set(names) == peft_adapts(model, "all-linear")[0]


@pytest.mark.parametrize("targets", ["all-linear", ["out_proj"]])
def test_of_mamba_peft_refuses_out_proj_and_so_does_the_check(targets):
    from transformers import MambaConfig

    model = on_meta(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4))
    for read in (check_targets, find_targets):
        with pytest.raises(ValueError, match="out_proj|kernels"):
            read(model, targets)
    with pytest.raises(ValueError, match="out_proj.*incompatible"):
        peft_adapts(model, targets)
    proposed = propose_targets(on_meta(model.config)).targets
    assert set(check_targets(on_meta(model.config), proposed)) == peft_adapts(on_meta(model.config), proposed)[0]


def test_a_vision_tower_is_taken_in_as_in_peft_and_told():
    model = on_meta(llava(), IMAGE_TEXT)
    with pytest.warns(UserWarning, match="'model.vision_tower', which reads no text.*exclude_modules"):
        names = find_targets(model, "all-linear")
    assert set(names) == peft_adapts(model, "all-linear")[0]


def test_of_a_vision_model_the_proposal_is_the_language_model_and_its_targets_alone_warn():
    config = llava()
    proposal = propose_targets(on_meta(config, IMAGE_TEXT))
    assert proposal.towers == ["model.vision_tower"]
    adapted = fields_adapt(on_meta(config, IMAGE_TEXT), proposal.fields)
    assert len(adapted) == 2 * 7 and all(name.startswith("model.language_model.layers.") for name in adapted)
    with pytest.warns(UserWarning, match="model.vision_tower, which reads no text, match .* the proposal's fields"):
        alone = proposal.targets
    assert any("vision_tower" in name for name in peft_adapts(on_meta(config, IMAGE_TEXT), alone)[0])


def test_a_tower_that_says_it_reads_ids_is_known_by_its_settings():
    """Qwen2.5-VL's `visual`, whose main input is called hidden_states and said to be input_ids."""
    from transformers import Qwen2_5_VLConfig

    text = dict(SMALL, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4})
    vision = dict(depth=2, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=text["hidden_size"])
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    proposal = propose_targets(on_meta(config, IMAGE_TEXT))
    assert proposal.towers == ["model.visual"] and "qkv" not in proposal.attention
    adapted = fields_adapt(on_meta(config, IMAGE_TEXT), proposal.fields)
    assert len(adapted) == 2 * 7 and all(name.startswith("model.language_model.layers.") for name in adapted)


def test_of_gpt_oss_the_proposals_fields_train_the_experts_and_its_targets_alone_warn():
    proposal = propose_targets(expert_model("GptOss"))
    assert {name.rpartition(".")[2] for name in proposal.parameters} >= {"gate_up_proj", "down_proj"}
    adapted = fields_adapt(expert_model("GptOss"), proposal.fields)
    assert len([name for name in adapted if "experts" in name]) == 2 * len(proposal.parameters)
    assert len([name for name in adapted if "self_attn" in name]) == 2 * 4
    with pytest.warns(UserWarning, match=r"experts mlp\.experts\.gate_up_proj, .*no name in target_modules reaches"):
        alone = proposal.targets
    assert not any("experts" in name for name in peft_adapts(expert_model("GptOss"), alone)[0])


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_of_a_mixture_the_proposals_fields_train_every_expert_and_attention(kind, recwarn):
    adapted = fields_adapt(expert_model(kind), propose_targets(expert_model(kind)).fields)
    assert len([name for name in adapted if name.endswith(("gate_up_proj", "down_proj"))]) == 2 * 2
    assert len([name for name in adapted if "self_attn" in name]) == 2 * 4
    assert not [w for w in recwarn if "_pattern" in str(w.message)], "nothing is converted"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_proposals_fields_are_its_targets_where_there_are_no_experts_and_no_pictures(architecture, recwarn):
    proposal = propose_targets(tiny_random(architecture))
    assert proposal.fields == {"target_modules": proposal.targets} | (
        {"fan_in_fan_out": True} if architecture == "GPT-2" else {}
    )
    assert not recwarn.list


def test_of_a_speech_model_the_encoder_is_no_tower():
    from transformers import WhisperConfig

    config = WhisperConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = on_meta(config, "AutoModelForSpeechSeq2Seq")
    proposal = propose_targets(model)
    assert proposal.towers == []
    assert any("encoder" in name for name in check_targets(model, proposal.targets))


def test_a_classifiers_score_is_its_head_and_no_target():
    model = on_meta(tiny_random("Llama").config, "AutoModelForSequenceClassification")
    names = find_targets(model, "all-linear")
    assert "score" not in names
    assert set(names) == peft_adapts(model, "all-linear", "SEQ_CLS")[0] - {"score"}


def test_quantized_layers_are_found_too():
    class Linear4bit(nn.Linear):
        """Stands for bitsandbytes' layer: an nn.Linear whose stored weight has another shape."""

    block = nn.ModuleDict({"mlp": nn.ModuleDict({"up": Linear4bit(4, 8), "down": Linear4bit(8, 4)})})
    for layer in block["mlp"].values():
        layer.weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    assert propose_targets(nn.ModuleDict({"h": nn.ModuleList([block])})).mlp == ["up", "down"]
    assert re.fullmatch(r"h\.0\.mlp\.up", match_targets(nn.ModuleDict({"h": nn.ModuleList([block])}), ["up"])["up"][0])


def test_find_targets_takes_a_whole_name_and_says_what_was_meant():
    whole = "model.layers.1.self_attn.q_proj"
    assert find_targets(LLAMA, [whole]) == [whole]
    assert find_targets(LLAMA, ["self_attn.q_proj"]) == find_targets(LLAMA, ["q_proj"]) and whole in find_targets(
        LLAMA, ["q_proj"]
    )
    with pytest.raises(
        ValueError, match=r"'q_porj' matches no module\. Did you mean 'q_proj'\? The linear layers here"
    ):
        find_targets(LLAMA, ["q_porj"])
    with pytest.raises(ValueError, match=r"'zzzz' matches no module\. The linear layers here are called"):
        find_targets(LLAMA, ["zzzz"])
    with pytest.raises(ValueError, match="has no linear layer to target"):
        find_targets(torch.nn.Sequential(torch.nn.ReLU()), "all-linear")
