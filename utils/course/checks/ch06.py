"""Chapter 6's exercises: scaling, ranks by pattern, a regular expression, names that match nothing, and biases."""

from __future__ import annotations

import math
import re

from utils.course.checks.references import ch06 as lesson
from utils.course.checks.registry import Mistake, exercise

# ------------------------------------------------------------------------------------------------------- the scaling


exercise(
    "scaling",
    reference=lesson.scaling,
    cases=[(16, 16, False), (16, 16, True), (4, 32, False), (64, 8, True)],
    mistakes=[
        Mistake(lambda r, a, rs: a / r, "use_rslora changes nothing yet: with it, divide by the root of r."),
        Mistake(lambda r, a, rs: a / math.sqrt(r), "without use_rslora the divisor is r itself."),
        Mistake(lambda r, a, rs: a / (r if rs else math.sqrt(r)), "the two cases are swapped."),
        Mistake(lambda r, a, rs: a / (r**2 if rs else r), "the root, not the square: rsLoRA divides by less than r."),
        Mistake(lambda r, a, rs: a * (math.sqrt(r) if rs else r), "that multiplies: a larger rank is scaled down."),
    ],
    hints=["Plain LoRA: lora_alpha / r.", "rsLoRA: lora_alpha / math.sqrt(r)."],
)

# ------------------------------------------------------------------------------------------- counting with a pattern

_SHAPES = {
    "layers.0.q_proj": (192, 192),
    "layers.0.v_proj": (64, 192),
    "layers.1.q_proj": (192, 192),
    "layers.1.v_proj": (64, 192),
}


def _rank(name: str, r: int, pattern: dict) -> int:
    """The rank that holds for a layer: what it counts with one output and no input."""
    return lesson.count_with_pattern({name: (1, 0)}, r, pattern)


exercise(
    "count_with_pattern",
    reference=lesson.count_with_pattern,
    cases=[
        (_SHAPES, 8, {}),
        (_SHAPES, 8, {"v_proj": 2}),
        (_SHAPES, 4, {"layers.1.q_proj": 16, "v_proj": 1}),
    ],
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
            lambda shapes, r, pattern: sum(_rank(n, r, pattern) * o * i for n, (o, i) in shapes.items()),
            "that counts the whole matrix times r: lora_A has r x in numbers and lora_B out x r.",
        ),
        Mistake(
            lambda shapes, r, pattern: sum(_rank(n, 0, pattern) * (o + i) for n, (o, i) in shapes.items()),
            "layers that the pattern doesn't name keep the rank r.",
        ),
        Mistake(
            lambda shapes, r, pattern: sum((r + _rank(n, 0, pattern)) * (o + i) for n, (o, i) in shapes.items()),
            "the pattern's rank takes the place of r; it isn't added to it.",
        ),
    ],
    hints=[
        "rank * (d_out + d_in) for each layer, with the rank that holds for it.",
        "A key matches when the name is it or ends with '.' and it: name.endswith('.' + key).",
        "next((rank for key, rank in rank_pattern.items() if ...), r) is the first match's rank, else r.",
    ],
    points=2,
)

# --------------------------------------------------------------------------------------------------- the expression

_NAMES = [
    f"model.layers.{i}.{part}"
    for i in (0, 1, 2, 3, 12, 23)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
] + ["lm_head", "model.layers.2.mlp.act_fn", "model.layers.2.mlp.up_proj_norm"]


def _chosen(expression: str) -> tuple[str, ...] | None:
    try:
        return tuple(name for name in _NAMES if re.fullmatch(expression, name))
    except (re.error, TypeError):
        return None


