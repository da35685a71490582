"""The batched forward over many adapters: equal to PEFT's mixed batch and to one adapter at a time, and its refusals.

Largest differences found, in float32: 1e-5 in the logits of the tiny model (of size ten) against PEFT's mixed batch.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.lora import inject
from utils.lora import multi_adapter as m
from utils.lora.combine import Factors, from_peft, read_adapter
from utils.models import load_base
from utils.train.adapter_cache import adapter_dir

LOGITS = 1e-4
"""Float32 has seven digits, the logits are of size ten, and four blocks of sums are taken in another order."""
TASKS = ("sentiment", "translation", "style")


def _factors(r, seed, d_in=6, d_out=5, scaling=0.5):
    g = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(r, d_in, generator=g), torch.randn(d_out, r, generator=g), scaling)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


def _adapters():
    return {
        "a": {"one": _factors(2, 0), "two": _factors(2, 1, 5, 6)},
        "b": {"one": _factors(4, 2)},  # another rank, and one layer less
        "c": {"two": _factors(1, 3, 5, 6)},  # rank 1
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "__base__"]), min_size=1, max_size=6), st.integers(1, 3))
def test_every_row_gets_what_its_adapter_alone_gives(names, length):
    torch.manual_seed(0)
    net, adapters = Net(), _adapters()
    x = torch.randn(len(names), length, 6)
    expected = []
    for row, name in zip(x, names, strict=True):
        deltas = {k: f.delta() for k, f in adapters.get(name, {}).items()}
        hidden = torch.relu(net.one(row) + (row @ deltas["one"].T if "one" in deltas else 0))
        expected.append(net.two(hidden) + (hidden @ deltas["two"].T if "two" in deltas else 0))
    m.stack_adapters(net, adapters)
    with m.route(net, names):
        assert torch.allclose(net(x), torch.stack(expected), atol=1e-4)


def test_rows_without_a_length_work_too():
    net = Net()
    m.stack_adapters(net, _adapters())
    x = torch.randn(3, 6)
    with m.route(net, ["a", "b", "__base__"]):
        flat = net(x)
        assert torch.allclose(flat, net(x[:, None])[:, 0], atol=1e-5)


def test_outside_the_block_and_for_the_base_nothing_changes():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 6)
    before = net(x)
    m.stack_adapters(net, _adapters())
    with m.route(net, ["a", "b"]):
        assert not torch.allclose(net(x), before, atol=1e-2)
        with m.route(net, ["__base__"] * 2):
            assert torch.equal(net(x), before)
        assert not torch.allclose(net(x), before, atol=1e-2), "the outer route is back"
    assert torch.equal(net(x), before)
    with pytest.raises(RuntimeError, match="stop"), m.route(net, ["a", "b"]):
        raise RuntimeError("stop")
    assert torch.equal(net(x), before), "an error left the route set"


def test_nothing_is_trainable_and_the_factors_are_not_in_the_state():
    net = Net()
    keys = set(net.state_dict())
    m.stack_adapters(net, _adapters())
    assert not any(p.requires_grad for p in net.parameters())
    assert {k.replace("base_layer.", "") for k in net.state_dict()} == keys


@pytest.fixture(scope="module")
def both():
    """PEFT's model and ours with three shipped adapters, of ranks 8 and 16, and a tokenizer."""
    from peft import PeftModel

    base, tokenizer = load_base()
    theirs = PeftModel.from_pretrained(base, adapter_dir(TASKS[0]), adapter_name=TASKS[0])
    for task in TASKS[1:]:
        theirs.load_adapter(adapter_dir(task), adapter_name=task)
    ours, _ = load_base()
    m.stack_adapters(ours, {task: read_adapter(adapter_dir(task)) for task in TASKS})
    return theirs.eval(), ours.eval(), tokenizer


