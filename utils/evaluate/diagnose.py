"""What to look at when a run goes wrong: a chart of the training, the vital signs, and what they say.

A *chart* holds the loss and the gradient norm of every step. The *signs* are what can be read off a chart, a model and
a batch in a second. :func:`examine` compares them with what a healthy LoRA run has and says, in words, what is off; it
is silent about a healthy one. It looks at causes, so it finds them before the hours of training are spent.

Attributes:
    TAIL: The last loss of a chart is the mean of so many steps.
    JUMP, NORM_JUMP: What a rate that is too high does: the loss climbs from its lowest value so far by this share of
        the first loss, or the gradient norm reaches so many times its first value.
    LITTLE: Nats per token: a run that begins below has little left to learn.
    STUCK: A loss that keeps so large a share of its first value has not moved.
    START: The first loss with a new adapter is the base's; 16-bit arithmetic is off by less than this share.
    ENOUGH: So many steps are needed to call a loss stuck.
    WORSE: A held-out loss that ends by this share above its lowest value is overfitting's, and by as many nats at least
        as a twentieth.
    BENEATH: By so much, as a share of their size, 16-bit rounding doesn't change weights; another base does.
    LAST, REPEATS: An answer repeats itself where, of so many words at its end, a smaller share than this is new there.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from utils.data.chat import IGNORED, render, token_id
from utils.data.records import Record
from utils.data.report import data_report
from utils.lora.checkpoint import fitting_adapter
from utils.lora.target_modules import expert_parameters
from utils.tinyworld.rewarded import distinct, spoken
from utils.train.loop import (
    MAX_GRAD_NORM,
    WARMUP_STEPS,
    Diverged,
    Stepper,
    check_positive,
    in_mode,
    learning_rate_factor,
    seeded,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAIL = 5
JUMP, NORM_JUMP = 0.35, 20.0
LITTLE = 0.5
STUCK = 0.9
START = 0.02
ENOUGH = 20
WORSE = 0.1
BENEATH = 0.01
LAST, REPEATS = 24, 0.5


class Chart(NamedTuple):
    """A run's record. losses: nats per label, one a step; norms: the gradient's norm before clipping; dev: pairs of a
    number of steps taken and the loss on held-out examples then, where there are such.
    """

    losses: list[float]
    norms: list[float]
    dev: Sequence[tuple[int, float]] = ()


def watched(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    lr: float,
    steps: int,
    warmup: int = WARMUP_STEPS,
    max_grad_norm: float | None = MAX_GRAD_NORM,
    seed: int = 0,
    dev: Mapping[str, Tensor] | None = None,
    every: int = 10,
) -> Chart:
    """Train as :func:`utils.train.loop.train` does, refuse nothing, and keep the chart.

    `batches` may be sick ones, or fewer than the `steps` that the rate is planned for: one may stop early. What comes
    after so many is left alone.
    `max_grad_norm` None clips nothing, `warmup` 0 begins at the full rate. A model without a trainable parameter runs
    too, provided that something in its graph requires a gradient, as in transformers' Trainer. Where
    :func:`utils.train.loop.train` would raise Diverged, the run ends, and the last norm of the chart is not a number.
    `dev`: a held-out batch whose loss, without dropout, goes into the chart before the first step, after `every` steps,
    and at the end. Raises ValueError for a `lr`, `steps` or `every` that isn't positive.
    """
    check_positive(steps=steps, lr=lr, every=every)
    device = next(model.parameters()).device
    stepper = Stepper(
        model, lr=lr, schedule=lambda step: learning_rate_factor(step, steps, warmup), max_grad_norm=max_grad_norm
    )
    held_out: list[tuple[int, float]] = []
    chart = Chart([], [], held_out)

    def look() -> None:
        if dev is not None and (not held_out or held_out[-1][0] < len(chart.losses)):
            held_out.append((len(chart.losses), _loss(model, dev)))

    with seeded(seed, model), in_mode(model, True):
        for batch in islice(batches, steps):  # beyond `steps` the planned rate is zero, and then negative
            if len(chart.losses) % every == 0:
                look()
            loss = model(**{k: v.to(device) for k, v in batch.items()}).loss
            chart.losses.append(loss.item())
            try:
                chart.norms.append(stepper.step(loss))
            except Diverged:
                chart.norms.append(math.nan)
                break
            finally:
                stepper.clear()
        look()
    return chart


@torch.no_grad()
def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    device = next(model.parameters()).device
    with in_mode(model, False):
        return model(**{k: v.to(device) for k, v in batch.items()}).loss.item()


def chart_of(history: Iterable[Mapping[str, Any]]) -> Chart:
    """The chart of a run by transformers' Trainer or TRL's, from ``trainer.state.log_history``.

    Set ``logging_steps=1``: otherwise a loss is the mean of several steps, and what :data:`ENOUGH` counts are these.
    Raises ValueError when no loss was logged.
    """
    rows = list(history)
    logged = [row for row in rows if "loss" in row]
    if not logged:
        raise ValueError("the history holds no loss: train first, with logging_steps=1")
    dev = [(int(row["step"]), float(row["eval_loss"])) for row in rows if "eval_loss" in row]
    norms = [float(row.get("grad_norm", math.nan)) for row in logged]
    return Chart([float(row["loss"]) for row in logged], norms, dev)


# ----------------------------------------------------------------------------------------------------- vital signs


Trend = Literal["fell", "flat", "jumped"]


class Signs(NamedTuple):
    """The vital signs of a run that began with a new adapter.

    trainable: parameters that require a gradient. trend: what the chart does, see :func:`trend`. share: labels learnt,
    of all positions of a batch (0 to 1). padding: positions of padding that are learnt. eos: whether an EOS is
    learnt.
    """

    trainable: int
    trend: Trend
    share: float
    padding: int
    eos: bool


def trend(chart: Chart) -> Trend:
    """What the loss does: "fell"; "flat", over :data:`ENOUGH` steps or more; or "jumped", when the loss or the gradient
    was thrown far up, wherever it went from there.

    A run that began with little left to learn, below :data:`LITTLE`, isn't called flat, nor is a wobble there called a
    jump. Raises ValueError for a chart without a step.
    """
    if not chart.losses:
        raise ValueError("the chart is empty: train for at least one step")
    losses, norms, _ = chart
    if not all(map(math.isfinite, [*losses, *norms])):
        return "jumped"
    climb = max(loss - lowest for loss, lowest in zip(losses, accumulate(losses, min), strict=True))
    if climb > JUMP * max(losses[0], LITTLE) or max(norms) > NORM_JUMP * max(norms[0], LITTLE):
        return "jumped"
    stuck = len(losses) >= ENOUGH and losses[0] > LITTLE and fmean(losses[-TAIL:]) > STUCK * losses[0]
    return "flat" if stuck else "fell"


def _unmasked(batch: Mapping[str, Tensor]) -> Tensor:
    """What the attention mask lets through, (batch, length); a packed batch has no mask, and no padding to hide."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def labels_signs(batch: Mapping[str, Tensor], eos_id: int) -> tuple[float, int, bool]:
    """Of a batch: the share of positions that are learnt, how many of them are padding, whether an EOS is learnt.

    Padding is what the attention mask hides; so an EOS that serves as padding isn't taken for one.
    """
    learnt = batch["labels"] != IGNORED
    hidden = ~_unmasked(batch)
    eos = bool(((batch["labels"] == eos_id) & ~hidden).any())
    return float(learnt.float().mean()), int((learnt & hidden).sum()), eos


