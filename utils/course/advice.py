"""The decision guide: what to choose, when, and the measurement behind it.

Each :class:`Choice` carries its evidence: a cell of a lesson, a test, a recorded measurement, or a paper where the
course can't measure it. The tests hold every piece of evidence to what it is quoted for, as they do for the claims
ledger, so that advice without a ground to stand on fails the build.

Attributes:
    CHOICES: Every answer that the guide knows, by question and a short key.
    RANKS: The rank of each answer to "Which rank, and alpha?".
    MANY_USERS: From so many adapters on, what they take on disk may decide.
    EXPERTS: The fields in which configurations say how many experts a block has.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.course.claims import Cell, Record, Test
from utils.models.configs import shape_of
from utils.profiling.fit import card_bytes, first_that_fits, needed
from utils.profiling.memory import GB, Prediction, Setup, config_of, predict
from utils.train.settings import usual_rate

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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
    """A question, the choice that was made, and its answer for this model: the choice's own, or a computed one."""

    question: str
    choice: Choice
    answer: str


class Plan(NamedTuple):
    """What to choose, question by question, and the run that comes of it.

    model: which shape was predicted, in words. run: the training step that fits, or None where none does. needs: the
    bytes that it needs by the estimator, safety margin included. room: the bytes of the card.
    """

    advice: list[Advice]
    model: str
    run: Setup | None
    needs: int | None
    room: int

    @property
    def summary(self) -> str:
        """The run and what it needs, in a sentence."""
        if self.run is None or self.needs is None:
            return f"No way to train {self.model} fits on {self.room / GB:g} GB."
        way = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[self.run.method]
        with_it = " with checkpointing" if self.run.checkpointing else ""
        return (
            f"{way} of {self.model}{with_it}, {self.run.batch} x {self.run.length} tokens a step: "
            f"{self.needs / GB:.1f} of {self.room / GB:g} GB by the estimator."
        )


# ---------------------------------------------------------------------------------------------------- the evidence

_LOADING, _LATENCY, _SWEEP, _ALPHA, _TECHNIQUES, _BATCH = (
    f"assets/measurements/{name}.json"
    for name in ("loading_7b", "latency_gpu", "rank_sweep", "alpha_rule", "techniques", "batch_size")
)
_LORA = "LoRA r=8 q,k,v,o"

_SCHULMAN = Source("Schulman et al., LoRA Without Regret, 2025", "https://thinkingmachines.ai/blog/lora/")
_COOKBOOK = Source(
    "Thinking Machines, tinker-cookbook's get_lr, 2025", "https://github.com/thinking-machines-lab/tinker-cookbook"
)
_BIDERMAN = Source("Biderman et al., LoRA Learns Less and Forgets Less, 2024", "https://arxiv.org/abs/2405.09673")
_DORA = Source("Liu et al., DoRA, 2024", "https://arxiv.org/abs/2402.09353")
_QLORA = Source("Dettmers et al., QLoRA, 2023", "https://arxiv.org/abs/2305.14314")


_VARIANTS = "assets/measurements/variants.json"
_REMEDIES = "assets/measurements/remedies.json"


def _race(entry: str, task: str, low: float, high: float) -> Record:
    path = ("results", {"entry": entry, "task": task}, "test_mean")
    return Record(_VARIANTS, path, low, high, f"{entry} on {task}, twelve seeds at the rate that five others chose,")


def _kept(remedy: str, low: float, high: float) -> Record:
    row = {"target": 0.95, "task": "style", "method": "LoRA", "remedy": remedy}
    return Record(_REMEDIES, ("chosen", row, "stories_mean"), low, high, f"stories after style, six seeds, {remedy},")


def _peak(base: str, checkpointing: bool, low: float, high: float) -> Record:
    with_it = "with" if checkpointing else "without"
    return Record(
        _LOADING, ("rows", {"base": base, "trains": _LORA, "checkpointing": checkpointing}, "peak"), low, high,
        f"peak of a step, base in {base}, {with_it} checkpointing,", scale=1e9, unit="GB",
    )  # fmt: skip


def _pieces(value: tuple[str, ...], low: float, high: float, what: str) -> Record:
    def path(key: str) -> tuple:
        return ("rows", {"key": key}, *value)

    return Record(_TECHNIQUES, path("accumulation, 4 pieces"), low, high, what, over=path("unchanged"))


