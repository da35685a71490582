"""Chapter 12's exercises: temperature, top-p, repetition penalty, attention with a cache, left padding, the answer."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from utils.course.checks.references import ch12 as lesson
from utils.course.checks.registry import Mistake, exercise

# ----------------------------------------------------------------------------------------------------- temperature


def _rows(*rows: list[float]):
    return torch.tensor(rows)


def _drawn_batch(rng: random.Random) -> tuple[Tensor, float]:
    """Some logits are so large that e to their power isn't a number any more, some are -inf, as a cut leaves them."""
    size, dtype = rng.choice([3.0, 3.0, 300.0]), rng.choice([torch.float32, torch.float32, torch.float64])
    logits = size * torch.randn(rng.randint(1, 5), rng.randint(6, 9), dtype=dtype)
    if rng.random() < 0.3:
        logits[:, 1:3] = -float("inf")
    return logits, rng.choice([0.1, 0.7, 1.0, 1.5, 5.0])


exercise(
    "soften",
    reference=lesson.soften,
    cases=[
        (_rows([2.0, 0.5, -1.0, 0.0]), 0.5),
        (_rows([1.0, 3.0, 0.2], [0.0, -2.0, 0.7]), 2.0),
        (_rows([0.3, 0.1, 4.0]), 1.3),
        (_rows([100.0, 99.0, 0.0]), 0.5),
    ],
    drawn=_drawn_batch,
    new_result=True,
    mistakes=[
        Mistake(
            lambda logits, temperature: torch.log_softmax(logits / temperature, dim=-1),
            "those are logarithms of probabilities, all below 0: softmax, not log_softmax.",
        ),
        Mistake(
            lambda logits, temperature: (logits / temperature).exp(),
            "they don't add up to 1: exp is the half of a softmax, dividing by the row's sum the other.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax((logits / temperature).flatten(), dim=0).view_as(logits),
            "one distribution over all rows: each row is one of its own, and adds up to 1.",
        ),
        Mistake(
            lambda logits, temperature: (
                (logits / temperature).exp() / (logits / temperature).exp().sum(-1, keepdim=True)
            ),
            "for a large logit exp is infinite, and infinity by infinity nan: take the row's largest logit off first, "
            "or let torch.softmax do it.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax(logits, dim=-1) ** (1 / temperature),
            "the power is right, but the rows don't add up to 1 any more: divide by their sums.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax(logits.div_(temperature), dim=-1),
            "your function changes its input: /= and div_ overwrite the logits, logits / temperature makes new ones.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax(logits * temperature, dim=-1),
            "you multiplied: then a high temperature sharpens. Divide by the temperature.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax(logits, dim=-1) / temperature,
            "you divided the probabilities, and they don't add up to 1 any more: divide the logits.",
        ),
        Mistake(
            lambda logits, temperature: logits / temperature,
            "those are logits still: the softmax makes probabilities of them.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax(logits / temperature, dim=0),
            "your softmax runs over the batch: each row is a distribution of its own, dim=-1.",
        ),
        Mistake(
            lambda logits, temperature: torch.softmax(logits, dim=-1),
            "the temperature has no effect yet.",
        ),
    ],
    hints=["Dividing by a number above 1 brings the logits closer together.", "torch.softmax(..., dim=-1)"],
    why="Dividing logits by T raises probabilities to the power 1/T, and the softmax makes them add up to 1 again.",
)

# ----------------------------------------------------------------------------------------------------------- top-p

_NEVER = -float("inf")


def _drawn_logits(rng: random.Random) -> tuple[Tensor, float]:
    """No sum of probabilities is so near p that rounding decides."""
    while True:
        logits, p = 2 * torch.randn(rng.randint(2, 9)), rng.uniform(0.05, 0.99)
        sums = logits.softmax(-1).sort(descending=True).values.cumsum(-1)
        if (sums - p).abs().min() > 1e-3:
            return logits, p


def _short(logits: Tensor, p: float, keep_top: bool) -> Tensor:
    falling, order = logits.sort(descending=True)
    gone = falling.softmax(dim=-1).cumsum(dim=-1) >= p
    if keep_top:
        gone[0] = False
    return logits.masked_fill(torch.zeros_like(gone).scatter(0, order, gone), _NEVER)


def _cut(logits: Tensor, p: float, gone_after) -> Tensor:
    falling, order = logits.sort(descending=True)
    probabilities = falling.softmax(dim=-1)
    gone = gone_after(probabilities.cumsum(dim=-1) - probabilities)
    return logits.masked_fill(torch.zeros_like(gone).scatter(0, order, gone), _NEVER)


