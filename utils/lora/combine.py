"""Several LoRA adapters made into one by weights: PEFT's ``add_weighted_adapter``, from scratch.

An adapter is a dictionary from a layer's name to its :class:`Factors`. :func:`combine` knows the eleven ways of PEFT
0.21. They differ in *what* is summed. ``cat`` puts the factors behind each other, and its product is the weighted sum
of the corrections. ``linear`` sums the factors, so that its product has cross terms. ``svd`` sums the corrections and
keeps what fits into a rank. The others thin or vote before they sum: TIES (Yadav et al., 2023,
https://arxiv.org/abs/2306.01708), DARE (Yu et al., 2023, https://arxiv.org/abs/2311.03099), and magnitude pruning; each
on the factors or, with ``_svd``, on the corrections.

Attributes:
    Adapter: The factors of every layer that the adapter corrects, by the layer's name in the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from utils.lora.adapter_config import unsupported
from utils.lora.checkpoint import read_files, refuse_untouched

if TYPE_CHECKING:
    from peft import PeftModel

How = Literal[
    "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip
HOW: tuple[How, ...] = get_args(How)
MajoritySign = Literal["total", "frequency"]
_IN_FACTORS = ("use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")  # each layer has its own rank, scaling


class Factors(NamedTuple):
    """One layer's part of an adapter: `A` is (r, in), `B` is (out, r); the correction is ``scaling * B @ A``."""

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    scaling: float

    @property
    def r(self) -> int:
        return len(self.A)

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """The correction as a matrix of the weight's shape."""
        return self.scaling * (self.B @ self.A)


Adapter = dict[str, Factors]


# ---------------------------------------------------------------------------------------------- where adapters are


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a folder of PEFT's format, in float32 as PEFT loads it, layers in the order of the file.

    Raises what :func:`utils.lora.checkpoint.read_files` raises, and ValueError when `target_modules` names a layer that
    the file has no matrices for. Which of a model's layers a name means, only the model could tell.
    """
    config, matrices, _ = read_files(folder)
    refuse_untouched(config, matrices, folder)
    scaling = config["lora_alpha"] / config["r"]
    return {name: Factors(pair["lora_A"].float(), pair["lora_B"].float(), scaling) for name, pair in matrices.items()}


def from_peft(model: PeftModel, name: str) -> Adapter:
    """A copy of the adapter `name` of a PEFT model, layers in the model's order, each with its own rank and scaling.

    Raises KeyError for an unknown name, and ValueError for an adapter that is more than `A`, `B` and a scaling in each
    layer, such as DoRA or one that trains an embedding too.
    """
    _known(model, name)
    _refuse_more_than_factors(model, name)
    found = {}
    for path, module in model.get_base_model().named_modules():
        if name in getattr(module, "lora_A", ()):
            a, b = (getattr(module, part)[name].weight.detach().clone() for part in ("lora_A", "lora_B"))
            found[path] = Factors(a, b, float(cast(Any, module).scaling[name]))
    return found


def _refuse_more_than_factors(model: PeftModel, name: str) -> None:
    """By the settings, as the reader of files does it, and by what the layers hold under the adapter's name."""
    config: Any = model.peft_config[name]
    kind = str(config.peft_type).rpartition(".")[2]
    used = [kind] if kind != "LORA" else []
    used += [setting for setting in unsupported(config.to_dict()) if setting not in _IN_FACTORS]
    for path, module in model.get_base_model().named_modules():
        if not isinstance(module, torch.nn.ModuleDict | torch.nn.ParameterDict) or name not in module:
            continue
        held, part = module[name], path.rpartition(".")[2]
        if isinstance(held, torch.nn.Module) and not list(held.parameters()):
            continue  # dropout
        if part not in ("lora_A", "lora_B") or type(held) is not torch.nn.Linear or held.bias is not None:
            used.append(path)
            break
    if used:
        raise ValueError(
            f"the adapter {name!r} uses {', '.join(used)}: it is more than A, B and a scaling in each layer, and the "
            "rest would be lost. Keep it in PEFT, or merge it there with merge_and_unload()"
        )


