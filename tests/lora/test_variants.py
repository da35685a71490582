"""Every variant of LoRA computes what PEFT's does: outputs, gradients, and both again after some steps of training.

Tolerances: float32 rounds to 6e-8 of a number; sums over a few hundred terms, in another order than PEFT's, and four
layers one behind the other leave about a hundred times that of the largest number. A missing factor or a wrong
transpose is off by more than a thousandth. Where both sides do the same operations in the same order, they are equal to
the bit, and the test says so.
"""

import pytest
import torch

from utils import lora, models
from utils.data import labels
from utils.evaluate.parity import copy_start, differences, largest, shake, trainable
from utils.lora import LoRA, adalora, nf4_linear, variants
from utils.tinyworld import task_examples
from utils.train import loop

STEPS, LR = 5, 1e-2
CLOSE = 1e-5
"""Of the largest number compared."""


@pytest.fixture(scope="module")
def batches():
    tokenizer = models.load_tokenizer()
    examples = task_examples("style", "train", 40)
    return list(labels.batches(tokenizer, examples, steps=STEPS + 1, batch_size=4, seed=0))


def peft_model(config, base=None):
    from peft import get_peft_model

    torch.manual_seed(0)
    return get_peft_model(base or models.load_base()[0], config).train()


def lora_config(**fields):
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.0} | fields)


def compare(ours, peft, batches, close=CLOSE, **keywords):
    start = {name: p.detach().clone() for name, p in trainable(ours).items()}
    found = differences(ours, peft, batches, lr=LR, **keywords)
    assert found.output <= close and found.gradient <= close, found
    # Adam divides a gradient by its own size, so a gradient's rounding counts more
    assert found.trained <= 10 * close and found.trained_output <= 10 * close, found
    assert largest(start, trainable(ours)) > 0.01, "nothing was trained"


def ours_like(variant, r=4, alpha=16, targets="all-linear"):
    model = models.load_base()[0]
    torch.manual_seed(0)
    lora.inject(model, targets, r, alpha, variant=variant)
    return model


