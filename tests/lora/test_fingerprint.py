"""Which base an adapter belongs to: one fingerprint in every dtype, another for a neighbour, rows that come and go."""

import pytest
import torch
from torch import nn

from utils import lora
from utils.lora import fingerprint
from utils.lora.fingerprint import difference, embedding, parsed
from utils.models import load_base

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def table(rows=600, width=32, seed=0, stored=torch.float32):
    """An embedding as models have them, as it is stored in a file: some numbers are below float16's normal ones."""
    numbers = 0.02 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    numbers[::7] *= 1e-4
    return numbers.to(stored).float()


def print_of(weight):
    return parsed(fingerprint.fingerprint(weight).text())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", DTYPES)
@pytest.mark.parametrize("loaded", DTYPES)
def test_one_base_in_any_two_dtypes_is_one_base(stored, saved, loaded):
    weight = table(stored=stored)
    assert difference(print_of(weight.to(saved)), weight.to(loaded)) is None


@pytest.mark.parametrize("saved", DTYPES)
@pytest.mark.parametrize("loaded", DTYPES)
def test_a_neighbour_whose_embedding_was_trained_is_another(saved, loaded):
    weight = table()
    moved = weight + 2e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert "of its 60 blocks of rows differ" in difference(print_of(weight.to(saved)), moved.to(loaded))


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
def test_one_number_of_one_row_is_enough_unless_float16_is_among_them(loaded):
    weight = table()
    other = weight.clone()
    other[333, 7] += 0.001
    assert difference(print_of(weight), other.to(loaded)) == "1 of its 60 blocks of rows differ"
    assert difference(print_of(weight), other.half()) is None  # what the module's text says it can't tell
    assert difference(print_of(weight.half()), other.half()) == "1 of its 60 blocks of rows differ"


@pytest.mark.parametrize("rows", [1, 5, 63, 64, 65, 600])
@pytest.mark.parametrize("more", [0, 1, 64, 700])
@pytest.mark.parametrize("grown", ["model", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_only_one_side_has_do_not_count(rows, more, grown, dtype):
    small, large = table(rows), torch.cat([table(rows), table(more, seed=5)])
    written, weight = (small, large) if grown == "model" else (large, small)
    assert difference(print_of(written), weight.to(dtype)) is None
    other = torch.cat([table(rows, seed=1), weight[rows:]])
    if grown == "model" or 2 * more < rows:
        assert "differ" in difference(print_of(written), other.to(dtype))


def test_another_width_is_another_base():
    assert "rows had 32 numbers, and this model's have 16" in difference(print_of(table()), table(width=16))


def test_a_vocabulary_of_a_real_size_takes_little_room():
    assert len(fingerprint.fingerprint(torch.ones(150_000, 1)).text()) < 3000


class WithEmbedding(nn.Sequential):
    def get_input_embeddings(self):
        return self[0]


def test_lora_and_a_merge_leave_it_as_it_was():
    torch.manual_seed(0)
    model = WithEmbedding(nn.Embedding(5, 6), nn.Linear(6, 4))
    before = fingerprint.fingerprint(embedding(model))
    lora.inject(model, "all-linear", 2, 4)
    nn.init.normal_(model[1].lora_B)
    lora.merge(model)
    assert fingerprint.fingerprint(embedding(model)) == before


def test_a_base_in_four_bits_is_the_same_base(base):
    pytest.importorskip("bitsandbytes")
    from utils.models import load_4bit

    written = print_of(embedding(base))
    for dtype in (torch.float16, torch.bfloat16):
        assert difference(written, embedding(load_4bit(compute_dtype=dtype)[0])) is None
        assert difference(written, embedding(load_base(dtype)[0])) is None


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        WithEmbedding(nn.Embedding(5, 6, device="meta")),
        WithEmbedding(nn.Identity()),
        WithEmbedding(nn.Embedding(0, 6)),
    ],
)
def test_a_model_without_numbers_to_look_at_has_none(model):
    assert embedding(model) is None


@pytest.mark.parametrize("change", [
    {"rows": 0}, {"rows": "5"}, {"rows": 10**9}, {"width": -1}, {"blocks": []}, {"samples": [1.0]},
    {"samples": ["x"] * fingerprint.SAMPLES}, {"more": 1}, {"blocks": None},
])  # fmt: skip
def test_text_that_is_no_fingerprint_is_refused(change):
    import json

    fields = json.loads(fingerprint.fingerprint(table()).text()) | change
    with pytest.raises(ValueError, match="no fingerprint of an embedding"):
        parsed(json.dumps(fields))
    for text in ("", "[", "[" * 10_000, "1", '{"rows": 1}'):
        with pytest.raises(ValueError, match="no fingerprint"):
            parsed(text)
