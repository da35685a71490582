"""Answers and logits of mlx-lm, for tools/measure_elsewhere.py: run by a Python that has mlx-lm and nothing of ours.

    python mlx_worker.py job.json result.json

The job: `base` (a transformers folder), `adapters` (folders of mlx-lm's, by name; null for the base alone), `prompts`
(lists of token ids, by adapter), `ends` (ids that end an answer), `most` (tokens of an answer), and `bits` (lists of
the widths to try, null for float32). The result: by width and adapter the `ids` of each answer and the `logits` behind
each prompt.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path


def answers(model, prompts: list[list[int]], ends: list[int], most: int) -> tuple[list[list[int]], list[list[float]]]:
    """The greedy answers to prompts, as ids, and the logits behind each prompt."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    found, first = [], []
    for prompt in prompts:
        cache, ids, tokens = make_prompt_cache(model), [], prompt
        for step in range(most):
            logits = model(mx.array(tokens)[None], cache=cache)[0, -1]
            if step == 0:
                first.append([float(one) for one in logits.tolist()])
            token = int(mx.argmax(logits).item())
            if token in ends:
                break
            ids.append(token)
            tokens = [token]
        found.append(ids)
    return found, first


def main(job: Path, result: Path) -> None:
    """Do the job."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import load_adapters, load_model

    asked = json.loads(job.read_text(encoding="utf-8"))
    rows = []
    for bits in asked["bits"]:
        for name, folder in asked["adapters"].items():
            model, _ = load_model(Path(asked["base"]))
            model.set_dtype(mx.float32)
            if bits:
                nn.quantize(model, group_size=32, bits=bits)
            if folder:
                model = load_adapters(model, folder)
            ids, logits = answers(model, asked["prompts"][name], asked["ends"], asked["most"])
            rows.append({"bits": bits, "adapter": name, "ids": ids, "logits": logits})
    said = {"rows": rows, "mlx": version("mlx"), "mlx_lm": version("mlx-lm"), "device": str(mx.default_device())}
    result.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
