"""Memory and time of a training step of Llama-2-7B's shape on a GPU, in bf16 and in 4-bit, with and without
checkpointing: write assets/measurements/loading_7b.json.

    python -m tools.measure_loading            (a CUDA GPU with 80 GB; two minutes)

The weights are random, which changes neither bytes nor times. LoRA is PEFT's, r=8 on the attention projections, with
its float32 adapters; full fine-tuning is forward and backward pass without an optimizer. Every number is of the
fourth and later steps.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from tools.gpu.four_bit import in_4_bits
from utils.files import replaced_folder
from utils.models.configs import real_config
from utils.profiling.activations import checkpoint_blocks
from utils.quant import nf4
from utils.quant.absmax import block_scales, nearest, repeat_scales

ROOT = Path(__file__).resolve().parents[1]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
BATCH, LENGTH, WARM_UP, STEPS = 4, 512, 3, 20
OUT = ROOT / "assets" / "measurements" / "loading_7b.json"


def bf16_model() -> nn.Module:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(real_config("Llama-2-7B"), dtype=torch.bfloat16)


def quantized_model(double: bool) -> nn.Module:
    """The same in NF4."""
    return in_4_bits(bf16_model(), double=double)


def free() -> int:
    """Let go of what is cached, and say how many bytes are allocated."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # 64 MiB that belong to no model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def measure(model: nn.Module, checkpointing: bool, optimize: bool) -> dict[str, float]:
    """Peak bytes and milliseconds of a training step."""
    model.train()
    checkpoint_blocks(model, checkpointing)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5) if optimize else None
    ids = torch.randint(0, 32_000, (BATCH, LENGTH), device="cuda")
    times = []
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            free()
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if optimizer:
            optimizer.step()
        for parameter in trainable:
            parameter.grad = None
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    kept = times[WARM_UP:]
    return {
        "peak": torch.cuda.max_memory_allocated(),
        "milliseconds": round(statistics.median(kept), 1),
        "fastest": round(min(kept), 1),
        "slowest": round(max(kept), 1),
    }


def lora_rows(name: str, model: nn.Module) -> list[dict]:
    from peft import LoraConfig, get_peft_model

    weights = free()
    wrapped = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION, task_type="CAUSAL_LM"))
    return [
        {"base": name, "trains": "LoRA r=8 q,k,v,o", "checkpointing": on, "weights": weights}
        | measure(wrapped, on, optimize=True)
        for on in (False, True)
    ]


def differences_on_the_gpu() -> dict[str, dict[str, int]]:
    """How many codes, scales and 8-bit scales of a random matrix CUDA's kernels make otherwise than utils.quant.nf4.

    "8-bit scales, nearest" counts against the entry that is nearest, where the CPU's kernel asks a table.
    """
    from bitsandbytes.functional import quantize_4bit

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
        packed, state = quantize_4bit(values.cuda(), quant_type="nf4", compress_statistics=True)
        _, plain = quantize_4bit(values.cuda(), quant_type="nf4")
        scales, ours = nf4.quantize(values).scales, nf4.quantize(values, double=True)
        centred = scales - state.offset.cpu()
        inverse = 1 / block_scales(centred, nf4.SCALE_BLOCK)
        nearby = nearest(centred * repeat_scales(inverse, nf4.SCALE_BLOCK, len(scales)), nf4.dynamic_map())
        codes = [nf4.unpack_codes(part.cpu().flatten(), values.numel()) for part in (packed, ours.packed)]
        found[str(dtype).removeprefix("torch.")] = {
            "of codes": values.numel(),
            "codes": int((codes[0] != codes[1]).sum()),
            "of scales": len(scales),
            "scales": int((plain.absmax.cpu() != scales).sum()),
            "8-bit scales": int((state.absmax.cpu() != ours.scales.codes).sum()),
            "8-bit scales, nearest": int((state.absmax.cpu() != nearby).sum()),
        }
    return found


def versions() -> dict[str, str]:
    import bitsandbytes
    import peft
    import transformers

    modules = {"torch": torch, "transformers": transformers, "peft": peft, "bitsandbytes": bitsandbytes}
    return {name: module.__version__ for name, module in modules.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("error: this measures a GPU, and there is none here")
    rows = []
    model = bf16_model()
    weights = free()
    for on in (False, True):
        row = {"base": "bf16", "trains": "everything, no optimizer", "checkpointing": on, "weights": weights}
        rows.append(row | measure(model, on, optimize=False))
    rows += lora_rows("bf16", model)
    del model
    for double in (False, True):
        model = quantized_model(double)
        rows += lora_rows("NF4, double quantization" if double else "NF4", model)
        del model
    result = {
        "what": f"a training step of Llama-2-7B's shape, {BATCH} sequences of {LENGTH} tokens; bytes allocated",
        "tool": "python -m tools.measure_loading",
        "date": datetime.date.today().isoformat(),
        "seeds": [0],
        "gpu": torch.cuda.get_device_name(),
        "versions": versions(),
        "rows": rows,
        "nf4_differences_from_cuda": differences_on_the_gpu(),
    }
    text = json.dumps(result, indent=1) + "\n"
    with replaced_folder(out.resolve().parent) as folder:
        (folder / out.name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