def _score(steps: int, targets: str, r: int | None, low: float, high: float) -> Record:
    rank = "" if r is None else f" r={r}"
    return Record(
        _SWEEP, ("rows", {"steps": steps, "targets": targets, "r": r}, "test_mean"), low, high,
        f"right translations after {steps} steps, {targets}{rank},",
    )  # fmt: skip


def _by_batch(size: int, r: int | None, low: float, high: float) -> Record:
    which = {"batch_size": size, **({"targets": "full fine-tuning"} if r is None else {"r": r})}
    who = "full fine-tuning" if r is None else f"LoRA r={r}"
    what = f"right translations after 15,360 examples in batches of {size}, {who},"
    return Record(_BATCH, ("rows", which, "test_mean"), low, high, what)


def _best_rate(rule: str, r: int, rate: float) -> Record:
    path = ("rows", {"rule": rule, "r": r}, "lr_by_loss")
    return Record(_ALPHA, path, rate, rate, f"learning rate with the lowest held-out loss, {rule}, r={r},")


def _slower(form: str, key: str, phase: tuple[str, ...], low: float, high: float) -> Record:
    def path(which: str) -> tuple:
        return ("rows", {"key": f"q,k,v,o, {key}"}, "times", which, *phase, "median")

    return Record(_LATENCY, path(form), low, high, f"{' '.join(phase)} {key}, {form} over base,", over=path("base"))


# ----------------------------------------------------------------------------------------------------- the choices

