"""Merging: one rounding, equal to PEFT's to the bit, 4-bit bases, and a saved model in a process of its own."""

import math
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from utils import lora
from utils.evaluate.merged_answers import answered
from utils.evaluate.parity import shake
from utils.lora import nf4_linear
from utils.lora.checkpoint import fitting_adapter, load_adapter, save_adapter
from utils.lora.merging import dequantized, merge_files, merge_quantized, merge_weight, stored_4bit
from utils.models import load_4bit, load_base, profile
from utils.quant import nf4
from utils.tinyworld import task_examples
from utils.train.adapter_cache import trained_adapter

torch.set_num_threads(1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FOLDER = trained_adapter("style", profile())
EXAMPLES = task_examples("style", "test", 20)
LAYER = "model.layers.0.mlp.up_proj"


def peft_model(base):
    return PeftModel.from_pretrained(base, FOLDER)


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# -------------------------------------------------------------------------------------------------------- one weight


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**20), st.sampled_from(DTYPES), st.sampled_from([0.5, 1.0, 2.0]))
def test_a_merged_weight_is_the_exact_sum_rounded_once(seed, dtype, scaling):
    """Small integers make the float32 sum exact, so that float64 must agree to the bit."""
    torch.manual_seed(seed)
    weight = torch.randn(6, 5).to(dtype)
    a, b = torch.randint(-9, 9, (3, 5)) / 64, torch.randint(-9, 9, (6, 3)) / 64
    before = weight.clone()
    exact = (weight.double() + scaling * (b.double() @ a.double())).float()
    assert torch.equal(merge_weight(weight, a, b, scaling), exact.to(dtype))
    assert torch.equal(weight, before)


def test_the_dtype_can_be_chosen_and_float64_stays():
    weight, a, b = torch.randn(4, 5).bfloat16(), torch.randn(2, 5), torch.randn(4, 2)
    assert torch.equal(merge_weight(weight, a, b, 2.0, torch.float32), weight.float() + 2 * (b @ a))
    assert merge_weight(weight.double(), a, b, 2.0).dtype == torch.float64
    assert merge_weight(weight, a.bfloat16(), b.bfloat16(), 2.0).dtype == torch.bfloat16


@pytest.mark.parametrize(("a", "b"), [((2, 4), (4, 2)), ((2, 5), (5, 2)), ((2, 5), (4, 3)), ((5, 2), (2, 4))])
def test_shapes_that_do_not_fit(a, b):
    with pytest.raises(ValueError, match=r"don't fit a weight \(4, 5\)"):
        merge_weight(torch.ones(4, 5), torch.ones(a), torch.ones(b), 1.0)


