"""What goes wrong in training on several ranks, each made and cured on two processes with the tiny Llama.

Three of the nine belong to the wrapper or to PEFT, and spring with one process as well (`Trap.alone`).

Attributes:
    TRAPS: Name -> :class:`Trap`. `tests/distributed/test_traps.py` holds each to what the installed versions do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn

from utils.distributed.average import ddp_loss
from utils.distributed.start import run

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.distributed.tensor import DTensor


class Trap(NamedTuple):
    """on_rank: what a rank runs, with whether the trap is cured; it returns what is seen in a few words.

    cure: the call. alone: it springs on one process too. timeout: seconds that a collective waits, where waiting is
    the point.
    """

    on_rank: Callable[[bool], str]
    cure: str
    alone: bool = False
    timeout: float | None = None


def spring(name: str, processes: int = 2) -> tuple[str, str]:
    """What rank 0 sees in the trap, and with its cure. processes: 2, or 1 for a trap that springs alone.

    Raises KeyError for a trap that isn't one, and ValueError for another number of processes.
    """
    trap = TRAPS[name]
    if processes != 2 and not (processes == 1 and trap.alone):
        raise ValueError(f"the trap {name!r} needs 2 processes{' or 1' * trap.alone}, not {processes}")
    made, cured = (
        run(trap.on_rank, cured, processes=processes, timeout=trap.timeout, show=False)[0] for cured in (False, True)
    )
    return made, cured


# ------------------------------------------------------------------------------------------------- what they stand on


def _model(**changes: Any) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(_base(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **changes))


def _base() -> Any:
    from utils.models.loading import load_tiny

    return load_tiny()[0].float().cpu()


def _shard(model: PeftModel) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, inner = init_device_mesh("cpu", (dist.get_world_size(),)), cast(Any, model.get_base_model())
    for block in inner.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _ids() -> Int[Tensor, "batch length"]:
    """This rank's two rows of four that the seed draws."""
    return torch.randint(0, 1000, (4, 32))[dist.get_rank() :: 2]


def _loss(model: Any) -> Tensor:
    ids = _ids()
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def _first_words(error: BaseException) -> str:
    """The exception's type and what it says first, without addresses of C++ files and sets, whose order varies."""
    said = str(error).rpartition("] ")[2].split(". ")[0].split(" but got")[0].split(" for ")[0]
    return f"{type(error).__name__}: {said}"


def _between_ranks(tensor: Tensor) -> float:
    """How far the two ranks' tensors are apart, in largest absolute values."""
    both = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(both, tensor.contiguous())
    return ((both[0] - both[1]).abs().max() / both[0].abs().max()).item()


# ---------------------------------------------------------------------------------------------------------- the traps


def _two_dtypes(cured: bool) -> str:
    model = _model() if cured else _model().bfloat16()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        elif "norm" in name:
            parameter.requires_grad_()
    _shard(model)
    try:
        _loss(model)
    except AssertionError as error:
        return _first_words(error)
    return "it trains"


def _wrapped_first(cured: bool) -> str:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    if cured:
        inner = get_peft_model(_base(), config)
        model = nn.parallel.DistributedDataParallel(inner)
    else:
        model = nn.parallel.DistributedDataParallel(_base())
        inner = get_peft_model(model.module, config)
    _loss(model).backward()
    gradient = next(p.grad for n, p in inner.named_parameters() if "lora_B" in n and p.grad is not None)
    return f"the ranks' gradients differ by up to {_between_ranks(gradient):.1f} times rank 0's largest"


def _reentrant(cured: bool) -> str:
    inner = _model()
    inner.train()
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": not cured})
    inner.enable_input_require_grads()
    model = nn.parallel.DistributedDataParallel(inner, find_unused_parameters=True)
    try:
        _loss(model).backward()
    except RuntimeError as error:
        return _first_words(error)
    trained = [p for p in inner.parameters() if p.requires_grad]
    return f"{sum(p.grad is not None for p in trained)} of {len(trained)} adapter matrices have their gradient"


def _one_shard(cured: bool) -> str:
    from peft import get_peft_model_state_dict

    model = _model()
    _shard(model)
    A = next(iter(get_peft_model_state_dict(model, save_embedding_layers=False).values()))
    saved = cast("DTensor", A).full_tensor() if cured else cast("DTensor", A).to_local()
    return f"r=8, and the saved A has the shape {tuple(saved.shape)}"


