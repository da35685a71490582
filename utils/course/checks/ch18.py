"""Chapter 18's exercises: the losses of DPO, GRPO and distillation, and a reward."""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.course.checks.behaviour import float32_will_do, same_gradients, same_loss
from utils.course.checks.compare import difference
from utils.course.checks.describe import is_tensor_or_array
from utils.course.checks.references import ch18 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise

# ------------------------------------------------------------------------------------------------------------- DPO


def _of_lead(loss: Callable[[Any, Any], Any], message: str | None = None, expect: str | None = None) -> Mistake:
    """The mistake of an answer that has the right lead, before beta, and returns `loss(lead, beta)`."""
    return Mistake(
        lambda chosen, rejected, ref_chosen, ref_rejected, beta: loss(
            chosen - rejected - (ref_chosen - ref_rejected), beta
        ),
        message,
        expect,
    )


def _preferences(n: int, beta: float):
    return lambda: (*(torch.randn(n, dtype=torch.float64) * size - 20 for size in (2, 2, 1, 1)), beta)


def _hopeless() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """A pair whose sigmoid is 0 in any dtype, and its logarithm not."""
    chosen, *others = (torch.tensor([value], dtype=torch.float64) for value in (-2500.0, -20.0, -30.0, -25.0))
    return chosen, *others, 0.5  # pyright: ignore[reportReturnType]


exercise(
    "dpo_loss",
    reference=lesson.dpo_loss,
    cases=[_preferences(1, 0.5), _preferences(4, 0.1), _preferences(3, 1.0), _hopeless],
    drawn=lambda rng: _preferences(rng.randint(1, 6), rng.choice([0.05, 0.1, 0.3, 0.5]))(),
    compare=same_loss,
    test=same_gradients(
        lesson.dpo_loss,
        _preferences(4, 0.3),
        names=("chosen", "rejected", "ref_chosen", "ref_rejected", "beta"),
        frozen=("ref_chosen", "ref_rejected"),
    ),
    mistakes=[
        _of_lead(
            lambda lead, beta: -torch.log(torch.sigmoid(beta * lead)).mean(),
            "a very negative lead makes it infinite: its sigmoid is 0, with the logarithm -inf, and in "
            "log(1 + exp(-lead)) the exponential overflows. F.logsigmoid(lead) is -log(1 + exp(-lead)) without either.",
        ),
        _of_lead(
            lambda lead, beta: 1 - torch.sigmoid(beta * lead).mean(),
            "that is 1 minus the probability: the loss is its negative logarithm, so that an unlikely one costs a lot.",
        ),
        _of_lead(
            lambda lead, beta: (-F.logsigmoid(beta * lead).mean()).detach(),
            expect="no gradient passes through your result",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: lesson.dpo_loss(chosen, rejected, 0, 0, beta),
            "the reference has no effect: a reward is beta times the log-probability *above the reference's*.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(-beta * lead).mean(),
            "the sign is turned round: this loss falls when the rejected answer leads.",
        ),
        _of_lead(
            lambda lead, beta: -torch.sigmoid(beta * lead).mean(),
            "the logarithm is missing: the loss is -log sigmoid(lead), so that an unlikely preference costs a lot.",
        ),
        _of_lead(
            lambda lead, beta: -beta * F.logsigmoid(lead).mean(),
            "beta belongs inside the sigmoid, to the rewards.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(beta * lead.mean()),
            "you took the mean of the leads first. Every pair has its own loss; the mean is over those.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(beta * lead).sum(),
            "that is the sum over the pairs; the loss is their mean.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(beta * lead),
            "that is one loss for each pair; return their mean.",
        ),
        _of_lead(
            lambda lead, beta: F.logsigmoid(beta * lead).mean(),
            "the minus is missing: a loss falls as the preferred answer's chance rises.",
        ),
        _of_lead(
            lambda lead, beta: -F.logsigmoid(lead).mean(),
            "beta has no effect: a reward is beta times the difference of log-probabilities.",
        ),
        Mistake(
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: lesson.dpo_loss(
                chosen, rejected, -ref_chosen, -ref_rejected, beta
            ),
            "the references are added, or exchanged. From each answer its own is taken away: chosen - ref_chosen.",
        ),
    ],
    hints=[
        "reward = beta * (log-probability - the reference's), for the preferred and for the rejected answer.",
        "The lead is the preferred one's reward minus the other's.",
        "-F.logsigmoid(lead).mean(), with torch.nn.functional as F.",
    ],
    why="The loss asks that the preferred answer's log-probability grow more, from the reference's, than the other's.",
    points=2,
)

