"""A PEFT adapter as mlx-lm reads it, on Apple's chips; MLX isn't needed to write it.

mlx-lm (https://github.com/ml-explore/mlx-lm) takes transformers' model folders as they are, and adapters in a form of
its own: `adapters.safetensors`, with lora_a (in, r) and lora_b (r, out), PEFT's matrices transposed, and an
`adapter_config.json` with other keys, in which one `scale` stands for alpha / r. It has one rank and one scale for all
layers: lower ranks are filled up with zeros here, and a layer's own scaling is multiplied into lora_b. DoRA's trained
lengths are its `m`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from utils.export.adapter_facts import adapter_facts
from utils.export.adapter_settings import scaling
from utils.export.errors import ExportError
from utils.export.preflight_report import preflight
from utils.files import expanded, replaced_folder
from utils.lora.adapter_config import CONFIG
from utils.lora.checkpoint import PREFIX, WEIGHTS, check_files

MLX_WEIGHTS = "adapters.safetensors"


def to_mlx(folder: str | Path, path: str | Path) -> Path:
    """Write the PEFT adapter in `folder` to the folder `path` for ``mlx_lm.load(base, adapter_path=path)``.

    The matrices keep their dtype. Returns `path`; what was in it of the same names is replaced when all is written.
    Raises FileNotFoundError and ValueError for an adapter that is missing or damaged, and ExportError for what mlx-lm
    has no form for (:func:`utils.export.preflight_report.preflight`), or when `path` is the adapter's own folder.
    """
    folder, path = expanded(folder), expanded(path)
    if path.resolve() == folder.resolve():
        raise ExportError(f"{path} is the adapter's own folder, whose {CONFIG} would be lost: name another one")
    preflight(folder, "mlx").checked(wrong=True)
    check_files(folder)
    facts = adapter_facts(folder)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    scales = {name: scaling(facts.settings, name, rank) for name, rank in facts.linear.items()}
    scale, rank = Counter(scales.values()).most_common(1)[0][0], max(facts.linear.values())
    found: dict[str, Tensor] = {}
    for name, own in facts.linear.items():
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        b = (b.double() * (scales[name] / scale)).to(b.dtype)
        found[f"{name}.lora_a"] = F.pad(a, (0, 0, 0, rank - own)).T.contiguous()
        found[f"{name}.lora_b"] = F.pad(b, (0, rank - own)).T.contiguous()
        for length in (f"{name}.lora_magnitude_vector", f"{name}.lora_magnitude_vector.weight"):
            if length in tensors:
                found[f"{name}.m"] = tensors[length].flatten()
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise ValueError(f"{folder / WEIGHTS} holds NaN or infinity: the training has diverged")
    config = {
        "fine_tune_type": "dora" if facts.magnitudes else "lora",
        "model": facts.settings.get("base_model_name_or_path"),
        "num_layers": -1,  # the last n blocks; which layers get an adapter is said by keys
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(facts.linear)},
    }
    with replaced_folder(path) as new:
        save_file(found, str(new / MLX_WEIGHTS), metadata={"format": "mlx"})
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path
