"""Chapter 8's exercises: scaling, ranks by pattern, a regular expression, and names that match nothing."""

from __future__ import annotations

import math
import random
import re
from typing import Any

from utils.course.checks.describe import brief
from utils.course.checks.references import ch08 as lesson
from utils.course.checks.registry import Mistake, exercise

# ------------------------------------------------------------------------------------------------------- the scaling


exercise(
    "scaling",
    reference=lesson.scaling,
    cases=[(16, 16, False), (16, 16, True), (4, 32, False), (64, 8, True)],
    drawn=lambda rng: (
        rng.choice([1, 2, 3, 6, 8, 12, 64, 100, 256]),
        rng.choice([1, 2, 5, 7, 8, 16, 50, 128]),
        rng.random() < 0.5,
    ),
    mistakes=[
        Mistake(lambda r, a, rs: a / r, "use_rslora changes nothing yet: with it, divide by the root of r."),
        Mistake(lambda r, a, rs: a / math.sqrt(r), "without use_rslora the divisor is r itself."),
        Mistake(lambda r, a, rs: a / (r if rs else math.sqrt(r)), "the two cases are swapped."),
        Mistake(lambda r, a, rs: a / (r**2 if rs else r), "the root, not the square: rsLoRA divides by less than r."),
        Mistake(lambda r, a, rs: a * (math.sqrt(r) if rs else r), "that multiplies: a larger rank is scaled down."),
        Mistake(
            lambda r, a, rs: math.sqrt(a / r) if rs else a / r,
            "the root is of r alone, not of lora_alpha / r.",
        ),
        Mistake(
            lambda r, a, rs: math.sqrt(a) / r if rs else a / r,
            "you took the root of lora_alpha; it belongs to r.",
        ),
        Mistake(
            lambda r, a, rs: a // (math.sqrt(r) if rs else r),
            "// and int(...) round down: lora_alpha=16 with r=64 gives 0, and the adapter does nothing. Divide with /.",
        ),
        Mistake(
            lambda r, a, rs: a / (math.isqrt(r) if rs else r),
            "math.isqrt rounds the root down to a whole number; math.sqrt doesn't.",
        ),
        Mistake(
            lambda r, a, rs: a / (math.log2(r) if rs else r),
            "that is the logarithm; the sum of r independent terms grows like the root of r.",
        ),
        Mistake(lambda r, a, rs: (math.sqrt(r) if rs else r) / a, "the other way round: lora_alpha stands on top."),
    ],
    hints=[
        "Compare rows that differ in one number: twice the alpha, then four times the r. What happens to each scaling?",
        "Four times the r: plain LoRA's scaling falls to a quarter, rsLoRA's to a half.",
        "Divide lora_alpha by r, or by the root of r.",
    ],
    why="B A x is a sum of r terms. If they are independent, its size grows like the root of r, so dividing by the "
    "root keeps the update as large for every rank, and dividing by r makes it fainter and fainter.",
)

# ------------------------------------------------------------------------------------------- counting with a pattern

_SHAPES = {
    "layers.0.q_proj": (192, 192),
    "layers.0.v_proj": (64, 192),
    "layers.1.q_proj": (192, 192),
    "layers.1.v_proj": (64, 192),
}
_FUSED = {"layers.0.kv_proj": (7, 5), "layers.0.v_proj": (3, 5), "layers.10.v_proj": (2, 9), "v_proj": (4, 6)}

_LAYERS = ("q_proj", "v_proj", "kv_proj", "attn.c_proj", "mlp.c_proj", "my_q_proj", "up_proj")


def _drawn_pattern(rng: random.Random) -> tuple[dict[str, tuple[int, int]], int, dict[str, int]]:
    names = [f"layers.{rng.randrange(14)}.{layer}" for layer in rng.choices(_LAYERS, k=rng.randint(1, 8))]
    names += ["q_proj"] * rng.randint(0, 1)
    shapes = {name: (rng.randint(2, 20), rng.randint(2, 20)) for name in names}
    keys = ["q_proj", "v_proj", "c_proj", "attn.c_proj", "proj", "attn", "layers", "0.v_proj", *rng.choices(names, k=2)]
    keys = rng.sample(sorted(set(keys)), rng.randint(0, 4))
    return shapes, rng.randint(1, 20), {key: rng.randint(1, 40) for key in keys}