# ------------------------------------------------------------------------------------------------------- advantages


def _rewards(prompts: int, group: int, offset: float = 0.0):
    return lambda: (torch.rand(prompts, group, dtype=torch.float64) + offset * torch.arange(prompts)[:, None],)


def _small_spread() -> tuple[Tensor]:
    """Rewards so near to each other that 1e-4 shows, and a group of equal ones; float32 has the digits for it, too."""
    return (torch.tensor([[0.0, 0.0002, -0.0001], [0.5, 0.5, 0.5]], dtype=torch.float64),)


def _above(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)


def _normalized(eps: float, message: str) -> Mistake:
    """The mistake of an answer that leaves it to layer_norm."""
    return Mistake(lambda rewards: F.layer_norm(rewards, rewards.shape[1:], eps=eps), message)


def _with_constant(eps: str) -> Mistake:
    return Mistake(
        lambda rewards: _above(rewards) / (rewards.std(dim=1, keepdim=True) + float(eps)),
        f"you add {eps} to the standard deviation, and 1e-4 is asked for, as in TRL.",
    )


exercise(
    "group_advantages",
    reference=lesson.group_advantages,
    compare=float32_will_do,
    cases=[_rewards(2, 4, 1.0), _small_spread, _rewards(1, 2), _rewards(3, 3, 2.0)],
    drawn=lambda rng: _rewards(rng.randint(1, 5), rng.randint(2, 8), rng.choice([0.0, 1.0]))(),
    mistakes=[
        Mistake(
            lambda rewards: _above(rewards),
            "the mean is taken away, and the division by the group's standard deviation is missing.",
        ),
        Mistake(
            lambda rewards: _above(rewards) / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4),
            "your standard deviation divides by the group's size. Leave torch.std as it is: with Bessel's correction "
            "it divides by one less.",
        ),
        Mistake(
            lambda rewards: (rewards - rewards.mean()) / (rewards.std(dim=1, keepdim=True) + 1e-4),
            "you took the mean of all rewards. An answer is compared with its own group: mean(dim=1, keepdim=True).",
        ),
        Mistake(
            lambda rewards: _above(rewards) / (rewards.std() + 1e-4),
            "you divided by the standard deviation of all rewards. Each group has its own: std(dim=1, keepdim=True).",
        ),
        Mistake(
            lambda rewards: (rewards - rewards.mean()) / (rewards.std() + 1e-4),
            "mean and standard deviation are those of all rewards together. Both belong to a group, along dim=1.",
        ),
        Mistake(
            lambda rewards: _above(rewards) / rewards.std(dim=1, keepdim=True),
            "1e-4 is missing below the line: a group of equal rewards gives 0 / 0, which is NaN.",
        ),
        *(_with_constant(eps) for eps in ("1e-3", "1e-5", "1e-6", "1e-8", "1e-12")),
        _normalized(
            1e-5,
            "layer_norm divides by the root of the variance plus 1e-5, and the variance is without Bessel's "
            "correction: take mean and std yourself.",
        ),
        _normalized(
            1e-4,
            "layer_norm adds its eps to the variance, under the root, and takes that without Bessel's correction: take "
            "mean and std yourself.",
        ),
        Mistake(
            lambda rewards: (rewards - rewards.mean(0, keepdim=True)) / (rewards.std(0, keepdim=True) + 1e-4),
            "you went along dim=0, over the prompts. A group is a row: dim=1.",
        ),
        Mistake(
            lambda rewards: _above(rewards) / (rewards.var(dim=1, keepdim=True) + 1e-4),
            "you divided by the variance. The standard deviation is its root.",
        ),
        Mistake(
            lambda rewards: _above(rewards) / (rewards.var(dim=1, keepdim=True) + 1e-4).sqrt(),
            "1e-4 is added to the variance, under the root. Add it to the standard deviation.",
        ),
        Mistake(
            lambda rewards: -_above(rewards) / (rewards.std(dim=1, keepdim=True) + 1e-4),
            "the sign is turned round: an answer that is better than its group has an advantage above 0.",
        ),
        Mistake(
            lambda rewards: (_above(rewards) / (rewards.std(dim=1, keepdim=True) + 1e-4)).flatten(),
            "the numbers are right; keep the shape (prompts, group).",
        ),
    ],
    hints=[
        "rewards.mean(dim=1, keepdim=True) has the shape (prompts, 1), which broadcasts over the group.",
        "(rewards - mean) / (rewards.std(dim=1, keepdim=True) + 1e-4)",
    ],
    why="Only the differences within a group say anything: how hard its prompt is drops out.",
)

