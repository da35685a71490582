"""Chapter 6's exercises: a 4-bit Llama's bytes, the device map."""

from __future__ import annotations

import random
from typing import Any

import torch

from utils.course.checks.compare import difference
from utils.course.checks.references import ch06 as lesson
from utils.course.checks.registry import Mistake, exercise

# ----------------------------------------------------------------------------------------- a 4-bit Llama's bytes

_SMALL = {
    "model.embed_tokens.weight": (100, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 128),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.norm.weight": (64,),
    "lm_head.weight": (100, 64),
}
_TIED = {name: shape for name, shape in _SMALL.items() if name != "lm_head.weight"}
_WIDE = {"model.embed_tokens.weight": (50, 8), "model.layers.7.mlp.up_proj.weight": (16, 8), "lm_head.weight": (50, 8)}

_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.dense_h_to_4h", "mlp.fc1")
_NORMS = ("self_attn.q_norm", "input_layernorm", "post_attention_layernorm")


def _drawn_shapes(rng: random.Random) -> tuple[dict[str, tuple[int, ...]], float]:
    wide, words = rng.randint(3, 40), rng.randint(20, 90)
    names = [f"model.layers.{rng.randrange(30)}.{part}.weight" for part in rng.sample(_PARTS, rng.randint(1, 5))]
    shapes: dict[str, tuple[int, ...]] = {name: (rng.randint(2, 50), wide) for name in names}
    shapes |= {f"model.layers.0.{part}.weight": (wide,) for part in rng.sample(_NORMS, rng.randint(0, 3))}
    others = {
        "model.embed_tokens.weight": (words, wide),
        "model.decoder.embed_positions.weight": (rng.randint(5, 9), wide),
        "model.norm.weight": (wide,),
        "model.layers.1.self_attn.q_proj.bias": (rng.randint(2, 9),),
        "lm_head.weight": (words, wide),
        "lm_head.bias": (words,),
        "model.layers.2.input_layernorm.bias": (wide,),
        "model.layers.2.self_attn.q_norm_scale": (wide,),
    }
    shapes |= {name: others[name] for name in rng.sample(sorted(others), rng.randint(0, len(others)))}
    return dict(rng.sample(sorted(shapes.items()), len(shapes))), rng.choice([4.5, 4.127, 5.0, 8.25, 3.3])


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _four_bit_bytes(shapes, bits, keep=("embed", "norm", "lm_head"), kept_bytes: float = 2, unit: float = 8) -> float:
    total = 0.0
    for name, shape in shapes.items():
        kept = any(part in name for part in keep)
        total += _size(shape) * (kept_bytes if kept else bits / unit)
    return total


exercise(
    "four_bit_bytes",
    reference=lesson.four_bit_bytes,
    cases=[(_SMALL, 4.5), (_TIED, 4.127), (_WIDE, 4.5)],
    drawn=_drawn_shapes,
    mistakes=[
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("embed", "norm")),
            "lm_head is a linear layer, but it is left in 16 bits: its output is the logits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("norm", "lm_head")),
            "the embedding was quantized. It is a table to look up, not a linear layer: 2 bytes each.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("embed", "lm_head")),
            "the norms were quantized; they stay in 16 bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=()),
            "everything was quantized. Embedding, norms and lm_head stay in 16 bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("",)),
            'everything takes 2 bytes, as if every name matched. `"embed" or "norm" in name` does: it is true for '
            'any name, since "embed" is. Ask for each part: any(part in name for part in ...).',
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, keep=("embed_tokens", "model.norm", "lm_head")),
            "only the last norm was kept: the blocks have norms of their own, such as input_layernorm.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(shapes, bits) / 1e9,
            "bytes, not GB: leave the division by 1e9 to whoever prints it.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(shapes, 4),
            "you counted 4 bits for each weight; the scales come on top: use bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, unit=1),
            "a byte has 8 bits: divide bits by 8.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=4),
            "you kept the rest in 4 bytes, float32; in 16 bits they take 2.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=16),
            "2 bytes each, not 16: 16 are the bits.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits, kept_bytes=0),
            "what isn't quantized was left out; it takes 2 bytes each.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                shape[0] * shape[1] * (2 if any(part in name for part in ("embed", "norm", "lm_head")) else bits / 8)
                for name, shape in shapes.items()
            ),
            "a norm or a bias has one size alone, so shape[1] isn't there: math.prod(shape) takes any number of sizes.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                sum(shape) * (2 if any(part in name for part in ("embed", "norm", "lm_head")) else bits / 8)
                for name, shape in shapes.items()
            ),
            "you added the sizes of a shape up; a (100, 64) matrix has 100 * 64 numbers.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(dict(list(shapes.items())[:1]), bits),
            "that is the first parameter alone: the return stands inside the loop.",
        ),
        Mistake(
            lambda shapes, bits: lesson.four_bit_bytes(dict(list(shapes.items())[-1:]), bits),
            "that is the last parameter alone: add up with +=.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                _size(shape) * (bits / 8 if len(shape) == 2 and "embed" not in name and "lm_head" not in name else 2)
                for name, shape in shapes.items()
            ),
            "you went by the dimensions. Here the names decide: a bias of q_proj takes `bits` bits, too.",
        ),
        Mistake(
            lambda shapes, bits: _four_bit_bytes(shapes, bits // 8 * 8),
            "// drops the fraction: with 4.5 bits a weight would take no bytes at all. Divide with /.",
        ),
        Mistake(
            lambda shapes, bits: sum(
                _size(shape) * (bits / 8 if "proj" in name else 2) for name, shape in shapes.items()
            ),
            "other models call their linear layers dense, fc1 or c_attn, and those stay in 16 bits with you: go by "
            "what is kept, embed, norm and lm_head.",
        ),
    ],
    hints=[
        "math.prod(shape) is the number of parameters.",
        "2 bytes each when the name contains embed, norm or lm_head; bits / 8 bytes each otherwise.",
    ],
    points=2,
    why="Only the linear layers of the blocks are quantized. The names tell them from the rest, which takes its 16 "
    "bits whatever `bits` says: in a small model with a large vocabulary that is most of it.",
)