CONFIGS = {
    "LoRA": (LoRA(), {}),
    "rsLoRA": (variants.RsLoRA(), {"use_rslora": True}),
    "DoRA": (variants.DoRA(), {"use_dora": True}),
    "PiSSA": (variants.PiSSA(), {"init_lora_weights": "pissa"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_variant_trains_as_pefts_does(name, batches):
    variant, fields = CONFIGS[name]
    ours, peft = ours_like(variant), peft_model(lora_config(**fields))
    if name != "PiSSA":  # which draws nothing
        copy_start(ours, peft)
    before = {n: p.detach().clone() for n, p in trainable(ours).items()}
    assert largest(before, trainable(peft)) < 1e-6
    compare(ours, peft, batches)


@pytest.mark.parametrize("name", ["LoRA", "DoRA"])
def test_dropout_falls_where_pefts_does(name, batches):
    variant, fields = CONFIGS[name]
    peft = peft_model(lora_config(lora_dropout=0.3, **fields))
    ours = models.load_base()[0]
    lora.inject(ours, "all-linear", 4, 16, 0.3, variant)
    copy_start(ours, peft)
    shake(ours)
    shake(peft)
    outputs = []
    for model in (ours.train(), peft.train()):
        torch.manual_seed(3)
        outputs.append(model(**batches[0]).logits)
    assert largest({"": outputs[0]}, {"": outputs[1]}) < CLOSE


def test_dora_treats_the_norm_as_a_constant():
    torch.manual_seed(0)
    layer = lora.LoRALinear(torch.nn.Linear(6, 5), 2, 4, variant=variants.DoRA())
    shake(layer)
    x, g = torch.randn(3, 6), torch.randn(3, 5)
    (layer(x) * g).sum().backward()
    found = layer.lora_B.grad.clone()
    ratio = layer.lora_magnitude_vector / layer.variant.norm(layer)
    constant = layer.scaling * (g * ratio).mT @ (x @ layer.lora_A.mT)
    assert torch.allclose(found, constant, atol=1e-5)
    W = layer.base_layer.weight + layer.scaling * layer.lora_B @ layer.lora_A
    honest = (layer.lora_magnitude_vector[:, None] * W / torch.linalg.norm(W, dim=1, keepdim=True)) @ x.T
    (through,) = torch.autograd.grad((honest * g.T).sum(), layer.lora_B)
    assert (through - found).abs().max() > 1e-3, "the difference that detaching makes must show"


VARIANTS = {name: variant for name, (variant, _) in CONFIGS.items()}
VARIANTS |= {"VeRA": variants.VeRA(key=7), "AdaLoRA": adalora.AdaLoRA()}


def made_of(base, name, r=3):
    return lora.LoRALinear(base, r, None if name == "VeRA" else 6.0, variant=VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_merging_changes_nothing_and_unmerging_restores(name):
    torch.manual_seed(0)
    base = torch.nn.Linear(12, 10)
    layer = made_of(base, name)
    shake(layer)
    x, before = torch.randn(7, 12), base.weight.detach().clone()
    y = layer(x)
    assert (y - base(x)).abs().max() > 1e-3
    layer.merge()
    assert torch.allclose(layer(x), y, atol=1e-5)
    with pytest.raises(RuntimeError, match="merged already"):
        layer.merge()
    layer.unmerge()
    assert torch.allclose(base.weight, before, atol=1e-6) and torch.allclose(layer(x), y, atol=1e-5)
    with pytest.raises(RuntimeError, match="not merged"):
        layer.unmerge()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dora_unmerges_rows_that_it_made_nothing_of(dtype):
    torch.manual_seed(0)
    base = torch.nn.Linear(12, 4, dtype=dtype)
    layer = made_of(base, "DoRA")
    shake(layer)
    layer.lora_magnitude_vector.data[:3] = torch.tensor([0.0, 1e-6, -1e-12])
    before = base.weight.detach().clone()
    layer.merge()
    assert not base.weight[0].any()
    layer.unmerge()
    close = 1e-6 if dtype == torch.float32 else 2e-3
    assert torch.equal(base.weight[:3], before[:3]) and torch.allclose(base.weight, before, atol=close)


def test_dora_keeps_a_row_of_zeros_where_pefts_becomes_nan(batches):
    """peft#2049: a base with rows of zeros. Ours train on without them, the rest as PEFT's do."""
    from peft import LoraConfig, get_peft_model

    def base():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5))
        with torch.no_grad():
            model[0].weight[2] = 0
        return model

    theirs = get_peft_model(base(), LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["0"]))
    ours = base()
    lora.inject(ours, ["0"], 2, 4, variant=variants.DoRA())
    layer, x = ours[0], torch.randn(7, 6)
    assert theirs(x)[:, 2].isnan().all()
    assert torch.equal(ours(x), base()(x))
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ours(x).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector))
        optimizer.step()
    y = ours(x)
    assert torch.equal(y[:, 2], base()(x)[:, 2]) and not torch.allclose(y, base()(x), atol=0.1)
    lora.merge(ours)
    assert not layer.weight[2].any() and torch.allclose(ours(x), y, atol=1e-5)
    lora.unmerge(ours)
    assert torch.allclose(layer.weight, base()[0].weight, atol=1e-5)


def test_pissa_refuses_a_base_that_is_not_finite():
    base = torch.nn.Linear(6, 5)
    base.weight.data[1, 1] = torch.nan
    with pytest.raises(ValueError, match="PiSSA takes the weight apart, and this one holds NaN"):
        made_of(base, "PiSSA")


# ------------------------------------------------------------------------------------------------------------- QLoRA


def test_qlora_trains_as_peft_on_bitsandbytes_does(batches):
    pytest.importorskip("bitsandbytes")
    peft = peft_model(lora_config(), models.load_4bit()[0])
    ours = models.load_base()[0]
    nf4_linear.quantize_layers(ours)
    lora.inject(ours, "all-linear", 4, 16)
    copy_start(ours, peft)
    compare(ours, peft, batches)


