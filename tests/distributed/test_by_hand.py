"""The ring, the mean over tokens, the sharded layer and the bytes: each held to torch.distributed's own."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import on_ranks
from utils.distributed.bytes import WAYS, sent, step_bytes
from utils.distributed.ring import ring_all_reduce, sent_chunk
from utils.distributed.start import RankFailed, run, stop


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left():
    yield
    stop()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_ring_is_all_reduce_and_sends_what_is_counted(world):
    sizes = [((12, 5), torch.float32), ((60,), torch.float64), ((24,), torch.int64), ((7,), torch.float32)]
    sizes += [((0,), torch.float32), ((2,), torch.float32)]
    by_rank = run(on_ranks.ring_and_torch, sizes, processes=world, show=False)
    for place, (shape, dtype) in enumerate(sizes):
        size = torch.empty(shape, dtype=dtype)
        for rank in range(world):
            apart, bytes_sent, total = by_rank[rank][place]
            assert apart <= 1e-6 and torch.equal(total, by_rank[0][place][2])  # the same on all ranks, to the bit
            if size.numel() % world == 0:
                assert bytes_sent == sent("all_reduce", size.numel() * size.element_size(), world)


def test_a_rank_sends_on_what_it_has_just_received():
    for world in range(2, 9):
        for rank in range(world):
            for step in range(1, 2 * world - 2):
                assert sent_chunk(rank, step, world) == sent_chunk((rank - 1) % world, step - 1, world)


def test_a_tensor_that_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        ring_all_reduce(torch.ones(3, 4).T)


@pytest.mark.parametrize("lengths", [(4, 1), (3, 3), (2, 0)])
def test_gradients_are_averaged_over_tokens(lengths):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    losses = model(torch.arange(24.0).view(2, 4, 3)).square().squeeze(-1)
    counted = torch.arange(4) < torch.tensor(lengths)[:, None]
    losses[counted].mean().backward()
    for by_tokens, by_ranks in run(on_ranks.mean_gradient, lengths, show=False):
        torch.testing.assert_close(by_tokens, model.weight.grad)
        if lengths == (3, 3):
            torch.testing.assert_close(by_ranks, model.weight.grad)
        elif 0 in lengths:
            torch.testing.assert_close(2 * by_ranks, model.weight.grad)  # a rank with a loss of NaN, and no gradient
        else:
            assert (by_ranks - model.weight.grad).abs().max() > 0.1 * model.weight.grad.abs().max()


@pytest.mark.parametrize(("d_out", "trains", "world"), [(6, False, 2), (6, True, 2), (7, True, 2), (5, True, 3)])
def test_a_sharded_layer_is_the_plain_one(d_out, trains, world):
    results = run(on_ranks.sharded, d_out, trains, processes=world, show=False)
    rows = -(-d_out // world)
    for rank, ((y, dx, own, shape, kept), (plain_y, plain_dx, whole)) in enumerate(results):
        torch.testing.assert_close(y, plain_y)
        torch.testing.assert_close(dx, plain_dx)
        assert shape == (rows, 5) and (d_out, 5) not in kept
        if trains:
            expected = torch.nn.functional.pad(whole, (0, 0, 0, rows * world - d_out))[rows * rank :][:rows]
            torch.testing.assert_close(own, expected)
        else:
            assert own is None and whole is None


@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_of_a_step_are_what_the_profiler_saw(way):
    for found, sizes in run(on_ranks.step_measured, way, show=False):
        assert found == step_bytes(way, **sizes, world=2, weight=4)


def test_what_a_7b_step_exchanges():
    """Llama-2-7B's numbers, LoRA r=16 on all linear layers, 4 ranks: the prototype's 160 MB of gradients."""
    sizes = {"blocks": 6_476_271_616, "rest": 262_148_096, "adapter": 39_976_960, "world": 4}
    assert step_bytes("ddp-lora", **sizes, gradient=4).reduced == 159_907_840
    lora, full = (step_bytes(way, **sizes) for way in ("fsdp-lora", "fsdp-full"))
    assert 1.4 < full.sent / lora.sent < 1.5
    assert step_bytes("ddp-lora", **{**sizes, "world": 1}).sent == 0


def test_numbers_and_names_that_are_none_are_refused():
    with pytest.raises(ValueError, match="ddp-lora"):
        step_bytes("zero", blocks=1, rest=1, adapter=1, world=2)
    with pytest.raises(ValueError, match="aren't negative"):
        step_bytes("ddp-lora", blocks=-1, rest=1, adapter=1, world=2)
    with pytest.raises(ValueError, match="one rank or more"):
        sent("all_reduce", 1, 0)


def test_a_batch_in_which_nothing_counts_is_refused_on_all_ranks():
    """The last that runs anything: a rank that fails ends the processes that the tests above share."""
    with pytest.raises(RankFailed, match="no rank has a token with a label"):
        run(on_ranks.nothing_counts)
