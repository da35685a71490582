"""Fuzz target: adapter folders, and what loads, merges, combines, serves and saves them.

A small model with an embedding has an adapter of four matrices, written by `save_adapter` or, half of the time, without
its metadata, as PEFT writes it. One thing about it is changed: bytes, a setting, a matrix, a name, an entry of the
header, a whole file. Every reader then has to refuse it in words, with the model unchanged, or compute what the
undamaged adapter computes. Some trials are a save into an older adapter's folder that is killed at a random step; the
folder has to hold the old or the new adapter afterwards, or say that it was interrupted and how to go on.
"""

from __future__ import annotations

import functools
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from tools.fuzz.frame import Outcome, Trial, change_bytes, judged
from tools.fuzz.kills import POSSIBLE, killed
from utils.files import finish_interrupted
from utils.inference.serving import stage
from utils.lora import checkpoint
from utils.lora.checkpoint import CONFIG, WEIGHTS, load_adapter, save_adapter
from utils.lora.combine import read_adapter
from utils.lora.layer import inject, lora_layers
from utils.lora.merging import merge_files
from utils.models import TINY_DIR

OURS, PEFTS = "a file of ours", "a file of PEFT's"
X = torch.linspace(-1, 1, 18).view(3, 6)
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 10**25, 10**400, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf, "",
    "2", "all-linear", "[", ".*", "(a+)+", "x" * 300, "\ud800", "a\0b", [], [[]], ["0"], ["1"], ["2"], [None], {},
    {"a": 1},
]  # fmt: skip
SETTINGS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "peft_type", "bias", "base_model_name_or_path", "use_dora",
    "use_rslora", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "rank_pattern",
    "alpha_pattern", "fan_in_fan_out", "modules_to_save", "revision", "inference_mode", "something new",
)  # fmt: skip


class Small(nn.Sequential):
    """A model whose modules are called 0 (an embedding, not computed with), 1, 2 and 3."""

    def get_input_embeddings(self) -> nn.Module:
        return self[0]

    def forward(self, x: Tensor) -> Tensor:
        return self[3](self[2](self[1](x)))


