"""Packing: nothing is lost, positions begin again, and no document sees another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import models
from utils.data.chat import IGNORED, collate, encode
from utils.data.packing import block_diagonal_mask, pack
from utils.tinyworld import task_examples

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base():
    return models.load_base()


@pytest.fixture(scope="module")
def encoded(base):
    return encode(base[1], task_examples("style", "train", 12))


def documents(row):
    return [row.input_ids[a:b] for a, b in zip(row.boundaries, row.boundaries[1:], strict=False)]


# ------------------------------------------------------------------------------------------------------------- rows

some = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), min_size=1, max_size=30)


@settings(deadline=None)
@given(some, st.integers(20, 50))
def test_every_document_is_in_one_row_whole_and_no_row_is_too_long(sequences, length):
    rows = pack(sequences, length)
    assert sorted(d for row in rows for d in documents(row)) == sorted(sequences)
    assert all(len(row.input_ids) <= length for row in rows)
    for row in rows:
        assert len(row.input_ids) == len(row.labels) == len(row.position_ids) == row.boundaries[-1]
        sizes = [len(d) for d in documents(row)]
        assert row.position_ids == [i for size in sizes for i in range(size)]
        for begin, document in zip(row.boundaries, documents(row), strict=False):
            assert row.labels[begin : begin + len(document)] == [IGNORED, *document[1:]]


@settings(deadline=None)
@given(some, st.integers(20, 50))
def test_no_two_rows_would_fit_into_one(sequences, length):
    sizes = sorted(len(row.input_ids) for row in pack(sequences, length))
    assert len(sizes) == 1 or sizes[0] + sizes[1] > length


def test_each_goes_into_the_fullest_row_with_room():
    rows = pack([[1] * 6, [2] * 5, [3] * 4, [4] * 3], 10)
    assert [[d[0] for d in documents(row)] for row in rows] == [[1, 3], [2, 4]]


def test_labels_come_along_and_nothing_predicts_a_beginning():
    (row,) = pack([([5, 6, 7], [IGNORED, 6, 7]), ([8, 9], [8, 9])], 8)
    assert row.input_ids == [5, 6, 7, 8, 9] and row.labels == [IGNORED, 6, 7, IGNORED, 9]
    assert {k: v.tolist() for k, v in row.batch().items()} == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[IGNORED, 6, 7, IGNORED, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
    }


def test_two_documents_of_ids_in_a_tuple_are_no_pair():
    (row,) = pack(((5, 6), (7, 8)), 8)
    assert row.boundaries == [0, 2, 4]


def test_the_rows_are_trls(encoded):
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    ours = pack([p + a for p, a in encoded], 100)
    theirs = pack_dataset(Dataset.from_dict({"input_ids": [p + a for p, a in encoded]}), 100, "bfd")
    assert len(ours) == len(theirs)
    assert sorted(r.input_ids for r in ours) == sorted(theirs["input_ids"])
    assert sorted(torch.tensor(r.boundaries).diff().tolist() for r in ours) == sorted(theirs["seq_lengths"])


@pytest.mark.parametrize(
    ("sequences", "length", "said"),
    [
        ([], 8, "no documents"),
        ([[1], []], 8, "document 1 is empty"),
        ([([1, 2], [1])], 8, "document 0 has 2 ids and 1 labels"),
        ([[1] * 9, [1] * 12, [1]], 8, "2 of 3 documents are longer than a row of 8 tokens; the longest has 12"),
        ([[1]], 0, "at least one token, not 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(sequences, length, said):
    with pytest.raises(ValueError, match=said):
        pack(sequences, length)


# ------------------------------------------------------------------------------------------------------------- leaks


@torch.inference_mode()
def test_the_leak_is_there_and_each_way_closes_it(base, encoded):
    """float32 on logits of the size of ten: sums in another order differ by about 1e-5; a leak by about ten."""
    model, _ = base
    (row,) = pack([p + a for p, a in encoded[:2]], 100)
    ids, at = torch.tensor([row.input_ids]), row.boundaries[1]
    positions = torch.tensor([row.position_ids])
    alone = model(input_ids=ids[:, at:]).logits

    def differs(**inputs):
        return (model(input_ids=ids, **inputs).logits[:, at:] - alone).abs().max().item()

    assert model.config._attn_implementation == "sdpa"
    assert differs() > 1
    assert differs(position_ids=positions) > 1, "use_cache=True no longer leaks: the lesson says it does"
    assert differs(position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False) > 1
    assert differs(position_ids=positions, use_cache=False) < 1e-4
    assert differs(position_ids=positions, attention_mask=block_diagonal_mask(row.boundaries)) < 1e-4
    assert differs(attention_mask=block_diagonal_mask(row.boundaries)) < 1e-4  # rotary positions are relative


def test_a_packed_row_trains_as_the_padded_batch_does(base, encoded):
    model, tokenizer = models.load_base()
    padded = collate(encoded[:4], tokenizer.pad_token_id)
    (row,) = pack([(p + a, [IGNORED] * len(p) + a) for p, a in encoded[:4]], 400)
    losses, gradients = [], []
    for batch in (padded, row.batch()):
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.linalg.norm(gradients[0] - gradients[1]) < 1e-4 * torch.linalg.norm(gradients[0])


def test_trls_packed_loss_is_ours_without_the_leak(base, tmp_path):
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    from utils.data.labels import prompt_completion_labels
    from utils.data.records import to_prompt_completion

    disable_progress_bars()
    records = [{"instruction": e.prompt, "output": e.answer} for e in task_examples("style", "test", 12)]
    args = SFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=None,
        packing=True, max_length=100,
    )  # fmt: skip
    model, tokenizer = models.load_base()
    assert model.config.use_cache
    trainer = SFTTrainer(
        model, args, processing_class=tokenizer,
        train_dataset=Dataset.from_list([to_prompt_completion(r) for r in records]),
    )  # fmt: skip
    assert not model.config.use_cache, "a trainer no longer switches the cache off: the lesson says it does"
    rows = pack([prompt_completion_labels(tokenizer, r) for r in records], 100)
    assert len(rows) == len(trainer.train_dataset)
    model.eval()
    leaks = []
    for theirs in trainer.train_dataset:
        (row,) = [r for r in rows if r.input_ids == theirs["input_ids"]]
        with torch.inference_mode():
            loss = trainer.compute_loss(model, trainer.data_collator([theirs]))
            assert loss.item() == pytest.approx(base[0](**row.batch(), use_cache=False).loss.item(), rel=1e-5)
            leaks.append(abs(base[0](**row.batch(), use_cache=True).loss - loss).item())
    assert max(leaks) > 0.1


def test_the_mask_lets_a_token_see_its_own_document_up_to_itself():
    assert block_diagonal_mask([0, 3])[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert block_diagonal_mask([0, 2, 5])[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("boundaries", [[], [0], [1, 3], [0, 2, 2], [0, 3, 1]])
def test_boundaries_that_are_none_are_refused(boundaries):
    with pytest.raises(ValueError, match="begin at 0 and rise"):
        block_diagonal_mask(boundaries)