def _holds(name: str, key: str) -> bool:
    return name == key or name.endswith("." + key)


def _count(
    shapes: dict, r: int, pattern: dict, holds=_holds, choose=lambda keys: keys[0], per=lambda o, i: o + i
) -> int:
    total = 0
    for name, shape in shapes.items():
        keys = [key for key in pattern if holds(name, key)]
        total += (pattern[choose(keys)] if keys else r) * per(*shape)
    return total


def _rank(name: str, r: int, pattern: dict) -> int:
    return next((rank for key, rank in pattern.items() if _holds(name, key)), r)


def _rank_kept(shapes: dict, r: int, pattern: dict) -> int:
    total = 0
    for name, (o, i) in shapes.items():
        r = _rank(name, r, pattern)
        total += r * (o + i)
    return total


exercise(
    "count_with_pattern",
    reference=lesson.count_with_pattern,
    cases=[
        (_SHAPES, 8, {}),
        (_SHAPES, 8, {"v_proj": 2}),
        (_SHAPES, 4, {"layers.1.q_proj": 16, "v_proj": 1}),
        (_SHAPES, 4, {"v_proj": 1, "layers.1.v_proj": 16}),
        (_FUSED, 2, {"v_proj": 3, "0.v_proj": 5}),
    ],
    drawn=_drawn_pattern,
    mistakes=[
        Mistake(
            lambda shapes, r, pattern: sum(r * (o + i) for o, i in shapes.values()),
            "rank_pattern has no effect yet: a layer that it names has its own rank.",
        ),
        Mistake(
            lambda shapes, r, pattern: sum(pattern.get(n, r) * (o + i) for n, (o, i) in shapes.items()),
            "a key such as 'v_proj' means every layer whose name ends with it, not only one called exactly so.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, holds=lambda n, k: n.endswith("." + k)),
            "a key may also be the layer's whole name, with nothing in front of it.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, holds=str.endswith),
            "'kv_proj' ends with 'v_proj' and isn't meant by it: in front of the key stands a dot, or nothing.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, holds=str.__contains__),
            "'kv_proj' contains 'v_proj' and isn't meant by it: a name is the key, or ends with a dot and the key.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(
                shapes, r, pattern, holds=lambda n, k: n.rpartition(".")[2] == k.rpartition(".")[2]
            ),
            "you compare the last parts alone: the key 'layers.1.q_proj' holds for one layer, not for every q_proj.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, holds=lambda n, k: n.rpartition(".")[2] == k),
            "a key may have several parts, such as 'layers.1.q_proj': compare it with the name's end, not with its "
            "last part.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, choose=lambda keys: keys[-1]),
            "where two keys hold, your last one wins; PEFT takes the first in the dictionary's order.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, choose=lambda keys: max(keys, key=len)),
            "where two keys hold, your longer one wins. PEFT doesn't ask which is more exact: the first one counts.",
        ),
        Mistake(
            lambda shapes, r, pattern: sum(
                max([rank for key, rank in pattern.items() if _holds(n, key)], default=r) * (o + i)
                for n, (o, i) in shapes.items()
            ),
            "where two keys hold, your larger rank wins; PEFT takes the first in the dictionary's order.",
        ),
        Mistake(
            lambda shapes, r, pattern: sum(
                pattern.get(n, _rank(n, r, pattern)) * (o + i) for n, (o, i) in shapes.items()
            ),
            "you look for the whole name first. PEFT has no such preference: the first key that holds counts.",
        ),
        Mistake(
            _rank_kept,
            "you overwrite r with a pattern's rank, and the layers that follow keep it: give each its own variable.",
        ),
        Mistake(
            lambda shapes, r, pattern: sum(
                sum(rank * (o + i) for key, rank in pattern.items() if _holds(n, key)) or r * (o + i)
                for n, (o, i) in shapes.items()
            ),
            "where two keys hold, you count the layer twice: the first key alone gives its rank.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, per=lambda o, i: o * i),
            "that counts the whole matrix times r: lora_A has r x in numbers and lora_B out x r.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, 0, pattern),
            "layers that the pattern doesn't name keep the rank r.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern) + r * _count(shapes, 0, dict.fromkeys(pattern, 1)),
            "the pattern's rank takes the place of r; it isn't added to it.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, per=lambda o, i: o),
            "lora_A is missing: it has rank x in numbers.",
        ),
        Mistake(
            lambda shapes, r, pattern: _count(shapes, r, pattern, per=lambda o, i: i),
            "lora_B is missing: it has out x rank numbers.",
        ),
    ],
    hints=[
        "rank * (d_out + d_in) for each layer, with the rank that holds for it.",
        "A key matches when the name is it or ends with '.' and it: name.endswith('.' + key).",
        "next((rank for key, rank in rank_pattern.items() if ...), r) is the first match's rank, else r.",
    ],
    points=2,
    why="PEFT walks through the pattern and stops at the first key that holds, so the order of the dictionary decides: "
    "write the exceptions to the exceptions first.",
)