def into_peft(model: PeftModel, name: str, adapter: Adapter) -> None:
    """Add `adapter` to a PEFT model under a new `name`, frozen; which adapter is active stays.

    Raises ValueError when the name is taken, when the layers differ in rank or scaling, which one LoraConfig can't say,
    or the model has no such linear layer; nothing is added then.
    """
    from peft import LoraConfig

    if name in model.peft_config:
        raise ValueError(f"the model has an adapter {name!r} already: delete it first, or choose another name")
    kinds = {(f.r, f.scaling) for f in adapter.values()}
    if len(kinds) != 1:
        raise ValueError(f"one adapter needs one rank and one scaling in all its layers, not {sorted(kinds)}")
    modules = dict(model.get_base_model().named_modules())
    for path, f in adapter.items():
        layer = modules.get(path)
        layer = getattr(layer, "base_layer", layer)
        shape = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
        if shape != (len(f.B), f.A.shape[1]):
            raise ValueError(
                f"the adapter corrects {path}, a weight of shape {(len(f.B), f.A.shape[1])}, and this model "
                + (f"has {shape} there" if layer is not None else "has no such layer")
                + ": it belongs to another base"
            )
    r, scaling = kinds.pop()
    alpha = cast(int, r * scaling)  # PEFT says int and takes any number
    model.add_adapter(name, LoraConfig(r=r, lora_alpha=alpha, target_modules=list(adapter)))
    with torch.no_grad():
        for path, factors in adapter.items():
            module = model.get_base_model().get_submodule(path)
            for part, matrix in (("lora_A", factors.A), ("lora_B", factors.B)):
                getattr(module, part)[name].weight.copy_(matrix).requires_grad_(False)


def hotswap(model: PeftModel, name: str, folder: str | Path) -> None:
    """Put the adapter in `folder` into the tensors of the adapter `name`: PEFT's ``hotswap_adapter``, after which the
    adapter's settings say what is in it.

    PEFT swaps the numbers and the scaling and leaves `r` and `lora_alpha`, in the settings and in each layer, as they
    were, so that an adapter saved after a swap is another one, and ``set_scale`` computes with the old alpha. A smaller
    rank is padded with zeros, and layers that the new adapter leaves alone get zeros; the slot keeps its own rank and
    its own targets. A compiled model is not compiled again for it when it was prepared
    (``prepare_model_for_compiled_hotswap``). Raises KeyError for an unknown name, and
    ValueError, before anything changes, when `folder` or the slot holds more than plain LoRA (:func:`read_adapter`,
    :func:`from_peft`), when the new adapter has a layer that the slot hasn't, another shape or a larger rank, and when
    the slot is merged.
    """
    from peft.utils.hotswap import hotswap_adapter

    slot, new = from_peft(model, name), read_adapter(folder)
    if apart := new.keys() - slot.keys():
        raise ValueError(
            f"the new adapter corrects {_listed(apart)}, which the slot {name!r} doesn't have: make the slot with all "
            "layers that any of its adapters targets"
        )
    for path, f in new.items():
        if f.A.shape[1] != slot[path].A.shape[1] or len(f.B) != len(slot[path].B):
            raise ValueError(f"the new adapter doesn't fit {path}: it belongs to another base")
    ranks = {f.r for f in slot.values()}
    largest = max(f.r for f in new.values())
    if len(ranks) > 1 or largest > min(ranks):
        raise ValueError(
            f"the new adapter has rank {largest}, and the slot {name!r} holds {', '.join(map(str, sorted(ranks)))}: "
            "make it as large as the largest at first, peft.utils.hotswap.prepare_model_for_compiled_hotswap(model, "
            f"target_rank={largest})"
        )
    hotswap_adapter(cast(Any, model), str(folder), name)
    config: Any = model.peft_config[name]
    r, scaling = ranks.pop(), next(iter(new.values())).scaling
    config.r, config.rank_pattern, config.alpha_pattern = r, {}, {}
    config.lora_alpha = int(r * scaling) if float(r * scaling).is_integer() else r * scaling
    for module in model.modules():
        if name in getattr(module, "lora_A", ()):
            layer = cast(Any, module)
            layer.r[name], layer.lora_alpha[name] = r, config.lora_alpha


