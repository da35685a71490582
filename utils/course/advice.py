"""The decision guide: what to choose, when, and the measurement behind it.

Each :class:`Choice` carries its evidence: a cell of a lesson, a test, a recorded measurement, or a paper where the
course can't measure it. The tests hold every piece of evidence to what it is quoted for, as they do for the claims
ledger, so that advice without a ground to stand on fails the build.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from utils.course.claims import Cell, Record, Test

FULL_BYTES, HALF_BYTES, FOUR_BIT_BYTES = 16.0, 2.0, 0.574
"""Bytes a parameter that training holds: everything in float32 with Adam; a frozen 16-bit base; one in NF4 with double
quantization, whose embedding and head stay in 16 bits (Llama-2-7B: 3.87 GB)."""
ACTIVATION_BYTES, CHECKPOINTED_BYTES = 2.06, 0.21
"""Bytes a parameter that a step of 4 sequences of 512 tokens takes besides, measured on Llama-2-7B's shape; and with
checkpointing."""
SHARE = 0.9
"""The share of a card's memory that one can use."""
MUCH_DATA = 10_000


class Source(NamedTuple):
    """A paper or report, cited where the evidence is the literature's."""

    text: str
    url: str


Evidence = Cell | Test | Record | Source


@dataclass(frozen=True)
class Choice:
    """One answer to a question of the guide. when: in words; why: the reason, in the terms of its evidence."""

    answer: str
    when: str
    why: str
    evidence: tuple[Evidence, ...]


class Advice(NamedTuple):
    """A question, and the choice that was made."""

    question: str
    choice: Choice


# ---------------------------------------------------------------------------------------------------- the evidence

_LOADING, _LATENCY, _SWEEP = (
    f"assets/measurements/{name}.json" for name in ("loading_7b", "latency_gpu", "rank_sweep")
)
_LORA = "LoRA r=8 q,k,v,o"

_SCHULMAN = Source("Schulman et al., LoRA Without Regret, 2025", "https://thinkingmachines.ai/blog/lora/")
_BIDERMAN = Source("Biderman et al., LoRA Learns Less and Forgets Less, 2024", "https://arxiv.org/abs/2405.09673")
_RSLORA = Source("Kalajdzievski, rsLoRA, 2023", "https://arxiv.org/abs/2312.03732")
_DORA = Source("Liu et al., DoRA, 2024", "https://arxiv.org/abs/2402.09353")
_QLORA = Source("Dettmers et al., QLoRA, 2023", "https://arxiv.org/abs/2305.14314")


_VARIANTS = "assets/measurements/variants.json"


def _race(entry: str, task: str, low: float, high: float) -> Record:
    path = ("results", {"entry": entry, "task": task}, "test_mean")
    return Record(_VARIANTS, path, low, high, f"{entry} on {task}, five seeds at its best rate,")


def _peak(base: str, checkpointing: bool, low: float, high: float) -> Record:
    with_it = "with" if checkpointing else "without"
    return Record(
        _LOADING, ("rows", {"base": base, "trains": _LORA, "checkpointing": checkpointing}, "peak"), low, high,
        f"peak of a step, base in {base}, {with_it} checkpointing,", scale=1e9, unit="GB",
    )  # fmt: skip


def _score(steps: int, targets: str, r: int | None, low: float, high: float) -> Record:
    rank = "" if r is None else f" r={r}"
    return Record(
        _SWEEP, ("rows", {"steps": steps, "targets": targets, "r": r}, "test_mean"), low, high,
        f"right translations after {steps} steps, {targets}{rank},",
    )  # fmt: skip


def _slower(form: str, key: str, phase: tuple[str, ...], low: float, high: float) -> Record:
    def path(which: str) -> tuple:
        return ("rows", {"key": f"q,k,v,o, {key}"}, "times", which, *phase, "median")

    return Record(_LATENCY, path(form), low, high, f"{' '.join(phase)} {key}, {form} over base,", over=path("base"))


# ----------------------------------------------------------------------------------------------------- the choices