# ------------------------------------------------------------------------------------------------------ GRPO's loss


def _tokens(rows: int, length: int, away: float = 0.3):
    """Log-probabilities `away` from the sampler's, so that some ratios leave the clipping range; lengths differ."""

    def make():
        old = -torch.rand(rows, length, dtype=torch.float64) * 3
        log_probs = old + away * torch.randn(rows, length, dtype=torch.float64)
        lengths = torch.arange(rows) % length + 1
        mask = torch.arange(length) < lengths.flip(0)[:, None]
        return log_probs, old, torch.randn(rows, dtype=torch.float64), mask, 0.2

    return make


def _drawn_tokens(rng: random.Random) -> tuple[Any, ...]:
    rows, length = rng.randint(1, 5), rng.randint(2, 7)
    return *_tokens(rows, length, rng.choice([0.0, 0.2, 0.5]))()[:4], rng.choice([0.1, 0.2, 0.3])


def _of_ratio(per_token: Callable[[Any, Any, Any], Any], message: str) -> Mistake:
    """The mistake of an answer that means `per_token(ratio, gain, epsilon)` rightly over the tokens."""

    def answer(log_probs, old, advantages, mask, epsilon):
        found = per_token((log_probs - old).exp(), advantages[:, None], epsilon)
        return -(found * mask).sum() / mask.sum()

    return Mistake(answer, message)


def _of_gains(reduce: Callable[[Any, Any], Any], message: str | None = None, expect: str | None = None) -> Mistake:
    """The mistake of an answer that has each token's gain, and returns `reduce(gains, mask)`."""

    def answer(log_probs, old, advantages, mask, epsilon):
        ratio, gain = (log_probs - old).exp(), advantages[:, None]
        return reduce(torch.minimum(ratio * gain, ratio.clamp(1 - epsilon, 1 + epsilon) * gain), mask)

    return Mistake(answer, message, expect)