def vital_signs(chart: Chart, model: nn.Module, batch: Mapping[str, Tensor], eos_id: int) -> Signs:
    """The signs of a run: its chart, the model that was trained and one of its batches.

    Raises what :func:`trend` raises.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Signs(trainable, trend(chart), *labels_signs(batch, eos_id))


def applied_scaling(
    before: Float[Tensor, "d_out d_in"],
    after: Float[Tensor, "d_out d_in"],
    lora_A: Float[Tensor, "r d_in"],
    lora_B: Float[Tensor, "d_out r"],
) -> float:
    """How many times ``lora_B @ lora_A`` was added to get from the weight `before` to `after`, by least squares.

    Raises ValueError when the product is zero throughout: an untrained adapter leaves no trace.
    """
    product = (lora_B.double() @ lora_A.double()).flatten()
    size = product @ product
    if size == 0:
        raise ValueError("lora_B @ lora_A is zero throughout, so nothing shows how often it was added: is it trained?")
    return float((after.double() - before.double()).flatten() @ product / size)


# --------------------------------------------------------------------------------------------------------- findings


class Finding(NamedTuple):
    """Something that is off. sign: its name, in few words; text: what was seen, and what to do."""

    sign: str
    text: str


def examine(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch: Mapping[str, Tensor] | None = None,
    chart: Chart | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    base: nn.Module | None = None,
    adapter: str | Path | None = None,
    records: Sequence[Record] | None = None,
    held_out: Sequence[Record] | None = None,
    answers: Sequence[str] | None = None,
) -> list[Finding]:
    """What is off with a run or with a model that answers; an empty list when nothing is.

    Each argument opens further checks. `batch`, a training batch: the labels, what is trainable and in which precision,
    merged layers, experts that no adapter reaches. `chart`: the losses and the norms, and held-out losses that rise.
    `inputs`: padding and template of prompts that are about to be continued, held against `batch` where there is one
    and against the chat template otherwise, whether generation ends at the tokenizer's EOS, dropout. `base` (the plain
    base, fresh from its files) with `adapter` (a folder): how often the correction is in the weights, and whether this
    base is beneath it. `base` with `batch`: tokens that the base doesn't have and whose embeddings don't train; with
    `chart` as well: a new adapter changes nothing, so the first loss is the base's; the batch must be the run's first,
    and dropout 0. `records` to train on: special tokens written out in them; with `held_out` ones: prompts that are in
    both. `answers` that the model sampled: whether most of them say the same words again and again. The LoRA layers of
    a PEFT model are always held against its config. Raises ValueError when `adapter` is given
    without `base`, or `held_out` without `records`, and what :func:`utils.lora.checkpoint.fitting_adapter` and
    :func:`utils.data.report.data_report` raise.
    """
    if adapter is not None and base is None:
        raise ValueError("adapter needs base too: the plain base, fresh from its files, to compare the weights with")
    if held_out is not None and records is None:
        raise ValueError("held_out needs records too: what is trained on, to look for the held-out prompts in")
    found = _config(model)
    if records is not None:
        found += _data(records, held_out, tokenizer)
    if batch is not None:
        found += _trainable(model) + _labels(batch, token_id(tokenizer, "eos"))
    new_tokens = []
    if batch is not None and base is not None:
        new_tokens = _unknown(batch, base)
        found += _tokens(model, base, tokenizer, new_tokens)
    if chart is not None:
        found += _losses(chart)
    if chart is not None and batch is not None and base is not None and not new_tokens:
        found += _start(chart, batch, base)
    if inputs is not None:
        found += _padding(inputs)
        found += _chat_form(inputs, tokenizer) if batch is None else _trained_form(inputs, batch, tokenizer)
        found += _stops(model, tokenizer) + _dropout(model)
    if base is not None and adapter is not None:
        found += _strength(model, base, adapter)
    if answers is not None:
        found += _repeats(answers)
    return found


def _peft_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_delta_weight")]


def _config(model: nn.Module) -> list[Finding]:
    """The tensors and the scaling of a PEFT model's layers against what its config says."""
    wrong: dict[str, str] = {}
    for name, layer in _peft_layers(model):
        for adapter, matrix in layer.lora_A.items():
            config = cast(Any, model).peft_config[adapter]
            if config.rank_pattern or config.alpha_pattern:
                continue
            # An adapter of experts' weights holds one pair for each expert, in one matrix.
            rows, asked = matrix.weight.shape[0] // max(1, getattr(layer, "num_experts", 1)), config.r
            expected = config.lora_alpha / (math.sqrt(asked) if config.use_rslora else asked)
            if rows != asked:
                wrong.setdefault(
                    "config changed",
                    f"the config says r={asked}, but {name}.lora_A has {rows} rows. A config that is changed after "
                    "get_peft_model changes nothing: make the model anew",
                )
            elif not math.isclose(layer.scaling[adapter], expected, rel_tol=1e-6):
                wrong.setdefault(
                    "scaling",
                    f"{name} multiplies its correction by {layer.scaling[adapter]:g}; the config's lora_alpha and r "
                    f"give {expected:g}",
                )
    return [Finding(sign, text) for sign, text in wrong.items()]


