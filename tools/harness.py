"""Ask the language model evaluation harness (lm-eval, EleutherAI) for the exact match that the course reports.

    python -m tools.harness [--model FOLDER] [--adapter FOLDER] [--task style] [--prompts 200]

Without a model: the tiny Llama, with each of its four adapters and without one, into assets/measurements/harness.json.
lm-eval isn't one of the course's packages: `pip install lm-eval`. The tasks are written for each call, a line of JSON
for a prompt and its answer, so neither the Hub nor the harness's own tasks are asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.models import ASSETS, ROOT
from utils.tinyworld import TASKS, task_examples

OUT = ASSETS / "measurements" / "harness.json"


def write_task(folder: Path, task: Any, prompts: int) -> str:
    """Write a task for the harness and its data into `folder`; the task's name.

    A prompt goes through the tokenizer's chat template, an answer ends where the model ends it, and is compared as it
    is, white space around it left out.
    """
    data = folder / f"{task}.jsonl"
    rows = [{"prompt": e.prompt, "answer": e.answer} for e in task_examples(task, "test", prompts)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": f"course_{task}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": 64, "until": []},
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"course_{task}.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return config["task"]


def by_harness(model: Path, adapter: Path | None, task: Any, prompts: int) -> float:
    """Exact match by lm-eval's `hf` model: transformers, and PEFT for the adapter."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        name = write_task(Path(folder), task, prompts)
        given = {"pretrained": str(model), "dtype": "float32"} | ({"peft": str(adapter)} if adapter else {})
        found = simple_evaluate(
            model="hf", model_args=given, tasks=[name], apply_chat_template=True, batch_size=50, device="cpu",
            task_manager=TaskManager(include_path=folder, include_defaults=False), log_samples=False, verbosity="ERROR",
        )  # fmt: skip
    return found["results"][name]["exact_match,stripped"]


def by_course(model: Path, adapter: Path | None, task: Any, prompts: int) -> float:
    """The same by utils.evaluate.metrics.exact_match."""
    os.environ["COURSE_PROFILE"], os.environ["COURSE_MODEL"] = "small", str(model)
    import torch

    from utils.evaluate.metrics import exact_match
    from utils.lora import load_adapter
    from utils.models import load_base

    base, tokenizer = load_base(torch.float32)
    if adapter:
        load_adapter(base, adapter)
    return exact_match(base, tokenizer, task_examples(task, "test", prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--task", choices=TASKS, default="style")
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.model:
        both = [f(args.model, args.adapter, args.task, args.prompts) for f in (by_harness, by_course)]
        print(f"{args.task}: lm-eval {both[0]:.3f}, the course {both[1]:.3f}")
        return
    import lm_eval

    from tools.ensemble import provenance, write

    tiny, rows = ASSETS / "tiny-llama", []
    for task in TASKS:
        for adapter in (None, ASSETS / "adapters" / task):
            both = [float(f(tiny, adapter, task, args.prompts)) for f in (by_harness, by_course)]
            rows.append({"task": task, "adapter": adapter is not None, "harness": both[0], "course": both[1]})
            print(rows[-1], file=sys.stderr, flush=True)
    write(OUT, {
        "what": f"exact match of the tiny Llama with and without its adapters on {args.prompts} test prompts, by "
        "lm-eval (a task of our own) and by utils.evaluate.metrics.exact_match",
        "tool": "python -m tools.harness", "seeds": [], **provenance("cpu"), "lm_eval": lm_eval.__version__,
        "prompts": args.prompts, "rows": rows,
    })  # fmt: skip
    print(f"{OUT.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