exercise(
    "grpo_loss",
    reference=lesson.grpo_loss,
    cases=[_tokens(4, 5), _tokens(2, 3, 0.0), _tokens(3, 6, 0.6)],
    drawn=_drawn_tokens,
    compare=same_loss,
    test=same_gradients(
        lesson.grpo_loss,
        _tokens(4, 5),
        names=("log_probs", "old", "advantages", "mask", "epsilon"),
        frozen=("old", "advantages"),
    ),
    mistakes=[
        _of_ratio(
            lambda ratio, gain, e: ratio * gain,
            "nothing is clipped: take the smaller of ratio * advantage and clipped ratio * advantage.",
        ),
        _of_ratio(
            lambda ratio, gain, e: ratio.clamp(1 - e, 1 + e) * gain,
            "you always took the clipped ratio. Where the unclipped one gives the smaller gain, that one counts: an "
            "answer that got likelier and is bad has to keep its gradient.",
        ),
        _of_ratio(
            lambda ratio, gain, e: torch.maximum(ratio * gain, ratio.clamp(1 - e, 1 + e) * gain),
            "you took the larger of the two gains; the smaller one is the cautious one.",
        ),
        _of_ratio(
            lambda ratio, gain, e: torch.minimum(ratio, ratio.clamp(1 - e, 1 + e)) * gain,
            "the minimum was taken of the ratios. Multiply by the advantage first: for a negative advantage the "
            "smaller gain comes from the larger ratio.",
        ),
        _of_ratio(
            lambda ratio, gain, e: (ratio * gain).clamp(1 - e, 1 + e),
            "you clipped the gain, ratio * advantage. Clip the ratio: an advantage may have any size and sign.",
        ),
        _of_ratio(
            lambda ratio, gain, e: torch.minimum(ratio * gain, (ratio * gain).clamp(1 - e, 1 + e)),
            "the second of the two is the gain clipped. It is the ratio that is clipped, and then multiplied by the "
            "advantage: ratio.clamp(1 - epsilon, 1 + epsilon) * advantage.",
        ),
        _of_ratio(
            lambda ratio, gain, e: torch.minimum(ratio * gain, ratio * gain.clamp(1 - e, 1 + e)),
            "you clipped the advantage. It is the ratio that stays between 1 - epsilon and 1 + epsilon.",
        ),
        _of_ratio(
            lambda ratio, gain, e: torch.minimum(ratio.log() * gain, ratio.log().clamp(1 - e, 1 + e) * gain),
            "that is the logarithm of the ratio: the exponential of log_probs - old is missing.",
        ),
        _of_ratio(
            lambda ratio, gain, e: torch.minimum(gain / ratio, (1 / ratio).clamp(1 - e, 1 + e) * gain),
            "the ratio is upside down: the model now over the model that sampled, (log_probs - old).exp().",
        ),
        _of_gains(
            lambda gains, mask: (gains * mask).sum() / mask.sum(),
            "the minus is missing: a loss falls as the gain rises.",
        ),
        _of_gains(
            lambda gains, mask: -gains.mean(),
            "the mask has no effect: padding counts as tokens.",
        ),
        _of_gains(
            lambda gains, mask: -(gains * mask).mean(),
            "you divided by all positions, padding too. Divide by the number of tokens, mask.sum().",
        ),
        _of_gains(
            lambda gains, mask: -((gains * mask).sum(1) / mask.sum(1)).mean(),
            "you took each answer's mean first, as GRPO's first version did. Here every token of the batch counts the "
            "same: divide the whole sum by mask.sum().",
        ),
        _of_gains(
            lambda gains, mask: -(gains * mask).sum() / len(mask),
            "you divided by the number of answers. Divide by the number of tokens, mask.sum().",
        ),
        _of_gains(lambda gains, mask: -(gains * mask).sum(), "that is the sum over the tokens, not their mean."),
        _of_gains(
            lambda gains, mask: (-(gains * mask).sum() / mask.sum()).detach(),
            expect="no gradient passes through your result",
        ),
    ],
    hints=[
        "ratio = (log_probs - old).exp(), and advantages[:, None] broadcasts over the tokens.",
        "ratio.clamp(1 - epsilon, 1 + epsilon) is the clipped ratio; torch.minimum takes the smaller gain.",
        "-(per_token * mask).sum() / mask.sum()",
    ],
    why="Where an answer is good the gain stops growing at 1 + epsilon; where it is bad, it stops at 1 - epsilon.",
    points=2,
)

# ---------------------------------------------------------------------------------------------------------- a reward


def _texts(*rows: tuple[str, str]):
    """Completions, each with the words asked for, in one string; its prompt says the first of them."""
    asked = [words.split() for _, words in rows]
    return lambda: ([f"Tell me a story about a {words[0]}." for words in asked], [text for text, _ in rows], asked)


_SAYS = (
    "the", "fox", "foxglove", "kite", "kites", "red", "lake", "sang", "bear", "Fox", "RED", "lake,", "fox!", "kite?",
    '"Fox?"', "lake;", "'bear'", "red--bear", "sang\nkite",
)  # fmt: skip