def _trainable(model: nn.Module) -> list[Finding]:
    if not any(p.requires_grad for p in model.parameters()):
        return [
            Finding(
                "nothing trainable",
                "no parameter requires a gradient, so nothing can be learnt. PeftModel.from_pretrained needs "
                "is_trainable=True; a model that you froze yourself, freeze before get_peft_model",
            )
        ]
    found = []
    layers = _peft_layers(model)
    if merged := sum(bool(layer.merged) for _, layer in layers):
        found.append(
            Finding("merged", f"{merged} of {len(layers)} LoRA layers are merged: call unmerge_adapter before training")
        )
    small = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype == torch.float16]
    if small:
        found.append(
            Finding(
                "float16 trained",
                f'{len(small)} trained tensors are float16: a GradScaler says "Attempting to unscale FP16 gradients". '
                "Keep what trains in float32, as PEFT does unless autocast_adapter_dtype=False or the model is halved "
                "afterwards",
            )
        )
    return found + _experts(model)


def _experts(model: nn.Module) -> list[Finding]:
    """A mixture of experts whose experts, and nothing beside them, train."""
    plain = {name: name.replace(".base_layer", "") for name in expert_parameters(model)}
    homes = {name.rpartition(".")[0] + "." for name in plain.values()}
    if not homes or any(p.requires_grad and n.startswith(tuple(homes)) for n, p in model.named_parameters()):
        return []
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    share = sum(sizes[name] for name in plain) / sum(sizes.values())
    return [
        Finding(
            "experts untouched",
            f"no adapter reaches the experts, {share:.0%} of the model's numbers: name their weights in "
            f"target_parameters, such as {min(plain.values()).rpartition('mlp.')[2]!r}",
        )
    ]


