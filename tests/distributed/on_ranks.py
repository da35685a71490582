"""What the tests of utils/distributed run on each rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

from utils.distributed.average import ddp_loss
from utils.distributed.bytes import measured
from utils.distributed.ring import ring_all_reduce
from utils.distributed.shard import ShardedLinear


def ring_and_torch(sizes):
    """For each shape: largest difference of the ring's sum and all_reduce's, and the bytes sent."""
    found = []
    for shape, dtype in sizes:
        torch.manual_seed(dist.get_rank())
        mine = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.randint(0, 9, shape)
        theirs = mine.clone()
        sent = ring_all_reduce(mine)
        dist.all_reduce(theirs)
        found.append(((mine - theirs).abs().max().item() if mine.numel() else 0.0, sent, mine))
    return found


def mean_gradient(lengths):
    """A weight's gradient under DDP, of ranks with so many counted tokens each, by tokens and by ranks."""
    rank, found = dist.get_rank(), []
    for by_tokens in (True, False):
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
        losses = model(torch.arange(24.0).view(2, 4, 3)[rank]).square().squeeze(-1)
        counted = torch.arange(4) < lengths[rank]
        (ddp_loss(losses, counted) if by_tokens else losses[counted].mean()).backward()
        found.append(model.module.weight.grad)
    return found


def nothing_counts():
    return ddp_loss(torch.ones(3, requires_grad=True), torch.zeros(3, dtype=torch.bool))


def sharded(d_out, trains):
    """The layer and its gradients, and the plain layer's with the mean over ranks."""
    torch.manual_seed(0)
    linear = nn.Linear(5, d_out, bias=d_out % 2 == 0)
    linear.weight.requires_grad_(trains)
    layer = ShardedLinear(linear)
    torch.manual_seed(1 + dist.get_rank())
    x = torch.randn(2, 7, 5, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        y = layer(x)
    y.square().sum().backward()
    got = y.detach(), x.grad, layer.shard.grad, tuple(layer.shard.shape), kept
    x.grad, linear.weight.grad = None, None
    y = linear(x)
    y.square().sum().backward()
    whole = linear.weight.grad
    if whole is not None:
        dist.all_reduce(whole)
        whole /= dist.get_world_size()
    return got, (y.detach(), x.grad, whole)


def step_measured(way):
    """One step of the tiny Llama in float32 under `way`, its bytes by the profiler, and the numbers of parameters."""
    from peft import LoraConfig, get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tests.small_llama import small

    model = small()
    base = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    if way.endswith("lora"):
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapter = sum(p.numel() for p in model.parameters()) - base
    if way.startswith("fsdp"):
        inner = model.get_base_model() if way.endswith("lora") else model
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in inner.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()  # DDP's first step also broadcasts
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        model(input_ids=ids, labels=ids).loss.backward()
    return measured(recorded, dist.get_world_size()), {"blocks": blocks, "rest": base - blocks, "adapter": adapter}
