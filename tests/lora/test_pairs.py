"""Every pair of a base layer, a variant and a form of computing: it computes what PEFT's does, or is refused by name.

Bases: plain, the course's NF4Linear, bitsandbytes' Linear4bit. Against PEFT stands the same variant on a plain base, or
on bitsandbytes' 4-bit layers. The tolerances are those of test_variants.py, and for the same reasons. What is refused
leaves the model as it was.
"""

import warnings

import pytest
import torch

from utils import lora, models
from utils.data import labels
from utils.evaluate.parity import copy_start, differences, largest, shake, trainable
from utils.lora import LoRA, adalora, nf4_linear, variants
from utils.tinyworld import task_examples

R, ALPHA, LR = 4, 16, 1e-2
CLOSE = 1e-5
BASES = ("plain", "NF4Linear", "Linear4bit")
VARIANTS = {
    "LoRA": LoRA(),
    "LoRA+": LoRA(),
    "rsLoRA": variants.RsLoRA(),
    "DoRA": variants.DoRA(),
    "PiSSA": variants.PiSSA(),
    "VeRA": variants.VeRA(key=7),
    "AdaLoRA": adalora.AdaLoRA(),
}
NOT_FUSED = {"DoRA", "VeRA", "AdaLoRA"}
FIELDS = {"rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}, "PiSSA": {"init_lora_weights": "pissa"}}
PAIRS = [(base, name) for base in BASES for name in VARIANTS if base == "plain" or name != "PiSSA"]


@pytest.fixture(scope="module")
def batches():
    tokenizer = models.load_tokenizer()
    return list(labels.batches(tokenizer, task_examples("style", "train", 40), steps=3, batch_size=2, seed=0))


def base_model(base):
    if base == "Linear4bit":
        pytest.importorskip("bitsandbytes")
        return models.load_4bit()[0]
    model = models.load_base()[0]
    if base == "NF4Linear":
        nf4_linear.quantize_layers(model)
    return model


def ours_on(base, name, dropout=0.0):
    model = base_model(base)
    torch.manual_seed(0)
    lora.inject(model, "all-linear", R, None if name == "VeRA" else ALPHA, dropout, VARIANTS[name])
    return model


def pefts_on(base, name, dropout=0.0):
    from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model

    same = {"target_modules": "all-linear"}
    if name == "VeRA":
        config = VeraConfig(r=R, projection_prng_key=7, vera_dropout=dropout, **same)
    elif name == "AdaLoRA":  # without a task type, so without the regulariser, which is no part of the layer
        config = AdaLoraConfig(init_r=R, target_r=2, total_step=9, lora_alpha=ALPHA, lora_dropout=dropout, **same)
    else:
        config = LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=dropout, **same, **FIELDS.get(name, {}))
    torch.manual_seed(0)
    model = base_model("plain" if base == "plain" else "Linear4bit")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        return get_peft_model(model, config).train()


def as_it_was(model):
    """What a refusal may not change."""
    modules = {name: (type(m), getattr(m, "compute", None)) for name, m in model.named_modules()}
    return modules, {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}


def assert_as_it_was(model, before):
    modules, parameters = as_it_was(model)
    assert modules == before[0] and parameters.keys() == before[1].keys()
    for name, (grad, value) in parameters.items():
        assert grad == before[1][name][0] and torch.equal(value, before[1][name][1]), name


@pytest.mark.parametrize("form", ["plain", "fused"])
@pytest.mark.parametrize(("base", "name"), PAIRS)
def test_a_pair_computes_what_pefts_does_or_is_refused_by_name(base, name, form, batches):
    ours = ours_on(base, name)
    if form == "fused" and name in NOT_FUSED:
        before = as_it_was(ours)
        with pytest.raises(TypeError, match=f"q_proj is {name}, and the fused form knows only"):
            lora.use_fused(ours)
        assert_as_it_was(ours, before)
        return
    theirs = pefts_on(base, name)
    copy_start(ours, theirs)
    start = {n: p.detach().clone() for n, p in trainable(ours).items()}
    if form == "fused":
        lora.use_fused(ours, share=lora.SHARE)
    groups = (None, None)
    if name == "LoRA+":
        from peft.optimizers import create_loraplus_optimizer

        lr = LR / 16  # so that B, the faster one, goes as far as in the other pairs
        optimizer = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=16)
        groups = (lora.lora_plus_groups(ours, lr), optimizer.param_groups)
    found = differences(ours, theirs, batches, lr=LR, groups=groups)
    assert found.output <= CLOSE and found.gradient <= CLOSE, found
    # Adam divides a gradient by its own size, so a gradient's rounding counts more; in the fused form sums are taken in
    # another order than PEFT's, so that there is more of it: 1.9e-4 was the largest difference found, 0.01 is a step
    assert found.trained <= (30 if form == "fused" else 10) * CLOSE, found
    assert found.trained_output <= 10 * CLOSE, found
    assert largest(start, trainable(ours)) > 0.01, "nothing was trained"


