"""What the website's figure "fit" shows beside its own numbers: named models' configurations, and measured steps.

python -m tools.site.fit_data        writes site/figures/fit/models.json
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from utils.models.configs import SHAPES, real_config
from utils.models.device import ASSETS
from utils.profiling.memory import Setup

FILE = Path(__file__).resolve().parents[2] / "site" / "figures" / "fit" / "models.json"
FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]


def config(name: str) -> dict[str, Any]:
    """Of a named model's configuration what memory depends on."""
    whole = real_config(name).to_dict()
    return {field: whole[field] for field in FIELDS if whole.get(field) is not None}


def _record(name: str) -> dict[str, Any]:
    return json.loads((ASSETS / "measurements" / f"{name}.json").read_text(encoding="utf-8"))


def measured() -> list[dict[str, Any]]:
    """Every recorded step that is one of the predictor's settings: its settings, the peak in bytes and the GPU.

    Left out are steps that ran out of memory, and those in several pieces or under autocast, which no Setup says.
    """
    rows = []
    for name in ("memory", "memory_held_out", "techniques", "fits"):
        record = _record(name)
        for row in record["rows"]:
            if row.get("peak") and row.get("pieces", 1) == 1 and not row.get("autocast"):
                rows.append({"setup": row["setup"], "peak": row["peak"], "gpu": record["hardware"], "record": name})
    record = _record("loading_7b")
    for row in record["rows"]:
        if "LoRA" in row["trains"]:
            setup = Setup(
                method="lora" if row["base"] == "bf16" else "qlora", batch=4, target_modules=tuple(QKVO),
                checkpointing=row["checkpointing"], double="double" in row["base"],
            )  # fmt: skip
            fields = dataclasses.asdict(setup) | {"target_modules": QKVO}
            rows.append({"setup": fields, "peak": row["peak"], "gpu": record["gpu"], "record": "loading_7b"})
    defaults = {field.name: field.default for field in dataclasses.fields(Setup) if field.name != "model"}
    for row in rows:
        row["model"] = row["setup"]["model"]
        row["setup"] = {name: value for name, value in row["setup"].items() if defaults.get(name, value) != value}
    return rows


def text() -> str:
    """The file, a model or a step on each line."""
    models = ",\n".join(f"  {json.dumps(name)}: {json.dumps(config(name))}" for name in SHAPES)
    steps = ",\n".join(f"  {json.dumps(row)}" for row in measured())
    return f'{{\n "models": {{\n{models}\n }},\n "measured": [\n{steps}\n ]\n}}\n'


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