def test_packed_bytes_are_no_weight():
    with pytest.raises(TypeError, match=r"torch.uint8, not numbers.*Dequantize"):
        merge_weight(torch.ones(4, 5, dtype=torch.uint8), torch.ones(2, 5), torch.ones(4, 2), 1.0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_merged_weight_is_not_cut_off(dtype):
    with pytest.raises(TypeError, match=f"can't be stored as {dtype}"):
        merge_weight(torch.ones(4, 5), torch.ones(2, 5), torch.ones(4, 2), 1.0, dtype)
    with pytest.raises(TypeError, match=f"this weight holds {dtype}"):
        merge_weight(torch.ones(4, 5).to(dtype), torch.ones(2, 5), torch.ones(4, 2), 1.0)


@pytest.mark.parametrize(
    ("b", "scaling", "dtype", "words"),
    [
        (4e4, 1.0, torch.float16, "would hold 80001, and torch.float16 ends at 65504"),
        (1e38, 4.0, torch.bfloat16, "would hold inf: .*isn't made of finite numbers"),
        (math.nan, 1.0, torch.float32, "would hold nan"),
        (1.0, math.inf, torch.float32, "would hold inf"),
    ],
)
def test_a_sum_that_is_not_finite_is_refused(b, scaling, dtype, words):
    with pytest.raises(ValueError, match=f"the merged weight {words}"):
        merge_weight(torch.ones(4, 5, dtype=dtype), torch.ones(2, 5), torch.full((4, 2), b), scaling)


# ------------------------------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_merge_is_pefts_to_the_bit(dtype):
    ours = load_base(dtype)[0]
    names = merge_files(ours, FOLDER)
    theirs = peft_model(load_base(dtype)[0]).merge_and_unload()
    assert len(names) == 28
    before, after, expected = state(load_base(dtype)[0]), state(ours), state(theirs)
    assert after.keys() == expected.keys() == before.keys()
    assert all(torch.equal(after[n], expected[n]) for n in after)
    assert {n for n in after if not torch.equal(after[n], before[n])} == {f"{n}.weight" for n in names}


def test_a_merge_that_does_not_fit_changes_nothing(tmp_path):
    model = load_base()[0]
    before = state(model)
    model.model.layers[3].mlp.up_proj = nn.Linear(192, 500)
    with pytest.raises(ValueError, match="does not fit model.layers.3.mlp.up_proj"):
        merge_files(model, FOLDER)
    assert torch.equal(model.get_submodule(LAYER).weight, before[f"{LAYER}.weight"])


def test_a_file_that_overflows_the_last_layer_changes_none(fresh_base, tmp_path):
    model = fresh_base()
    model.model.layers.half()
    *_, last = fitting_adapter(model, FOLDER)[1]
    model.get_submodule(last).weight.data[0, 0] = 65504
    load_adapter(other := fresh_base(), FOLDER)
    lora.lora_layers(other)[last].lora_B.data += 4e4
    save_adapter(other, tmp_path / "large")
    before = state(model)
    with pytest.raises(ValueError, match=f"{last}: the merged weight would hold .*float16 ends at 65504"):
        merge_files(model, tmp_path / "large")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# --------------------------------------------------------------------------------------------------- a tied output head


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory):
    """A PEFT adapter with the head of the course's base among its targets, whose weight is the embedding's."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("tied")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the tied head
        model = get_peft_model(load_base()[0], LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", "q_proj"]))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p)
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("take", [load_adapter, merge_files])
def test_an_adapter_for_a_tied_head_is_refused_before_anything_changes(take, fresh_base, tied_folder):
    model = fresh_base()
    before = state(model)
    with pytest.raises(ValueError, match="weight of 'lm_head' is shared with 'model.embed_tokens'.*trained anew"):
        take(model, tied_folder)
    after = state(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_with_a_weight_of_its_own_the_head_takes_it_and_the_merged_model_is_saved(fresh_base, tied_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 25)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PeftModel.from_pretrained(fresh_base(), tied_folder)(ids).logits
    model = fresh_base()
    head = model.get_submodule("lm_head")  # what the message says
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    load_adapter(model, tied_folder)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    lora.merge_and_unload(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected, rtol=1e-4, atol=1e-4
    )


# ------------------------------------------------------------------------------------------------- a plain model again

VARIANTS = {"LoRA": lora.LoRA(), "rsLoRA": lora.RsLoRA(), "DoRA": lora.DoRA(), "PiSSA": lora.PiSSA()}
VARIANTS |= {"VeRA": lora.VeRA(), "AdaLoRA": lora.AdaLoRA(), "fused": lora.LoRA()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_merged_model_is_saved_and_read_again_as_any_other(name, fresh_base, tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids = fresh_base(), torch.arange(5, 25)[None]
    plain = model(ids).logits
    lora.inject(model, ["q_proj", "down_proj"], 4, None if name == "VeRA" else 8, variant=VARIANTS[name])
    if name == "fused":
        lora.use_fused(model)
    torch.manual_seed(0)
    shake(model)
    logits = model(ids).logits.detach()
    assert (logits - plain).abs().max() > 0.01
    with pytest.raises(RuntimeError, match="can't be taken off.*merge_and_unload"):
        lora.merge(model)
        lora.remove(model)
    lora.merge_and_unload(model)
    assert not any("lora" in key or "base_layer" in key for key in model.state_dict())
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for merged in (model, again):
        torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-4, atol=5e-4)


def test_a_model_with_lora_is_not_merged_into():
    model = load_base()[0]
    load_adapter(model, FOLDER)
    with pytest.raises(RuntimeError, match="LoRA on 28 layers already"):
        merge_files(model, FOLDER)


def test_an_adapter_goes_to_peft_and_back_to_the_bit(tmp_path):
    from peft import PeftModel

    ours = load_base()[0]
    load_adapter(ours, FOLDER)
    save_adapter(ours, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(load_base()[0], tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    first, second = (fitting_adapter(load_base()[0], tmp_path / name)[1] for name in ("ours", "theirs"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n][m], second[n][m]) for n in first for m in ("lora_A", "lora_B"))


# ------------------------------------------------------------------------------------------------------------ 4 bits


@pytest.mark.parametrize("double", [True, False])
def test_a_layer_in_four_bits_is_read_and_merged_as_peft_does(double):
    stored = stored_4bit(load_4bit(double_quant=double)[0].get_submodule(LAYER))
    assert torch.equal(
        nf4.dequantize(stored),
        nf4.dequantize(nf4.quantize(load_base()[0].get_submodule(LAYER).weight, double=double)),
    )
    theirs = peft_model(load_4bit(double_quant=double)[0])
    delta = theirs.base_model.model.get_submodule(LAYER).get_delta_weight("default").detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = stored_4bit(theirs.merge_and_unload().get_submodule(LAYER))
    ours = merge_quantized(stored, delta)
    assert torch.equal(ours.packed, after.packed)
    assert torch.equal(nf4.dequantize(ours), nf4.dequantize(after))
    assert not torch.equal(ours.packed, stored.packed)


def test_a_correction_of_another_shape_or_a_plain_layer():
    stored = nf4.quantize(torch.ones(2, 64))
    with pytest.raises(ValueError, match=r"\(64, 2\) doesn't have"):
        merge_quantized(stored, torch.ones(64, 2))
    with pytest.raises(ValueError, match="the merged weight would hold nan"):
        merge_quantized(stored, torch.full((2, 64), math.nan))
    with pytest.raises(TypeError, match="this Linear is not in 4 bits"):
        stored_4bit(nn.Linear(64, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantized_computes_what_the_4_bit_model_computed_and_is_a_plain_model(dtype, tmp_path, caplog, capfd):
    quantized, tokenizer = load_4bit(compute_dtype=dtype)
    before = answered(quantized, tokenizer, EXAMPLES)
    weight = nf4.dequantize(stored_4bit(quantized.get_submodule(LAYER)))
    model = dequantized(load_4bit(compute_dtype=dtype)[0])
    assert capfd.readouterr().err == ""
    assert torch.equal(model.get_submodule(LAYER).weight, weight.to(dtype))
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(answered(model, tokenizer, EXAMPLES).logits, before.logits)
    merge_files(model, FOLDER)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="not quantized, so there is nothing to dequantize"):
        dequantized(model)


def test_the_way_out_of_4_bits_that_a_merge_names_is_one():
    """bitsandbytes' layers and the course's own have a function each."""
    model, ours = load_4bit()[0], load_base()[0]
    nf4_linear.quantize_layers(ours)
    ids = torch.arange(5, 25)[None]
    for quantized, way in ((model, "merging.dequantized"), (ours, "nf4_linear.dequantize_layers")):
        lora.inject(quantized, ["q_proj"], 4, 8)
        shake(quantized)
        logits = quantized(ids).logits.detach()
        with pytest.raises(RuntimeError, match=f"q_proj is quantized.*utils.lora.{way}"):
            lora.merge(quantized)
        if quantized is model:
            dequantized(quantized)
        else:
            nf4_linear.dequantize_layers(quantized)
        lora.merge_and_unload(quantized)
        torch.testing.assert_close(quantized(ids).logits, logits, rtol=1e-2, atol=1e-2)


def test_codes_stored_as_bfloat16_are_seen_to_be_codes():
    """bitsandbytes' quant_storage: the dtype says bfloat16, and the shape says what it is."""
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_storage=torch.bfloat16, compute_dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(32, 64)})
    layer = layer.to("cpu")
    layer.weight = layer.weight if layer.weight.quant_state else layer.weight._quantize(torch.device("cpu"))
    assert layer.weight.dtype == torch.bfloat16
    wrapped = lora.LoRALinear(layer, 2, 4)
    with pytest.raises(RuntimeError, match="this layer is quantized.*utils.lora.merging.dequantized"):
        wrapped.merge()


