"""Ours against PEFT on the tiny Llama: outputs, gradients, optimizer steps, merged weights and files."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from utils import lora, models
from utils.lora.checkpoint import CONFIG, WEIGHTS, load_adapter, save_adapter

torch.set_num_threads(1)

R, ALPHA = 8, 16
F32 = {"rtol": 1e-4, "atol": 2e-5}
"""Both compute the same formula in float32 (rounding 6e-8), but not in the same order of sums: four blocks of sums over
up to 512 products leave logits of size 10 to 20 about 1e-5 apart. A wrong scaling or order is off by 0.1 and more."""


def fresh():
    return models.load_base()[0]


def ours_of(targets="all-linear", dropout=0.0):
    model = fresh()
    lora.inject(model, targets, R, ALPHA, dropout)
    return model


def peft_of(targets="all-linear", dropout=0.0):
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"
    )  # fmt: skip
    return peft.get_peft_model(fresh(), config)


def peft_layers(model):
    """PEFT's LoRA layers under our names."""
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    assert layers
    return layers


def fill(model, seed=0):
    """Give lora_B values as large as a trained adapter's, so that the correction counts."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora.lora_layers(model).values():
        with torch.no_grad():
            layer.lora_B.normal_(0, 0.05, generator=generator)
    return model


@torch.no_grad()
def copy_to_peft(ours, theirs):
    layers = peft_layers(theirs)
    for name, layer in lora.lora_layers(ours).items():
        layers[name].lora_A["default"].weight.copy_(layer.lora_A)
        layers[name].lora_B["default"].weight.copy_(layer.lora_B)
    return theirs


@pytest.fixture(scope="module")
def ids():
    tokenizer = models.load_base()[1]
    text = "Tell me a story about a shy turtle named Zoe. Zoe had a white boat and lived by the river."
    one = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    return torch.cat([one, one.flip(1)])


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


TARGETS = ["all-linear", ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"], ["layers.1.mlp.up_proj"]]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_the_same_layers_are_targeted_with_as_many_parameters(targets):
    ours, theirs = ours_of(targets), peft_of(targets)
    assert set(lora.lora_layers(ours)) == set(peft_layers(theirs))
    assert lora.count_parameters(ours) == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_the_same_matrices_give_the_same_logits(targets, ids):
    ours = fill(ours_of(targets))
    theirs = copy_to_peft(ours, peft_of(targets))
    assert (logits(ours, ids) - logits(fresh(), ids)).abs().max() > 0.1  # the correction isn't lost in the tolerance
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), **F32)


def test_before_training_both_are_the_base_exactly(ids):
    base = logits(fresh(), ids)
    assert torch.equal(logits(ours_of(), ids), base)
    assert torch.equal(logits(peft_of().eval(), ids), base)


def test_the_first_matrices_have_the_same_spread():
    """Both draw lora_A uniformly from the same interval: nearly the same largest entry and standard deviation."""
    theirs = peft_layers(peft_of())
    for name, layer in lora.lora_layers(ours_of()).items():
        a, b = layer.lora_A, theirs[name].lora_A["default"].weight
        bound = layer.base_layer.in_features**-0.5
        for matrix in (a, b):
            # 8 * 192 or more uniform draws: the largest is within 2% of the bound but once in 1e13 times.
            assert 0.98 * bound < matrix.abs().max() <= bound
            assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.08)  # five standard errors of 1,536
        assert not layer.lora_B.any() and not theirs[name].lora_B["default"].weight.any()


def train_steps(model, ids, steps):
    """Gradients of the first step by name and the parameters after `steps` AdamW steps at a learning rate of 1e-3."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    losses, gradients = [], {}
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        gradients = gradients or {n: p.grad.clone() for n, p in trainable.items()}
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, {n: p.detach() for n, p in trainable.items()}


def theirs_name(name):
    return f"base_model.model.{name}.default.weight"


@pytest.fixture(scope="module")
def both_trained(ids):
    ours = fill(ours_of())
    theirs = copy_to_peft(ours, peft_of())
    start = {n: p.detach().clone() for n, p in ours.named_parameters() if p.requires_grad}
    return start, train_steps(ours, ids, 3), train_steps(theirs, ids, 3)


def test_the_gradients_are_the_same(both_trained):
    _, (_, ours, _), (_, theirs, _) = both_trained
    assert {theirs_name(n) for n in ours} == set(theirs)
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0
        other = theirs[theirs_name(name)]
        # Gradients are sums over all the tokens, in another order; relative to a matrix's largest entry.
        assert (gradient - other).abs().max() <= 1e-4 * other.abs().max(), name


def test_three_steps_of_adamw_stay_together(both_trained):
    start, (our_losses, _, ours), (their_losses, _, theirs) = both_trained
    assert our_losses[2] < our_losses[0]
    assert our_losses == pytest.approx(their_losses, rel=1e-5)
    for name, matrix in ours.items():
        moved = matrix - start[name]
        apart = (matrix - theirs[theirs_name(name)]).abs()
        # Each step moves an entry by about 1e-3 whatever its gradient's size, so an entry whose gradient is nearly
        # zero may differ by rounding; on the whole the two stay a thousandth of the way together.
        assert moved.abs().mean() > 1e-3, name
        assert apart.mean() <= 1e-3 * moved.abs().mean(), name
        assert apart.max() <= 0.5e-3, name