exercise(
    "upper_mlp",
    reference=lesson.upper_mlp,
    compare=lambda expected, got: isinstance(got, str) and _chosen(expected) == _chosen(got),
    mistakes=[
        Mistake(
            r"layers\.[23]\.mlp\.(gate|up|down)_proj",
            "the expression has to match the whole name, and in front of layers stands 'model.': begin with '.*'.",
        ),
        Mistake(
            r".*\.layers\.[23]\..*_proj",
            "that takes the attention of these blocks as well: name mlp in the expression.",
        ),
        Mistake(
            r".*\.mlp\.(gate|up|down)_proj", "that takes every block: only the blocks numbered 2 and 3 are wanted."
        ),
        Mistake(
            r".*[23]\.mlp\.(gate|up|down)_proj",
            "in a model of 24 blocks that takes 12 and 23 as well, which end with 2 and 3: put 'layers\\.' in front.",
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\..*proj.*", "'.*' at the end matches the norm behind a name too: end with 'proj'."
        ),
        Mistake(
            r".*\.layers\.[23]\.mlp\..*",
            "that takes the MLP's activation function, act_fn, as well, which PEFT can't wrap: name the three.",
        ),
        Mistake(r".*\.layers\.[23]\.mlp\.(up|down)_proj", "gate_proj is missing: Llama's MLP has three matrices."),
    ],
    hints=[
        "A text is matched against the whole name, such as model.layers.2.mlp.up_proj.",
        "[23] is one of two digits, (gate|up|down) one of three words, \\. a dot and nothing else.",
    ],
)

# ------------------------------------------------------------------------------------------- names that match nothing


exercise(
    "matches_nothing",
    reference=lesson.matches_nothing,
    cases=[
        (["a.q_proj", "a.v_proj"], ["q_proj", "v_porj"]),
        (["a.my_q_proj", "head"], ["q_proj", "head"]),
        (["h.0.attn.c_proj", "h.0.mlp.c_proj"], ["attn.c_proj", "c_proj", "proj", "attn"]),
    ],
    mistakes=[
        Mistake(
            lambda names, targets: [t for t in targets if not any(t in n for n in names)],
            "'q_proj' is inside 'my_q_proj' and doesn't match it: a name has to end with '.' and the target, or be it.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if t not in names],
            "a target needs only the end of a name: 'q_proj' matches 'a.q_proj'.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if not any(n.endswith(t) for n in names)],
            "'my_q_proj' ends with 'q_proj' and isn't matched: the part before has to end with a dot.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if not any(n.rpartition(".")[2] == t for n in names)],
            "a target may have several parts, such as 'attn.c_proj': don't compare the last part alone.",
        ),
        Mistake(
            lambda names, targets: [t for t in targets if t not in lesson.matches_nothing(names, targets)],
            "that is the other way round: return those that match nothing.",
        ),
    ],
    hints=[
        "For each target: is there a name that is it, or ends with '.' + it?",
        "Keep the target when there is none.",
    ],
)

# ------------------------------------------------------------------------------------------------------------ biases


_OPT = ["l.0.q_proj.weight", "l.0.q_proj.bias", "l.0.k_proj.bias", "l.0.norm.bias", "l.1.q_proj.bias", "l.1.fc1.bias"]

exercise(
    "trained_biases",
    reference=lesson.trained_biases,
    cases=[(_OPT, ["q_proj"], "none"), (_OPT, ["q_proj", "fc1"], "lora_only"), (_OPT, ["q_proj"], "all")],
    mistakes=[
        Mistake(
            lambda names, targets, bias: [] if bias == "none" else [n for n in names if n.endswith(".bias")],
            "'lora_only' means the biases of layers that carry LoRA, not all of them.",
        ),
        Mistake(
            lambda names, targets, bias: lesson.trained_biases(
                names, targets, "none" if bias == "none" else "lora_only"
            ),
            "'all' means every bias of the model, the norms' too.",
        ),
        Mistake(
            lambda names, targets, bias: [n for n in names if n.endswith(".bias")],
            "with 'none' no bias trains.",
        ),
        Mistake(
            lambda names, targets, bias: (
                [] if bias == "none" else [n for n in names if bias == "all" or any(f".{t}." in n for t in targets)]
            ),
            "a weight is no bias: keep the names that end with '.bias'.",
        ),
    ],
    hints=[
        "Three cases: no bias; every name that ends with '.bias'; those whose layer is a target.",
        "'l.0.q_proj.bias' belongs to the layer 'l.0.q_proj', and its last part is the target's name.",
    ],
)