@contextmanager
def mask_seed(model: PeftModel, seed: int) -> Iterator[None]:
    """Inside the block torch's random state is set to `seed` whenever PEFT has made a new adapter.

    ``add_weighted_adapter`` first draws the new adapter's matrices, which it overwrites, and then DARE's masks. Seeded
    in between, the masks are those of ``combine(..., generator=torch.Generator().manual_seed(seed))``.
    """
    tuner = cast(Any, model.base_model)
    inject = tuner.inject_adapter

    def then_seed(*args, **kwargs):
        inject(*args, **kwargs)
        torch.manual_seed(seed)

    tuner.inject_adapter = then_seed
    try:
        yield
    finally:
        del tuner.inject_adapter


def _known(model: PeftModel, name: str) -> None:
    if name not in model.peft_config:
        raise KeyError(f"the model has no adapter {name!r}; it has {', '.join(model.peft_config)}")


def largest_difference(first: Adapter, second: Adapter) -> float:
    """The largest difference between two adapters' corrections, over all layers and entries.

    Raises ValueError when they correct different layers.
    """
    if first.keys() != second.keys():
        raise ValueError(
            f"the adapters correct different layers: {_listed(first.keys() ^ second.keys())} is in one only"
        )
    return max((first[name].delta() - second[name].delta()).abs().max().item() for name in first)


# ------------------------------------------------------------------------------------- what is done before the sum


def keep_largest(tensor: Float[Tensor, " ..."], density: float) -> Float[Tensor, " ..."]:
    """Keep the share `density` of the entries, the largest in size, and set the rest to zero.

    The number kept is rounded down, as in PEFT. Raises ValueError unless 0 < density <= 1.
    """
    _check_density(density)
    if density == 1:
        return tensor
    kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    mask = torch.zeros_like(tensor).flatten()
    mask[kept] = 1
    return tensor * mask.view_as(tensor)


def keep_random(
    tensor: Float[Tensor, " ..."], density: float, generator: torch.Generator | None = None
) -> Float[Tensor, " ..."]:
    """Keep each entry with probability `density` and divide by it, so that the expected value stays (DARE).

    Raises ValueError unless 0 < density <= 1: PEFT takes 0, and the result is nothing but NaN.
    """
    _check_density(density)
    if density == 1:
        return tensor
    return tensor * torch.bernoulli(torch.full_like(tensor, density), generator=generator) / density


def majority_sign(stacked: Float[Tensor, "n ..."], method: MajoritySign = "total") -> Bool[Tensor, "n ..."]:
    """Which of `n` stacked tensors have, entry by entry, the sign that the vote elects.

    ``"total"`` lets every entry vote with its size, ``"frequency"`` with one vote each. A tie elects plus. A zero has
    no sign and never agrees. Raises ValueError for another method.
    """
    if method not in get_args(MajoritySign):
        raise ValueError(f"majority_sign is {method!r}: choose 'total' or 'frequency'")
    votes = stacked if method == "total" else stacked.sign()
    elected = torch.where(votes.sum(dim=0) >= 0, 1, -1)
    return stacked.sign() == elected