# --------------------------------------------------------------------------------------------------- the expression

_BLOCKS = (0, 1, 2, 3, 4, 10, 12, 13, 20, 21, 22, 23)
_IN_A_BLOCK = (
    "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.up_proj", "mlp",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn", "mlp.gate", "mlp.out_proj", "mlp.gate_up_proj",
    "mlp.up_proj_norm", "mlp.down_proj.bias", "mlp.up.proj", "mlp.experts.0.up_proj", "mlp.experts.2.down_proj",
    "mlp.shared_expert.gate_proj", "mlp_norm", "input_layernorm", "cross_mlp.up_proj", "mlp._proj", "mlpup_proj",
)  # fmt: skip
_NAMES = [f"model.layers.{block}.{part}" for block in _BLOCKS for part in _IN_A_BLOCK]
_NAMES += ["model.layers.2", "model.norm", "model.embed_tokens", "lm_head", "lm_head.up_proj"]


def _chosen(expression: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that PEFT would take, and, where there are none, those in which the expression is found at all."""
    whole = tuple(name for name in _NAMES if re.fullmatch(expression, name))
    return whole, () if whole else tuple(name for name in _NAMES if re.search(expression, name))


def _as_far_as(expression: str, name: str) -> str:
    """How much of the expression, from its beginning, fits the beginning of the name."""
    for end in range(len(expression) - 1, 0, -1):
        try:
            if re.match(expression[:end], name):
                return f": your expression fits it up to '{expression[:end]}', and what comes then doesn't"
        except re.error:  # it ends within a bracket
            continue
    return ", not even its first letter: PEFT compares the whole name, from the beginning"


def _same_names(expected: str, got: Any) -> bool | str:
    if not isinstance(got, str):
        return f"expected a string with the expression in it, got {brief(got)}."
    try:
        mine = _chosen(got)
    except re.error as problem:
        return f"Python can't read that as a regular expression: {problem}."
    wanted = _chosen(expected)
    missing = [name for name in wanted[0] if name not in mine[0]]
    extra = [name for name in mine[0] if name not in wanted[0]]
    if extra:
        more = f", and {len(extra) - 1} more that aren't wanted" if extra[1:] else ""
        return f"that also takes {extra[0]!r}{more}."
    if missing:
        return f"{missing[0]!r} isn't matched{_as_far_as(got, missing[0])}."
    return mine == wanted


exercise(
    "upper_mlp",
    reference=lesson.upper_mlp,
    compare=_same_names,
    mistakes=[
        Mistake(
            r"layers\.[23]\.mlp\.(gate|up|down)_proj",
            "the expression has to match the whole name, and in front of layers stands 'model.': begin with '.*'.",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\.(gate|up|down)",
            "the expression has to match the whole name, and yours ends before '_proj'. In 'mlp.gate' of other models, "
            "the router, it finds another layer.",
        ),
        Mistake(
            r".*\.layers\.[23]\..*_proj",
            "that takes the attention of these blocks as well: name mlp in the expression.",
        ),
        Mistake(
            r".*\.layers\.[23]\..*(gate|up|down)_proj",
            "'.*' in the middle runs over dots too, to up_proj of any part, experts and attention: name mlp, with a "
            "dot on both sides.",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\..*(gate|up|down)_proj",
            "'.*' after mlp runs on: it takes 'mlp.experts.0.up_proj' and 'mlp.gate_up_proj' as well.",
        ),
        Mistake(
            r".*\.mlp\.(gate|up|down)_proj", "that takes every block: only the blocks numbered 2 and 3 are wanted."
        ),
        Mistake(
            r".*[23]\.mlp\.(gate|up|down)_proj",
            "in a model of 24 blocks that takes 12 and 23 as well, which end with 2 and 3: put 'layers\\.' in front.",
        ),
        Mistake(
            r".*\.layers\.[23]+\.mlp\.(gate|up|down)_proj",
            "'+' allows several of the digits: in a model of 24 blocks that takes 22 and 23 as well.",
        ),
        Mistake(
            r".*\.layers\.[23].*\.mlp\.(gate|up|down)_proj",
            "'.*' behind [23] allows more digits: in a model of 24 blocks that takes 20 to 23 as well.",
        ),
        Mistake(
            r".*\.layers\.(1|2)\.mlp\.(gate|up|down)_proj",
            "those are the blocks 1 and 2. Blocks are numbered from 0, and 2 and 3 are wanted.",
        ),
        Mistake(r".*\.layers\.2\.mlp\.(gate|up|down)_proj", "block 3 is missing: [23] is one of two digits."),
        Mistake(
            r".*\.layers\.2|3\.mlp\.(gate|up|down)_proj",
            "'|' without brackets divides the whole expression: it takes what ends with 'layers.2' or begins with "
            "'3.mlp'. Put the alternatives into brackets.",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\..*proj.*", "'.*' at the end matches the norm behind a name too: end with 'proj'."
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\..*",
            "that takes the MLP's activation function, act_fn, as well, which PEFT can't wrap: name the three.",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\.\w+_proj",
            "\\w+ is any word: other models have an out_proj or a gate_up_proj there. Name the three.",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\.[gate|up|down]+_proj",
            "square brackets are a set of letters, and with + any word made of them: yours takes 'mlp.out_proj' as "
            "well. Words to choose from stand in round ones: (gate|up|down).",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\.(gate|up|down).proj",
            "a dot stands for any letter, so yours takes 'up.proj' as well: write the underscore.",
        ),
        Mistake(r".*\.layers\.[23]\.mlp\.(up|down)_proj", "gate_proj is missing: Llama's MLP has three matrices."),
    ],
    hints=[
        "The expression is matched against the whole name, such as model.layers.2.mlp.up_proj.",
        "[23] is one of two digits, (gate|up|down) one of three words, \\. a dot and nothing else.",
    ],
    why="`layers\\.` in front of [23] and `\\.` behind it leave room for one digit alone, so 12 and 23 stay out; the "
    "three words in brackets leave out whatever else an MLP may hold.",
)

# ------------------------------------------------------------------------------------------- names that match nothing

_MODULES = ("q_proj", "v_proj", "my_q_proj", "attn.c_proj", "mlp.c_proj", "attn_c_proj", "q_proj.out", "fc1")
_TARGETS = (
    "q_proj", "v_proj", "c_proj", "attn.c_proj", "attn", "proj", "_proj", "my_q_proj", "h.1.q_proj", "lm_head", "mlp",
    "v_porj", "fc", "h.1", "attn.c.proj", "model.lm_head", "model.q_proj",
)  # fmt: skip


def _drawn_targets(rng: random.Random) -> tuple[list[str], list[str]]:
    names = {f"h.{rng.randrange(3)}.{module}" for module in rng.choices(_MODULES, k=rng.randint(0, 6))}
    names |= set(rng.sample(["lm_head", "q_proj", "h.q.fc1"], rng.randint(0, 2)))
    return rng.sample(sorted(names), len(names)), rng.sample(_TARGETS, rng.randint(0, 7))


def _unmatched(names: list[str], targets: list[str], matches: Any) -> list[str]:
    return [target for target in targets if not any(matches(name, target) for name in names)]


def _removed(names: list[str], targets: list[str]) -> list[str]:
    for target in list(targets):
        if any(_holds(name, target) for name in names):
            targets.remove(target)
    return targets


def _removed_on_the_way(names: list[str], targets: list[str]) -> list[str]:
    left = list(targets)
    for target in left:
        if any(_holds(name, target) for name in names):
            left.remove(target)
    return left


exercise(
    "matches_nothing",
    reference=lesson.matches_nothing,
    cases=[
        (["a.q_proj", "a.v_proj"], ["q_proj", "v_porj"]),
        (["a.my_q_proj", "head"], ["q_proj", "head"]),
        (["h.0.attn.c_proj", "h.0.mlp.c_proj"], ["attn.c_proj", "c_proj", "proj", "attn"]),
        ([], ["q_proj", "a"]),
        (["h.0.attn.Wqkv"], ["wqkv", "Wqkv", "out_proj"]),
    ],
    drawn=_drawn_targets,
    mistakes=[
        Mistake(
            lambda names, targets: _unmatched(names, targets, str.__contains__),
            "'q_proj' is inside 'my_q_proj' and doesn't match it: a name has to end with '.' and the target, or be it.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if t not in names],
            "a target needs only the end of a name: 'q_proj' matches 'a.q_proj'.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, str.endswith),
            "'my_q_proj' ends with 'q_proj' and isn't matched: the part before has to end with a dot.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: name.endswith("." + t)),
            "a target may also be a whole name, such as 'lm_head', with no dot in front.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: name.rpartition(".")[2] == t),
            "a target may have several parts, such as 'attn.c_proj': don't compare the last part alone.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: t in name.split(".")),
            "'attn' is a part of 'h.0.attn.c_proj', but not its end: PEFT wouldn't match it.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: re.search(rf"(^|\.){t}$", name)),
            "in a regular expression the target's own dot stands for any letter: 'attn.c_proj' would match "
            "'attn_c_proj'. re.escape(target) or endswith.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: _holds(name.lower(), t.lower())),
            "'wqkv' doesn't match 'h.0.attn.Wqkv': PEFT tells capital letters from small ones.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: t.endswith(name)),
            "the name has to end with the target, and you ask whether the target ends with the name.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if t not in lesson.matches_nothing(names, targets)],
            "that is the other way round: return those that match nothing.",
        ),
        Mistake(
            lambda names, targets: [n for n in names if not any(_holds(n, t) for t in targets)],
            "those are the names that no target matches; asked for are the targets that match no name.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if not all(_holds(n, t) for n in names)],
            "a target is fine as soon as one name matches: any, not all.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets for n in names if not _holds(n, t)],
            "you note a target once for every name that it doesn't match. One match is enough to leave it "
            "out, and it stands in the list once.",
        ),
        Mistake(
            lambda names, targets: lesson.matches_nothing(names, targets)[:1],
            "only the first is there: the return stands inside the loop.",
        ),
        Mistake(
            lambda names, targets: _unmatched(names, targets, lambda name, t: name == t or name.startswith(t + ".")),
            "you compare the beginning of the name; PEFT compares its end.",
        ),
        Mistake(
            _removed_on_the_way,
            "you remove from the list that you go through: the target after a removed one is skipped. Make a new one.",
        ),
        Mistake(_removed, expect="changes its input"),
    ],
    hints=[
        "For each target: is there a name that is it, or ends with '.' + it?",
        "Keep the target when there is none.",
    ],
    why="The dot in front makes the difference between 'a.q_proj', which 'q_proj' means, and 'my_q_proj', which only "
    "ends with the same letters. Names and targets are compared as PEFT does it, or the check would lie.",
)