CHOICES: dict[str, dict[str, Choice]] = {
    "LoRA or full fine-tuning?": {
        "lora": Choice(
            "LoRA",
            "the card doesn't hold 16 bytes a parameter, or there is little to learn: a form, a style, a task",
            "It reaches full fine-tuning's score on such tasks at an eighth of the memory, and the base stays whole.",
            (
                Cell(
                    "01_the_fine_tuning_problem",
                    'print(f"LoRA (r=8, q k v o) holds {saved:.0%} less than full fine-tuning in float32")',
                    ("holds 87% less than full fine-tuning in float32",),
                ),
                Cell(
                    "03_a_lora_layer_from_scratch",
                    'print("both needed about 46 steps:", all(abs(steps - 46) <= 4 for steps in needed))',
                    ("both needed about 46 steps: True",),
                ),
            ),
        ),
        "full": Choice(
            "full fine-tuning, with LoRA beside it for comparison",
            "the card holds it, there is much data, and it is new knowledge",
            "Where there is much to learn in few steps it is ahead; at scale too, and it forgets more there.",
            (
                _score(150, "full fine-tuning", None, 0.4, 0.75),
                _score(150, "all-linear", 8, 0.0, 0.2),
                _BIDERMAN,
            ),
        ),
    },
    "The base in 16 bits or in 4?": {
        "16": Choice(
            "16 bits",
            "it fits",
            "A step is quicker, and merging is simple.",
            (
                Record(
                    _LOADING,
                    ("rows", {"base": "NF4, double quantization", "checkpointing": True}, "fastest"),
                    1.1,
                    1.6,
                    "a step in 4 bits over one in 16, with checkpointing,",
                    over=("rows", {"base": "bf16", "trains": _LORA, "checkpointing": True}, "fastest"),
                ),
            ),
        ),
        "4": Choice(
            "4 bits: QLoRA, NF4 with double quantization",
            "16 bits don't fit",
            "The weights shrink by 71%, and on our tasks no score falls by more than two points.",
            (
                _peak("NF4, double quantization", True, 5e9, 5.8e9),
                Cell(
                    "05_loading_models",
                    'print("no task loses more than two points:", worst <= 2)',
                    ("no task loses more than two points: True",),
                ),
                _QLORA,
            ),
        ),
        "none": Choice(
            "neither: take a smaller model or a larger card",
            "even 4 bits don't fit",
            "What a 4-bit base takes can be counted beforehand, and a GPU allocates just that.",
            (
                Record(
                    _LOADING,
                    ("rows", {"base": "NF4, double quantization", "checkpointing": False}, "weights"),
                    3.85e9,
                    3.88e9,
                    "Llama-2-7B's weights in 4 bits,",
                    scale=1e9,
                    unit="GB",
                ),
            ),
        ),
    },
    "Activation checkpointing?": {
        "off": Choice(
            "off",
            "the activations fit",
            "It makes a step nearly half as long again.",
            (
                Record(
                    _LOADING,
                    ("rows", {"base": "bf16", "trains": _LORA, "checkpointing": True}, "fastest"),
                    1.3,
                    1.8,
                    "a step with checkpointing over one without",
                    over=("rows", {"base": "bf16", "trains": _LORA, "checkpointing": False}, "fastest"),
                ),
            ),
        ),
        "on": Choice(
            "on",
            "they don't",
            "It brings the peak of a 7B step from 27.5 GB down to 15.",
            (_peak("bf16", False, 26.5e9, 28.5e9), _peak("bf16", True, 14.5e9, 15.5e9)),
        ),
    },
    "Which layers?": {
        "all": Choice(
            'all linear layers: target_modules="all-linear"',
            "always, to begin with",
            "At equal parameters, attention alone learns much less; the MLP matters most.",
            (_score(300, "q,v", 42, 0.0, 0.1), _score(300, "all-linear", 8, 0.75, 1.0), _SCHULMAN),
        ),
    },
    "Which rank, and alpha?": {
        "8": Choice(
            "r=8, lora_alpha=16",
            "a form, a style, a task",
            "Two of our tasks reached 100% with it. alpha / r stays at 2, because changing it changes B's rate.",
            (
                Cell(
                    "07_sft_training",
                    'means = [100 * sum(row[way]) / len(row[way]) for way in ("lora", "qlora")]',
                    ("sentiment           0%  100.0%", "summarization       0%  100.0%"),
                ),
                Cell(
                    "02_rank_decomposition",
                    """print(f"{optimizer:4s}  scale x 3 = B's rate x {factor:.0f}, to ten digits: {same}")""",
                    ("adam  scale x 3 = B's rate x 3, to ten digits: True",),
                ),
            ),
        ),
        "16": Choice(
            "r=16, lora_alpha=32, then double it while the held-out score rises",
            "there is more to learn: new words, new facts",
            "On translation the score rose with every doubling up to 16.",
            (_score(300, "all-linear", 4, 0.5, 0.75), _score(300, "all-linear", 16, 0.8, 1.0), _SCHULMAN),
        ),
        "64": Choice(
            "r=64 or more with use_rslora=True",
            "much data and new knowledge, and a rank of 16 is too little",
            "Scaled by alpha / r, a large rank is turned down; by alpha / sqrt(r) it isn't.",
            (
                Cell(
                    "06_loraconfig",
                    'print(f"from r=1 to r=64: 1/r falls by a factor of about {round(fall)}, the root by {flat:.1f}")',
                    ("1/r falls by a factor of about 9, the root by 1.1",),
                ),
                _RSLORA,
            ),
        ),
    },
    "Which learning rate?": {
        "ten": Choice(
            "ten times full fine-tuning's: 2e-4 for a 7B model; try three times less and more",
            "always",
            "LoRA's best rate was 16 times full fine-tuning's here, and about 10 times at scale.",
            (
                Cell(
                    "06_loraconfig",
                    """print(f"r={r:<3} best rate {best}: {best / full_best:.0f} times full fine-tuning's")""",
                    ("r=8   best rate 0.008: 16 times full fine-tuning's",),
                ),
                _SCHULMAN,
            ),
        ),
    },
    "Which variant?": {
        "plain": Choice(
            "plain LoRA; change one thing at a time, and over several seeds",
            "always, to begin with",
            "At equal parameters and best rates, DoRA and QLoRA were level with it; seeds alone moved it by 40 points.",
            (
                _race("LoRA", "translation", 0.6, 0.95),
                _race("DoRA", "translation", 0.6, 0.95),
                _race("QLoRA", "translation", 0.6, 0.95),
                Test(
                    "tests/course/test_claims_proofs.py", "test_c43_the_variants_parameters_by_formula_and_by_counting"
                ),
                _DORA,
            ),
        ),
        "rslora": Choice(
            "rsLoRA, or LoRA with a larger alpha",
            "the rank is raised and there is no time to search the rate again",
            "It is LoRA with alpha times the root of r; at r=8 that was worth 16 points on translation.",
            (_race("rsLoRA", "translation", 0.85, 1.0), _race("LoRA", "translation", 0.6, 0.9), _RSLORA),
        ),
        "vera": Choice(
            "VeRA",
            "thousands of adapters, and storage is what is short",
            "With 14,080 parameters it got 81% of translations right, LoRA with as many (r=1) 9%; a step takes longer.",
            (_race("VeRA r=256", "translation", 0.6, 0.95), _race("LoRA r=1", "translation", 0.0, 0.3)),
        ),
    },
    "Merge, or keep the adapter apart?": {
        "merge": Choice(
            "merge it, into 16 bits: after QLoRA dequantize first",
            "one task, and answers must come fast",
            "Merged, its layers are plain again; beside them, on attention, reading takes 31% longer, a token 24%.",
            (
                _slower("adapter", "batch 1, graph", (), 1.2, 1.28),
                _slower("adapter", "batch 8, eager", ("prefill",), 1.25, 1.37),
                _slower("merge_and_unload", "batch 1, graph", (), 0.995, 1.005),
                Cell(
                    "08_save_load_merge",
                    'print("dequantizing first is at least 20 times closer on every adapter:", factor > 20)',
                    ("dequantizing first is at least 20 times closer on every adapter: True",),
                ),
            ),
        ),
        "apart": Choice(
            "keep it apart",
            "it will be switched off, exchanged, or trained on",
            "Switched off, the base is back to the bit; merging and unmerging in 16 bits leaves a trace.",
            (
                Cell(
                    "08_save_load_merge",
                    'print("in bf16 the error grows with each trip:", worse == sorted(worse))',
                    ("in bf16 the error grows with each trip: True",),
                ),
            ),
        ),
        "many": Choice(
            "one base, many adapters, none merged",
            "several tasks",
            "20 adapters on one 7B base take 15 GB, 20 merged copies 270.",
            (
                Cell(
                    "09_many_adapters",
                    'f"an adapter {one_adapter / 1e6:.0f} MB; 20 adapters on one base {shared / 1e9:.1f} GB, "',
                    ("20 adapters on one base 15.1 GB, 20 copies 270 GB",),
                ),
            ),
        ),
    },
    "And what it forgets?": {
        "measure": Choice(
            "measure it on other texts; lower the rate, train shorter, turn the adapter down, or off outside its task",
            "always",
            "With it on, stories got harder; at 0.8 of it less so, and the task was right; off, they were as before.",
            (
                Cell(
                    "03_a_lora_layer_from_scratch",
                    '"with the adapter off, the base is back exactly:", forgotten["LoRA off"] == forgotten["base"]',
                    (
                        "with the adapter off, the base is back exactly: True",
                        "with the adapter on, stories got harder: True",
                    ),
                ),
                Cell(
                    "12_variants",
                    'print("at 0.8 at least 95% are right:", down[0.8].task >= 0.95)',
                    ("at 0.8 at least 95% are right: True", "and less than half of the forgetting is left: True"),
                ),
                _BIDERMAN,
            ),
        ),
    },
}
"""Every answer that the guide knows, by question and a short key."""


