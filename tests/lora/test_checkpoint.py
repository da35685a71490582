"""Adapters on disk: a round trip, every damage refused with the model unchanged, and no half-written folder."""

import json
import pickle
import shutil
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import nn

from utils import lora
from utils.lora import checkpoint
from utils.lora.checkpoint import (
    CONFIG,
    PICKLE,
    WEIGHTS,
    base_fingerprint,
    convert_pickle,
    load_adapter,
    read_header,
    save_adapter,
)

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
    ("where", "name", "half"), [(checkpoint, "save_file", b"half"), (checkpoint.json, "dumps", None)]
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

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(adapted(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


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


def embedded(seed=0):
    torch.manual_seed(seed)
    return WithEmbedding(nn.Embedding(5, 6), nn.Linear(6, 4))


def test_the_fingerprint_is_of_the_base_alone():
    model = embedded()
    before = base_fingerprint(model)
    assert len(before) == 16 and before == base_fingerprint(embedded()) != base_fingerprint(embedded(1))
    lora.inject(model, "all-linear", 2, 4)
    nn.init.normal_(model[1].lora_B)
    lora.merge(model)
    assert base_fingerprint(model) == before == base_fingerprint(model.bfloat16())
    assert base_fingerprint(base()) is None


def test_an_adapter_of_a_base_with_the_same_shapes_is_refused(tmp_path):
    model = embedded()
    lora.inject(model, "all-linear", 2, 4)
    save_adapter(model, tmp_path / "a")
    assert read_header(tmp_path / "a" / WEIGHTS).metadata["base_fingerprint"] == base_fingerprint(model)
    other = embedded(1)
    with pytest.raises(ValueError, match=r"fits this model's shapes, but was trained on another base.*Load the base"):
        load_adapter(other, tmp_path / "a")
    assert lora.lora_layers(other) == {} and all(p.requires_grad for p in other.parameters())
    load_adapter(embedded(), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    save_file(tensors, tmp_path / "a" / WEIGHTS)  # as PEFT writes it, without one
    load_adapter(other, tmp_path / "a")


def test_a_layer_in_four_bits_is_refused_by_name(folder):
    model = base()
    model[0].weight.quant_state = types.SimpleNamespace()
    with pytest.raises(ValueError, match=r"0 is in 4 bits.*dequantized"):
        load_adapter(model, folder)


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