# -------------------------------------------------------------------------------------------------- the device map


def _drawn_environ(rng: random.Random) -> tuple[dict[str, str]]:
    environ = {"HOME": "somewhere", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "WORLD_SIZE": "16", "OMP_NUM_THREADS": "5"}
    environ = {key: environ[key] for key in rng.sample(sorted(environ), rng.randint(0, 4))}
    if rng.random() < 0.8:
        rank = rng.choice([*range(8), 10, 12])
        environ |= {"RANK": str(8 + rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "1"}
    return (environ,)


def _same_map(expected: Any, got: Any) -> bool | str:
    """A card as its number, as "cuda:0" or as a torch.device: transformers takes all three."""
    return difference(_with_numbers(expected), _with_numbers(got)) or True


def _with_numbers(device_map: Any) -> Any:
    if not isinstance(device_map, dict):
        return device_map
    return {part: _number(card) for part, card in device_map.items()}


def _number(card: Any) -> Any:
    if isinstance(card, torch.device) and card.type == "cuda" and card.index is not None:
        return card.index
    if isinstance(card, str) and card.startswith("cuda:") and card[5:].isdecimal():
        return int(card[5:])
    return str(card) if isinstance(card, torch.device) else card


def _popped(environ: dict[str, str]) -> dict[str, int]:
    return {"": int(environ.pop("LOCAL_RANK", 0))}


exercise(
    "training_device_map",
    reference=lesson.training_device_map,
    cases=[
        ({"LOCAL_RANK": "0"},),
        ({"LOCAL_RANK": "3", "RANK": "11", "WORLD_SIZE": "16"},),
        ({"HOME": "somewhere"},),
    ],
    drawn=_drawn_environ,
    compare=_same_map,
    mistakes=[
        Mistake(
            lambda environ: "auto",
            '"auto" spreads one copy over all cards; under DDP each process needs a whole copy on its own card.',
        ),
        Mistake(
            lambda environ: {"": 0},
            "your map names card 0 whatever `environ` holds, and all processes would put their copy there. Read "
            "LOCAL_RANK, and read it from `environ`, the argument.",
        ),
        Mistake(
            lambda environ: {"": environ.get("LOCAL_RANK", 0)},
            "environment variables are text: the card's number is int(...) of it.",
        ),
        Mistake(
            lambda environ: {"": environ.get("LOCAL_RANK", "0")},
            "environment variables are text, and so is your default: the card's number is int(...) of it.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])},
            "without torchrun there is no LOCAL_RANK, and this stops with a KeyError: fall back to card 0.",
        ),
        Mistake(
            lambda environ: {"": int(environ.get("RANK", 0))},
            "RANK numbers the processes of all machines together: the ninth, on a second machine, would look there for "
            "a card 8. LOCAL_RANK begins anew on each.",
        ),
        Mistake(
            lambda environ: int(environ.get("LOCAL_RANK", 0)),
            "that is the card's number; a device map is a dictionary from module names to cards.",
        ),
        Mistake(
            lambda environ: {"model": int(environ.get("LOCAL_RANK", 0))},
            'the map names a part of the model; "" means all of it.',
        ),
        Mistake(
            lambda environ: {int(environ.get("LOCAL_RANK", 0)): ""},
            "the other way round: the part of the model is the key, the card the value.",
        ),
        Mistake(
            lambda environ: {"": "cuda"},
            '"cuda" alone doesn\'t say which card, and every process would take the same: cuda:0, cuda:1 and so on.',
        ),
        Mistake(
            lambda environ: {"": int(environ.get("WORLD_SIZE", 1)) - 1},
            "WORLD_SIZE is how many processes there are; which of them this is, LOCAL_RANK says.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])} if "LOCAL_RANK" in environ else None,
            "without LOCAL_RANK your function returns nothing: then the whole model goes on card 0.",
        ),
        Mistake(
            lambda environ: {"": int(environ["LOCAL_RANK"])} if "LOCAL_RANK" in environ else "auto",
            'without LOCAL_RANK you return "auto": the task wants the whole model on card 0.',
        ),
        Mistake(
            lambda environ: {"": int(environ.get("LOCAL_RANK", 1))},
            "cards are numbered from 0: without LOCAL_RANK it is card 0.",
        ),
        Mistake(_popped, expect="changes its input"),
    ],
    hints=[
        'The empty name "" stands for the whole model: {"": card}.',
        'environ.get("LOCAL_RANK", 0), made a number.',
    ],
    why='Each process of torchrun has its own LOCAL_RANK, so each puts a whole copy on its own card. "" means the '
    "whole model, so the same map fits every model.",
)