def _unknown(batch: Mapping[str, Tensor], base: nn.Module) -> list[int]:
    """The ids in a batch for which the base's embedding has no row."""
    rows = cast(Any, base).get_input_embeddings().weight.shape[0]
    ids = batch["input_ids"]
    return sorted(set(ids[ids >= rows].tolist()))


def _tokens(model: nn.Module, base: nn.Module, tokenizer: PreTrainedTokenizerBase, new: Sequence[int]) -> list[Finding]:
    """New tokens whose rows don't train, in the embedding or in a head that isn't tied to it."""
    parts = {"embedding": cast(Any, model).get_input_embeddings()}
    if cast(Any, base).get_output_embeddings().weight is not cast(Any, base).get_input_embeddings().weight:
        parts["head"] = cast(Any, model).get_output_embeddings()
    fixed = [name for name, part in parts.items() if not any(p.requires_grad for p in part.parameters())]
    if not new or not fixed:
        return []
    names = ", ".join(map(repr, cast("list[str]", tokenizer.convert_ids_to_tokens(list(new[:3])))))
    return [
        Finding(
            "new tokens untrained",
            f"the base has no row for {len(new)} tokens of the batch, such as {names}, and their rows "
            f"in the {' and the '.join(fixed)} don't train: they stay as drawn. Name them in LoraConfig's "
            "trainable_token_indices"
            + (", for embed_tokens and lm_head: these aren't tied" if "head" in parts else ""),
        )
    ]


def _labels(batch: Mapping[str, Tensor], eos_id: int) -> list[Finding]:
    share, padding, eos = labels_signs(batch, eos_id)
    found = []
    if share == 0:
        return [
            Finding(
                "no labels",
                f"not one position of the batch has a label, all are {IGNORED}: a prompt that fills max_length leaves "
                "none, and so does a mask that hides everything",
            )
        ]
    if padding:
        learnt = int((batch["labels"] != IGNORED).sum())
        found.append(
            Finding(
                "padding trained on",
                f"{padding} of {learnt} labels are padding. Set them to {IGNORED}, wherever attention_mask is 0",
            )
        )
    first = (batch["labels"] != IGNORED).float().argmax(dim=1)
    if bool((first <= 1).all()):  # the label of the very first token is never used
        found.append(
            Finding(
                "prompt trained on", f"every row's prompt has labels: set them to {IGNORED}, so that the answer counts"
            )
        )
    if not eos:
        found.append(
            Finding(
                "no EOS",
                "no EOS is among the labels, so the model never learns to stop. Put eos behind every answer; if "
                "it serves as padding, mask the padding by attention_mask and not by its id",
            )
        )
    return found


def _losses(chart: Chart) -> list[Finding]:
    losses, norms, _ = chart
    shape, first, last = trend(chart), losses[0], fmean(losses[-TAIL:])
    if not math.isfinite(first) or (first == 0 and norms[0] == 0):  # transformers logs 0 for a loss that is no number
        return [
            Finding(
                "no loss",
                f"the first loss is {first:.0f}, before any rate had an effect: all labels of that batch are "
                f"{IGNORED}, as where prompts fill max_length, or the weights aren't numbers",
            )
        ]
    if shape == "jumped":
        return [
            Finding(
                "rate too high",
                f"the loss was thrown up (first {first:.2f}, highest {max(losses):.2f}) or the gradient's norm was "
                f"(first {norms[0]:.1f}, highest {max(norms):.1f}): take a tenth of the learning rate, with a warm-up "
                "and max_grad_norm=1.0",
            )
        ]
    if shape == "flat" and max(norms) == 0:
        return [Finding("no gradient", f"the loss stays at {last:.2f}, and every gradient is zero: nothing is trained")]
    if shape == "flat":
        return [
            Finding(
                "rate too low",
                f"the loss went from {first:.2f} to {last:.2f} in {len(losses)} steps although there are gradients "
                f"(norm {median(norms):.1f}): raise the learning rate; LoRA wants about ten times what full "
                "fine-tuning does",
            )
        ]
    return _overfitting(chart)