def disjoint_mean(stacked: Float[Tensor, "n ..."], agree: Bool[Tensor, "n ..."]) -> Float[Tensor, " ..."]:
    """Entry by entry the mean of those that `agree`; zero where none does."""
    return (stacked * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


Merge = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def _merger(kind: str, density: float, sign: MajoritySign, generator: torch.Generator | None) -> Merge:
    """The function that makes one tensor of several and their weights."""

    def prepared(tensors: Sequence[Tensor]) -> Tensor:
        if kind in ("ties", "magnitude_prune"):
            tensors = [keep_largest(t, density) for t in tensors]
        elif kind.startswith("dare"):
            tensors = [keep_random(t, density, generator) for t in tensors]
        return torch.stack(list(tensors))

    def merge(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        stacked = prepared(tensors)
        weighted = stacked * torch.tensor(weights).to(stacked.device).view(-1, *[1] * (stacked.dim() - 1))
        if kind.endswith("ties"):
            return disjoint_mean(weighted, majority_sign(stacked, sign))
        return weighted.sum(dim=0)

    return merge


# ------------------------------------------------------------------------------------------------- the combination


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    how: How = "cat",
    *,
    svd_rank: int | None = None,
    density: float | None = None,
    sign: MajoritySign = "total",
    generator: torch.Generator | None = None,
) -> Adapter:
    """One adapter from several, as PEFT's ``add_weighted_adapter`` makes it; its scaling is 1.

    weights: one for each adapter, also negative. They multiply the corrections, `scaling` included.
    how: see the module's text. The rank of ``cat`` is the sum of ranks. ``linear``, ``ties``, ``dare_linear``,
        ``dare_ties`` and ``magnitude_prune`` work on the factors, so that each factor gets the root of the weight, and
        they need equal ranks. ``svd`` and the ``_svd`` forms work on the corrections and keep the rank `svd_rank`
        (default: the largest rank that comes in).
    density: the share of entries kept, for the ways that thin.
    sign: how the sign is elected in ``ties`` and ``dare_ties``.
    generator: where DARE's randomness comes from (default: torch's own). Layer by layer the masks of all `A` are
        drawn, then those of all `B`; with ``_svd`` those of all corrections.

    Unlike PEFT it refuses, with ValueError, other than one weight an adapter (PEFT drops what has no partner), adapters
    that correct different layers (PEFT takes their union), a density outside (0, 1], and a rank below 1. ValueError too
    for no adapters, layers of different shape, matrices that aren't finite, unequal ranks where they must be equal, and
    an unknown `how`.
    """
    _check(adapters, weights, how, svd_rank, density)
    kind = how.removesuffix("_svd")
    merge = _merger(kind, 1.0 if density is None else density, sign, generator)
    combined = {}
    for name in adapters[0]:
        factors = [adapter[name] for adapter in adapters]
        if how == "cat":
            combined[name] = _cat(factors, weights)
        elif how.endswith("svd"):
            rank = svd_rank or max(f.r for adapter in adapters for f in adapter.values())
            combined[name] = truncate(merge([f.delta() for f in factors], weights), rank)
        else:
            combined[name] = _on_factors(factors, weights, merge)
    return combined


def _cat(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    a = torch.cat([w * f.scaling * f.A for f, w in zip(factors, weights, strict=True)])
    return Factors(a, torch.cat([f.B for f in factors], dim=1), 1.0)


def _on_factors(factors: Sequence[Factors], weights: Sequence[float], merge: Merge) -> Factors:
    products = [w * f.scaling for f, w in zip(factors, weights, strict=True)]
    roots = [math.sqrt(abs(p)) for p in products]
    signed = [math.copysign(root, p) for root, p in zip(roots, products, strict=True)]
    return Factors(merge([f.A for f in factors], signed), merge([f.B for f in factors], roots), 1.0)


def truncate(delta: Float[Tensor, "d_out d_in"], rank: int) -> Factors:
    """The factors of rank `rank` whose product is nearest to `delta` (Eckart and Young); `B` carries the sizes."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return Factors(vh[:rank], u[:, :rank] * s[:rank], 1.0)


def weighted_sum(adapters: Sequence[Adapter], weights: Sequence[float], layer: str) -> Float[Tensor, "d_out d_in"]:
    """What an exact combination adds to the weight of `layer`: the weighted sum of the corrections.

    Raises ValueError for no adapters, or another number of weights.
    """
    _check_counts(adapters, weights)
    first, *rest = (w * adapter[layer].delta() for adapter, w in zip(adapters, weights, strict=True))
    return sum(rest, first)


def combined_error(adapters: Sequence[Adapter], weights: Sequence[float], combined: Adapter) -> float:
    """How far `combined` is from the weighted sum of the corrections: the norm of the difference over all layers, by
    the norm of the sum."""
    wrong = total = 0.0
    for layer, factors in combined.items():
        exact = weighted_sum(adapters, weights, layer)
        wrong += (factors.delta() - exact).square().sum().item()
        total += exact.square().sum().item()
    return math.sqrt(wrong / total)


def relative_norm(adapters: Sequence[Adapter], weights: Sequence[float], combined: Adapter) -> float:
    """The norm of `combined` over all layers, by the norm of the weighted sum of the corrections."""
    own = sum(f.delta().square().sum().item() for f in combined.values())
    exact = sum(weighted_sum(adapters, weights, layer).square().sum().item() for layer in combined)
    return math.sqrt(own / exact)


def shuffled(adapter: Adapter, seed: int = 0) -> Adapter:
    """A control: the same numbers at other places of each factor, the norm of each layer's correction kept."""
    draw, mixed = torch.Generator().manual_seed(seed), {}
    for name, f in adapter.items():
        a, b = (m.flatten()[torch.randperm(m.numel(), generator=draw)].view_as(m) for m in (f.A, f.B))
        fresh = f._replace(A=a, B=b)
        mixed[name] = fresh._replace(scaling=f.scaling * (f.delta().norm() / fresh.delta().norm()).item())
    return mixed


def padded(adapter: Adapter, r: int) -> Adapter:
    """The same corrections with factors of rank `r`: rows of zeros under `A`, columns of zeros behind `B`.

    Raises ValueError when a layer's rank is larger already.
    """
    if too_large := [name for name, f in adapter.items() if f.r > r]:
        raise ValueError(f"{too_large[0]} has rank {adapter[too_large[0]].r}, which can't be padded to {r}")
    pad = torch.nn.functional.pad
    return {
        name: Factors(pad(f.A, (0, 0, 0, r - f.r)), pad(f.B, (0, r - f.r)), f.scaling) for name, f in adapter.items()
    }


# ----------------------------------------------------------------------------------------------------- what is refused


def _listed(names) -> str:
    names = sorted(names)
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _check_density(density: float | None) -> None:
    if density is None or not 0 < density <= 1:
        raise ValueError(f"density is the share of entries that is kept, above 0 and at most 1; it can't be {density}")


def _check_counts(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not len(adapters):
        raise ValueError("there are no adapters to combine: pass at least one")
    if len(adapters) != len(weights):
        raise ValueError(f"there are {len(adapters)} adapters and {len(weights)} weights: each adapter needs its own")


def _check(adapters: Sequence[Adapter], weights: Sequence[float], how: str, svd_rank, density) -> None:
    if how not in HOW:
        raise ValueError(f"there is no combination {how!r}: choose one of {', '.join(HOW)}")
    _check_counts(adapters, weights)
    if bad := [w for w in weights if not math.isfinite(w)]:
        raise ValueError(f"a weight is a finite number, not {bad[0]}")
    if svd_rank is not None and svd_rank < 1:
        raise ValueError(f"svd_rank must be at least 1, not {svd_rank}")
    if how not in ("cat", "linear", "svd"):
        _check_density(density)
    first = adapters[0]
    for place, adapter in enumerate(adapters, 1):
        for name, f in adapter.items():
            if not (f.A.isfinite().all() and f.B.isfinite().all() and math.isfinite(f.scaling)):
                raise ValueError(
                    f"adapter {place} holds NaN or infinity for {name}: its training or its file went wrong"
                )
    for place, adapter in enumerate(adapters[1:], 2):
        if apart := adapter.keys() ^ first.keys():
            raise ValueError(f"adapters 1 and {place} have other targets: {_listed(apart)} is in one of them only")
        for name, f in adapter.items():
            shapes = [(len(g.B), g.A.shape[1]) for g in (first[name], f)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"adapters 1 and {place} belong to different bases: the weight of {name} is {shapes[0]} in one and "
                    f"{shapes[1]} in the other"
                )
    ranks = sorted({f.r for adapter in adapters for f in adapter.values()})
    if how != "cat" and not how.endswith("svd") and len(ranks) > 1:
        raise ValueError(
            f"{how} sums the factors entry by entry, and they have the ranks {', '.join(map(str, ranks))}: use cat or "
            f"svd, or pad the smaller ones with zeros"
        )