def _falling(logits: Tensor) -> Tensor:
    return logits.sort(descending=True).values.softmax(dim=-1)


def _unsorted(logits: Tensor, p: float) -> Tensor:
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities.cumsum(dim=-1) - probabilities >= p, _NEVER)


def _sorted_answer(logits: Tensor, p: float) -> Tensor:
    falling = logits.sort(descending=True).values
    probabilities = falling.softmax(dim=-1)
    return falling.masked_fill(probabilities.cumsum(dim=-1) - probabilities >= p, _NEVER)


exercise(
    "nucleus",
    reference=lesson.nucleus,
    cases=[
        (torch.tensor([0.5, 0.05, 0.3, 0.15]).log(), 0.7),
        (torch.tensor([0.04, 0.06, 0.2, 0.6, 0.1]).log(), 0.85),
        (torch.tensor([0.1, 0.8, 0.06, 0.04]).log(), 0.5),
        (torch.tensor([0.25, 0.5, 0.125, 0.125]).log2() * 0.6931471805599453, 0.75),  # sums that hit p
    ],
    drawn=_drawn_logits,
    new_result=True,
    mistakes=[
        Mistake(
            lambda logits, p: _cut(logits, p, lambda before: before > p),
            "where the sum is exactly p the set is large enough: it adds up to at least p, so the next one goes.",
        ),
        Mistake(
            lambda logits, p: lesson.nucleus(logits, p).softmax(-1),
            "those are probabilities: return logits, with -inf outside of the nucleus.",
        ),
        Mistake(
            lambda logits, p: lesson.nucleus(logits, p).nan_to_num(neginf=0.0),
            "a logit of 0 is no impossible token: -float('inf') is.",
        ),
        Mistake(
            lambda logits, p: logits.masked_fill_(lesson.nucleus(logits, p).isinf(), _NEVER),
            "your function changes its input: return a copy.",
        ),
        Mistake(
            lambda logits, p: _short(logits, p, keep_top=True),
            "your set stops short of p: the token that carries the sum past p belongs to it.",
        ),
        Mistake(
            lambda logits, p: _short(logits, p, keep_top=False),
            "where the first token alone passes p you keep none at all, and nothing is left to draw.",
        ),
        Mistake(
            lambda logits, p: _cut(logits, p, lambda before: before + _falling(logits) > p),
            "the token with which the sum passes p was cut, and the set stays below p: a token goes if the sum of "
            "those *before* it is p or more.",
        ),
        Mistake(
            lambda logits, p: logits.masked_fill(
                (_falling(logits).cumsum(-1) - _falling(logits) >= p)[logits.sort(descending=True).indices], _NEVER
            ),
            "gone[order] goes the wrong way: the mask is in sorted order, and scatter brings it to the tokens' places.",
        ),
        Mistake(
            lambda logits, p: logits.masked_fill(_falling(logits).cumsum(-1) - _falling(logits) >= p, _NEVER),
            "your mask is in sorted order, the logits aren't: scatter takes each of its entries to its token.",
        ),
        Mistake(
            lambda logits, p: logits.masked_fill(_falling(logits).cumsum(-1) > p, _NEVER),
            "two things: your mask is in sorted order, and scatter must take its entries to their tokens; the token "
            "with which the sum passes p belongs to the set.",
        ),
        Mistake(
            lambda logits, p: lesson.nucleus(logits, p).clamp(min=-1e9),
            "a large negative number is no -inf: a token outside of the nucleus can't be drawn at all.",
        ),
        Mistake(_unsorted, "you added the probabilities up in the order of the vocabulary: sort them first, falling."),
        Mistake(
            lambda logits, p: logits.masked_fill(logits.softmax(dim=-1) < 1 - p, _NEVER),
            "you compared each probability by itself: top-p looks at their sum, from the largest down.",
        ),
        Mistake(_sorted_answer, "the answer is in sorted order: bring the scores back to their tokens' places."),
    ],
    hints=[
        "Sort, falling, and add the probabilities up: a token stays if the sum of those *before* it is below p.",
        "falling, order = logits.sort(descending=True); the sum before is falling's softmax's cumsum minus its own.",
        "gone.scatter(0, order, gone) brings a mask in sorted order back to the vocabulary's order.",
    ],
    why="Asking for the sum of those before a token keeps the one that carries the sum past p, and never none.",
    points=2,
)

# --------------------------------------------------------------------------------------------- repetition penalty


def _each_time(logits: Tensor, seen: list[int], penalty: float) -> Tensor:
    result = logits.clone()
    for token in seen:
        result[token] = result[token] * penalty if result[token] < 0 else result[token] / penalty
    return result


