"""The script of the first run on several GPUs beside what it printed, scale_h200x4.txt: laid out anew, else as it was.

    torchrun --nproc-per-node N scale_spike.py MODE

Modes: ddp-lora, fsdp-lora (FSDP2), fsdp-full, at Llama-2-7B's shape with random weights. BATCH, LENGTH, LAYERS and CKPT
are read from the environment. Prints one JSON line on rank 0. tools/gpu/several.py is its successor.
"""

import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig

mode, batch, length = sys.argv[1], int(os.environ.get("BATCH", 4)), int(os.environ.get("LENGTH", 512))
layers = int(os.environ.get("LAYERS", 32))
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=layers,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
)
torch.set_default_dtype(torch.bfloat16)
with torch.device("meta" if mode.startswith("fsdp") else "cuda"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
torch.set_default_dtype(torch.float32)
if "lora" in mode:
    model = get_peft_model(
        model,
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        autocast_adapter_dtype=mode == "ddp-lora",
    )
if os.environ.get("CKPT"):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if "lora" in mode:
        model.enable_input_require_grads()
inner = model.get_base_model() if "lora" in mode else model
dtypes = {}
for _, p in model.named_parameters():
    dtypes[str(p.dtype)] = dtypes.get(str(p.dtype), 0) + 1
if mode.startswith("fsdp"):
    for block in inner.model.layers:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cuda")
    for _, p in model.named_parameters():
        t = p.to_local() if hasattr(p, "to_local") else p
        t.detach().normal_(0, 0.02) if t.ndim > 1 else t.detach().fill_(1)
    inner.model.rotary_emb.__init__(config=config, device="cuda")
    run = model
else:
    run = torch.nn.parallel.DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
model.train()
trainable = [p for p in model.parameters() if p.requires_grad]
opt = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
count = sum(p.numel() for p in trainable)
ids = torch.randint(0, 32000, (batch, length), device="cuda")
times, losses = [], []
for step in range(13):
    torch.cuda.synchronize()
    dist.barrier()
    t = time.perf_counter()
    if step == 3:
        torch.cuda.reset_peak_memory_stats()
    loss = run(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    opt.step()
    opt.zero_grad()
    torch.cuda.synchronize()
    times.append(time.perf_counter() - t)
    losses.append(loss.item())
med = statistics.median(times[3:])
prof_bytes = {}
try:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
    tot = 0
    nccl = 0
    n = 0
    for e in prof.events():
        if e.device_type == torch.autograd.DeviceType.CUDA:
            if "nccl" in e.name.lower():
                nccl += e.device_time
                n += 1
            else:
                tot += e.device_time
    prof_bytes = {"nccl_ms": round(nccl / 1e3, 1), "nccl_kernels": n, "other_kernels_ms": round(tot / 1e3, 1)}
except Exception as error:
    prof_bytes = {"profile": repr(error)[:100]}
if rank == 0:
    print(
        "ROW",
        json.dumps(
            {
                "mode": mode,
                "gpus": world,
                "batch": batch,
                "length": length,
                "layers": layers,
                "ckpt": bool(os.environ.get("CKPT")),
                "ms": round(med * 1e3, 1),
                "tokens_per_s": round(world * batch * length / med),
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                "trainable": count,
                "loss": [round(x, 3) for x in losses[:2]],
                "dtypes": dtypes,
                **prof_bytes,
            }
        ),
        flush=True,
    )
dist.destroy_process_group()