CHOICES: dict[str, dict[str, Choice]] = {
    "LoRA or full fine-tuning?": {
        "lora": Choice(
            "LoRA",
            "full fine-tuning in float32 doesn't fit, or there is little to learn: a form, a style",
            "On a style it came within two points of full fine-tuning, on translation it stayed 18 behind. A 7B step "
            "takes 17 GB with checkpointing, 36 without; full fine-tuning takes 146.",
            (
                Cell(
                    "20_capstone",
                    'print(f"{way:20} " + ", ".join(f"{name} {gb[way]:5.1f} GB" for name, gb in needs.items()))',
                    (
                        "full, float32        Llama-3.2-1B  30.2 GB, Llama-2-7B 146.4 GB",
                        "LoRA                 Llama-3.2-1B  12.6 GB, Llama-2-7B  36.0 GB",
                        "LoRA, checkpointing  Llama-3.2-1B   7.2 GB, Llama-2-7B  17.2 GB",
                    ),
                ),
                _race("LoRA", "style", 0.96, 1.0),
                _race("full fine-tuning", "style", 0.97, 1.0),
                _race("LoRA", "translation", 0.7, 0.9),
                _race("full fine-tuning", "translation", 0.97, 1.0),
            ),
        ),
        "full": Choice(
            "full fine-tuning, with LoRA beside it for comparison",
            "it fits in float32, there is much data, and it is new knowledge",
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
                    ("rows", {"base": "NF4, double quantization", "checkpointing": True}, "milliseconds"),
                    1.3,
                    1.8,
                    "a step in 4 bits over one in 16, with checkpointing,",
                    over=("rows", {"base": "bf16", "trains": _LORA, "checkpointing": True}, "milliseconds"),
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
                    "06_loading_models",
                    'print(f"{task:14} exact match {scores[0]:5.1f}% in 16 bits, {scores[1]:5.1f}% in 4")',
                    ("translation    exact match 100.0% in 16 bits,  98.0% in 4",),
                ),
                _QLORA,
            ),
        ),
        "none": Choice(
            "neither: take a smaller model, shorter sequences or a larger card",
            "even 4 bits, checkpointing and one sequence don't fit",
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
            "the step fits without",
            "It makes a step nearly half as long again.",
            (
                Record(
                    _LOADING,
                    ("rows", {"base": "bf16", "trains": _LORA, "checkpointing": True}, "milliseconds"),
                    1.3,
                    1.8,
                    "a step with checkpointing over one without",
                    over=("rows", {"base": "bf16", "trains": _LORA, "checkpointing": False}, "milliseconds"),
                ),
            ),
        ),
        "on": Choice(
            "on",
            "it doesn't",
            "It brings the peak of a 7B step from 27.5 GB down to 15.",
            (_peak("bf16", False, 26.5e9, 28.5e9), _peak("bf16", True, 14.5e9, 15.5e9)),
        ),
    },
    "How many sequences at once?": {
        "planned": Choice(
            "as many as planned",
            "they fit",
            "Four sequences one after the other took more than three times as long as four at once.",
            (_pieces(("milliseconds", "median"), 3, 4, "a step in four pieces over one in one piece, milliseconds,"),),
        ),
        "one": Choice(
            "one, and accumulate the gradients of as many as planned",
            "only one fits",
            "A step then holds one sequence's activations; the gradient is the same if the model counts labels.",
            (
                _pieces(("peak",), 0.55, 0.7, "peak of a step in four pieces over one in one piece,"),
                Test(
                    "tests/course/test_claims_proofs.py",
                    "test_only_a_model_that_accepts_the_count_gets_the_large_batchs_gradient",
                ),
            ),
        ),
    },
    "How many sequences in one optimizer step?": {
        "small": Choice(
            "8 to 32, accumulated where memory holds fewer",
            "always",
            "After equally many examples in batches of 256, LoRA had learned next to nothing; at 16 and 64 all of it.",
            (
                _by_batch(16, 16, 0.95, 1.0),
                _by_batch(64, 16, 0.95, 1.0),
                _by_batch(256, 16, 0.0, 0.1),
                _by_batch(256, None, 0.9, 1.0),
                _SCHULMAN,
            ),
        ),
    },
    "Which layers?": {
        "all": Choice(
            'all linear layers: target_modules="all-linear"',
            "the model is dense",
            "At equal parameters, attention alone learns much less; the MLP matters most.",
            (_score(300, "q,v", 42, 0.0, 0.1), _score(300, "all-linear", 8, 0.75, 1.0), _SCHULMAN),
        ),
        "experts": Choice(
            "all linear layers and the experts: LoraConfig(**propose_targets(model).fields), which fills in "
            "target_parameters; lora_dropout=0",
            "a mixture of experts",
            'Experts are parameters, not layers, so "all-linear" adapts attention alone, without a word from PEFT.',
            (
                Test(
                    "tests/lora/test_target_modules.py",
                    "test_of_gpt_oss_the_proposals_fields_train_the_experts_and_its_targets_alone_warn",
                ),
                _SCHULMAN,
            ),
        ),
    },
    "Which rank, and alpha?": {
        "8": Choice(
            "r=8, lora_alpha=16",
            "a form, a style, a task",
            "Two of our tasks reached 100% with it; r=16, chapter 8's start for an unknown task, takes twice the room. "
            "alpha / r stays at 2, because changing it changes B's rate.",
            (
                Test("tests/train/test_sft.py", "test_two_tasks_are_learned_whole_at_rank_8_by_every_seed"),
                Cell(
                    "03_the_lora_update",
                    """print(f"{optimizer:4s}  scale x 3, or B's learning rate x {factor:.0f}: """
                    """{gap:.{digits}f} apart")""",
                    ("adam  scale x 3, or B's learning rate x 3: 0.0000000000 apart",),
                ),
            ),
        ),
        "16": Choice(
            "r=16, lora_alpha=32, then double it while the dev loss gets lower",
            "there is more to learn: new words, new facts",
            "On translation the score rose with every doubling up to 16.",
            (_score(300, "all-linear", 4, 0.5, 0.75), _score(300, "all-linear", 16, 0.8, 1.0), _SCHULMAN),
        ),
        "64": Choice(
            "r=64, lora_alpha=32 and the learning rate of r=16; or lora_alpha=128 and half that rate",
            "much data and new knowledge, and a rank of 16 is too little",
            "With one alpha the best rate was the same from rank 2 to 64; with alpha at 2r it was half of rank 16's.",
            (
                _best_rate("alpha = 32", 16, 0.004),
                _best_rate("alpha = 32", 64, 0.004),
                _best_rate("alpha = 2r", 64, 0.002),
                _SCHULMAN,
            ),
        ),
    },
    "Which learning rate?": {
        "lora": Choice(
            "by the model's width: 2e-4 at 3,584, 8e-4 at 576; try three times less and more",
            "LoRA",
            "LoRA's best rate was 4 to 16 times full fine-tuning's here, about 10 times at scale; in Llama models it "
            "falls with width, in Qwen models hardly.",
            (
                Record(
                    _SWEEP,
                    ("rows", {"steps": 300, "targets": "all-linear", "r": 8}, "lr"),
                    4.0,
                    16.0,
                    "best rate of LoRA, r=8, over full fine-tuning's,",
                    over=("rows", {"steps": 300, "targets": "full fine-tuning"}, "lr"),
                ),
                _SCHULMAN,
                _COOKBOOK,
            ),
        ),
        "full": Choice(
            "a tenth of LoRA's: 2e-5 at a width of 3,584; and LoRA's for the LoRA beside it",
            "full fine-tuning",
            "Every weight moves, and on translation the best rate was a quarter to a sixteenth of LoRA's.",
            (
                Record(
                    _SWEEP,
                    ("rows", {"steps": 300, "targets": "full fine-tuning"}, "lr"),
                    1 / 16,
                    1 / 4,
                    "best rate of full fine-tuning over LoRA's, r=8,",
                    over=("rows", {"steps": 300, "targets": "all-linear", "r": 8}, "lr"),
                ),
                _SCHULMAN,
            ),
        ),
    },
    "Which variant?": {
        "plain": Choice(
            "plain LoRA; change one thing at a time, and over several seeds",
            "always, to begin with",
            "At equal parameters, each at its own rate, no variant was surely ahead; seeds moved LoRA by 36 points.",
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
                    "10_save_load_merge",
                    "for count in (60, 180):",
                    ("dequantized, bf16           8 tokens, answers lost   1, won   0",),
                ),
            ),
        ),
        "apart": Choice(
            "keep it apart",
            "it will be switched off, exchanged, or trained on",
            "Switched off, the base is back to the bit; merging and unmerging in 16 bits leaves a trace.",
            (
                Cell(
                    "10_save_load_merge",
                    'print("relative error of the base after 1, 10, 30 round trips (1e-07: that or less)")',
                    ("bfloat16     2e-03    3e-03    7e-03",),
                ),
            ),
        ),
        "many": Choice(
            "one base, many adapters, none merged",
            "several tasks",
            "20 adapters on one 7B base take 15 GB, 20 merged copies 270.",
            (
                Cell(
                    "11_many_adapters",
                    'print(f"an adapter {each / 1e6:.0f} MB, 20 on a base {shared / 1e9:.1f} GB, '
                    '20 copies {copies / 1e9:.0f} GB")',
                    ("20 on a base 15.1 GB, 20 copies 270 GB",),
                ),
            ),
        ),
    },
    "And what it forgets?": {
        "measure": Choice(
            "measure it on other texts; then a lower learning rate, a large weight decay on A and B, the adapter "
            "turned down, or off outside its task",
            "always",
            "Weight decay held stories at 1.65 where a lower rate left 1.86 (base 1.61). At 0.8 of its strength an "
            "adapter kept its exact match and lost most of its damage; off, all.",
            (
                Cell(
                    "04_a_lora_layer_from_scratch",
                    """print("perplexity with the adapter off, minus the base's:", off - before)""",
                    ("perplexity with the adapter off, minus the base's: 0.0",),
                ),
                _kept("weight decay", 1.6, 1.7),
                _kept("rate", 1.8, 1.95),
                Cell(
                    "20_capstone",
                    """for strength, shown in (("1", runs), ("0.8", [row["by_factor"]["0.8"] for row in runs])):""",
                    (
                        "strength 1    100% 2.07   100% 2.28    99% 2.40",
                        "strength 0.8  100% 1.77   100% 1.80    99% 1.88",
                    ),
                ),
                _BIDERMAN,
            ),
        ),
    },
}


