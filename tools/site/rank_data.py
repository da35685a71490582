"""The update behind the website's figure "rank": chapter 2's full fine-tuning on the pirate, as singular directions.

    python -m tools.site.rank_data          two minutes on two CPU cores

Writes to site/figures/rank/update an adapter in PEFT's format, whose first k terms are each matrix's best approximation
of rank k, up to :data:`RANK`; and to site/figures/rank/spectra.json all singular values of this update and of the
shipped adapter "style", trained at rank 8, with the exact match of both when they are cut (:data:`CUTS`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tools.site.figure_data import FIGURES
from tools.site.figure_data import RANK as PROMPTS
from utils.evaluate.metrics import exact_match
from utils.lora.combine import Adapter, Factors, read_adapter, truncate
from utils.lora.lowrank import best_factors
from utils.models.loading import load_tiny
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir
from utils.train.loop import train

FOLDER = FIGURES / "rank" / "update"
SPECTRA = FIGURES / "rank" / "spectra.json"
RANK = 32
CUTS = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32)
CHAPTER, CHAPTER_CUTS = 200, (8, 16, 32)  # chapter 2 counts on so many prompts, of which the figure's are the first
SEED, STEPS, LR, BATCH = 0, 120, 5e-4, 12


def full_update() -> dict[str, Tensor]:
    """What full fine-tuning of all linear layers adds to each: chapter 2's first run."""
    model, tokenizer = load_tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "proj" in name}
    for name, p in model.named_parameters():
        p.requires_grad_(name in before)
    train(model, tokenizer, task_examples("style", "train", 4000), steps=STEPS, lr=LR, batch_size=BATCH, seed=SEED)
    return {name.removesuffix(".weight"): model.get_parameter(name).detach() - before[name] for name in before}


def write_adapter(update: dict[str, Tensor]) -> None:
    """The first :data:`RANK` singular directions of each matrix as an adapter with a scaling of 1, in bf16."""
    tensors = {}
    for name, matrix in update.items():
        B, A = best_factors(matrix, RANK)
        for part, value in (("lora_A", A), ("lora_B", B)):
            tensors[f"base_model.model.{name}.{part}.weight"] = value.to(torch.bfloat16)
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny-llama", "r": RANK,
        "lora_alpha": RANK, "lora_dropout": 0.0, "target_modules": list(update), "bias": "none", "inference_mode": True,
    }  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(tensors, FOLDER / "adapter_model.safetensors", metadata={"format": "pt"})
    (FOLDER / "adapter_model.safetensors").chmod(0o644)
    (FOLDER / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def full_as_adapter() -> Adapter:
    """The written update."""
    return read_adapter(FOLDER)


def lora_as_adapter() -> Adapter:
    """The shipped adapter with its factors turned so that its largest directions come first."""
    return {name: truncate(f.delta(), f.r) for name, f in read_adapter(adapter_dir("style")).items()}


def cut(adapter: Adapter, rank: int) -> Adapter:
    """The best approximation of `rank`: the first terms."""
    return {name: Factors(f.A[:rank], f.B[:, :rank], f.scaling) for name, f in adapter.items()}


def with_update(adapter: Adapter, scale: float = 1.0, wanted: Callable[[str], bool] = lambda name: True) -> Any:
    """The base with an update added to the weights of the wanted layers."""
    model, _ = load_tiny()
    with torch.no_grad():
        for name, f in adapter.items():
            if wanted(name) and f.r:
                model.get_submodule(name).weight += scale * f.delta()
    return model


def matches(adapter: Adapter, ranks: tuple[int, ...], prompts: int = PROMPTS) -> dict[str, int]:
    """How many of the first held-out prompts are right, by the rank that the update is cut to."""
    tokenizer, rows = load_tiny()[1], task_examples("style", "test", prompts)
    found = {rank: exact_match(with_update(cut(adapter, rank)), tokenizer, rows) for rank in ranks}
    return {str(rank): round(share * len(rows)) for rank, share in found.items()}


def main() -> None:
    update = full_update()
    write_adapter(update)
    deltas = {"full": update, "lora": {name: f.delta() for name, f in lora_as_adapter().items()}}
    most = {"full": 1000, "lora": 8}
    spectra = {
        kind: {
            name: [float(f"{s:.4g}") for s in torch.linalg.svdvals(matrix.double())[: most[kind]].tolist()]
            for name, matrix in matrices.items()
        }
        for kind, matrices in deltas.items()
    }
    right = {"full": matches(full_as_adapter(), CUTS), "lora": matches(lora_as_adapter(), tuple(range(9)))}
    chapter = {"prompts": CHAPTER, "right": matches(full_as_adapter(), CHAPTER_CUTS, CHAPTER)}
    record = {"prompts": PROMPTS, "spectra": spectra, "right": right, "chapter": chapter}
    SPECTRA.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(right)


if __name__ == "__main__":
    main()