def _changed(logits: Tensor, seen: list[int], change) -> Tensor:
    result = logits.clone()
    result[seen] = change(logits[seen])
    return result


def _drawn_seen(rng: random.Random) -> tuple[Tensor, list[int], float]:
    size = rng.randint(2, 9)
    logits = 3 * torch.randn(size) * (torch.rand(size) < 0.8)
    return logits, rng.choices(range(size), k=rng.randint(0, 6)), rng.choice([0.5, 1.0, 1.1, 1.5, 3.0])


exercise(
    "penalize",
    reference=lesson.penalize,
    cases=[
        (torch.tensor([2.0, -1.0, 0.5, 3.0]), [0, 1, 0], 2.0),
        (torch.tensor([-4.0, 1.0, 2.5]), [0, 2], 1.25),
        (torch.tensor([1.5, -0.5, 0.2, 0.1]), [1, 1, 0], 1.1),
    ],
    drawn=_drawn_seen,
    new_result=True,
    mistakes=[
        Mistake(
            lambda logits, seen, penalty: _changed(
                logits, seen, lambda x: torch.where(x < 0, x / penalty, x * penalty)
            ),
            "the two are exchanged: every seen token became more probable.",
        ),
        Mistake(
            lambda logits, seen, penalty: logits.copy_(lesson.penalize(logits, seen, penalty)),
            "your function changes its input: return a copy.",
        ),
        Mistake(
            lambda logits, seen, penalty: lesson.penalize(logits, seen[-1:], penalty),
            "only the last token was penalized: all that were seen are.",
        ),
        Mistake(
            lambda logits, seen, penalty: _changed(logits, seen, lambda x: x * 0 + _NEVER),
            "the seen tokens can't be drawn any more: a penalty makes them less probable, no more.",
        ),
        Mistake(
            lambda logits, seen, penalty: _changed(logits, seen, lambda x: x / penalty),
            "-1 / 2 is -0.5, which is MORE probable than -1: multiply the negative ones.",
        ),
        Mistake(
            lambda logits, seen, penalty: _changed(logits, seen, lambda x: x * penalty),
            "2 * 2 is 4, which is more probable than 2: divide the positive ones.",
        ),
        Mistake(_each_time, "a token that was seen twice is penalized once: go over set(seen)."),
        Mistake(
            lambda logits, seen, penalty: _changed(logits, seen, lambda x: x - penalty),
            "subtracting is another penalty (OpenAI's presence penalty). This one divides or multiplies.",
        ),
        Mistake(
            lambda logits, seen, penalty: _changed(logits, seen, lambda x: torch.minimum(x * penalty, x / penalty)),
            "the smaller of both is right for a penalty above 1 only: one below 1 makes a seen token more probable.",
        ),
        Mistake(
            lambda logits, seen, penalty: torch.where(logits < 0, logits * penalty, logits / penalty),
            "you changed every token: only those that were seen.",
        ),
    ],
    hints=[
        "Both ways the logit has to fall: what does dividing do to a negative number?",
        "torch.where(scores < 0, scores * penalty, scores / penalty), for scores = logits[seen].",
    ],
    why="Dividing brings a number nearer to 0, which for a negative logit is up: so these are multiplied.",
)

# ------------------------------------------------------------------------------------------- attention with a cache


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


def _step_case(past: int, dim: int):
    return lambda: (*torch.randn(3, 1, dim), *torch.randn(2, past, dim))