def test_an_adapter_is_put_beside_a_base_in_four_bits_and_not_merged_into_it():
    model, tokenizer = load_4bit()
    with pytest.raises(ValueError, match=r"_proj is quantized.*with load_adapter, or .*utils.lora.merging.dequantized"):
        merge_files(model, FOLDER)
    load_adapter(model, FOLDER)
    theirs = answered(peft_model(load_4bit()[0]), tokenizer, EXAMPLES)
    assert answered(model, tokenizer, EXAMPLES).changes(theirs).nats < 1e-9


def test_dequantizing_first_is_far_closer_than_merging_into_four_bits():
    """Claim C34, in this model, with its control: what quantizing the base does when nothing is merged."""
    _, tokenizer = load_base()

    def see(model):
        return answered(model, tokenizer, EXAMPLES)

    whole, beside = see(peft_model(load_base()[0])), see(peft_model(load_4bit()[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        into = see(peft_model(load_4bit()[0]).merge_and_unload()).changes(beside)
    first = dequantized(load_4bit(compute_dtype=torch.bfloat16)[0])
    merge_files(first, FOLDER)
    merged = see(first.float()).changes(beside)
    assert into.nats > 100 * merged.nats > 0 and (merged.tokens, merged.lost, merged.won) == (0, 0, 0)
    control = beside.changes(whole)
    assert control.nats / 4 < into.nats < 4 * control.nats and into.drift < 2 * control.drift


def test_peft_s_safe_merge_rounds_twice_and_its_plain_merge_once():
    """Which chapter 10 shows: safe_merge rounds the update to the weight's dtype before it adds it (peft 0.21.2)."""
    ours, _ = load_base(torch.bfloat16)
    names = merge_files(ours, FOLDER)
    for safe, least, most in ((False, 0, 0), (True, 0.1, 0.3)):
        theirs = peft_model(load_base(torch.bfloat16)[0]).merge_and_unload(safe_merge=safe)
        pairs = [(ours.get_submodule(n).weight, theirs.get_submodule(n).weight) for n in names]
        differ = sum((a != b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        assert least <= differ <= most


def test_peft_s_safe_merge_leaves_the_layers_before_the_broken_one_merged(tmp_path):
    broken = shutil.copytree(FOLDER, tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors[f"base_model.model.{LAYER}.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors", metadata={"format": "pt"})
    adapted = PeftModel.from_pretrained(load_base()[0], broken)
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        adapted.merge_and_unload(safe_merge=True)
    before = load_base()[0].get_submodule("model.layers.0.self_attn.q_proj").weight
    assert not torch.equal(adapted.base_model.model.get_submodule("model.layers.0.self_attn.q_proj").weight, before)
    assert torch.isfinite(adapted.base_model.model.get_submodule(LAYER).get_base_layer().weight).all()


def test_lora_merge_and_files_merge_agree_up_to_rounding():
    model, other = load_base()[0], load_base()[0]
    load_adapter(model, FOLDER)
    lora.merge(model)
    merge_files(other, FOLDER)
    merged = lora.lora_layers(model)[LAYER].base_layer.weight
    assert torch.allclose(merged, other.get_submodule(LAYER).weight, atol=1e-6)


def test_what_a_model_keeps_in_float32_is_not_put_into_4_bits():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"wo can't be in 4 bits: a T5ForConditionalGeneration .* keeps it in float32"):
        nf4_linear.quantize_layers(model, ["q", "wo"])
    names = nf4_linear.quantize_layers(model)
    assert names and not any(name.endswith(".wo") for name in names)
    assert lora.inject(model, ["wo"], 4, 8)
    assert model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1]])).loss.isfinite()