def test_a_mixed_batch_is_what_peft_computes(both):
    theirs, ours, tokenizer = both
    names = ["style", "__base__", "translation", "sentiment", "style"]
    ids = torch.randint(5, len(tokenizer), (5, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(ids, adapter_names=names).logits
        with m.route(ours, names):
            got = ours(ids).logits
        base = ours(ids).logits
    assert (got - expected).abs().max() < LOGITS
    differs = (got - base).abs().amax(dim=(1, 2))
    assert differs[1] == 0 and differs[[0, 2, 3, 4]].min() > 1, "an adapter had no effect"


def test_one_adapter_for_all_rows_is_set_adapter(both):
    theirs, ours, tokenizer = both
    ids = torch.randint(5, len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(1))
    for task in TASKS:
        theirs.set_adapter(task)
        with torch.inference_mode(), m.route(ours, [task] * 2):
            assert (ours(ids).logits - theirs(ids).logits).abs().max() < LOGITS


def test_generation_keeps_the_route(both):
    theirs, ours, tokenizer = both
    from utils.evaluate.metrics import complete
    from utils.tinyworld import task_examples

    examples = [task_examples(task, "test", 1)[0] for task in TASKS]
    prompts = [e.prompt for e in examples]
    with m.route(ours, TASKS):
        answers = complete(ours, tokenizer, prompts)
    assert answers == [e.answer for e in examples]
    assert complete(theirs, tokenizer, prompts, adapter_names=list(TASKS)) == answers
    with m.route(ours, TASKS), pytest.raises(ValueError, match="6 rows and 3 adapter names.*Beam search"):
        complete(ours, tokenizer, prompts, num_beams=2)


def test_factors_from_peft_stack_as_those_from_files(both):
    theirs, ours, _ = both
    fresh, _ = load_base()
    m.stack_adapters(fresh, {task: from_peft(theirs, task) for task in TASKS})
    files = m.multi_layers(ours)
    for name, layer in m.multi_layers(fresh).items():
        assert torch.equal(layer.lora_A, files[name].lora_A) and torch.equal(layer.lora_B, files[name].lora_B)


# ---------------------------------------------------------------------------------------------------- what is refused


def test_what_route_refuses():
    net = Net()
    with pytest.raises(RuntimeError, match="no stacked adapters"), m.route(net, ["a"]):
        pass
    m.stack_adapters(net, {"style": {"one": _factors(1, 3)}} | _adapters())
    x = torch.randn(2, 6)
    with pytest.raises(
        ValueError, match="no adapter 'stile'; did you mean 'style'. This model has __base__, style, a, b, c"
    ):
        with m.route(net, ["a", "stile"]):
            pass
    with pytest.raises(ValueError, match="no names"), m.route(net, []):
        pass
    with pytest.raises(TypeError, match="not the text 'a'"), m.route(net, "a"):
        pass
    for names in (["a"], ["a", "b", "a"]):
        with m.route(net, names), pytest.raises(ValueError, match=f"2 rows and {len(names)} adapter names"):
            net(x)


def test_what_stacking_refuses_changes_nothing():
    net = Net()
    good = _adapters()
    for words, adapters in {
        "no adapters": {},
        "name of the base itself": {"__base__": good["a"]},
        "'d' corrects three, and this model has no such": good | {"d": {"three": _factors(1, 0)}},
        r"'d' corrects a weight of shape \(5, 7\), and this layer's is \(5, 6\)": good
        | {"d": {"one": _factors(1, 0, 7)}},
    }.items():
        with pytest.raises(ValueError, match=words):
            m.stack_adapters(net, adapters)
        assert not m.multi_layers(net) and type(net.one) is nn.Linear
    m.stack_adapters(net, good)
    with pytest.raises(RuntimeError, match="already"):
        m.stack_adapters(net, good)
    with pytest.raises(RuntimeError, match="already"):
        inject(net, "all-linear", 2, 4)


def test_unstacking_gives_the_base_back():
    net, x = Net(), torch.randn(3, 6)
    with pytest.raises(RuntimeError, match="no stacked adapters"):
        m.unstack_adapters(net)
    before, layers = net(x), (net.one, net.two)
    m.stack_adapters(net, _adapters())
    m.unstack_adapters(net)
    assert (net.one, net.two) == layers and torch.equal(net(x), before)
    m.stack_adapters(net, _adapters())  # and others can come


@pytest.mark.parametrize("kind", ["NF4Linear", "Linear4bit"])
def test_beside_a_base_in_4_bits_they_are_not_rounded_to_codes(kind):
    from utils.lora.nf4_linear import quantize_layers
    from utils.models import load_4bit

    if kind == "Linear4bit":
        pytest.importorskip("bitsandbytes")

    def base():
        if kind == "Linear4bit":
            return load_4bit()[0]
        model = load_base()[0]
        quantize_layers(model)
        return model

    ids, stacked = torch.arange(5, 15)[None], base()
    plain = stacked(ids).logits
    m.stack_adapters(stacked, {"style": read_adapter(adapter_dir("style"))})
    with m.route(stacked, ["style"]):
        found = stacked(ids).logits
    assert (found - plain).abs().max() > 1
    if kind == "NF4Linear":
        alone = base()
        inject(alone, list(m.multi_layers(stacked)), 8, 16)
        with torch.no_grad():
            for name, factors in read_adapter(adapter_dir("style")).items():
                layer = alone.get_submodule(name)
                layer.lora_A.copy_(factors.A)
                layer.lora_B.copy_(factors.B * factors.scaling / layer.scaling)
    else:
        from peft import PeftModel

        alone = PeftModel.from_pretrained(base(), adapter_dir("style"))
    assert torch.allclose(found, alone(ids).logits, atol=LOGITS)


def test_nothing_is_put_on_a_model_of_peft():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["one"]))
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(RuntimeError, match="has adapters already, in its layers of peft.*Linear: load the base again"):
        inject(model, "all-linear", 2, 4)
    with pytest.raises(RuntimeError, match="has adapters already"):
        m.stack_adapters(model, _adapters())
    assert [name for name, _ in model.named_modules()] == names