def test_a_4_bit_layer_unpacks_to_what_was_packed_and_keeps_nothing_unpacked():
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 96)
    layer = nf4_linear.NF4Linear(linear)
    from utils.quant import nf4

    assert torch.equal(layer.unpacked(), nf4.dequantize(nf4.quantize(linear.weight.detach(), double=True)))
    x = torch.randn(5, 128, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert not saved
    y.sum().backward()
    assert torch.allclose(x.grad, layer.unpacked().sum(0).expand(5, -1), atol=1e-5)


def test_a_layer_that_can_not_be_quantized_leaves_all_as_they_were(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    real = nf4_linear.nf4.quantize

    def fails_at_the_second(weight, **settings):
        if weight.data_ptr() == model[1].weight.data_ptr():
            raise ValueError("here")
        return real(weight, **settings)

    monkeypatch.setattr(nf4_linear.nf4, "quantize", fails_at_the_second)
    with pytest.raises(ValueError, match="here"):
        nf4_linear.quantize_layers(model)
    assert [type(layer) for layer in model] == [torch.nn.Linear, torch.nn.Linear]


def test_what_a_4_bit_base_can_not_do_is_said():
    model = models.load_base()[0]
    nf4_linear.quantize_layers(model, ["q_proj"])
    with pytest.raises(ValueError, match="in 4 bits already"):
        nf4_linear.quantize_layers(model, ["q_proj"])
    with pytest.raises(TypeError, match="PiSSA.*quantized"):
        lora.inject(model, ["q_proj"], 2, 4, variant=variants.PiSSA())
    lora.inject(model, ["q_proj"], 2, 4)
    with pytest.raises(RuntimeError, match="dequantize"):
        lora.merge(model)
    nf4_linear.dequantize_layers(model)
    lora.merge(model)
    assert not any(isinstance(m, nf4_linear.NF4Linear) for m in model.modules())


# ------------------------------------------------------------------------------------------------------------- LoRA+


def test_lora_plus_has_pefts_groups_and_trains_as_it_does(batches):
    from peft.optimizers import create_loraplus_optimizer

    peft = peft_model(lora_config())
    ours = ours_like(LoRA())
    copy_start(ours, peft)
    theirs = create_loraplus_optimizer(peft, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, eps=1e-4)
    by_rate = {}
    for group in theirs.param_groups:
        by_rate[group["lr"]] = by_rate.get(group["lr"], 0) + sum(p.numel() for p in group["params"])
    by_rate = {rate: count for rate, count in by_rate.items() if count}
    groups = variants.lora_plus_groups(ours, 1e-3)  # 16, the paper's, is the default
    assert {g["lr"]: sum(p.numel() for p in g["params"]) for g in groups} == by_rate
    compare(ours, peft, batches, groups=(groups, theirs.param_groups))


def test_lora_plus_refuses_what_has_no_sense():
    with pytest.raises(ValueError, match="ratio"):
        variants.lora_plus_groups(torch.nn.Linear(2, 2), 1e-3, 0)
    with pytest.raises(ValueError, match="nothing to train"):
        variants.lora_plus_groups(torch.nn.Linear(2, 2).requires_grad_(False), 1e-3)


# -------------------------------------------------------------------------------------------------------------- VeRA


def test_vera_draws_and_trains_as_pefts_does(batches):
    from peft import VeraConfig

    config = VeraConfig(r=32, target_modules="all-linear", projection_prng_key=7, d_initial=0.1)
    peft = peft_model(config)
    ours = models.load_base()[0]
    lora.inject(ours, "all-linear", 32, variant=variants.VeRA(key=7))
    projection = next(m for m in ours.modules() if isinstance(m, variants.VeRAProjection))
    assert torch.equal(projection.A, peft.base_model.vera_A["default"]), "drawn from the same key"
    assert torch.equal(projection.B, peft.base_model.vera_B["default"])
    before = {n: p.detach().clone() for n, p in trainable(ours).items()}
    assert largest(before, trainable(peft)) == 0
    compare(ours, peft, batches)


def test_vera_layers_share_one_projection_and_a_bad_rank_is_refused():
    model = models.load_base()[0]
    with pytest.raises(ValueError, match="rank"):
        lora.inject(model, "all-linear", 0, variant=variants.VeRA())
    with pytest.raises(ValueError, match="VeRA has no scaling.*lora_alpha=8: leave it out"):
        lora.inject(model, "all-linear", 8, 8, variant=variants.VeRA())
    assert not lora.lora_layers(model)
    lora.inject(model, "all-linear", 8, variant=variants.VeRA())
    storages = {
        layer.variant.matrices(layer)[0].untyped_storage().data_ptr() for layer in lora.lora_layers(model).values()
    }
    assert len(storages) == 1


# ----------------------------------------------------------------------------------------------------------- AdaLoRA


@pytest.mark.parametrize("deltaT", [1, 3])
def test_adalora_prunes_step_by_step_as_peft_does(deltaT):
    from peft import AdaLoraConfig

    steps, plan = 16, dict(tinit=3, tfinal=4, deltaT=deltaT)
    config = AdaLoraConfig(
        init_r=6,
        target_r=2,
        lora_alpha=12,
        total_step=steps,
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
        **plan,
    )
    peft = peft_model(config)
    ours = models.load_base()[0]
    lora.inject(ours, ["q_proj", "down_proj"], 6, 12, variant=adalora.AdaLoRA())
    copy_start(ours, peft)
    a, b = trainable(ours), trainable(peft)
    allocator = adalora.RankAllocator(ours, adalora.Schedule(6, 2, steps, **plan))
    tokenizer = models.load_tokenizer()
    drawn = labels.batches(tokenizer, task_examples("style", "train", 40), steps=steps, batch_size=4, seed=0)
    optimizers = [torch.optim.AdamW(list(p.values()), lr=1e-2, eps=1e-4, weight_decay=0.0) for p in (a, b)]
    left = []
    for step, batch in enumerate(drawn):
        task = ours.train()(**batch).loss
        loss = task + adalora.ORTHOGONALITY_WEIGHT * adalora.orthogonality(a)
        expected = peft(**batch).loss
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss.item() - task.item() > 0.01, "the regulariser must show"
        loss.backward()
        expected.backward()
        assert largest({n: p.grad for n, p in a.items()}, {n: p.grad for n, p in b.items()}) < 1e-4, step
        for optimizer in optimizers:
            optimizer.step()
        allocator.step(step)
        peft.base_model.update_and_allocate(step)
        layers = list(allocator.layers)
        assert allocator.schedule.budget(step, len(layers)) == peft.base_model.rankallocator.budget_schedule(step)[0]
        for layer in layers:
            mine, theirs = a[f"{layer}.lora_E"] == 0, b[f"{layer}.lora_E"] == 0
            assert torch.equal(mine, theirs), f"step {step}, {layer}"
        for optimizer in optimizers:
            optimizer.zero_grad()
        left.append(sum(allocator.ranks().values()))
    assert largest(a, b) < 1e-3
    assert left[3] == 48 and left[-1] == 16 and left == sorted(left, reverse=True)
    assert len(set(allocator.ranks().values())) > 1, "the ranks must differ for the allocation to mean anything"
    assert sum(map(sum, peft.peft_config["default"].rank_pattern.values())) == 16


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (adalora.Schedule(4, 4, 10), "below init_r"),
        (adalora.Schedule(4, 0, 10), "at least 1"),
        (adalora.Schedule(4, 2, 10, tinit=5, tfinal=5), "leave none"),
        (adalora.Schedule(4, 2, 10, deltaT=0), "deltaT"),
        (adalora.Schedule(5, 2, 10), "begins with 5"),
    ],
)
def test_a_schedule_that_can_not_be_followed_is_refused(schedule, words):
    model = ours_like(adalora.AdaLoRA(), r=4, targets=["q_proj"])
    with pytest.raises(ValueError, match=words):
        adalora.RankAllocator(model, schedule)


