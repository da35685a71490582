"""How far the course's own code is from PEFT and transformers: one line for each comparison of chapters 10 to 12.

    python -m tools.equality_errors      (the tiny model on the CPU: a minute; writes nothing)

Each line is the largest absolute difference found and what it is a difference of. The tests hold each of them under a
tolerance; this prints the numbers themselves, for a report or after a library has moved.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.data.chat import render
from utils.inference import decoding
from utils.lora import (
    combine,
    merging,
    multi_adapter,
)
from utils.lora.checkpoint import load_adapter, read_matrices, save_adapter
from utils.models import load_4bit, load_base, profile
from utils.quant.nf4 import dequantize
from utils.tinyworld import TASKS, task_examples
from utils.train.adapter_cache import trained_adapter

ROOT = Path(__file__).resolve().parents[1]

Line = tuple[str, float]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def token_ids(rows: int) -> torch.Tensor:
    return torch.randint(5, 900, (rows, 20), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def files() -> Iterator[Line]:
    """Chapter 10: our loader and PEFT's on the same folder, and a folder that went to PEFT and back."""
    from peft import PeftModel

    ours, ids = load_base()[0], token_ids(4)
    load_adapter(ours, trained_adapter("style", profile()))
    theirs = PeftModel.from_pretrained(load_base()[0], trained_adapter("style", profile())).eval()
    yield "adapter beside its base, logits against PEFT's", largest(ours.eval()(ids).logits, theirs(ids).logits)
    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(ours, Path(scratch, "ours"))
        back = PeftModel.from_pretrained(load_base()[0], Path(scratch, "ours"))
        back.save_pretrained(Path(scratch, "theirs"), save_embedding_layers=False)
        a, b = (read_matrices(Path(scratch, name)) for name in ("ours", "theirs"))
    yield "matrices written by us, read and written by PEFT", max(largest(a[n][m], b[n][m]) for n in a for m in a[n])


@torch.inference_mode()
def merges() -> Iterator[Line]:
    """Chapter 10: merged weights in each dtype, and in 4 bits."""
    from peft import PeftModel

    folder = trained_adapter("style", profile())
    for dtype in DTYPES:
        ours = load_base(dtype)[0]
        names = merging.merge_files(ours, folder)
        theirs = PeftModel.from_pretrained(load_base(dtype)[0], folder).merge_and_unload()
        pairs = [[m.get_submodule(n).weight for m in (ours, theirs)] for n in names]
        yield f"merged weights in {str(dtype)[6:]}, against merge_and_unload", max(largest(*pair) for pair in pairs)
    base = load_4bit()[0]
    stored = {n: merging.stored_4bit(base.get_submodule(n)) for n in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(base, folder).merge_and_unload()
    worst = 0.0
    for name, factors in combine.read_adapter(folder).items():
        mine = dequantize(merging.merge_quantized(stored[name], factors.delta()))
        worst = max(worst, largest(mine, dequantize(merging.stored_4bit(theirs.get_submodule(name)))))
    yield "weights merged in 4 bits, against merge_and_unload", worst


@torch.inference_mode()
def many() -> Iterator[Line]:
    """Chapter 11: the mixed batch, and the eleven combinations, on the shipped adapters."""
    from peft import PeftModel

    first = trained_adapter(TASKS[0], profile())
    model = PeftModel.from_pretrained(load_base()[0], first, adapter_name=TASKS[0]).eval()
    for task in TASKS[1:]:
        model.load_adapter(trained_adapter(task, profile()), adapter_name=task)
    adapters = {task: combine.from_peft(model, task) for task in TASKS}
    ours, names = load_base()[0], [*TASKS, "__base__"]
    multi_adapter.stack_adapters(ours, adapters)
    ids = token_ids(len(names))
    with multi_adapter.route(ours, names):
        mine = ours(ids).logits
    yield "mixed batch, logits against adapter_names", largest(mine, model(ids, adapter_names=names).logits)
    pair = ["sentiment", "summarization"]
    for how in combine.HOW:
        options = {} if how in ("cat", "linear", "svd") else {"density": 0.5}
        with combine.mask_seed(model, 0):
            model.add_weighted_adapter(pair, [0.7, 0.3], how, how, **options)
        masks = torch.Generator().manual_seed(0)
        built = combine.combine([adapters[t] for t in pair], [0.7, 0.3], how, generator=masks, **options)
        yield f"corrections of {how}, against PEFT", combine.largest_difference(built, combine.from_peft(model, how))


@torch.inference_mode()
def generation() -> Iterator[Line]:
    """Chapter 12: the processors on random logits (as probabilities), and the loop (as the share of other tokens)."""
    from transformers.generation import logits_process as hf

    g = torch.Generator().manual_seed(0)
    rows = 4 * torch.randn(500, 200, generator=g)
    rows[::2] = rows[::2].round()  # half of them with many ties
    seen = torch.randint(0, 200, (500, 30), generator=g)
    pairs = {
        "temperature 0.7": (decoding.with_temperature(rows, 0.7), hf.TemperatureLogitsWarper(0.7)),
        "top-k 50": (decoding.top_k(rows, 50), hf.TopKLogitsWarper(50)),
        "top-p 0.95": (decoding.top_p(rows, 0.95), hf.TopPLogitsWarper(0.95)),
        "min-p 0.05": (decoding.min_p(rows, 0.05), hf.MinPLogitsWarper(0.05)),
        "penalty 1.1": (decoding.repetition_penalty(rows, seen, 1.1), hf.RepetitionPenaltyLogitsProcessor(1.1)),
    }
    for name, (ours, theirs) in pairs.items():
        yield f"{name}, probabilities on 500 rows", largest(ours.softmax(-1), theirs(seen, rows.clone()).softmax(-1))
    model, tokenizer = load_base(torch.float64)
    texts = [render(tokenizer, e.prompt) for task in TASKS for e in task_examples(task, "test", 5)]
    padded = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    marks = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    ours = decoding.generate(model, **padded, max_new_tokens=30, **marks).ids
    theirs = model.generate(**padded, max_new_tokens=30, do_sample=False)[:, padded.input_ids.shape[1] :]
    yield "greedy loop, share of tokens unlike generate's, float64", (ours != theirs).double().mean().item()


def main() -> None:
    import peft
    import transformers

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}\n")
    for part in (files, merges, many, generation):
        for what, difference in part():
            print(f"{difference:9.2g}  {what}", flush=True)


if __name__ == "__main__":
    main()
