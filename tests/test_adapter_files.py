"""Adapters on disk: a round trip, every damage refused with the model unchanged, and no half-written folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from utils import adapter_files, lora
from utils.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter

torch.set_num_threads(1)

A0, B0 = "base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight"


def base(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4)).eval()


def adapted(seed=0, r=2, dropout=0.0):
    model = base()
    lora.inject(model, "all-linear", r, 2 * r, dropout)
    torch.manual_seed(seed + 1)
    for layer in lora.lora_layers(model).values():
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
    return model


X = torch.linspace(-1, 1, 18).view(3, 6)


@pytest.fixture
def folder(tmp_path):
    save_adapter(adapted(), tmp_path / "adapter")
    return tmp_path / "adapter"


def files(folder):
    return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


def change_config(folder, **settings):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | settings
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


# --------------------------------------------------------------------------------------------------------- round trips


def test_what_was_saved_is_what_is_loaded(folder):
    saved, loaded = adapted(), base()
    load_adapter(loaded, folder)
    assert torch.equal(loaded(X), saved(X))
    assert not torch.equal(loaded(X), base()(X))
    for name, layer in lora.lora_layers(loaded).items():
        other = lora.lora_layers(saved)[name]
        assert (layer.r, layer.lora_alpha, layer.scaling) == (other.r, other.lora_alpha, other.scaling)
        assert not layer.merged and not layer.training


def test_both_files_and_nothing_else_and_anyone_may_read_them(folder):
    assert set(files(folder)) == {CONFIG, WEIGHTS}
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    assert all(f.stat().st_mode & 0o444 == 0o444 for f in folder.iterdir())


def test_the_base_is_not_in_the_file(folder):
    shapes = {key: tuple(t.shape) for key, t in load_file(folder / WEIGHTS).items()}
    assert shapes == {
        A0: (2, 6), B0: (8, 2), A0.replace("0", "2"): (2, 8), B0.replace("0", "2"): (4, 2),
    }  # fmt: skip


def test_bf16_halves_the_matrices_and_rounds_them(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "a", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "a" / WEIGHTS).values()} == {torch.bfloat16}
    loaded = base()
    load_adapter(loaded, tmp_path / "a")
    for name, layer in lora.lora_layers(loaded).items():
        assert layer.lora_A.dtype == torch.float32
        assert torch.equal(layer.lora_A, lora.lora_layers(model)[name].lora_A.bfloat16().float())


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_comes_frozen_unless_it_is_to_be_trained_on(folder, trainable):
    model = base()
    load_adapter(model, folder, trainable=trainable)
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name for name, grad in grads.items() if grad} == {n for n in grads if ".lora_" in n and trainable}
    assert any(".lora_A" in name for name in grads)


def test_dropout_and_base_name_are_kept(tmp_path):
    save_adapter(adapted(dropout=0.25), tmp_path / "a", base_model="tiny-llama")
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["base_model_name_or_path"] == "tiny-llama"
    model = base().train()
    load_adapter(model, tmp_path / "a")
    assert {layer.lora_dropout.p for layer in lora.lora_layers(model).values()} == {0.25}


def test_saving_after_merging_saves_the_matrices(tmp_path, folder):
    model = adapted()
    lora.merge(model)
    save_adapter(model, tmp_path / "merged")
    assert files(tmp_path / "merged") == files(folder)


def test_saving_again_replaces_and_leaves_other_files_alone(folder):
    (folder / "README.md").write_text("mine")
    save_adapter(adapted(seed=7), folder)
    model = base()
    load_adapter(model, folder)
    assert torch.equal(model(X), adapted(seed=7)(X))
    assert (folder / "README.md").read_text() == "mine"


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    save_adapter(adapted(), tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)


def test_a_folder_can_be_named_by_text_and_its_parents_are_made(tmp_path):
    save_adapter(adapted(), f"{tmp_path}/new/parents/adapter")
    load_adapter(base(), f"{tmp_path}/new/parents/adapter")


# ------------------------------------------------------------------------------------------------ what can't be loaded


def cut(name, share):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def written(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def without(*keys):
    def damage(folder):
        config = json.loads((folder / CONFIG).read_text())
        for key in keys:
            del config[key]
        (folder / CONFIG).write_text(json.dumps(config))

    return damage


def config_with(**settings):
    return lambda folder: change_config(folder, **settings)


def tensors_with(change):
    return lambda folder: change_tensors(folder, change)


def renamed(old, new):
    return tensors_with(lambda t: t.__setitem__(new, t.pop(old)))


DAMAGES = {
    "no folder": (shutil.rmtree, FileNotFoundError, f"holds no {CONFIG}"),
    "no settings": (lambda f: (f / CONFIG).unlink(), FileNotFoundError, f"holds no {CONFIG}"),
    "no matrices": (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, f"holds no {WEIGHTS}"),
    "matrices cut at the last byte": (cut(WEIGHTS, 0.999), ValueError, "truncated or damaged"),
    "matrices cut in half": (cut(WEIGHTS, 0.5), ValueError, "truncated or damaged"),
    "matrices cut in the header": (cut(WEIGHTS, 0.05), ValueError, "truncated or damaged"),
    "matrices empty": (cut(WEIGHTS, 0), ValueError, "truncated or damaged"),
    "a pointer of Git LFS": (written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), ValueError, "damaged"),
    "settings cut": (cut(CONFIG, 0.7), ValueError, f"{CONFIG} is damaged"),
    "settings empty": (cut(CONFIG, 0), ValueError, f"{CONFIG} is damaged"),
    "settings not text": (written(CONFIG, b"\xff\xfe\x00{"), ValueError, f"{CONFIG} is damaged"),
    "settings a list": (written(CONFIG, b"[1]"), ValueError, f"{CONFIG} is damaged"),
    "settings without r": (without("r"), ValueError, "doesn't say r"),
    "settings without alpha": (without("lora_alpha"), ValueError, "doesn't say lora_alpha"),
    "another method": (config_with(peft_type="IA3"), ValueError, "a IA3 adapter"),
    "no method": (without("peft_type"), ValueError, "a None adapter"),
    "DoRA": (config_with(use_dora=True), ValueError, "use_dora.*load it with PEFT"),
    "rsLoRA": (config_with(use_rslora=True), ValueError, "use_rslora"),
    "patterns": (config_with(rank_pattern={"0": 3}, alpha_pattern={"0": 3}), ValueError, "rank_pattern, alpha_pattern"),
    "transposed": (config_with(fan_in_fan_out=True), ValueError, "fan_in_fan_out"),
    "whole modules": (config_with(modules_to_save=["2"]), ValueError, "modules_to_save"),
    "trained biases": (config_with(bias="all"), ValueError, "bias"),
    "activated LoRA": (config_with(alora_invocation_tokens=[1]), ValueError, "alora_invocation_tokens"),
    "PiSSA": (config_with(init_lora_weights="pissa_niter_4"), ValueError, "init_lora_weights='pissa_niter_4'"),
    "r changed": (config_with(r=3), ValueError, r"does not fit 0: lora_A is \(2, 6\)"),
    "r is text": (config_with(r="2"), ValueError, "does not fit 0"),
    "alpha 0": (config_with(lora_alpha=0), ValueError, "lora_alpha must be positive"),
    "dropout 1": (config_with(lora_dropout=1.0), ValueError, "lora_dropout"),
    "only lora_A": (tensors_with(lambda t: t.pop(B0)), ValueError, "only one of lora_A and lora_B for 0"),
    "only lora_B": (tensors_with(lambda t: t.pop(A0)), ValueError, "only one of lora_A and lora_B for 0"),
    "nothing": (tensors_with(dict.clear), ValueError, "holds no LoRA matrices"),
    "another prefix": (renamed(A0, "model.0.lora_A.weight"), ValueError, "'model.0.lora_A.weight', which is no matrix"),
    "a magnitude": (renamed(A0, "base_model.model.0.lora_magnitude_vector"), ValueError, "is no matrix of a LoRA"),
    "A and B swapped": (
        tensors_with(lambda t: t.update({A0: t[B0], B0: t[A0]})), ValueError, r"does not fit 0: lora_A is \(8, 2\)",
    ),
    "one dimension": (tensors_with(lambda t: t.update({A0: torch.ones(12)})), ValueError, r"does not fit 0"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_model_stays_as_it_was(folder, damage):
    do, error, words = DAMAGES[damage]
    do(folder)
    model = base()
    with pytest.raises(error, match=words) as raised:
        load_adapter(model, folder)
    assert type(raised.value) is error  # and no subclass that speaks of codecs
    assert lora.lora_layers(model) == {} and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(X), base()(X))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: base(width=10), r"does not fit 0: lora_A is \(2, 6\) and lora_B \(8, 2\).*\(10, 2\).*another base"),
        (lambda: base()[:1], "matrices for 2.* this model has no such layer"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8)), "has a LayerNorm there"),
        (lambda: nn.Linear(6, 8), "has no such layer"),
    ],
)
def test_an_adapter_of_another_base(folder, other, words):
    model = other()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=words):
        load_adapter(model, folder)
    assert lora.lora_layers(model) == {}
    assert all(p.requires_grad and torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_model_with_lora_takes_no_second_adapter(folder):
    model = adapted(seed=3)
    y = model(X)
    with pytest.raises(RuntimeError, match="LoRA on 2 layers already"):
        load_adapter(model, folder)
    assert torch.equal(model(X), y)


# ------------------------------------------------------------------------------------------------- what can't be saved


def test_without_lora_there_is_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="nothing to save"):
        save_adapter(base(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_layers_of_different_settings_do_not_fit_one_file(folder):
    before = files(folder)
    model = base()
    model[0] = lora.LoRALinear(model[0], 2, 4)
    model[2] = lora.LoRALinear(model[2], 3, 4)
    with pytest.raises(ValueError, match="differ in .*save them apart"):
        save_adapter(model, folder)
    assert files(folder) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    ("where", "name", "half"), [(adapter_files, "save_file", b"half"), (adapter_files.json, "dumps", None)]
)
def test_an_interrupted_save_leaves_the_earlier_adapter_whole(folder, monkeypatch, where, name, half, error):
    before = files(folder)

    def interrupted(*arguments, **_):
        if half:
            Path(arguments[1]).write_bytes(half)
        raise error("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.raises(error, match="stopped"):
            save_adapter(adapted(seed=9), folder)
    assert files(folder) == before
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    model = base()
    load_adapter(model, folder)
    assert torch.equal(model(X), adapted()(X))


def test_an_interrupted_first_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_files, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(adapted(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