def test_adalora_asks_for_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(6, 6))
    lora.inject(model, ["0"], 4, 8, variant=adalora.AdaLoRA())
    allocator = adalora.RankAllocator(model, adalora.Schedule(4, 2, 9))
    with pytest.raises(RuntimeError, match="0.lora_A has no gradient: call step behind backward"):
        allocator.step(0)


def test_adalora_refuses_models_without_its_layers_and_bad_averages():
    model = ours_like(LoRA(), targets=["q_proj"])
    with pytest.raises(ValueError, match="no AdaLoRA layers"):
        adalora.RankAllocator(model, adalora.Schedule(4, 2, 10))
    with pytest.raises(ValueError, match="lora_A"):
        adalora.orthogonality({"x": torch.zeros(2)})
    for beta in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="beta1 is a share between 0 and 1"):
            adalora.Importance(beta1=beta)
        with pytest.raises(ValueError, match="beta2 is a share between 0 and 1"):
            adalora.Importance(beta2=beta)
    with pytest.raises(ValueError, match="budget"):
        adalora.survivors({"x": torch.ones(3)}, 3)


# ------------------------------------------------------------------------------------------------------------- PiSSA


def test_pissa_begins_as_the_base_up_to_rounding_and_is_taken_off_again(batches):
    base = models.load_base()[0]
    expected = base(**batches[0]).logits
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    ours = ours_like(variants.PiSSA())
    assert torch.allclose(ours(**batches[0]).logits, expected, atol=1e-3)
    shake(ours)
    with lora.disabled(ours):
        assert torch.allclose(ours(**batches[0]).logits, expected, atol=1e-3), "off, it is the base, not the residual"
    lora.remove(ours)
    for name, p in ours.named_parameters():
        assert torch.allclose(p, before[name], atol=1e-6), name


