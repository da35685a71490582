"""One of two hosts: times gloo's all-reduce of several sizes and prints the seconds on rank 0.

python all_reduce_worker.py RANK ADDRESS PORT MEGABYTES,... REPEATS
"""

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

rank, address, port, sizes, repeats = int(sys.argv[1]), *sys.argv[2:4], sys.argv[4].split(","), int(sys.argv[5])
os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": port}
dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
taken: dict[str, list[float]] = {}
for size in sizes:
    gradients = torch.ones(int(float(size) * 250_000))
    for attempt in range(repeats + 1):
        gradients.fill_(rank + 1)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradients)
        took = time.perf_counter() - began
        assert gradients.eq(3).all()
        if attempt:
            taken.setdefault(size, []).append(took)
if rank == 0:
    print(json.dumps(taken))
dist.destroy_process_group()
