"""From logits to the next token, and from a prompt to an answer: what transformers' ``generate`` does, in the open.

A *logits* tensor holds a score for every token of the vocabulary, one row for each text of a batch. Every function
here takes such a tensor and gives back one of the same shape: :func:`with_temperature` and :func:`repetition_penalty`
change scores, :func:`top_k`, :func:`top_p` and :func:`min_p` set the scores of the tokens that they rule out to minus
infinity. All are equal to transformers' logits processors, to the bit. :func:`generate` is the loop around them.

Attributes:
    NEVER: The logit of a token that can't be drawn: its probability is exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from utils.lora.refusals import check_count
from utils.models.ends import configured_ends, listed_ids

NEVER = -float("inf")

Choose = Callable[[Tensor, Tensor], Tensor]


def _checked(logits: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point() or not logits.shape[1]:
        about = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else repr(logits)
        raise ValueError(
            f"logits are floating-point scores of shape (batch, vocab), not {about}; of a model's output take the last "
            "position: output.logits[:, -1]"
        )
    return logits


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number, not {value!r}")
    return float(value)


# ------------------------------------------------------------------------------------------------- on logits alone


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
    """The most probable token of each row; of equals the first. Raises ValueError for what are no logits."""
    return _checked(logits).argmax(dim=-1)


def with_temperature(logits: Float[Tensor, "batch vocab"], temperature: float) -> Float[Tensor, "batch vocab"]:
    """The logits divided by `temperature`: below 1 the distribution sharpens, above 1 it flattens.

    Raises ValueError unless 0 < temperature < infinity. At 0 there is nothing to draw: that is :func:`greedy`.
    """
    value = _number("temperature", temperature)
    if not 0 < value < float("inf"):
        raise ValueError(
            f"temperature must be above 0 and finite, not {temperature}: the logits are divided by it. For the most "
            "probable token every time use greedy decoding (do_sample=False)"
        )
    return _checked(logits) / value


def top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Keep the `k` most probable tokens, and those that tie with the last of them (Fan et al., 2018, section 5.4).

    A `k` above the size of the vocabulary keeps all. Raises ValueError for a `k` that is no whole number or below 1.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"top_k is a whole number of tokens to keep, at least 1, not {k!r}; to keep all, leave it out")
    smallest = torch.topk(_checked(logits), min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, NEVER)


def top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Keep the smallest set of most probable tokens whose probabilities add up to `p` (Holtzman et al., 2019).

    The set is found from below: in rising order, tokens go as long as what has gone adds up to no more than 1 - p. The
    most probable token always stays. Of tokens that tie at the edge, some may stay and some go. Raises ValueError
    unless 0 < p <= 1.
    """
    value = _number("top_p", p)
    if not 0 < value <= 1:
        raise ValueError(f"top_p is a probability above 0 and at most 1, not {p}; 0.9 means 0.9, not 90")
    rising, order = torch.sort(_checked(logits), descending=False)
    gone = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - value
    gone[:, -1] = False
    return logits.masked_fill(gone.scatter(1, order, gone), NEVER)


def min_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Keep the tokens that are at least `p` times as probable as the most probable one (Nguyen et al., 2024).

    Raises ValueError unless 0 <= p <= 1.
    """
    value = _number("min_p", p)
    if not 0 <= value <= 1:
        raise ValueError(f"min_p is a share of the largest probability, from 0 to 1, not {p}")
    probabilities = _checked(logits).softmax(dim=-1)
    best = probabilities.amax(dim=-1, keepdim=True)
    gone = probabilities < value * best
    gone.scatter_(1, probabilities.topk(1, dim=-1).indices, False)
    return logits.masked_fill(gone, NEVER)


def repetition_penalty(
    logits: Float[Tensor, "batch vocab"], seen: Int[Tensor, "batch length"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make the tokens `seen` so far less probable (Keskar et al., 2019, section 4.1): a positive logit is divided by
    `penalty`, a negative one multiplied, once, however often the token was seen.

    `seen` holds the ids of the prompt and of the answer so far. Below 1 repetition is rewarded. Raises ValueError
    unless 0 < penalty < infinity, and when `seen` has other rows than the logits, or an id that isn't in the
    vocabulary.
    """
    value = _number("repetition_penalty", penalty)
    if not 0 < value < float("inf"):
        raise ValueError(f"repetition_penalty must be above 0 and finite, not {penalty}; 1 changes nothing")
    if seen.dim() != 2 or len(seen) != len(_checked(logits)):
        raise ValueError(f"seen has the shape {tuple(seen.shape)}, but there are {len(logits)} rows of logits")
    if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < logits.shape[1]:
        raise ValueError(f"seen holds ids outside of the vocabulary of {logits.shape[1]} tokens")
    scores = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(scores < 0, scores * value, scores / value))


