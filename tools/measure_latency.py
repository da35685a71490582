"""What an adapter costs at inference: write assets/measurements/latency.json.

    python tools/measure_latency.py            (the tiny model on the CPU: a minute)
    python tools/measure_latency.py --gpu      (and Llama-2-7B's shape on a CUDA GPU with 40 GB: four minutes)

Time to read a prompt (prefill) and to write a token (decode), eagerly, with the KV cache, for several forms of the
same model (:mod:`utils.model_forms`), in turns: the base; an adapter beside it (PEFT keeps its matrices in float32
beside a 16-bit base) and once more in the base's own dtype; the adapter merged by ``merge_adapter``, which keeps PEFT's
wrapper; the plain model that ``merge_and_unload`` gives; and the base once more, which shows what a difference has to
exceed. Weights and adapters are random, which doesn't change the time. What a run measures takes the place of the
record's part of the same name; the other part stays.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu.record import processor  # noqa: E402

from utils.architectures import real_config  # noqa: E402
from utils.files import replaced_folder  # noqa: E402
from utils.latency import as_json, in_turns, one_round, prompts  # noqa: E402
from utils.model_forms import R, forms  # noqa: E402
from utils.models import TINY_DIR  # noqa: E402

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS: dict[str, Any] = {"q,k,v,o": ATTENTION, "all-linear": "all-linear"}
SEED, BATCHES = 0, (1, 8)
OUT = ROOT / "assets" / "measurements" / "latency.json"


def tiny_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY_DIR, dtype=torch.float32).eval()


def llama_2_7b() -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(real_config("Llama-2-7B"), dtype=torch.bfloat16).eval()


def rows(model: Any, *, prompt: int, new_tokens: int, rounds: int, warm_up: int) -> list[dict[str, Any]]:
    """A row for every set of targets, form and batch size; the forms are measured in turns."""
    found = []
    for name, target_modules in TARGETS.items():
        current = forms(model, target_modules)
        for batch in BATCHES:
            ids = prompts(model, batch, prompt)
            works = {form: partial(one_round, one, ids, new_tokens) for form, one in current.items()}
            for form, parts in as_json(in_turns(works, rounds=rounds, warm_up=warm_up)).items():
                found.append({"targets": name, "form": form, "batch": batch} | parts)
                print(name, form, batch, parts["prefill"]["median"], parts["decode"]["median"], flush=True)
    return found


def versions() -> dict[str, str]:
    import peft
    import transformers

    return {module.__name__: module.__version__ for module in (torch, transformers, peft)}


def part(hardware: str, what: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": what,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": SEED,
        "rank": R,
        "unit": "milliseconds: median and quartiles of the rounds; decode is the mean step of a round",
        "rows": found,
    }


def write(out: Path, parts: dict[str, Any]) -> None:
    """Put `parts` into the record at `out`, keeping its others; the file is whole at every moment."""
    record = json.loads(out.read_text()) if out.exists() else {}
    text = json.dumps(record | parts, indent=1) + "\n"
    with replaced_folder(out.resolve().parent) as folder:
        (folder / out.name).write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write")
    parser.add_argument("--gpu", action="store_true", help="measure Llama-2-7B's shape on the GPU, not the tiny model")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (at least 4)")
    arguments = parser.parse_args()
    if arguments.rounds < 4:
        sys.exit(f"error: --rounds is {arguments.rounds}; at least 4 give a spread")
    if arguments.gpu and not torch.cuda.is_available():
        sys.exit("error: --gpu measures a GPU, and there is none here")
    if arguments.gpu:
        size = {"prompt": 512, "new_tokens": 32}
        model, hardware = llama_2_7b(), torch.cuda.get_device_name()
        name, what = "gpu", "Llama-2-7B's shape in bfloat16 with random weights, eager"
    else:
        size = {"prompt": 128, "new_tokens": 32}
        model, hardware = tiny_model(), processor()
        name, what = "cpu", "the course's tiny Llama in float32, eager"
    found = rows(model, **size, rounds=arguments.rounds, warm_up=2)
    write(arguments.out, {name: part(hardware, what, found) | size})


if __name__ == "__main__":
    main()