def _drawn_texts(rng: random.Random) -> tuple[Any, ...]:
    rows = []
    for _ in range(rng.randint(1, 5)):
        text = " ".join(rng.choice(_SAYS) for _ in range(rng.randint(0, 9)))
        rows.append((text, " ".join(rng.sample(["fox", "kite", "red", "lake", "bear"], rng.randint(1, 4)))))
    return _texts(*rows)()


def _as_list(expected: Any, got: Any) -> bool | str:
    """Any row of numbers will do: a list, a tuple, a tensor, an array."""
    if is_tensor_or_array(got) and got.ndim == 1:
        got = got.tolist()
    if isinstance(got, Sequence) and not isinstance(got, str):
        if len(got) != len(expected):
            return (
                f"there are {len(expected)} completions, and you return {len(got)} rewards: one for each is asked for, "
                "0 for an empty one."
            )
        got = [one.item() if isinstance(one, Tensor) and one.ndim == 0 else one for one in got]
        return difference(expected, [float(one) if isinstance(one, int | float) else one for one in got]) or True
    return difference(expected, got) or True


def _of_text(score: Callable[[str, list[str]], float], message: str) -> Mistake:
    """The mistake of an answer that gives each completion `score(text, asked)`."""
    return Mistake(
        lambda prompts, completions, words, **columns: [score(t, w) for t, w in zip(completions, words, strict=True)],
        message,
    )


def _takes_other_columns(answer: Callable[..., Any]) -> None:
    try:
        answer(prompts=["Tell me a story."], completions=["A fox."], words=[["fox"]], place=["lake"])
    except TypeError:
        raise Wrong(
            "a trainer gives a reward all columns of the data, and yours fails when they hold another one, such as "
            "place=[...]: let the parameters end in **columns."
        ) from None