exercise(
    "cached_step",
    reference=lesson.cached_step,
    cases=[_step_case(4, 8), _step_case(1, 4), _step_case(7, 6)],
    drawn=lambda rng: _step_case(rng.randint(0, 9), rng.choice([1, 2, 3, 5, 8]))(),
    mistakes=[
        Mistake(
            lambda q, k, v, past_k, past_v: (
                (q @ torch.cat([past_k, k]).T).softmax(dim=0) / q.shape[-1] ** 0.5 @ torch.cat([past_v, v]),
                torch.cat([past_k, k]),
                torch.cat([past_v, v]),
            ),
            "the softmax runs over the one new token: it runs over those that are looked at, dim=-1.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: (
                _attend(q, torch.cat([past_k, k]), torch.cat([past_v, v])),
                torch.cat([past_v, v]),
                torch.cat([past_k, k]),
            ),
            "keys and values are exchanged in what you return: the output, the keys, the values.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: (
                _attend(q, past_k, past_v),
                torch.cat([past_k, k]),
                torch.cat([past_v, v]),
            ),
            "the new token doesn't see itself: its own key and value belong to what it attends to.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: (_attend(q, k, v), torch.cat([past_k, k]), torch.cat([past_v, v])),
            "the new token sees nothing but itself: join the past to its key and value before you attend.",
        ),
        Mistake(
            lambda q, *others: lesson.cached_step(q * q.shape[-1] ** 0.5, *others),
            "the scores aren't divided by the square root of the size of a key.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: (lesson.cached_step(q, k, v, past_k, past_v)[0], past_k, past_v),
            "the output is right, but you return the old past: the next step would miss this token.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: lesson.cached_step(
                q * (q.shape[-1] / (len(past_k) + 1)) ** 0.5, k, v, past_k, past_v
            ),
            "you divided by the root of the number of tokens: it is that of a key's size, q.shape[-1].",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: lesson.cached_step(q / q.shape[-1] ** 0.5, k, v, past_k, past_v),
            "the scores were divided by the size of a key: by its square root.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: (
                torch.cat([past_v, v])[:1].clone(),
                torch.cat([past_k, k]),
                torch.cat([past_v, v]),
            ),
            "a causal mask let the new token see the first one alone, as if it stood there itself. It is the last: "
            "leave the mask out.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: lesson.cached_step(q, past_k, past_v, k, v),
            "you put the new token before the old ones: the cache keeps the order of the text.",
        ),
        Mistake(
            lambda q, k, v, past_k, past_v: lesson.cached_step(q, k, v, past_k, past_v)[0],
            "return three things: the output, all keys, all values.",
        ),
    ],
    hints=[
        "Put the new key behind the past ones, the new value too; then the one query attends to all of them.",
        "torch.cat([past_k, k]), and the same for v.",
        "scores = q @ k.T / sqrt(dim), softmax over the last axis, times v. No mask: nothing comes later.",
    ],
    why="What the past tokens computed doesn't change, so one row of scores against all keys is all the work there is.",
    points=2,
)

# ------------------------------------------------------------------------------------------------------ left padding


def _mask(ids, test) -> list[list[int]]:
    return [[int(test(i)) for i in row] for row in ids]