# ------------------------------------------------------------------------------------------------------- the guide


RANKS = {"8": 8, "16": 16, "64": 64}


def advise(
    model: str | Path | PretrainedConfig | float,
    *,
    card_gb: float,
    examples: int,
    batch: int = 4,
    length: int = 512,
    new_knowledge: bool = False,
    tasks: int = 1,
    fast_answers: bool = False,
    users: int = 1,
) -> Plan:
    """What to choose for a model on a card of `card_gb` GB, question by question, and the run that comes of it.

    Whether something fits is what :func:`utils.profiling.memory.predict` says of the very run that is advised, on all
    linear layers, with the safety margin of :func:`utils.profiling.fit.needed`. It takes some seconds.

    model: as in :class:`utils.profiling.memory.Setup`; or how many billion parameters it has, for which
    :func:`utils.models.configs.shape_of` finds a known shape. batch, length: sequences of a step, and tokens in each.
    examples: how many there are to train on. new_knowledge: whether they teach more than a form or a style. tasks: how
    many adapters the same base will carry. fast_answers: whether latency matters. users: how many adapters have to be
    stored, one for each user. From 1,000 on the advice is VeRA, whose step is predicted as LoRA's. The learning rate is
    that of :func:`utils.train.settings.usual_rate` for the model's width.

    Raises ValueError for a number that isn't positive and for a model that is larger than every known shape.
    """
    given = {"examples": examples, "tasks": tasks, "users": users}
    for name, value in {"card_gb": card_gb, **given}.items():
        if not value > 0:
            raise ValueError(f"{name} must be more than 0, not {value}")
    shape = shape_of(model) if isinstance(model, int | float) else model
    config = config_of(shape).get_text_config()
    much = new_knowledge and examples >= MUCH_DATA
    rank = "64" if much else "16" if new_knowledge else "8"
    room = card_bytes(card_gb)
    planned = Setup(shape, "lora", batch, length, r=RANKS[rank])
    found = (_full(planned, room) if much else None) or first_that_fits(planned, room)
    run, needs = (found[0], needed(found[1].peak)) if found else (None, None)
    picked = {
        "LoRA or full fine-tuning?": "full" if run is not None and run.method == "full" else "lora",
        "The base in 16 bits or in 4?": "none" if run is None else "4" if run.method == "qlora" else "16",
        "Activation checkpointing?": "off" if run is not None and not run.checkpointing else "on",
        "How many sequences at once?": "planned" if run is not None and run.batch == batch else "one",
        "How many sequences in one optimizer step?": "small",
        "Which layers?": "experts" if _has_experts(config) else "all",
        "Which rank, and alpha?": rank,
        "Which learning rate?": "full" if run is not None and run.method == "full" else "lora",
        "Which variant?": "vera" if users >= MANY_USERS else "plain",
        "Merge, or keep the adapter apart?": "many" if tasks > 1 else "merge" if fast_answers else "apart",
        "And what it forgets?": "measure",
    }
    computed = {"Which learning rate?": _rate(config.hidden_size, picked["Which learning rate?"] == "full", much)}
    advice = [
        Advice(question, choice := CHOICES[question][key], computed.get(question, choice.answer))
        for question, key in picked.items()
    ]
    return Plan(advice, _in_words(model, shape), run, needs, room)