def _overfitting(chart: Chart) -> list[Finding]:
    if not chart.dev:
        return []
    (step, lowest), (last_step, last) = min(chart.dev, key=lambda pair: pair[1]), chart.dev[-1]
    if last - lowest <= max(WORSE * lowest, LITTLE * WORSE):
        return []
    return [
        Finding(
            "overfitting",
            f"the held-out loss was lowest, {lowest:.2f}, after {step} steps and is {last:.2f} after {last_step}, "
            f"while the training loss is {fmean(chart.losses[-TAIL:]):.2f}: keep the adapter of that step, and get "
            "more data",
        )
    ]


def _start(chart: Chart, batch: Mapping[str, Tensor], base: nn.Module) -> list[Finding]:
    expected, first = _loss(base, batch), chart.losses[0]
    if math.isclose(first, expected, rel_tol=START):
        return []
    return [
        Finding(
            "start",
            f"the first loss is {first:.2f} and the base's on that batch {expected:.2f}; a new adapter changes "
            "nothing, so they should agree. The adapter isn't new, or the base isn't this one",
        )
    ]


def _data(
    records: Sequence[Record], held_out: Sequence[Record] | None, tokenizer: PreTrainedTokenizerBase
) -> list[Finding]:
    report = data_report(records, tokenizer, max_length=sys.maxsize, held_out=held_out)
    found = []
    if report.marks:
        marks = ", ".join(f"{mark} in {n:,}" for mark, n in report.marks.items())
        found.append(
            Finding(
                "special tokens",
                f"written out in records: {marks}. Each becomes the token itself: an EOS ends the answer there, a "
                "role's token opens a turn. Take them out",
            )
        )
    if report.leaked + report.near_leaked:
        found.append(
            Finding(
                "leak",
                f"of {report.held_out} held-out prompts {report.leaked} are among the records and {report.near_leaked} "
                "nearly are: hold back whole groups of near-duplicates",
            )
        )
    return found