@pytest.mark.parametrize("base", ["NF4Linear", "Linear4bit"])
def test_pissa_on_a_quantized_base_is_refused_by_name_before_anything_changes(base):
    model = base_model(base)
    before = as_it_was(model)
    with pytest.raises(TypeError, match="PiSSA takes the weight apart, and this one is quantized"):
        lora.inject(model, "all-linear", R, ALPHA, variant=variants.PiSSA())
    assert_as_it_was(model, before)


def test_pissa_before_quantizing_keeps_its_part_out_of_the_four_bits(batches):
    """What the refusal advises: the residual goes into 4 bits, the principal part stays in float32 beside it."""
    ours = ours_on("plain", "PiSSA")
    residuals = {name: layer.base_layer.weight.detach().clone() for name, layer in lora.lora_layers(ours).items()}
    nf4_linear.quantize_layers(ours)
    for name, layer in lora.lora_layers(ours).items():
        expected = nf4_linear.NF4Linear(linear_of(residuals[name])).unpacked()
        assert torch.equal(nf4_linear.dense_weight(layer.base_layer), expected)
    before = as_it_was(ours)
    with pytest.raises(RuntimeError, match="quantized in the meantime.*can't be put back"):
        lora.remove(ours)
    assert_as_it_was(ours, before)
    on = ours(**batches[0]).logits
    with lora.disabled(ours):  # the start is the base, and so is switched off
        assert torch.allclose(ours(**batches[0]).logits, on, atol=1e-3)


def linear_of(weight):
    linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
    linear.weight.data = weight
    return linear


@pytest.mark.parametrize(("base", "name"), PAIRS)
def test_dropout_falls_where_pefts_does_on_every_base(base, name, batches):
    ours, theirs = ours_on(base, name, 0.3), pefts_on(base, name, 0.3)
    copy_start(ours, theirs)
    outputs = []
    for model in (ours.train(), theirs):
        shake(model)
        torch.manual_seed(3)
        outputs.append({"": model(**batches[0]).logits.detach()})
    assert largest(*outputs) < CLOSE


# --------------------------------------------------------------------------------------------- merging and taking off


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "LoRA+"])
def test_every_variant_merges_into_a_plain_base_and_comes_out_again(name, batches):
    model = ours_on("plain", name)
    shake(model)
    if name not in NOT_FUSED:
        lora.use_fused(model, share=lora.SHARE)
    expected = {"": model(**batches[0]).logits}
    for change in (lora.merge, lora.unmerge):
        change(model)
        assert largest({"": model(**batches[0]).logits}, expected) < 10 * CLOSE, change.__name__


@pytest.mark.parametrize("base", ["NF4Linear", "Linear4bit"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("LoRA+", "PiSSA")])
def test_no_variant_merges_into_a_quantized_base(base, name):
    model = ours_on(base, name)
    before = as_it_was(model)
    with pytest.raises(RuntimeError, match="layers.0.self_attn.q_proj is quantized.*dequantize"):
        lora.merge(model)
    assert_as_it_was(model, before)


def test_a_model_in_either_form_is_saved_as_the_same_file(tmp_path):
    model = ours_on("plain", "LoRA")
    shake(model)
    lora.save_adapter(model, tmp_path / "before")
    lora.use_fused(model, share=lora.SHARE)
    lora.save_adapter(model, tmp_path / "after")
    configs = [(tmp_path / folder / "adapter_config.json").read_text() for folder in ("before", "after")]
    headers = [lora.read_header(tmp_path / folder / "adapter_model.safetensors") for folder in ("before", "after")]
    assert configs[0] == configs[1] and headers[0] == headers[1]
    before, after = (lora.read_matrices(tmp_path / folder) for folder in ("before", "after"))
    for name, pair in before.items():
        assert all(torch.equal(pair[matrix], after[name][matrix]) for matrix in pair)