# ------------------------------------------------------------------------------------------------------- the guide


def needed_gb(billions: float, bytes_a_parameter: float) -> float:
    """GB that so many billion parameters take. Raises ValueError for a size or a count that isn't positive.

    >>> needed_gb(7, 16)
    112
    """
    if billions <= 0 or bytes_a_parameter <= 0:
        raise ValueError(f"a model has more than 0 parameters and bytes, not {billions} and {bytes_a_parameter}")
    return billions * bytes_a_parameter


def advise(
    *,
    billions: float,
    card_gb: float,
    examples: int,
    new_knowledge: bool = False,
    tasks: int = 1,
    fast_answers: bool = False,
    users: int = 1,
) -> list[Advice]:
    """What to choose for a model of so many `billions` of parameters on a card of `card_gb`, question by question.

    examples: how many there are to train on. new_knowledge: whether they teach more than a form or a style. tasks: how
    many adapters the same base will carry. fast_answers: whether latency matters. users: how many adapters have to be
    stored, one for each user. Raises ValueError for a size, a card or a count that isn't positive.
    """
    given = {"billions": billions, "card_gb": card_gb, "examples": examples, "tasks": tasks, "users": users}
    for name, value in given.items():
        if value <= 0:
            raise ValueError(f"{name} must be more than 0, not {value}")
    room = SHARE * card_gb
    much = new_knowledge and examples >= MUCH_DATA
    full = much and needed_gb(billions, FULL_BYTES + ACTIVATION_BYTES) <= room
    in_16, in_4 = (needed_gb(billions, size + CHECKPOINTED_BYTES) <= room for size in (HALF_BYTES, FOUR_BIT_BYTES))
    base = "16" if in_16 else "4" if in_4 else "none"
    held = HALF_BYTES if in_16 else FOUR_BIT_BYTES
    picked = {
        "LoRA or full fine-tuning?": "full" if full else "lora",
        "The base in 16 bits or in 4?": base,
        "Activation checkpointing?": "off" if needed_gb(billions, held + ACTIVATION_BYTES) <= room else "on",
        "Which layers?": "all",
        "Which rank, and alpha?": "64" if much else "16" if new_knowledge else "8",
        "Which learning rate?": "ten",
        "Which variant?": "vera" if users >= MANY_USERS else "rslora" if much else "plain",
        "Merge, or keep the adapter apart?": "many" if tasks > 1 else "merge" if fast_answers else "apart",
        "And what it forgets?": "measure",
    }
    return [Advice(question, CHOICES[question][key]) for question, key in picked.items()]