def test_pefts_pissa_switched_off_is_not_the_base(batches):
    """What chapter 16 warns of: "adapter off" is the residual there, so no reference for DPO. LoRA is the control."""
    with torch.no_grad():
        expected = models.load_base()[0](**batches[0]).logits
        off = {}
        for init in (True, "pissa"):
            model = peft_model(lora_config(init_lora_weights=init)).eval()
            with model.disable_adapter():
                off[init] = (model(**batches[0]).logits - expected).abs().max().item()
    assert off[True] < 1e-4 < 1 < off["pissa"]


@pytest.mark.parametrize(("name", "r"), [("LoRA", 4), ("rsLoRA", 4), ("PiSSA", 8), ("AdaLoRA", 4)])
def test_a_variant_that_is_a_plain_lora_is_saved_as_one(name, r, batches, tmp_path):
    """On the base as it was, by our reader and by PEFT's: rsLoRA with another lora_alpha, PiSSA with twice the rank."""
    from peft import PeftModel

    from utils.lora.checkpoint import load_adapter, save_adapter

    model = ours_like(VARIANTS[name])
    shake(model)
    expected = model(**batches[0]).logits
    save_adapter(model, tmp_path / "a")
    ours = models.load_base()[0]
    load_adapter(ours, tmp_path / "a")
    assert {(layer.r, type(layer.variant)) for layer in lora.lora_layers(ours).values()} == {(r, LoRA)}
    theirs = PeftModel.from_pretrained(models.load_base()[0], tmp_path / "a")
    close = 1e-3 if name == "PiSSA" else 1e-4  # its base was taken apart and put together
    for loaded in (ours, theirs):
        assert torch.allclose(loaded(**batches[0]).logits, expected, atol=close)


@pytest.mark.parametrize("name", ["DoRA", "VeRA"])
def test_a_variant_that_no_plain_lora_equals_is_not_saved(name, tmp_path):
    from utils.lora.checkpoint import save_adapter

    model = models.load_base()[0]
    lora.inject(model, ["q_proj"], 4, None if name == "VeRA" else 8, variant=VARIANTS[name])
    with pytest.raises(ValueError, match=f"{name} computes something else.*merge it.*merge_and_unload.model.*save_pre"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_reader_s_own_variant_is_never_taken_for_plain_lora(tmp_path):
    """One that overrides the correction and nothing else: neither the fused form nor the file may pass it off."""
    from utils.lora.checkpoint import save_adapter

    class Doubled(LoRA):
        def correction(self, layer, x, y):
            return 2 * super().correction(layer, x, y)

    model = ours_like(Doubled(), targets=["q_proj"])
    with pytest.raises(TypeError, match="Doubled"):
        lora.use_fused(model)
    with pytest.raises(ValueError, match="Doubled"):
        save_adapter(model, tmp_path / "a")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_pissa_took_out_is_put_back_when_a_later_layer_fails(error, monkeypatch):
    model = models.load_base()[0]
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    real, made = variants.best_factors, []

    def fails_at_the_third(*arguments):
        made.append(1)
        if len(made) == 3:
            raise error("here")
        return real(*arguments)

    monkeypatch.setattr(variants, "best_factors", fails_at_the_third)
    with pytest.raises(error):
        lora.inject(model, "all-linear", 4, 16, variant=variants.PiSSA())
    assert len(made) == 3 and not lora.lora_layers(model)
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name][0], atol=1e-6) and p.requires_grad == before[name][1]