def test_dropout_drops_the_same_entries_for_the_same_seed(ids):
    ours = fill(ours_of(dropout=0.4)).train()
    theirs = copy_to_peft(ours, peft_of(dropout=0.4)).train()
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(logits(model, ids))
    torch.testing.assert_close(*outputs, **F32)
    torch.manual_seed(6)
    assert (logits(ours, ids) - outputs[0]).abs().max() > 0.01  # another seed, other entries
    torch.testing.assert_close(logits(ours.eval(), ids), logits(theirs.eval(), ids), **F32)


def test_merging_gives_the_weights_of_merge_and_unload(ids):
    ours = fill(ours_of())
    theirs = copy_to_peft(ours, peft_of()).merge_and_unload()
    lora.merge(ours)
    merged = {n.replace(".base_layer", ""): p for n, p in ours.named_parameters() if ".lora_" not in n}
    expected = dict(theirs.named_parameters())
    assert set(merged) == set(expected)
    for name, weight in merged.items():
        # One product of rank 8 and one sum, of numbers below 1.
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), **F32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_peft_loads_what_we_save(targets, dtype, ids, tmp_path):
    ours = fill(ours_of(targets))
    save_adapter(ours, tmp_path / "adapter", base_model="tiny-llama", dtype=dtype)
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter")
    for name, layer in peft_layers(theirs).items():
        mine = lora.lora_layers(ours)[name]
        assert layer.scaling["default"] == mine.scaling
        assert torch.equal(layer.lora_A["default"].weight, mine.lora_A.to(dtype).float())
        assert torch.equal(layer.lora_B["default"].weight, mine.lora_B.to(dtype).float())
    with torch.no_grad():
        for layer in lora.lora_layers(ours).values():  # what a file in `dtype` can hold
            layer.lora_A.copy_(layer.lora_A.to(dtype))
            layer.lora_B.copy_(layer.lora_B.to(dtype))
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), **F32)
    assert not any(p.requires_grad for p in theirs.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_we_load_what_peft_saves(targets, dtype, ids, tmp_path):
    theirs = copy_to_peft(fill(ours_of(targets)), peft_of(targets, dropout=0.1))
    for layer in peft_layers(theirs).values():
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            matrix.to(dtype)
    theirs.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {CONFIG, WEIGHTS}
    ours = fresh()
    load_adapter(ours, tmp_path)
    assert set(lora.lora_layers(ours)) == set(peft_layers(theirs))
    for layer in lora.lora_layers(ours).values():
        assert (layer.r, layer.lora_alpha, layer.lora_dropout.p) == (R, ALPHA, 0.1)
        assert not layer.training
    for layer in peft_layers(theirs).values():
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            matrix.float()
    torch.testing.assert_close(logits(ours, ids), logits(theirs.eval(), ids), **F32)


def test_both_write_the_same_tensors_and_settings(tmp_path):
    ours = fill(ours_of())
    save_adapter(ours, tmp_path / "ours", base_model=str(models.TINY_DIR))
    copy_to_peft(ours, peft_of()).save_pretrained(tmp_path / "theirs")
    a, b = load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "theirs" / WEIGHTS)
    assert set(a) == set(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    mine, other = (json.loads((tmp_path / who / CONFIG).read_text()) for who in ("ours", "theirs"))
    for key in mine.keys() - {"target_modules"}:  # ours names each layer in full, PEFT by the last part
        assert mine[key] == other[key], key
    assert {name.rpartition(".")[2] for name in mine["target_modules"]} == set(other["target_modules"])


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on its own lora_bias
@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"rank_pattern": {"q_proj": 4}},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_what_peft_computes_otherwise_is_refused(setting, tmp_path):
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q_proj"], task_type="CAUSAL_LM", **setting)
    peft.get_peft_model(fresh(), config).save_pretrained(tmp_path)
    model = fresh()
    with pytest.raises(ValueError, match=f"{next(iter(setting))}.*load it with PEFT"):
        load_adapter(model, tmp_path)
    assert lora.lora_layers(model) == {} and all(p.requires_grad for p in model.parameters())


# --------------------------------------------------------------------------------------------- other architectures


def test_t5_which_asks_a_layer_for_its_weight_computes_as_with_peft():
    ids = torch.arange(4)[None]
    ours = lora.tiny_random("T5")
    lora.inject(ours, lora.propose_targets(ours).targets, 4, 8)
    fill(ours)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[name for name in lora.lora_layers(ours)])
    theirs = copy_to_peft(ours, peft.get_peft_model(lora.tiny_random("T5"), config))
    found, expected = (model(input_ids=ids, decoder_input_ids=ids).logits for model in (ours, theirs))
    torch.testing.assert_close(found, expected, **F32)


def test_an_output_head_with_lora_is_asked_for_its_weight():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=False, **sizes))
    lora.inject(model, ["lm_head"], 2, 4)
    assert model.get_output_embeddings().weight.shape == (50, 16)


@pytest.mark.parametrize("name", ["x_proj", "dt_proj", "out_proj"])
def test_a_layer_whose_weight_is_taken_past_it_is_refused(name):
    """Mamba's kernels take these weights: LoRA on dt_proj changed no logit."""
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match=f"{name}' is in a state-space layer, a MambaMixer.*in_proj is called"):
        lora.inject(model, ["in_proj", name], 2, 4)
    assert not lora.lora_layers(model) and all(p.requires_grad for p in model.parameters())
    ids = torch.arange(4)[None]
    before = model(ids).logits
    lora.inject(model, ["in_proj"], 2, 4)
    fill(model)
    assert not torch.allclose(model(ids).logits, before, atol=1e-2)