def _not_gathered(cured: bool) -> str:
    """Cut up as ZeRO-3 does it, by hand: a rank keeps its part of each parameter beside it, and the parameter itself
    has no numbers until it is gathered. DeepSpeed isn't needed."""
    from safetensors.torch import load_file

    model, rank, world = _model(), dist.get_rank(), dist.get_world_size()
    adapter = [p for p in model.parameters() if p.requires_grad]
    parts = [p.data.flatten().chunk(world)[rank].clone() for p in adapter]
    shapes = [p.shape for p in adapter]
    for parameter in adapter:
        parameter.data = torch.empty(0)
    if cured:
        for parameter, part, shape in zip(adapter, parts, shapes, strict=True):
            whole = [torch.empty_like(part) for _ in range(world)]
            dist.all_gather(whole, part)
            parameter.data = torch.cat(whole).view(shape)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        saved = load_file(Path(folder) / "adapter_model.safetensors")
    return f"the file has {len(saved)} tensors and {sum(t.numel() for t in saved.values()):,} numbers"


def _tied(cured: bool) -> str:
    model = _model(modules_to_save=["lm_head"], ensure_weight_tying=cured)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    _loss(model).backward()
    optimizer.step()
    inner: Any = model.get_base_model()
    parts = [getattr(part, "modules_to_save", {"default": part})["default"].weight for part in
             (inner.model.embed_tokens, inner.lm_head)]  # fmt: skip
    return f"after a step the head is {(parts[0] - parts[1]).abs().max().item():.3f} from the embedding"


def _no_tokens(cured: bool) -> str:
    """Rank 0 has all tokens and rank 1 none; the right gradient is rank 0's own."""
    rank, weight = dist.get_rank(), torch.ones(1, requires_grad=True)
    losses, counted = weight * torch.ones(4), torch.full((4,), rank == 0)
    loss = ddp_loss(losses, counted) if cured else (losses * counted).sum() / counted.sum()
    loss.backward()
    mean = torch.zeros(1) if weight.grad is None else weight.grad
    dist.all_reduce(mean)
    return f"the mean gradient is {mean.item() / 2:.1f}, and 1.0 is right"


def _same_masks(cured: bool) -> str:
    """transformers' Trainer seeds its process as it is made; what the adapter's dropout draws then is compared."""
    from transformers import Trainer, TrainingArguments

    model = _model(lora_dropout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, TrainingArguments(folder, seed=0, report_to="none", use_cpu=True))
    if cured:
        torch.manual_seed(dist.get_rank())
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    mask = dropout.train()(torch.ones(100_000))
    both = [torch.empty_like(mask) for _ in range(2)]
    dist.all_gather(both, mask)
    return f"{(both[0] == both[1]).float().mean().item():.0%} of the mask is the same on both ranks"


def _rank_0_evaluates(cured: bool) -> str:
    model = _model().eval()
    _shard(model)
    with torch.no_grad():
        if not cured and dist.get_rank():
            return "went on"
        try:
            return f"{'both ranks have' if cured else 'rank 0 has'} a loss, {_loss(model).item():.1f}"
        except RuntimeError as error:
            return _first_words(error)


TRAPS: dict[str, Trap] = {
    "trained in two dtypes under FSDP2": Trap(_two_dtypes, "one dtype for all that trains in a block", alone=True),
    "DDP before PEFT": Trap(_wrapped_first, "get_peft_model first, then wrap"),
    "reentrant checkpointing under DDP": Trap(
        _reentrant, 'gradient_checkpointing_kwargs={"use_reentrant": False}', alone=True
    ),
    "one rank's shard saved": Trap(_one_shard, "full_tensor(), on all ranks"),
    "saved before it is gathered": Trap(_not_gathered, "an all-gather of each parameter, then save_pretrained"),
    "tied head in modules_to_save": Trap(_tied, "ensure_weight_tying=True", alone=True),
    "a rank without tokens": Trap(_no_tokens, "the sum over the tokens of all ranks"),
    "the same dropout on all ranks": Trap(_same_masks, "torch.manual_seed(seed + rank), after the trainer is made"),
    "only rank 0 evaluates": Trap(_rank_0_evaluates, "all ranks evaluate, a part each", timeout=2),
}  # fmt: skip