def _rate(width: int, full: bool, much: bool) -> str:
    """The learning rate to begin with, in words, for a model of this hidden size: :func:`usual_rate`'s, by width."""
    rate = usual_rate("7b", width)
    around = "try a third of it and three times it"
    if full:
        return f"{_short(rate / 10)} for a width of {width:,}, a tenth of LoRA's {_short(rate)}; {around}"
    half = f", {_short(rate / 2)} with r=64 and lora_alpha=128" if much else ""
    return f"{_short(rate)} for a width of {width:,}{half}; {around}"


def _short(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _has_experts(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a mixture of experts, by the names that transformers gives their number."""
    return any((getattr(config, name, None) or 0) > 1 for name in EXPERTS)


def _full(planned: Setup, room: int) -> tuple[Setup, Prediction] | None:
    """Full fine-tuning in float32 of the same step, with checkpointing where it doesn't fit without; None: neither."""
    for checkpointing in (False, True):
        run = dataclasses.replace(planned, method="full", dtype="float32", checkpointing=checkpointing)
        if needed((prediction := predict(run)).peak) <= room:
            return run, prediction
    return None


def _in_words(model: str | Path | PretrainedConfig | float, shape: str | Path | PretrainedConfig) -> str:
    if isinstance(model, int | float):
        return f"{shape} (the known shape that was taken for {model:g} billion parameters)"
    return str(model) if isinstance(model, str | Path) else f"a {type(model).__name__.removesuffix('Config')}"


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


def as_table(plan: Plan) -> str:
    """A plan in Markdown: the run in a sentence, then a table of question, choice, why, evidence."""
    rows = [
        f"| {a.question} | **{a.answer}** | {a.choice.why} | {'; '.join(map(cite, a.choice.evidence))} |"
        for a in plan.advice
    ]
    return "\n".join([plan.summary, "", "| question | choose | why | evidence |", "|---|---|---|---|", *rows])


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
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
