"""Ask our adapters elsewhere, and write assets/measurements/elsewhere.json: under MLX, and as Ollama converts a folder.

    python -m tools.measure_elsewhere --mlx PYTHON    PYTHON has mlx-lm: pip install "mlx[cpu]" mlx-lm (Linux), or
                                                      mlx-lm alone on a Mac, in an environment of its own. Two minutes
    python -m tools.measure_elsewhere --ollama        needs xllamacpp. One minute

Each writes its own part of the record. MLX: the answers of mlx-lm to held-out prompts, from the file that `to_mlx`
writes, against transformers + PEFT, with the base in float32 and in MLX's own 8 and 4 bits. Ollama: its converter of
PEFT folders, convert/convert_llama_adapter.go, was read, not run; its steps are repeated here on the matrices, and
llama.cpp, which Ollama computes with, answers with the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.ensemble import provenance, write
from utils.evaluate import complete
from utils.export import LlamaCpp, to_gguf, to_mlx
from utils.export.names import gguf_names, heads_to_rotate
from utils.export.rope import rotate
from utils.lora.adapter_config import read_settings
from utils.lora.checkpoint import load_adapter, read_matrices
from utils.models import ROOT, TINY_DIR, load_base, load_config
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

OUT = ROOT / "assets" / "measurements" / "elsewhere.json"
TASKS = ("style", "translation", "sentiment", "summarization")
MOST = 60


def reference(task: str, count: int) -> tuple[list[list[int]], list[str], list[str], torch.Tensor]:
    """Held-out prompts of a task as ids, the right answers, and transformers + PEFT's answers and logits there."""
    model, tokenizer = load_base()
    examples = task_examples(task, "test", count)
    load_adapter(model, adapter_dir(task))
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": e.prompt}], add_generation_prompt=True, return_dict=False
        )
        for e in examples
    ]
    answered = complete(model, tokenizer, [e.prompt for e in examples], max_new_tokens=MOST)
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([row])).logits[0, -1].float() for row in ids])
    return ids, [e.answer.strip() for e in examples], answered, logits


# ----------------------------------------------------------------------------------------------------------------- MLX


def measure_mlx(python: str, count: int) -> dict[str, Any]:
    """Every task's adapter under mlx-lm: how many greedy answers are transformers + PEFT's, and how many are right."""
    _, tokenizer = load_base()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = {task: reference(task, count) for task in TASKS}
        job = {
            "base": str(TINY_DIR),
            "adapters": {task: str(to_mlx(adapter_dir(task), folder / task)) for task in TASKS},
            "prompts": {task: asked[task][0] for task in TASKS},
            "ends": [tokenizer.eos_token_id],
            "most": MOST,
            "bits": [None, 8, 4],
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        worker = ROOT / "tools" / "mlx_worker.py"
        subprocess.run([python, str(worker), str(folder / "job.json"), str(folder / "result.json")], check=True)
        said = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    rows = []
    for row in said["rows"]:
        _, wanted, answered, logits = asked[row["adapter"]]
        texts = [text.strip() for text in tokenizer.batch_decode(row["ids"], skip_special_tokens=True)]
        rows.append(
            {
                "base": f"{row['bits']} bits, groups of 32" if row["bits"] else "float32",
                "adapter": row["adapter"],
                "prompts": count,
                "same": sum(a == b for a, b in zip(texts, answered, strict=True)),
                "right": sum(a == b for a, b in zip(texts, wanted, strict=True)),
                "right_in_peft": sum(a == b for a, b in zip(answered, wanted, strict=True)),
                "largest_difference": float(f"{(torch.tensor(row['logits']) - logits).abs().max():.2g}"),
            }
        )
    return {key: said[key] for key in ("mlx", "mlx_lm", "device")} | provenance("cpu") | {"rows": rows}


# ------------------------------------------------------------------------------------------------ Ollama, from a folder


def as_ollama_converts(folder: Path, config: Any) -> dict[str, Tensor]:
    """The tensors of a PEFT folder by GGUF's names, as Ollama's converter writes them for a Llama.

    For attn_q and attn_k it reorders lora_a, whose numbers (r, in) it reads as (in, r), by all attention heads, and
    leaves lora_b as it is; the base's rows are reordered, so it would be lora_b's (convert_llama_adapter.go, repack).
    """
    names, found = gguf_names(config), {}
    for module, pair in read_matrices(folder).items():
        a = pair["lora_A"].float()
        if heads_to_rotate(config, module):
            a = rotate(a.reshape(a.shape[1], a.shape[0]), config.num_attention_heads).reshape(a.shape)
        name = names[f"{module}.weight"]
        found |= {f"{name}.lora_a": a.contiguous(), f"{name}.lora_b": pair["lora_B"].float().contiguous()}
    return found


def write_adapter(path: Path, alpha: float, tensors: dict[str, Tensor]) -> Path:
    """Those tensors as a GGUF adapter of a Llama."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measure_ollama(count: int) -> dict[str, Any]:
    """Every task's adapter as `to_gguf` writes it, and as Ollama's converter would: right answers under llama.cpp."""
    rows, config = [], load_config(TINY_DIR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = to_gguf(TINY_DIR, folder / "base.gguf", "f32")
        for task in TASKS:
            source = adapter_dir(task)
            ours = to_gguf(source, folder / f"{task}.gguf", "f32", base=TINY_DIR)
            alpha = float(read_settings(source)["lora_alpha"])
            theirs = write_adapter(folder / f"{task}-folder.gguf", alpha, as_ollama_converts(source, config))
            examples = task_examples(task, "test", count)
            with LlamaCpp(base, {"to_gguf": ours, "folder": theirs}) as model:
                said = {way: model.complete([e.prompt for e in examples], MOST, adapter=way) for way in model.adapters}
            right = {way: sum(a == e.answer.strip() for a, e in zip(said[way], examples, strict=True)) for way in said}
            rows.append({"adapter": task, "prompts": count, "right": right, "first": {w: said[w][0] for w in said}})
    return {
        "converter": "ollama/ollama at fb30760, convert/convert_llama_adapter.go",
        **provenance("cpu"),
        "rows": rows,
    }


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mlx", metavar="PYTHON", help="a Python that has mlx-lm")
    parser.add_argument("--ollama", action="store_true", help="Ollama's conversion of a folder, under llama.cpp")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    head = {
        "what": "Our adapters elsewhere: greedy answers to held-out prompts under mlx-lm, and under llama.cpp",
        "tool": "python -m tools.measure_elsewhere", "date": provenance("cpu")["date"], "seeds": [],
    }  # fmt: skip
    record = head | {name: rows for name, rows in record.items() if name not in head}
    if given.mlx:
        record["mlx"] = measure_mlx(given.mlx, given.prompts)
    if given.ollama:
        record["ollama_folder"] = measure_ollama(given.prompts)
    write(given.out, record)


if __name__ == "__main__":
    main()