def processed(
    logits: Float[Tensor, "batch vocab"],
    seen: Int[Tensor, "batch length"],
    *,
    temperature: float = 1.0,
    k: int | None = None,
    p: float | None = None,
    minimum: float | None = None,
    penalty: float | None = None,
) -> Float[Tensor, "batch vocab"]:
    """All of them in the order of transformers: repetition penalty, temperature, top-k (`k`), top-p (`p`), min-p
    (`minimum`).

    Raises what each of them raises.
    """
    if penalty is not None:
        logits = repetition_penalty(logits, seen, penalty)
    logits = with_temperature(logits, temperature)
    if k is not None:
        logits = top_k(logits, k)
    if p is not None:
        logits = top_p(logits, p)
    if minimum is not None:
        logits = min_p(logits, minimum)
    return logits


def sampler(generator: torch.Generator | None = None, **settings: Any) -> Choose:
    """A way to choose for :func:`generate`: draw from the probabilities that :func:`processed` leaves.

    `settings` are those of :func:`processed`. Without a `generator` PyTorch's own is used. Raises ValueError for logits
    that hold NaN or plus infinity: nothing can be drawn from them.
    """

    def choose(logits: Tensor, seen: Tensor) -> Tensor:
        probabilities = processed(logits, seen, **settings).softmax(dim=-1)
        if bool(probabilities.isnan().any()):  # on a GPU multinomial would end the whole process's use of the card
            raise ValueError(
                "the model's logits hold NaN or infinity, so no token can be drawn: its weights aren't finite any "
                "more, or are too large. After training take a lower learning rate and start again"
            )
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)

    return choose


# ---------------------------------------------------------------------------------------------------------- the loop


class Generated(NamedTuple):
    """What :func:`generate` made: `ids` (batch, new tokens), padded behind the end mark, and what it cost: `computed`
    positions that went through the model, padding included."""

    ids: Tensor
    computed: int


@torch.inference_mode()
def generate(
    model: Any,
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"] | None = None,
    *,
    max_new_tokens: int,
    eos_id: int | Sequence[int] | Tensor | None = None,
    pad_id: int,
    use_cache: bool = True,
    choose: Choose | None = None,
) -> Generated:
    """Continue the texts of a batch, one token a pass, until each has ended or has `max_new_tokens` more tokens.

    A text ends with the token `eos_id`, or with any of several, as chat models have them; None means those of the
    model's own generation config, where it has any, as in transformers. `choose(logits, seen)` picks the next token of
    each row, by default :func:`greedy`. Shorter prompts are padded on the left and masked. With `use_cache` a pass
    computes the new token only and reads the keys and values of the others from the cache; without, it computes them
    all again. Raises ValueError when a prompt is empty or ends in padding, the mask has another shape, or
    `max_new_tokens` is below 1, and TypeError for one that is no whole number, or an `eos_id` that is no id.
    """
    check_count("max_new_tokens", max_new_tokens)
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(
            f"input_ids have the shape (batch, length) and at least one token, not {tuple(input_ids.shape)}"
        )
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ValueError(f"the mask has the shape {tuple(mask.shape)}, the ids have {tuple(input_ids.shape)}")
    if not bool(mask[:, -1].all()):
        raise ValueError(
            "a prompt ends in padding, so the model would continue the padding: tokenize with padding_side='left'"
        )
    choose = choose or (lambda logits, _: greedy(logits))
    listed = configured_ends(model) if eos_id is None else listed_ids(eos_id)
    ends = torch.tensor(listed, dtype=torch.long, device=input_ids.device)
    ids, cache, computed, prompt_length = input_ids, None, 0, input_ids.shape[1]
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        fresh = slice(-1, None) if cache is not None else slice(None)
        output = model(
            input_ids=ids[:, fresh], attention_mask=mask, position_ids=positions[:, fresh],
            use_cache=use_cache, cache=cache,
        )  # fmt: skip
        cache = output.cache if use_cache else None
        computed += ids[:, fresh].numel()
        token = torch.where(unfinished, choose(output.logits[:, -1].float(), ids), pad_id)
        ids = torch.cat([ids, token[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        unfinished &= ~torch.isin(token, ends)
        if not bool(unfinished.any()):
            break
    new = ids[:, prompt_length:]
    return Generated(new, computed)