def test_a_rank_that_some_layer_can_not_have_leaves_the_model_as_it_was():
    model = models.load_base()[0]
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="rank"):
        lora.inject(model, ["q_proj", "k_proj"], 100, 200, variant=variants.PiSSA())  # k_proj has 64 outputs
    assert not lora.lora_layers(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]


# ------------------------------------------------------------------------------------------------ counting, unknown


def test_every_count_is_what_the_model_has():
    from utils.train.sweep import ENTRIES, INIT_R, build

    for entry in ENTRIES.values():
        if entry.variant == "full" or entry.r > 1000:
            continue
        model = models.load_base()[0]
        r = INIT_R if entry.variant == "AdaLoRA" else entry.r
        expected = variants.expected_parameters(model, "all-linear", entry.variant, r)
        build(entry, model, 0)
        assert lora.count_parameters(model)[0] == expected, entry
    with pytest.raises(ValueError, match="no variant"):
        variants.expected_parameters(models.load_base()[0], "all-linear", "MoRA", 4)


def test_training_takes_groups_hooks_and_extra_losses():
    examples, tokenizer = task_examples("style", "train", 20), models.load_tokenizer()
    model = ours_like(LoRA(), targets=["q_proj"])
    a, b = (next(p for n, p in model.named_parameters() if n.endswith(m)) for m in ("lora_A", "lora_B"))
    kept_a, seen = a.detach().clone(), []
    loop.train(
        model, tokenizer, examples, steps=3, lr=1e-2, batch_size=2, progress=False,
        groups=[{"params": [b], "lr": 1e-2}], extra_loss=lambda: 100 * (b - 1).square().sum(),
        after_step=lambda step: seen.append((step, b.grad is not None)),
    )  # fmt: skip
    assert seen == [(0, True), (1, True), (2, True)]
    assert torch.equal(a, kept_a), "not in a group"
    assert (b > 0).all(), "the extra loss pulls B towards 1"


@pytest.mark.parametrize("wrong", ["scaling", "gradient"])
def test_the_comparison_tells_a_wrong_variant(wrong, batches):
    """rsLoRA in the place of LoRA is off everywhere; DoRA that doesn't detach the norm, in its gradient alone."""
    if wrong == "scaling":
        ours, peft = ours_like(variants.RsLoRA()), peft_model(lora_config())
    else:

        class Through(variants.DoRA):
            def norm(self, layer):
                return torch.linalg.norm(layer.base_layer.weight + LoRA.delta_weight(self, layer), dim=1)

            def make_parameters(self, layer, d_in, d_out, **where):
                LoRA.make_parameters(self, layer, d_in, d_out, **where)
                layer.lora_magnitude_vector = torch.nn.Parameter(self.norm(layer).detach())

        ours, peft = ours_like(Through()), peft_model(lora_config(use_dora=True))
    copy_start(ours, peft)
    found = differences(ours, peft, batches, lr=LR)
    assert found.gradient > 1e-3
    assert (found.output > 1e-3) == (wrong == "scaling")
    with pytest.raises(ValueError, match="don't train the same"):
        copy_start(ours_like(LoRA(), targets=["q_proj"]), peft)


def test_without_a_task_type_peft_forgets_adaloras_regulariser(batches):
    """A trap: PeftModel, which stands in where no task type is given, calls the model inside and not AdaLoRA's own
    forward, which would add the regulariser."""
    from peft import AdaLoraConfig

    losses = {}
    for task_type in (None, "CAUSAL_LM"):
        config = AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, target_modules=["q_proj"], task_type=task_type
        )  # fmt: skip
        losses[task_type] = peft_model(config)(**batches[0]).loss.item()
    assert losses["CAUSAL_LM"] > losses[None] + 0.5
