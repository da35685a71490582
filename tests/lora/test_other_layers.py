"""A LoRA layer of another class, such as a learner's own, is known by its parts, and the library goes on with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.evaluate.forgetting import scaled
from utils.evaluate.spectrum import tuned_weights
from utils.lora import (
    DoRA,
    disabled,
    inject,
    load_adapter,
    lora_layers,
    merge,
    merge_and_unload,
    remove,
    save_adapter,
    unmerge,
    use_fused,
)
from utils.lora.layer import LoRALinear


class Mine(nn.Module):
    """As chapter 4 asks for it."""

    def __init__(self, base_layer, r, lora_alpha, lora_dropout=0.0):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, base_layer.in_features))
        self.lora_B = nn.Parameter(torch.randn(base_layer.out_features, r))
        self.scaling = lora_alpha / r
        self.lora_dropout = nn.Dropout(lora_dropout)

    def forward(self, x):
        update = F.linear(F.linear(self.lora_dropout(x), self.lora_A), self.lora_B)
        return self.base_layer(x) + self.scaling * update


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"q_proj": nn.Linear(6, 4), "v_proj": nn.Linear(6, 4, bias=False)})

    def forward(self, x):
        return self.block.q_proj(x) * self.block.v_proj(x)


@pytest.fixture
def pair():
    """The plain model, and the same with layers of another class."""
    torch.manual_seed(0)
    plain = Model()
    model = copy.deepcopy(plain)
    assert inject(model, ["q_proj", "v_proj"], r=2, lora_alpha=3.0, layer=Mine) == ["block.q_proj", "block.v_proj"]
    return plain, model


X = torch.arange(12.0).reshape(2, 6) / 10


def test_it_is_found_and_holds_the_very_tensors(pair):
    _, model = pair
    layers = lora_layers(model)
    for name, layer in layers.items():
        mine = model.get_submodule(name)
        assert isinstance(mine, Mine) and layer.lora_A is mine.lora_A and layer.base_layer is mine.base_layer
        assert (layer.r, layer.lora_alpha, layer.scaling) == (2, 3.0, 1.5)
        assert torch.equal(layer(X), mine(X))
    assert sum(p.requires_grad for p in model.parameters()) == 4


def test_merged_and_unloaded_it_computes_the_same(pair):
    _, model = pair
    before = model(X)
    merge_and_unload(model)
    assert type(model.block.q_proj) is nn.Linear and lora_layers(model) == {}
    # Float32 sums in another order.
    assert torch.allclose(model(X), before, rtol=1e-5, atol=1e-5)


def test_switched_off_it_is_the_base_and_back_again(pair):
    plain, model = pair
    before = model(X)
    with disabled(model):
        assert torch.equal(model(X), plain(X))
    assert torch.equal(model(X), before) and isinstance(model.block.q_proj, Mine)
    remove(model)
    assert torch.equal(model(X), plain(X)) and type(model.block.q_proj) is nn.Linear


def test_saved_it_is_read_by_the_library_and_computes_the_same(pair, tmp_path):
    plain, model = pair
    save_adapter(model, tmp_path / "mine")
    load_adapter(plain, tmp_path / "mine", check_base=False)
    assert torch.equal(plain(X), model(X)) and isinstance(plain.block.q_proj, LoRALinear)


def test_turned_down_to_nothing_it_is_the_base_and_back_again(pair):
    plain, model = pair
    before = model(X)
    with scaled(model, 0.0):
        assert torch.equal(model(X), plain(X))
    assert torch.equal(model(X), before)


def test_its_tuned_weights_are_the_merged_ones(pair):
    plain, model = pair
    tuned = tuned_weights(model)
    assert tuned_weights(model, ["block.q_proj"]).keys() == {"block.q_proj"}
    for name, weight in tuned.items():
        plain.get_submodule(name).weight.data.copy_(weight)
    # Float32 sums in another order.
    assert torch.allclose(plain(X), model(X), rtol=1e-5, atol=1e-5)


def test_it_cannot_be_fused_since_it_computes_in_its_own_way(pair):
    with pytest.raises(TypeError, match=r"block.q_proj is a Mine, which computes in its own way"):
        use_fused(pair[1])


def test_a_variant_is_for_the_librarys_layer():
    model = Model()
    with pytest.raises(TypeError, match=r"DoRA\(\) is a variant of LoRALinear"):
        inject(model, ["q_proj"], r=2, lora_alpha=3.0, variant=DoRA(), layer=Mine)
    assert type(model.block.q_proj) is nn.Linear


@pytest.mark.parametrize("change", [merge, unmerge])
def test_merging_in_place_is_refused_since_the_layer_would_add_the_update_again(pair, change):
    _, model = pair
    before = model(X)
    with pytest.raises(TypeError, match=r"block.q_proj is a Mine.*merge_and_unload\(model\)"):
        change(model)
    assert torch.equal(model(X), before)


def test_a_second_adapter_is_refused(pair):
    with pytest.raises(RuntimeError, match="LoRA on 2 layers already"):
        inject(pair[1], ["q_proj"], r=2, lora_alpha=3.0)


def without(name):
    class Lacking(Mine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if name == "scaling":
                self.scaling = None
            elif name == "base_layer":
                self.base_layer = nn.Identity()
            elif name == "more":
                self.lora_magnitude_vector = nn.Parameter(torch.ones(4))
            elif name == "turned":
                self.lora_A = nn.Parameter(self.lora_A.T.clone())
            else:
                del self._parameters[name]
                setattr(self, name, torch.ones(2))

    return Lacking


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scaling", "scaling has to be a number"),
        ("base_layer", "its base_layer is no nn.Linear"),
        ("lora_A", "have to be nn.Parameters"),
        ("more", "a lora_magnitude_vector as well, and so computes more than scaling"),
        ("turned", r"lora_A \(6, 2\) and lora_B \(4, 2\) don't fit"),
    ],
)
def test_a_class_without_the_parts_is_refused_and_the_model_is_as_it_was(name, said):
    model = Model()
    with pytest.raises(TypeError, match=f"a Lacking is no LoRA layer: .*{said}"):
        inject(model, ["q_proj", "v_proj"], r=2, lora_alpha=3.0, layer=without(name))
    assert type(model.block.q_proj) is nn.Linear and all(p.requires_grad for p in model.parameters())