def _pad_right(rows: list[list[int]], pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    length = max(len(row) for row in rows)
    ids = [row + [pad_id] * (length - len(row)) for row in rows]
    return ids, [[1] * len(row) + [0] * (length - len(row)) for row in rows]


def _drawn_rows(rng: random.Random) -> tuple[list[list[int]], int]:
    pad_id = rng.choice([0, 0, 1, 7])
    return [rng.choices([0, 1, 7, 5, 6], k=rng.randint(1, 5)) for _ in range(rng.randint(1, 5))], pad_id


def _filled_in_place(rows: list[list[int]], pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    ids, mask = lesson.pad_left(rows, pad_id)
    for row, filled in zip(rows, ids, strict=True):
        row[:] = filled
    return rows, mask


def _to_length(rows: list[list[int]], pad_id: int, length: int) -> tuple[list[list[int]], list[list[int]]]:
    gaps = [max(length - len(row), 0) for row in rows]
    ids = [[pad_id] * gap + row for gap, row in zip(gaps, rows, strict=True)]
    return ids, [[0] * gap + [1] * len(row) for gap, row in zip(gaps, rows, strict=True)]


exercise(
    "pad_left",
    reference=lesson.pad_left,
    cases=[([[5, 6, 7], [8]], 0), ([[4], [3, 0], [9, 9, 9, 9]], 0), ([[2, 1]], 1)],
    drawn=_drawn_rows,
    mistakes=[
        Mistake(
            lambda rows, pad_id: (
                [[pad_id, *row] for row in lesson.pad_left(rows, pad_id)[0]],
                [[0, *row] for row in lesson.pad_left(rows, pad_id)[1]],
            ),
            "one token of padding too many in every row: the longest row gets none.",
        ),
        Mistake(
            lambda rows, pad_id: lesson.pad_left(rows, 0),
            "the padding's id is not 0 with every tokenizer: use pad_id.",
        ),
        Mistake(
            lambda rows, pad_id: (
                lesson.pad_left(rows, pad_id)[0],
                [[bool(m) for m in row] for row in lesson.pad_left(rows, pad_id)[1]],
            ),
            "the mask holds True and False: 1 and 0 are asked for.",
        ),
        Mistake(
            _filled_in_place,
            "your function changes its input: the rows themselves were filled up. Make new lists.",
        ),
        Mistake(
            lambda rows, pad_id: _to_length(rows, pad_id, len(max(rows))),
            "max(rows) is the row with the largest ids, and not the longest: max(len(row) for row in rows).",
        ),
        Mistake(_pad_right, "that is padding on the right: the answer would follow the padding, not the prompt."),
        Mistake(
            lambda rows, pad_id: (
                lesson.pad_left(rows, pad_id)[0],
                _mask(lesson.pad_left(rows, pad_id)[0], lambda i: i != pad_id),
            ),
            "a prompt may hold the padding's id itself, and your mask hides it there: mask by the row's length.",
        ),
        Mistake(
            lambda rows, pad_id: (
                lesson.pad_left(rows, pad_id)[0],
                [[1 - m for m in row] for row in lesson.pad_left(rows, pad_id)[1]],
            ),
            "the mask is the wrong way round: 1 is a token to look at, 0 is padding.",
        ),
        Mistake(
            lambda rows, pad_id: (
                lesson.pad_left(rows, pad_id)[0],
                _mask(lesson.pad_left(rows, pad_id)[0], lambda i: True),
            ),
            "your mask is all ones, so that the model reads the padding as text.",
        ),
        Mistake(
            lambda rows, pad_id: lesson.pad_left(rows, pad_id)[0],
            "the mask is missing: return ids, mask.",
        ),
    ],
    hints=[
        "A row lacks as many tokens as the longest is longer: that many go in front, in the ids and in the mask.",
        "[pad_id] * missing + row, and [0] * missing + [1] * len(row).",
    ],
    why="The model goes on behind the last token, so that has to be the prompt's. Only a row's length tells padding "
    "from a token of the same id.",
)

# -------------------------------------------------------------------------------------------------------- the answer


def _drawn_output(rng: random.Random) -> tuple[list[int], int, int]:
    eos_id = rng.choice([0, 1, 1, 2])
    output = rng.choices([0, 1, 2, 5, 6, 7, 8], k=rng.randint(1, 9))
    padding = [rng.choice([0, eos_id])] * rng.randint(0, 3)
    return output + padding, rng.randint(0, len(output)), eos_id


exercise(
    "answer_ids",
    reference=lesson.answer_ids,
    cases=[
        *(([7, 8, 1, 9, 4, 5, 1, 0, 0], 4, 1), ([3, 3, 5, 6], 2, 1), ([2, 6, 1], 2, 1), ([1, 4, 9, 8, 2], 1, 2)),
        ([9, 9, 5, 6, 1, 1, 1], 2, 1),
        ([9, 5, 0, 6, 1, 0], 1, 1),
    ],
    drawn=_drawn_output,
    mistakes=[
        Mistake(
            lambda output, prompt_length, eos_id: (
                output[prompt_length : len(output) - 1 - output[::-1].index(eos_id)]
                if eos_id in output[prompt_length:]
                else output[prompt_length:]
            ),
            "you looked for the last EOS token: where padding is the EOS token too, the answer ends at the first.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: [i for i in output[prompt_length:] if i not in (eos_id, 0)],
            "0 is a token like any other, and may stand in an answer: it ends at the first EOS token, and only there.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: lesson.answer_ids(output, prompt_length + 1, eos_id),
            "the answer's first token is missing: it stands at output[prompt_length].",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: (
                lesson.answer_ids(output, prompt_length, eos_id) if eos_id in output[prompt_length:] else []
            ),
            "an answer without an EOS token was cut off by max_new_tokens, and is an answer all the same.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: (
                output[: output.index(eos_id)][prompt_length:] if eos_id in output else output[prompt_length:]
            ),
            "a prompt may hold an EOS token too (the end of an earlier turn): take the prompt off first, then look.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: output[prompt_length : output.index(eos_id)],
            "index(eos_id) starts at the beginning, where the prompt may hold an EOS token too, and raises an error "
            "where there is none: take the prompt off first, then look.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: output[prompt_length:],
            "the EOS token and the padding behind it are still there.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: (
                lesson.answer_ids(output, prompt_length, eos_id) + [eos_id] * (eos_id in output[prompt_length:])
            ),
            "the EOS token itself is no part of the answer.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: output[prompt_length : output.index(eos_id, prompt_length)],
            "an answer that was cut off by max_new_tokens has no EOS token, and index() then raises an error.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: [i for i in output[prompt_length:] if i != eos_id],
            "you took the EOS token out, and left what stands behind it: that is padding.",
        ),
        Mistake(
            lambda output, prompt_length, eos_id: lesson.answer_ids(output, 0, eos_id),
            "the prompt is still in it: generate returns the prompt and the answer.",
        ),
    ],
    hints=[
        "output[prompt_length:] is the answer with what follows it.",
        "eos_id in answer? Then answer.index(eos_id).",
    ],
    why="The prompt goes first, since it may hold EOS tokens of its own; behind the answer's first one is padding.",
)