def _spoken(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _stripped(marks: str) -> Callable[[str, list[str]], float]:
    return lambda text, asked: _share([word.strip(marks) for word in text.lower().split()], asked)


def _share(said: Sequence[str] | set[str] | str, asked: Sequence[str]) -> float:
    return sum(word in said for word in asked) / len(asked)


exercise(
    "reward_words",
    reference=lesson.reward_words,
    by_name=True,
    compare=_as_list,
    test=_takes_other_columns,
    cases=[
        _texts(("The fox had a red kite.", "fox red kite lake"), ("A bear!", "bear lake")),
        _texts(("fox fox fox fox", "fox lake"), ("The lake, the lake.", "fox lake red")),
        _texts(("A foxglove by the lakes.", "fox lake"), ("The fox.", "fox lake")),
        _texts(
            ("FOX and Lake", "fox lake"),
        ),
        _texts(("", "fox lake"), ("The fox.", "fox")),
        _texts(("The red fox sang.", "fox red"), ("Nothing at all.", "fox red")),
        _texts(("\"Fox?\" asked the lake; the 'kite'--red as ever--sang\nbear.", "fox lake kite red bear")),
    ],
    drawn=_drawn_texts,
    mistakes=[
        _of_text(
            lambda text, asked: sum(word in asked for word in _spoken(text)) / len(asked),
            "a word that is said three times counts three times: this is the reward that was hacked. Make a set of "
            "what was said.",
        ),
        _of_text(
            lambda text, asked: min(1.0, sum(word in asked for word in _spoken(text)) / len(asked)),
            "a word that is said twice counts twice, up to 1: four times the same word is paid in full. Make a set of "
            "what was said.",
        ),
        _of_text(
            lambda text, asked: _share(text.lower(), asked),
            '"fox" in "foxglove" is True for strings: compare whole words, from re.findall.',
        ),
        _of_text(
            lambda text, asked: _share(re.findall(r"\w+", text), asked),
            'upper case counts as another word: "Fox" is "fox". Take text.lower() first.',
        ),
        _of_text(
            lambda text, asked: _share(text.lower().split(), asked),
            'split() leaves the punctuation on: "fox." is not "fox". re.findall(r"[a-z]+", ...) takes letters only.',
        ),
        *(
            _of_text(
                _stripped(marks),
                f"strip({marks!r}) takes off those marks alone: a text has quotes, ? and ; as well, and a dash between "
                'two words. re.findall(r"[a-z]+", ...) takes letters only.',
            )
            for marks in (".,!", ".,!?", ".,!?;:")
        ),
        _of_text(
            _stripped(string.punctuation),
            'a dash joins words: strip(...) leaves "kite--red" one word, and with the punctuation deleted it is '
            '"kitered". re.findall(r"[a-z]+", ...) cuts there.',
        ),
        _of_text(
            lambda text, asked: _share(re.sub(r"[^a-z ]", "", text.lower()).split(" "), asked),
            "with all but letters and spaces deleted, the words on both sides of a dash or of a line's end grow into "
            "one. Put a space in the place of what you delete.",
        ),
        _of_text(
            lambda text, asked: _share(text.split(), asked),
            'split() leaves punctuation on and upper case as it is: "Fox," is the word "fox".',
        ),
        _of_text(
            lambda text, asked: float(_share(_spoken(text), asked) == 1),
            "that is 1 or 0. Give the share: a story with three words of four is better than one with none, and GRPO "
            "learns from the difference.",
        ),
        _of_text(
            lambda text, asked: float(len(set(_spoken(text)) & set(asked))),
            "you counted the words; divide by how many were asked for.",
        ),
        _of_text(
            lambda text, asked: len(set(_spoken(text)) & set(asked)) / max(1, len(_spoken(text))),
            "you divided by the length of the completion, so that the shortest text wins. Divide by how many words "
            "were asked for.",
        ),
        _of_text(
            lambda text, asked: 1 - _share(_spoken(text), asked),
            "that is the share that is missing: a reward is higher for what is better.",
        ),
        Mistake(
            lambda prompts, completions, words, **columns: [
                _share(_spoken(prompt), asked) for prompt, asked in zip(prompts, words, strict=True)
            ],
            "you looked for the words in the prompts: the completions are what the model wrote.",
        ),
        Mistake(
            lambda prompts, completions, words, **columns: [
                _share(_spoken(f"{prompt} {text}"), asked)
                for prompt, text, asked in zip(prompts, completions, words, strict=True)
            ],
            "a word that only the prompt says counts as told: look into the completion alone.",
        ),
        Mistake(
            lambda prompts, completions, words: [
                _share(_spoken(text), asked) for text, asked in zip(completions, words, strict=True)
            ],
            expect="let the parameters end in **columns",
        ),
        Mistake(
            lambda prompts, completions, words, **columns: [
                _share(_spoken(text), asked) for text, asked in zip(completions, words, strict=True) if text
            ],
            expect="one for each is asked for, 0 for an empty one",
        ),
        Mistake(
            lambda prompts, completions, words, **columns: (
                sum(_share(_spoken(t), asked) for t, asked in zip(completions, words, strict=True)) / len(completions)
            ),
            "that is one number, the mean. A trainer needs one for each completion, in a list.",
        ),
    ],
    hints=[
        "zip(completions, words) gives each completion with the words that were asked for.",
        're.findall(r"[a-z]+", text.lower()) is the list of words said; a set of it has each once.',
        "len(said & set(wanted)) / len(wanted)",
    ],
    why="A set counts a word once, so that repeating it pays nothing, and whole words leave no room for foxglove.",
    points=2,
)

# ------------------------------------------------------------------------------------------------------- distillation


def _logits(*shape: int, scale: float = 2.0):
    return lambda: tuple(scale * torch.randn(*shape, dtype=torch.float64) for _ in range(2))


def _large() -> tuple[Tensor, Tensor]:
    """Logits so far apart that a probability is 0 and its logarithm isn't a number, beside ordinary ones."""
    student = torch.tensor([[[1.0, 2000.0, -3.0], [0.5, -1.0, 2.0]]], dtype=torch.float64)
    return student, student + torch.tensor([[[-1.0, -2.0, 1.0], [2.0, 1.0, -0.5]]])


def _jensen_shannon(log_mean: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The divergence of both from their mean, whose logarithm is `log_mean` of the two log-probabilities."""

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        middle = log_mean(p, q)
        return ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2

    return divergence


def _along(dim: int, what: str) -> Mistake:
    """The mistake of an answer that normalizes along another dimension."""

    def answer(student: Tensor, teacher: Tensor) -> Tensor:
        p, q = student.log_softmax(dim), teacher.log_softmax(dim)
        return (p.exp() * (p - q)).sum(-1)

    return Mistake(answer, f"you took the softmax over {what}. The probabilities are over the vocabulary: dim=-1.")


def _kl(combine: Callable[[Any, Any], Any], message: str | None = None, expect: str | None = None) -> Mistake:
    """The mistake of an answer that returns `combine` of the two log_softmax."""
    return Mistake(lambda s, t: combine(s.log_softmax(-1), t.log_softmax(-1)), message, expect)


exercise(
    "reverse_kl",
    reference=lesson.reverse_kl,
    cases=[_logits(2, 3, 5), _logits(1, 1, 4), _large],
    drawn=lambda rng: _logits(rng.randint(1, 3), rng.randint(4, 6), rng.randint(7, 9), scale=rng.choice([0.5, 3.0]))(),
    compare=same_loss,
    test=same_gradients(
        lesson.reverse_kl, _logits(2, 3, 5), names=("student_logits", "teacher_logits"), frozen=("teacher_logits",)
    ),
    mistakes=[
        _kl(
            lambda p, q: (q.exp() * (q - p)).sum(-1),
            "that is the forward KL, weighted by the teacher's probabilities. Weight by the student's: what it would "
            "say itself is what counts.",
        ),
        _kl(
            _jensen_shannon(lambda p, q: torch.logaddexp(p, q) - math.log(2)),
            "that is the Jensen-Shannon divergence, which measures both against their mean. Measure the student "
            "against the teacher alone.",
        ),
        _kl(
            _jensen_shannon(lambda p, q: ((p.exp() + q.exp()) / 2).log()),
            "that is the Jensen-Shannon divergence, with both measured against their mean, and NaN where both "
            "probabilities are 0. The mean isn't needed: measure the student against the teacher.",
        ),
        _kl(
            lambda p, q: ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)) / 2,
            "that is the mean of the forward and the reverse KL; the reverse one alone is asked for.",
        ),
        _along(0, "the rows (dim=0)"),
        _along(1, "the positions (dim=1)"),
        _kl(
            lambda p, q: (p.exp() * (q - p)).sum(-1),
            "the sign is turned round: a divergence is never below 0.",
        ),
        _kl(lambda p, q: (p.exp() * (p - q)).mean(-1), "you took the mean over the vocabulary; it is a sum."),
        _kl(
            lambda p, q: -(p.exp() * q).sum(-1),
            "that is the cross-entropy: the student's own entropy, sum of p * log p, is missing.",
        ),
        _kl(
            lambda p, q: (p.exp() * (p - q)).sum(-1).mean(),
            "that is the mean over all positions; return one number for each.",
        ),
        _kl(
            lambda p, q: (p - q).sum(-1),
            "the weight p is missing: a token counts as much as it is likely.",
        ),
        _kl(
            lambda p, q: p.exp() * (p - q),
            "sum over the vocabulary: one number for each position is asked for.",
        ),
        Mistake(
            lambda s, t: (s.softmax(-1) * (s - t)).sum(-1),
            "those are logits, which may have any constant added: take log_softmax of both first.",
        ),
        Mistake(
            lambda s, t: (s.softmax(-1) * (s.softmax(-1).log() - t.softmax(-1).log())).sum(-1),
            "a softmax of 0 has the logarithm -inf, and the sum is NaN: log_softmax does both at once.",
        ),
        _kl(
            lambda p, q: (p.exp().detach() * (p - q)).sum(-1),
            expect="the gradient of student_logits through it is not",
        ),
        _kl(
            lambda p, q: (p.exp() * (p - q)).sum(-1).detach(),
            expect="no gradient passes through your result",
        ),
    ],
    hints=[
        "student_logits.log_softmax(-1) is log p; its exponential is p.",
        "(log_p.exp() * (log_p - log_q)).sum(-1)",
    ],
    why="Weighted by the student's probabilities, the loss asks that it not say what the teacher wouldn't.",
)
