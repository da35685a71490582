"""Adapters on disk: a round trip, every damage refused with the model unchanged, and no half-written folder."""

import json
import pickle
import shutil
import types
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import nn

from tools.fuzz.kills import POSSIBLE, killed
from utils import lora
from utils.files import finish_interrupted
from utils.lora.adapter_config import targeted
from utils.lora.checkpoint import (
    BASE,
    CHECKSUM,
    CONFIG,
    PICKLE,
    SETTINGS,
    WEIGHTS,
    convert_pickle,
    fitting_adapter,
    load_adapter,
    read_files,
    read_header,
    read_matrices,
    save_adapter,
)
from utils.lora.combine import read_adapter
from utils.lora.merging import merge_files
from utils.lora.nf4_linear import dequantize_layers, quantize_layers

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
    """Change the matrices; what is written has no metadata of ours, as a file of PEFT's."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def as_peft_writes(folder):
    change_tensors(folder, lambda _: None)


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


def flipped(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 4
    (folder / WEIGHTS).write_bytes(data)


def in_header(old, new):
    def damage(folder):
        data = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        text = data[8:end].replace(old, new)
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return damage


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
    "another method": (config_with(peft_type="IA3"), ValueError, "a 'IA3' adapter"),
    "no method": (without("peft_type"), ValueError, "a None adapter"),
    "DoRA": (config_with(use_dora=True), ValueError, "use_dora.*load it with PEFT"),
    "rsLoRA": (config_with(use_rslora=True), ValueError, "use_rslora"),
    "patterns": (config_with(rank_pattern={"0": 3}, alpha_pattern={"0": 3}), ValueError, "rank_pattern, alpha_pattern"),
    "transposed": (config_with(fan_in_fan_out=True), ValueError, "fan_in_fan_out"),
    "whole modules": (config_with(modules_to_save=["2"]), ValueError, "modules_to_save"),
    "trained biases": (config_with(bias="all"), ValueError, "bias"),
    "activated LoRA": (config_with(alora_invocation_tokens=[1]), ValueError, "alora_invocation_tokens"),
    "PiSSA": (config_with(init_lora_weights="pissa_niter_4"), ValueError, "init_lora_weights='pissa_niter_4'"),
    "r changed": (config_with(r=3), ValueError, "says r=3, and the matrices beside it were saved with r=2"),
    "alpha changed": (config_with(lora_alpha=5), ValueError, "says lora_alpha=5, .* saved with lora_alpha=4.*Write"),
    "a target taken out": (config_with(target_modules=["2"]), ValueError, "matrices for '0', .*doesn't name that"),
    "a target left out by an expression": (config_with(target_modules="[0]"), ValueError, "matrices for '2'"),
    "a target excluded": (config_with(exclude_modules=["0"]), ValueError, "matrices for '0'"),
    "expressions that are none": (config_with(target_modules="["), ValueError, "target_modules must be .* not '\\['"),
    "deep settings": (written(CONFIG, b"[" * 100_000 + b"]" * 100_000), ValueError, f"{CONFIG} is damaged"),
    "a number without end": (written(CONFIG, b'{"r": ' + b"9" * 5000 + b"}"), ValueError, f"{CONFIG} is damaged"),
    "only lora_A": (tensors_with(lambda t: t.pop(B0)), ValueError, "only one of lora_A and lora_B for 0"),
    "only lora_B": (tensors_with(lambda t: t.pop(A0)), ValueError, "only one of lora_A and lora_B for 0"),
    "nothing": (tensors_with(dict.clear), ValueError, "holds no LoRA matrices"),
    "another prefix": (renamed(A0, "model.0.lora_A.weight"), ValueError, "'model.0.lora_A.weight', which is no matrix"),
    "a magnitude": (renamed(A0, "base_model.model.0.lora_magnitude_vector"), ValueError, "is no matrix of a LoRA"),
    "A and B swapped": (
        tensors_with(lambda t: t.update({A0: t[B0], B0: t[A0]})),
        ValueError,
        r"says r=2, and .* of 0 are \(8, 2\)",
    ),
    "no dimension": (tensors_with(lambda t: t.update({A0: torch.tensor(1.0)})), ValueError, r"with the shape \(\)"),
    "one dimension": (tensors_with(lambda t: t.update({A0: torch.ones(12)})), ValueError, r"with the shape \(12,\)"),
    "three dimensions": (tensors_with(lambda t: t.update({A0: torch.ones(2, 6, 1)})), ValueError, r"\(2, 6, 1\)"),
    "no rows": (tensors_with(lambda t: t.update({A0: torch.ones(0, 6)})), ValueError, r"with the shape \(0, 6\)"),
    "NaN": (tensors_with(lambda t: t[B0][0].fill_(float("nan"))), ValueError, "NaN or infinity in .*lora_B"),
    "infinity": (tensors_with(lambda t: t[A0][0].fill_(float("inf"))), ValueError, "NaN or infinity in .*lora_A"),
    "beyond all bounds": (tensors_with(lambda t: t[A0][0].fill_(1e30)), ValueError, r"could reach 5e\+30"),
    "whole numbers": (tensors_with(lambda t: t.update({A0: t[A0].int()})), ValueError, "in torch.int32"),
    "truth values": (tensors_with(lambda t: t.update({A0: t[A0] > 0})), ValueError, "in torch.bool"),
    "eight bits": (tensors_with(lambda t: t.update({A0: t[A0].to(torch.float8_e4m3fn)})), ValueError, "float8_e4m3fn"),
    "half of the layers": (tensors_with(lambda t: (t.pop(A0), t.pop(B0))), ValueError, "name 2 layers .* 1 of them, 0"),
    "a name of 300 letters": (
        tensors_with(
            lambda t: (
                t.__setitem__(A0.replace("0", "x" * 300), t.pop(A0)),
                t.__setitem__(B0.replace("0", "x" * 300), t.pop(B0)),
            )
        ),
        ValueError,
        "matrices for 'xxxx",
    ),
    "a name cut inside an emoji": (in_header(b"model.0.", b"model.\\ud83d."), ValueError, "truncated or damaged"),
    "a header nested without end": (in_header(b"[2,6]", b"[" * 100_000), ValueError, "no JSON of tensors"),
    "a name without an end": (renamed(A0, A0 + "x"), ValueError, "which is no matrix of a LoRA layer"),
    "a bit flipped": (flipped, ValueError, "checksum is another"),
}
for key, values in {
    "r": ("2", None, [2], True, 2.0, 0, -2, float("nan")),
    "lora_alpha": ("4", None, [4], True, 0, -4, float("nan"), float("inf"), -float("inf"), 10**400),
    "lora_dropout": ("0", None, [0], True, -0.1, 1, 1.5, float("nan"), float("inf")),
    "target_modules": (3, [3], {"a": 1}, [None]),
    "exclude_modules": (3, [3], "("),
    "layers_to_transform": ("0", [True], 0.5),
    "layers_pattern": (3, "(", ["("]),
    "base_model_name_or_path": (3, ["a"]),
}.items():
    for value in values:
        DAMAGES[f"{key} is {str(value)[:10]} ({type(value).__name__})"] = (
            config_with(**{key: value}), ValueError, f"damaged \\({key} must be ",
        )  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_model_stays_as_it_was(folder, damage):
    do, error, words = DAMAGES[damage]
    do(folder)
    model = base()
    for read in (load_adapter, merge_files, fitting_adapter):
        with pytest.raises(error, match=words) as raised:
            read(model, folder)
        assert type(raised.value) is error  # and no subclass that speaks of codecs
    assert lora.lora_layers(model) == {} and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(X), base()(X))
    if damage in ("a name of 300 letters", "half of the layers"):  # what only the model can tell, or its targets
        words = "names '0', and there are no matrices"
    with pytest.raises(error, match="|".join((words, "doesn't name that layer"))):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: base(width=10), r"does not fit 0: it corrects a weight of \(8, 6\), .* is \(10, 6\).*another base"),
        (lambda: base()[:1], "matrices for '2'.* this model has no such layer"),
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


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_that_no_adapter_has_is_refused_before_anything_is_written(folder, dtype):
    before = files(folder)
    with pytest.raises(TypeError, match=f"can't be saved as {dtype}: choose torch.float32"):
        save_adapter(adapted(1), folder, dtype=dtype)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (float("nan"), torch.float32, "lora_B of 2 holds NaN or infinity.*nothing was saved"),
        (float("-inf"), torch.bfloat16, "lora_B of 2 holds NaN or infinity"),
        (1e5, torch.float16, "lora_B of 2 holds 100000, and torch.float16 ends at 65504: save in torch.bfloat16"),
    ],
)
def test_numbers_that_can_not_be_kept_are_refused_before_anything_is_written(folder, value, dtype, words):
    before, model = files(folder), adapted(1)
    model[2].lora_B.data[1, 0] = value
    with pytest.raises(ValueError, match=words):
        save_adapter(model, folder, dtype=dtype)
    assert files(folder) == before and [f.name for f in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["x" * 300, "file/inside"])
def test_a_place_where_nothing_can_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="nothing can be written beside|couldn't be written"):
        save_adapter(adapted(), tmp_path / name)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_layers_of_different_settings_do_not_fit_one_file(folder):
    before = files(folder)
    model = base()
    model[0] = lora.LoRALinear(model[0], 2, 4)
    model[2] = lora.LoRALinear(model[2], 3, 4)
    with pytest.raises(ValueError, match="differ in .*save them apart"):
        save_adapter(model, folder)
    assert files(folder) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_an_interrupted_save_leaves_the_earlier_adapter_whole(folder, monkeypatch, name, error):
    before, write = files(folder), Path.write_bytes

    def interrupted(path, data):
        write(path, data if path.name != name else data[:10])
        if path.name == name:
            raise error("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupted)
        words = "stopped" if error is KeyboardInterrupt else "couldn't be written.*stopped.*as it was: free some space"
        with pytest.raises(error, match=words):
            save_adapter(adapted(seed=9), folder)
    assert files(folder) == before
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    model = base()
    load_adapter(model, folder)
    assert torch.equal(model(X), adapted()(X))


def test_an_interrupted_first_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(path, *_, **__):
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(adapted(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", ""])
def test_a_folder_that_can_not_be_is_no_adapters_folder(name, tmp_path):
    for read in (read_files, read_adapter, read_matrices):
        with pytest.raises(FileNotFoundError, match="holds no adapter_"):
            read(tmp_path / name)


def test_layers_that_peft_takes_for_experts_are_told_of(tmp_path):
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    config = DeepseekV3Config(
        vocab_size=9, hidden_size=8, intermediate_size=8, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=2, kv_lora_rank=4, q_lora_rank=4,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, n_group=1, topk_group=1, num_experts_per_tok=1,
        first_k_dense_replace=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    lora.inject(model, ["o_proj"], 2, 4)
    with warnings.catch_warnings(action="error"):
        save_adapter(model, tmp_path / "a")
    lora.remove(model)
    for targets in (["o_proj", "gate_proj", "up_proj"], ["gate_proj"]):
        names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(tuple(targets))]
        lora.wrap(model, names, 2, 4)  # as a file's layers are: inject refuses these targets
        with pytest.warns(UserWarning, match=r"PEFT takes \S+gate_proj, .*experts.*load_adapter reads it rightly"):
            save_adapter(model, tmp_path / "a")
        lora.remove(model)
        load_adapter(model, tmp_path / "a")
        lora.remove(model)


# --------------------------------------------------------------------------------------- what is written, and by whom


def test_our_files_say_what_they_were_saved_with(folder, embedded_folder):
    metadata = read_header(folder / WEIGHTS).metadata
    assert metadata.keys() == {"format", SETTINGS, CHECKSUM}
    assert json.loads(metadata[SETTINGS]) == {"r": 2, "lora_alpha": 4}
    assert read_header(embedded_folder / WEIGHTS).metadata.keys() == {"format", SETTINGS, CHECKSUM, BASE}
    assert read_files(folder).base is None and read_files(embedded_folder).base.rows == 5


def test_a_file_of_peft_may_say_another_alpha_and_other_numbers_and_nobody_can_tell(folder):
    as_peft_writes(folder)
    change_config(folder, lora_alpha=5)
    flipped(folder)
    load_adapter(base(), folder)


def test_a_name_that_meant_nothing_is_no_missing_part_where_the_model_is_known(folder):
    change_config(folder, target_modules=["0", "2", "k_proj"])
    load_adapter(base(), folder)
    with pytest.raises(ValueError, match="names 'k_proj', and there are no matrices for it.*take it out"):
        read_adapter(folder)


NARROWED = {
    "targets unknown": {"target_modules": None},
    "all-linear": {"target_modules": "all-linear"},
    "an expression": {"target_modules": r"[02]"},
    "one excluded": {"target_modules": r"\d", "exclude_modules": ["1"]},
}


@pytest.mark.parametrize("settings", NARROWED)
def test_settings_that_name_the_same_layers_in_another_way(folder, settings):
    change_config(folder, **NARROWED[settings])
    model = base()
    load_adapter(model, folder)
    assert list(lora.lora_layers(model)) == ["0", "2"]


def test_which_layers_settings_mean_is_what_peft_says():
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = [
        f"{start}{part}"
        for start in ("model.layers.0.", "model.layers.1.", "model.layers.1.experts.0.", "h.1.", "1.", "")
        for part in ("mlp.up", "attn.up", "up", "other")
    ]
    for targets in (["up"], ["mlp.up", "other"], ["model.layers.1.mlp.up"], r".*1.*up", ["up", "nothing"]):
        for exclude in (None, ["mlp.up"], r".*attn.*"):
            for numbers, patterns in (
                (None, None),
                (1, None),
                ([0, 1], None),
                ([1], "layers"),
                ([0], ["h", "experts"]),
            ):
                if isinstance(targets, str) and numbers is not None:
                    continue  # PEFT refuses it
                said = {
                    "target_modules": targets, "exclude_modules": exclude, "layers_to_transform": numbers,
                    "layers_pattern": patterns,
                }  # fmt: skip
                config = LoraConfig(**said)
                for name in names:
                    theirs = check_target_module_exists(config, name)
                    assert targeted(said, name) == bool(theirs), (said, name)


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.skipif(not POSSIBLE, reason="no fork here")
def test_killed_while_saving_the_folder_holds_one_adapter_or_says_how_to_get_it(tmp_path):
    folder, ends = tmp_path / "a", set()
    old, new = adapted(1, r=2), adapted(2, r=4)
    outputs = {"old": old(X), "new": new(X)}
    save_adapter(old, folder)
    for step in range(1, 40):
        stopped = killed(lambda: save_adapter(new, folder), step)
        model = base()
        try:
            load_adapter(model, folder)
        except FileNotFoundError as error:
            assert "a save of it was interrupted" in str(error) and f"finish_interrupted('{folder}')" in str(error)
            finish_interrupted(folder)
            load_adapter(model, folder)
            ends.add("refused")
        ends |= {name for name, output in outputs.items() if torch.equal(model(X), output)}
        save_adapter(old, folder)
        assert [path.name for path in tmp_path.iterdir()] == ["a"] and set(files(folder)) == {CONFIG, WEIGHTS}
        if not stopped:
            break
    assert ends == {"old", "refused", "new"} and step < 39


# -------------------------------------------------------------------------------------------- the header, read by hand


def put(path, data):
    path.write_bytes(data)
    return path


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_the_header_says_what_the_library_says_and_the_bytes_are_the_numbers(tmp_path_factory, specs, metadata):
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in specs.items()}
    path = put(tmp_path_factory.mktemp("h") / "t.safetensors", save(tensors, metadata=metadata or None))
    header, data = read_header(path), path.read_bytes()
    assert header.metadata == metadata
    with safe_open(path, "pt") as theirs:
        assert set(header.entries) == set(theirs.keys())
        for name, entry in header.entries.items():
            assert entry.dtype == theirs.get_slice(name).get_dtype()
            assert list(entry.shape) == theirs.get_slice(name).get_shape()
            numbers = data[header.data_begin + entry.begin : header.data_begin + entry.end]
            raw = tensors[name].contiguous().reshape(-1).view(torch.uint8)
            assert numbers == raw.numpy().tobytes()


def crafted(fields, data=b"", length=None):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def spec(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BAD_HEADERS = {
    "empty": (b"", "takes 8"),
    "seven bytes": (b"\0" * 7, "takes 8"),
    "a length beyond the end": (crafted(b"{}", length=3), "promise a header of 3 bytes, and 2 follow"),
    "big-endian": ((2).to_bytes(8, "big") + b"{}", "promise a header"),
    "no JSON": (crafted(b"pickle"), "no JSON of tensors"),
    "not text": (crafted(b"\xff\xfe\x00"), "no JSON of tensors"),
    "a list": (crafted([1, 2]), "no JSON of tensors"),
    "no offsets": (crafted({"a": {"dtype": "F32", "shape": [1]}}, b"1234"), "no JSON of tensors"),
    "shape of text": (crafted({"a": spec(0, 4, "x")}, b"1234"), "no JSON of tensors"),
    "one offset": (crafted({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"), "no JSON of tensors"),
    "a gap": (crafted({"a": spec(0, 8), "b": spec(12, 20)}, b"0" * 20), "b begins at byte 12 of the data, not at 8"),
    "an overlap": (crafted({"a": spec(0, 8), "b": spec(4, 12)}, b"0" * 12), "b begins at byte 4"),
    "backwards": (crafted({"a": spec(0, -8)}), "a begins at byte 0"),
    "another size than its shape": (crafted({"a": spec(0, 4)}, b"0" * 4), r"a takes 4 bytes; F32 \(2,\) is 8"),
    "data cut": (crafted({"a": spec(0, 8)}, b"0" * 7), "take 8 bytes, and 7 follow"),
    "data left over": (crafted({"a": spec(0, 8)}, b"0" * 9), "take 8 bytes, and 9 follow"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_refused_and_the_library_refuses_it_too(tmp_path, case):
    data, words = BAD_HEADERS[case]
    with pytest.raises(ValueError, match=f"truncated or damaged.*{words}"):
        read_header(put(tmp_path / "bad.safetensors", data))
    with pytest.raises(Exception, match=r"."):
        load(data)


def test_every_cut_of_a_real_file_is_noticed(folder, tmp_path):
    data = (folder / WEIGHTS).read_bytes()
    for end in range(0, len(data), 7):
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_header(put(tmp_path / "cut", data[:end]))


def test_a_header_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file nowhere"):
        read_header(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------- which base


class WithEmbedding(nn.Sequential):
    def get_input_embeddings(self):
        return self[0]


def embedded(seed=0, name=""):
    torch.manual_seed(seed)
    model = WithEmbedding(nn.Embedding(5, 6), nn.Linear(6, 4))
    model.config = types.SimpleNamespace(_name_or_path=name)
    return model


@pytest.fixture
def embedded_folder(tmp_path):
    model = embedded()
    lora.inject(model, "all-linear", 2, 4)
    nn.init.normal_(model[1].lora_B)
    save_adapter(model, tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("read", [load_adapter, merge_files])
def test_an_adapter_of_a_base_with_the_same_shapes_is_refused(embedded_folder, read):
    other = embedded(1)
    with pytest.raises(
        ValueError, match=r"fits this model's shapes, but was trained on another base.*5 of its 5 blocks"
    ):
        read(other, embedded_folder)
    assert lora.lora_layers(other) == {} and all(p.requires_grad for p in other.parameters())
    assert torch.equal(other[1].weight, embedded(1)[1].weight)
    read(embedded(), embedded_folder)
    read(other, embedded_folder, check_base=False)


def test_a_file_of_peft_has_no_fingerprint_and_its_base_is_known_by_name_alone(embedded_folder):
    as_peft_writes(embedded_folder)
    load_adapter(embedded(1), embedded_folder)  # nothing in the file tells
    change_config(embedded_folder, base_model_name_or_path="meta/Model-1B")
    for name in ("", "meta/Model-1B", "mirror/model-1b", "/moved/to/here", "./Another"):
        load_adapter(embedded(1, name), embedded_folder)
    model = embedded(1, "meta/Model-3B")
    with pytest.raises(
        ValueError, match=r"trained on meta/Model-1B, and this model is meta/Model-3B.*check_base=False"
    ):
        load_adapter(model, embedded_folder)
    assert lora.lora_layers(model) == {}
    load_adapter(model, embedded_folder, check_base=False)


def test_a_name_that_is_a_folder_here_is_no_hub_id(embedded_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "one").mkdir(parents=True)
    as_peft_writes(embedded_folder)
    change_config(embedded_folder, base_model_name_or_path="models/one")
    load_adapter(embedded(1, "meta/Model-3B"), embedded_folder)


@pytest.mark.parametrize(("text", "words"), [("1", "no fingerprint"), ("[" * 9999, "no fingerprint"), ("{}", "finger")])
def test_a_fingerprint_or_settings_that_are_damaged_are_named(embedded_folder, text, words):
    tensors = load_file(embedded_folder / WEIGHTS)
    for key, why in ((BASE, words), (SETTINGS, "doesn't say r and lora_alpha|Expecting|nested")):
        save_file(tensors, embedded_folder / WEIGHTS, metadata={key: text})
        with pytest.raises(ValueError, match=f"is damaged \\(its {key}: .*({why})"):
            read_files(embedded_folder)


# ------------------------------------------------------------------------------------------------------ in four bits


def test_a_qlora_adapter_of_our_own_comes_back_onto_its_base(tmp_path):
    def in_four_bits():
        model = base(64)
        quantize_layers(model, ["2"])
        return model

    model = in_four_bits()
    lora.inject(model, "all-linear", 2, 4)
    nn.init.normal_(model[2].lora_B)
    save_adapter(model, tmp_path / "a")
    again = in_four_bits()
    load_adapter(again, tmp_path / "a")
    assert torch.equal(again(X), model(X))
    plain = in_four_bits()
    before = plain[0].weight.clone()
    with pytest.raises(ValueError, match=r"2 is quantized.*load_adapter.*nf4_linear.dequantize_layers\(model\)"):
        merge_files(plain, tmp_path / "a")
    assert torch.equal(plain[0].weight, before)
    dequantize_layers(plain)
    merge_files(plain, tmp_path / "a")
    assert torch.allclose(plain(X), model(X), atol=1e-5)


def test_nothing_is_merged_into_a_layer_that_holds_codes(folder):
    model = base()
    model[2].weight = nn.Parameter(torch.zeros(4, 8, dtype=torch.uint8), requires_grad=False)
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=r"2 is quantized.* which holds torch.uint8.*merging.dequantized\(model\)"):
        merge_files(model, folder)
    assert torch.equal(model[0].weight, before)


# --------------------------------------------------------------------------------------------------------- pickles


def as_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    (folder / WEIGHTS).unlink()


RAN = []


def ran(word):
    RAN.append(word)


class Evil:
    def __reduce__(self):
        return ran, ("ran",)


def test_a_pickle_is_refused_with_what_to_do_and_converts_without_running_code(folder):
    before = load_file(folder / WEIGHTS)
    as_pickle(folder)
    with pytest.raises(ValueError, match=r"a pickle, which can run any code.*not opened.*convert_pickle"):
        load_adapter(base(), folder)
    convert_pickle(folder)
    after = load_file(folder / WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert (folder / PICKLE).exists()
    load_adapter(base(), folder)


def test_a_pickle_with_code_in_it_runs_when_unpickled_and_not_here(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"weight": Evil()}, folder / PICKLE)
    RAN.clear()
    with pytest.raises(ValueError, match="holds no adapter_model.safetensors|a pickle"):
        load_adapter(base(), folder)
    with pytest.raises(ValueError, match="may run code, and was not loaded"):
        convert_pickle(folder)
    assert RAN == [] and not (folder / WEIGHTS).exists()
    torch.load(folder / PICKLE, weights_only=False)
    assert RAN == ["ran"], "the file was harmless, so this test proved nothing"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "damaged"), (b"no pickle", "damaged"), (pickle.dumps([1], 2), "no tensors by name|damaged|may run code")],
)
def test_a_pickle_that_is_none_is_refused(folder, data, words):
    (folder / PICKLE).write_bytes(data)
    before = files(folder)
    with pytest.raises(ValueError, match=words):
        convert_pickle(folder)
    assert files(folder) == before


def test_a_pickle_cut_short_or_of_other_things_is_refused(folder):
    as_pickle(folder)
    data = (folder / PICKLE).read_bytes()
    (folder / PICKLE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        convert_pickle(folder)
    torch.save([torch.ones(2)], folder / PICKLE)
    with pytest.raises(ValueError, match="no tensors by name"):
        convert_pickle(folder)


def test_there_is_no_pickle_to_convert(folder):
    with pytest.raises(FileNotFoundError, match="nothing to convert"):
        convert_pickle(folder)