def cite(evidence: Evidence) -> str:
    """A link to a piece of evidence, in Markdown, as seen from a notebook's folder."""
    if isinstance(evidence, Source):
        return f"[{evidence.text}]({evidence.url})"
    if isinstance(evidence, Cell):
        return f"[chapter {int(evidence.lesson[:2])}]({evidence.lesson}.ipynb): “{' '.join(evidence.shows[0].split())}”"
    if isinstance(evidence, Test):
        return f"[{evidence.file}](../{evidence.file})"
    from utils.course.claims import hardware, measured

    value = measured(evidence) / evidence.scale
    unit = f" {evidence.unit}" if evidence.unit else ""
    name = evidence.file.rpartition("/")[2]
    return f"[{name}](../{evidence.file}), {hardware(evidence)}: {evidence.what} {value:.3g}{unit}"


def short_link(evidence: Evidence) -> str:
    """The shortest link to a piece of evidence, in Markdown: its chapter, file or paper."""
    if isinstance(evidence, Source):
        return f"[{evidence.text.partition(',')[0]}{evidence.text[-6:]}]({evidence.url})"
    if isinstance(evidence, Cell):
        return f"[chapter {int(evidence.lesson[:2])}]({evidence.lesson}.ipynb)"
    return f"[{evidence.file.rpartition('/')[2]}](../{evidence.file})"


def as_table(advice: list[Advice]) -> str:
    """The advice as a table in Markdown: question, choice, why, evidence."""
    rows = [
        f"| {a.question} | **{a.choice.answer}** | {a.choice.why} | {'; '.join(map(cite, a.choice.evidence))} |"
        for a in advice
    ]
    return "\n".join(["| question | choose | why | evidence |", "|---|---|---|---|", *rows])


def whole_guide() -> str:
    """Every choice that the guide knows, as a table in Markdown: question, when, then, and links to what backs it."""
    rows = [
        f"| {question if i == 0 else ''} | {choice.when} | {choice.answer} | "
        f"{', '.join(dict.fromkeys(map(short_link, choice.evidence)))} |"
        for question, choices in CHOICES.items()
        for i, choice in enumerate(choices.values())
    ]
    return "\n".join(["| question | when | then | backed by |", "|---|---|---|---|", *rows])


MANY_USERS = 1000
"""From so many adapters on, what they take on disk may decide."""