def base(seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


@functools.cache
def adapted(number: int) -> Small:
    """One of two trained models; they differ in rank and lora_alpha too."""
    model = base()
    with torch.random.fork_rng():
        torch.manual_seed(number + 1)
        inject(model, "all-linear", 2 + number, 4)
        for layer in lora_layers(model).values():
            nn.init.normal_(layer.lora_A)
            nn.init.normal_(layer.lora_B)
    return model


@functools.cache
def files(number: int, ours: bool) -> dict[str, bytes]:
    """What `save_adapter` writes for a trained model; without its metadata, it is what PEFT would write."""
    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(adapted(number), Path(scratch, "a"))
        written = {file.name: file.read_bytes() for file in Path(scratch, "a").iterdir()}
    return written if ours else written | {WEIGHTS: save(load(written[WEIGHTS]), metadata={"format": "pt"})}


def put(folder: Path, number: int = 0, *, ours: bool = True) -> Path:
    """A folder with these files."""
    folder.mkdir()
    for name, data in files(number, ours).items():
        (folder / name).write_bytes(data)
    return folder


# ----------------------------------------------------------------------------------------------------------- damages


def some_bytes(draw: random.Random, folder: Path) -> str:
    file = folder / draw.choice([WEIGHTS, CONFIG])
    data = bytearray(file.read_bytes())
    at = draw.randrange(len(data))
    kind = draw.choice(["bit", "byte", "cut", "gone", "doubled", "more", "zeros"])
    end = at + draw.randint(1, 12)
    if kind == "more":
        data[at:at] = draw.randbytes(end - at)
    else:
        change_bytes(draw, data, kind, at, end)
    file.write_bytes(data)
    return f"{kind} at byte {at} of {file.name}"


def a_setting(draw: random.Random, folder: Path) -> str:
    config = json.loads((folder / CONFIG).read_text())
    key, value = draw.choice(SETTINGS), draw.choice(VALUES)
    if draw.random() < 0.15:
        config.pop(key, None)
        value = "nothing"
    else:
        config[key] = value
    (folder / CONFIG).write_text(json.dumps(config))
    return f"{key} is {str(value)[:20]!r}"


def a_nested_setting(draw: random.Random, folder: Path) -> str:
    depth, key = draw.choice([50, 900, 100_000]), draw.choice(SETTINGS)
    text = json.dumps(json.loads((folder / CONFIG).read_text()) | {key: "HERE"})
    (folder / CONFIG).write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
    return f"{key} nested {depth} deep"


def a_matrix(draw: random.Random, folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    metadata = checkpoint.read_header(folder / WEIGHTS).metadata
    name = draw.choice(sorted(tensors))
    old = tensors[name]
    place = tuple(draw.randrange(size) for size in old.shape)
    changes: dict[str, Callable[[], Tensor | None]] = {
        "gone": lambda: None,
        "flat": lambda: old.flatten(),
        "one number": lambda: old[0, 0].clone(),
        "transposed": lambda: old.T.contiguous(),
        "no rows": lambda: old[:0],
        "a row less": lambda: old[1:].clone(),
        "a row more": lambda: torch.cat([old, old[:1]]),
        "three dimensions": lambda: old[None].clone(),
        **{f"holds {v}": lambda v=v: old.index_put(tuple(map(torch.tensor, place)), torch.tensor(v))
           for v in (math.nan, math.inf, -math.inf, 3e38, 1e20, 1e-45)},
        **{str(dtype): lambda dtype=dtype: old.to(dtype)
           for dtype in (torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.float64)},
    }  # fmt: skip
    kind = draw.choice(sorted(changes))
    new = changes[kind]()
    tensors.pop(name)
    if new is not None:
        tensors[name] = new
    elif draw.random() < 0.5:  # its partner too: a layer less
        other = name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")
        tensors.pop(other)
    save_file(tensors, folder / WEIGHTS, metadata=metadata)
    return f"{name} {kind}"


def a_name(draw: random.Random, folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    metadata = checkpoint.read_header(folder / WEIGHTS).metadata
    old = draw.choice(["base_model.model.", ".1.", ".3.", "lora_A", "lora_B", ".weight", ""])
    new = draw.choice(
        ["", ".", "0", ".2.", "x" * 300, "lora_embedding_A", "lora_A", "lora_B", "\u00e9", "default", "a.b"]
    )
    renamed = {name.replace(old, new, 1) if old else name + new: tensor for name, tensor in tensors.items()}
    save_file({name: t.clone() for name, t in renamed.items()}, folder / WEIGHTS, metadata=metadata)
    return f"{old!r} in names becomes {new[:20]!r}"


def a_header(draw: random.Random, folder: Path) -> str:
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    entry = draw.choice(sorted(header))
    fields = header[entry]
    key, value = (
        draw.choice(sorted(fields)),
        draw.choice([*VALUES, [0, 0], [2, 6], ["2", "6"], [-1, 4], [2**63, 2**64]]),
    )
    fields[key] = value
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return f"header of {entry}: {key} is {str(value)[:20]!r}"


def a_file(draw: random.Random, folder: Path) -> str:
    file = folder / draw.choice([WEIGHTS, CONFIG])
    other = draw.choice(["gone", "empty", "a folder", "of the other adapter", "no JSON", "a list", "UTF-16"])
    old = file.read_bytes()
    file.unlink()
    if other == "a folder":
        file.mkdir()
    elif other == "of the other adapter":
        file.write_bytes(files(1, True)[file.name])
    elif other != "gone":
        contents = {"empty": b"", "no JSON": b"{'r': 2}", "a list": b"[1, 2]", "UTF-16": b"\xff\xfe" + old[:99] * 2}
        file.write_bytes(contents[other])
    return f"{file.name} is {other}"


DAMAGES = [some_bytes, some_bytes, a_setting, a_setting, a_nested_setting, a_matrix, a_matrix, a_name, a_header, a_file]


# ----------------------------------------------------------------------------------------------------------- readers


def compared(output: Tensor, reference: Tensor) -> Outcome | None:
    if not output.isfinite().all():
        return "silent, not finite"
    same = output.shape == reference.shape and torch.allclose(output, reference, atol=1e-4)
    return None if same else "silent"


def in_model(read: Callable[[nn.Module, Path], Any], folder: Path, damage: str, name: str) -> Trial:
    """Let `read` bring the adapter into a model: the output is right, or the model is as it was."""
    model, plain = base(), base()

    def wrong(_: object) -> Outcome | None:
        with torch.no_grad():
            return compared(model(X), adapted(0)(X))

    done = judged(damage, name, lambda: read(model, folder), wrong)
    same = [type(m) for m in model.modules()] == [type(m) for m in plain.modules()] and all(
        torch.equal(p, q) and p.requires_grad == q.requires_grad
        for p, q in zip(model.parameters(), plain.parameters(), strict=False)
    )
    if done.outcome == "clear error" and not same:
        return done._replace(outcome="half-written", words=f"refused, and the model changed: {done.words}")
    return done


def damaged(draw: random.Random, folder: Path) -> Iterator[Trial]:
    ours = draw.random() < 0.5
    adapter = put(folder / "adapter", ours=ours)
    damage = f"{OURS if ours else PEFTS}, {draw.choice(DAMAGES)(draw, adapter)}"
    yield in_model(load_adapter, adapter, damage, "load_adapter")
    yield in_model(merge_files, adapter, damage, "merge_files")
    layers = {name: layer.delta_weight() for name, layer in lora_layers(adapted(0)).items()}

    def wrong(read: Any) -> Outcome | None:
        deltas = [(read[name].delta() if name in read else torch.zeros(()), layers[name]) for name in layers]
        return (
            next((found for pair in deltas if (found := compared(*pair))), None)
            if read.keys() <= layers.keys()
            else "silent"
        )

    yield judged(damage, "read_adapter", lambda: read_adapter(adapter), wrong)
    out = folder / "staged"

    def served(_: object) -> Outcome | None:
        """What the server will load is what PEFT would; ours stands for it where it reads the adapter at all."""
        try:
            read = read_adapter(out / "x")
        except ValueError as error:
            return None if "load it with PEFT" in str(error) or "reader knows LORA only" in str(error) else "silent"
        return wrong(read)

    done = judged(damage, "stage", lambda: stage(out, str(base_folder(folder / "base")), {"x": adapter}), served)
    if done.outcome == "clear error" and out.exists():
        done = done._replace(outcome="half-written", words=f"refused, and laid out: {done.words}")
    yield done


def base_folder(folder: Path) -> Path:
    """The model as files."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY_DIR / name).read_bytes())
    weights = {f"{name}.weight": module.weight.detach() for name, module in base().named_children() if name != "2"}
    save_file(weights, folder / "model.safetensors")
    return folder


def killed_save(draw: random.Random, folder: Path) -> Iterator[Trial]:
    """A save over another adapter, killed before one of its steps on the disk, and what a reader finds then."""
    adapter, step = put(folder / "adapter"), draw.randint(1, 18)
    damage = f"killed at step {step}" if killed(lambda: save_adapter(adapted(1), adapter), step) else "not killed"
    model = base()

    def load() -> None:
        try:
            load_adapter(model, adapter)
        except FileNotFoundError as error:
            if "finish_interrupted" not in str(error):
                raise
            finish_interrupted(adapter)
            load_adapter(model, adapter)

    def wrong(_: object) -> Outcome | None:
        with torch.no_grad():
            found = [compared(model(X), adapted(number)(X)) for number in (0, 1)]
        save_adapter(adapted(0), adapter)
        clean = [path.name for path in folder.iterdir()] == ["adapter"]
        return None if None in found and clean else "half-written"

    done = judged(damage, "save_adapter", load, wrong)
    yield done if done.outcome == "right" else done._replace(outcome="half-written")


def trial(draw: random.Random, folder: Path) -> Iterator[Trial]:
    """Damage one adapter and show it to every reader, or kill a save."""
    if POSSIBLE and draw.random() < 0.15:
        yield from killed_save(draw, folder)
    else:
        yield from damaged(draw, folder)