def _seen(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The ids of each row that the mask doesn't hide."""
    return [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def _padding(inputs: Mapping[str, Tensor]) -> list[Finding]:
    if bool(inputs["attention_mask"][:, -1].all()):
        return []
    return [
        Finding(
            "right padding",
            "some prompts end in padding, and the model would continue the padding: tokenize with padding_side='left'",
        )
    ]


def _chat_form(inputs: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    before, after = render(tokenizer, "\n?\n").split("\n?\n")
    texts = [cast(str, tokenizer.decode(row, skip_special_tokens=False)) for row in _seen(inputs)]
    strangers = [t for t in texts if not (t.startswith(before) and t.endswith(after))]
    if not strangers:
        return []
    return [
        Finding(
            "template",
            f"{len(strangers)} of {len(texts)} prompts are not in the chat template's form, "
            f"{before!r} ... {after!r}. Use apply_chat_template with add_generation_prompt=True",
        )
    ]


def _trained_form(
    inputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> list[Finding]:
    """Prompts that begin or end with a token with which no prompt of the training batch does."""
    learnt = batch["labels"] != IGNORED
    before = (learnt.cumsum(dim=1) == 0) & _unmasked(batch)
    trained = [row[kept] for row, kept in zip(batch["input_ids"], before, strict=True) if bool(kept.any())]
    if not trained:
        return []
    ends = {int(row[0]) for row in trained}, {int(row[-1]) for row in trained}
    asked = [row for row in _seen(inputs) if len(row)]
    strangers = [row for row in asked if int(row[0]) not in ends[0] or int(row[-1]) not in ends[1]]
    if not strangers:
        return []
    forms = [
        " ... ".join(repr(tokenizer.decode(row[place])) for place in (slice(0, 1), slice(-1, None)))
        for row in (trained[0], strangers[0])
    ]
    return [
        Finding(
            "template",
            f"{len(strangers)} of {len(asked)} prompts are in another form than those of training: {forms[1]} where "
            f"training has {forms[0]}. Render both by one function",
        )
    ]


def _stops(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Whether generation ends at the tokenizer's EOS; a model that doesn't generate has no such settings."""
    if (settings := getattr(model, "generation_config", None)) is None:
        return []
    stops, eos = settings.eos_token_id, token_id(tokenizer, "eos")
    if eos in (stops if isinstance(stops, list) else [stops]):
        return []
    return [
        Finding(
            "EOS ignored",
            f"generation_config.eos_token_id is {stops} and the tokenizer's EOS {eos}, so generate() goes on behind "
            "it: put that id in, in a list if there are several",
        )
    ]


def _dropout(model: nn.Module) -> list[Finding]:
    on = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0 and m.training]
    return (
        [Finding("dropout on", f"{len(on)} dropout layers are active: call model.eval() before you ask")] if on else []
    )


def _repeats(answers: Sequence[str]) -> list[Finding]:
    """Answers that say few words, each many times; short ones, which hold fewer than LAST words, aren't judged."""
    ends = [said[-LAST:] for said in map(spoken, answers) if len(said) >= LAST]
    shares = [distinct(" ".join(end)) for end in ends]
    if not shares or median(shares) >= REPEATS:
        return []
    (word, times), *_ = Counter(ends[shares.index(min(shares))]).most_common(1)
    return [
        Finding(
            "repeated words",
            f"of the last {LAST} words of an answer {median(shares):.0%} are new (the median of {len(ends)} answers); "
            f"one says {word!r} {times} times. After training on a reward: it pays for repeating, so let it count a "
            "word once. Else sample with a temperature, or look for a merge done twice",
        )
    ]


class Strength(NamedTuple):
    """times: how often ``B @ A`` is in the weights, the median of the layers; wanted: how often it should be,
    lora_alpha / r; apart: what else is in them that the base hasn't, as a share of the base's size, the median of the
    layers.
    """

    times: float
    wanted: float
    apart: float


def strength(model: nn.Module, base: nn.Module, adapter: str | Path) -> Strength:
    """How often the adapter's ``B @ A`` is in the model's weights, as it computes now, and what else is.

    `model` may be a PEFT model, merged or not, or a plain one. `base` is fresh. Raises what
    :func:`utils.lora.checkpoint.fitting_adapter` raises.
    """
    config, matrices = fitting_adapter(base, adapter)
    plain = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    times, apart = [], []
    for name, pair in matrices.items():
        layer = cast(Any, plain.get_submodule(name))
        with torch.no_grad():
            weight = layer.get_base_layer().weight if hasattr(layer, "get_base_layer") else layer.weight
            if hasattr(layer, "get_delta_weight") and not layer.merged and not layer.disable_adapters:
                weight = weight + sum(layer.get_delta_weight(a) for a in layer.active_adapters if a in layer.lora_A)
            before = base.get_parameter(f"{name}.weight")
            times.append(applied_scaling(before, weight, pair["lora_A"], pair["lora_B"]))
            product = pair["lora_B"].double() @ pair["lora_A"].double()
            rest = weight.double() - before.double() - times[-1] * product
            apart.append(float(rest.norm() / before.double().norm()))
    return Strength(median(times), config["lora_alpha"] / config["r"], median(apart))


def _strength(model: nn.Module, base: nn.Module, adapter: str | Path) -> list[Finding]:
    times, wanted, apart = strength(model, base, adapter)
    if apart > BENEATH:
        return [
            Finding(
                "another base",
                f"beneath the adapter the weights differ from this base's by {apart:.0%} of their size: another "
                "revision or fine-tune, or a base that was quantized. Load the base that the adapter was trained on, "
                "and pin it with revision=",
            )
        ]
    ratio = times / wanted
    if math.isclose(ratio, 1, abs_tol=0.02):  # a merge in 16 bits is off by less
        return []
    if math.isclose(ratio, 0, abs_tol=0.02):
        return [Finding("not applied", "the adapter's correction isn't in the model: switched off, or never loaded")]
    if math.isclose(times, 1, abs_tol=0.02):
        return [
            Finding(
                "alpha/r forgotten",
                f"B @ A is added once; trained with lora_alpha / r = {wanted:g}, it has to be multiplied by that",
            )
        ]
    if math.isclose(ratio, 2, abs_tol=0.04):
        return [
            Finding(
                "merged twice",
                f"the correction is in the weights {ratio:.0f} times: it was merged twice, or attached to a base that "
                "had it already. Load the base again",
            )
        ]
    return [Finding("strength", f"the correction is in the model {ratio:.2f} times; it should be there once")]
