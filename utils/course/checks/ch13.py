"""Chapter 13's exercises: a value of a GGUF file, the rotation's order of rows, an adapter's entries, four faults."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.course.checks.references import ch13 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise

# ----------------------------------------------------------------------------------------------- a value of the header

STRING, ARRAY = 8, 9


def _packed(value: Any, kind: int, items: int = STRING) -> bytes:
    """The bytes of a value as GGUF writes them; `items` is the kind of an array's items."""
    if kind == STRING:
        text = value.encode()
        return struct.pack("<Q", len(text)) + text
    if kind == ARRAY:
        inner = [_packed(item, items) for item in value]
        return struct.pack("<IQ", items, len(value)) + b"".join(inner)
    return struct.pack("<" + lesson.SCALARS[kind], value)


def _nested(rows: list[list[str]]) -> bytes:
    return struct.pack("<IQ", ARRAY, len(rows)) + b"".join(_packed(row, ARRAY) for row in rows)


def _file(data: bytes, kind: int) -> Callable[[], tuple[io.BytesIO, int]]:
    return lambda: (io.BytesIO(data + b"what follows"), kind)


def _drawn_value(draw: random.Random) -> tuple[io.BytesIO, int]:
    what = draw.randrange(5)
    words = ["".join(draw.choices("abcdé ü", k=draw.randint(0, 6))) for _ in range(draw.randint(0, 4))]
    if what == 0:
        return _file(_packed(draw.randint(0, 2**31), 4), 4)()
    if what == 1:
        return _file(_packed(" ".join(words), STRING), STRING)()
    if what == 2:
        return _file(_packed(words, ARRAY), ARRAY)()
    if what == 3:
        return _file(_nested([words, words[:1]]), ARRAY)()
    return _file(_packed([draw.randint(-9, 9) for _ in words], ARRAY, 5), ARRAY)()


def _stops_after_the_value(answer: Any) -> None:
    for value, kind, items in ((7, 4, 0), ("Grüße", STRING, 0), (["a", "bc"], ARRAY, STRING)):
        file = io.BytesIO(_packed(value, kind, items) + b"what follows")
        answer(file, kind)
        if (rest := file.read()) != b"what follows":
            raise Wrong(
                f"after the value {value!r} the file should stand at what follows it, and {len(rest)} bytes are left "
                "instead of 12: the next value would be read from the wrong place."
            )


def _only_scalars(file: io.BytesIO, kind: int) -> Any:
    return lesson.number(file, lesson.SCALARS[kind])


def _array_of(inner: Callable[[io.BytesIO, int, int], Any]) -> Callable[[io.BytesIO, int], Any]:
    """Right but for arrays, whose items `inner` reads from the file, the items' kind and their number."""

    def answer(file: io.BytesIO, kind: int) -> Any:
        if kind != ARRAY:
            return lesson.read_value(file, kind)
        return inner(file, lesson.number(file, "I"), lesson.number(file, "Q"))

    return answer


def _short_lengths(file: io.BytesIO, kind: int) -> Any:
    if kind == STRING:
        return file.read(lesson.number(file, "I")).decode(errors="replace")
    return lesson.read_value(file, kind)


def _read_as(items: str, count: str) -> Callable[[io.BytesIO, int], Any]:
    """Right but for the sizes of an array's two numbers."""

    def answer(file: io.BytesIO, kind: int) -> Any:
        if kind != ARRAY:
            return lesson.read_value(file, kind)
        inner, several = lesson.number(file, items), lesson.number(file, count)
        return [answer(file, inner) for _ in range(several)]

    return answer


def _count_first(file: io.BytesIO, kind: int) -> Any:
    if kind != ARRAY:
        return lesson.read_value(file, kind)
    count, items = lesson.number(file, "Q"), lesson.number(file, "I")
    return [lesson.read_value(file, items) for _ in range(min(count, 100))]


def _bytes_of_strings(file: io.BytesIO, kind: int) -> Any:
    if kind == STRING:
        return file.read(lesson.number(file, "Q"))
    if kind == ARRAY:
        items, count = lesson.number(file, "I"), lesson.number(file, "Q")
        return [_bytes_of_strings(file, items) for _ in range(count)]
    return lesson.number(file, lesson.SCALARS[kind])


exercise(
    "read_value",
    reference=lesson.read_value,
    cases=[
        _file(_packed(512, 4), 4),
        _file(_packed("llama", STRING), STRING),
        _file(_packed(["<|pad|>", "Ġthe", "é"], ARRAY), ARRAY),
        _file(_packed([1, 3, 3], ARRAY, 5), ARRAY),
        _file(_packed(True, 7), 7),
        _file(_packed(0.5, 6), 6),
        _file(_packed([], ARRAY), ARRAY),
        _file(_nested([["a", "b"], []]), ARRAY),
    ],
    drawn=_drawn_value,
    test=_stops_after_the_value,
    mistakes=[
        Mistake(_only_scalars, "kinds 8 and 9 aren't in SCALARS: a string is `text(file)`, and an array needs a loop."),
        Mistake(
            _array_of(lambda file, items, count: [lesson.text(file) for _ in range(count)]),
            "not every array holds strings: its first number is the kind of its items, so read each by that kind.",
        ),
        Mistake(
            _array_of(lambda file, items, count: [_only_scalars(file, items) for _ in range(count)]),
            "an array may hold strings too, or arrays: let read_value call itself for each item.",
        ),
        Mistake(_array_of(lambda file, items, count: count), "that is how many items the array has: read them too."),
        Mistake(
            _array_of(lambda file, items, count: lesson.read_value(file, items) if count else []),
            "an array has `count` items, and you read the first alone.",
        ),
        Mistake(
            _short_lengths, "a string's length has eight bytes, Q, and you read four of them: `text(file)` does it."
        ),
        Mistake(
            _read_as("I", "I"),
            'an array\'s number of items has eight bytes, number(file, "Q"), and you read four of them.',
        ),
        Mistake(
            _read_as("Q", "Q"), 'the kind of an array\'s items has four bytes, number(file, "I"), and you read eight.'
        ),
        Mistake(
            _count_first, "the other way round: an array begins with its items' kind (I), then comes their number (Q)."
        ),
        Mistake(
            _bytes_of_strings, "those are the string's bytes: .decode() makes text of them, and `text(file)` does both."
        ),
    ],
    hints=[
        "Three cases: a string (8), an array (9), and everything else, for which SCALARS has the letter.",
        'An array: kind = number(file, "I"), count = number(file, "Q"), then `count` values of that kind.',
        "Each item is a value again, so read_value calls itself.",
    ],
    why="An array's items are values like any other, so one function that calls itself reads every header.",
    points=2,
)

# ---------------------------------------------------------------------------------------------- the order of the rows


def _rows(heads: int, size: int, *rest: int) -> Callable[[], tuple[Tensor, int]]:
    """Rows whose numbers say where they stood."""
    count = heads * size
    width = rest[0] if rest else 1
    numbered = torch.arange(count * width, dtype=torch.float32).reshape(count, *rest)
    return lambda: (numbered.clone(), heads)


def _drawn_rows(draw: random.Random) -> tuple[Tensor, int]:
    heads, half = draw.randint(1, 5), draw.randint(1, 5)
    shape = (2 * half * heads, draw.randint(1, 4)) if draw.random() < 0.7 else (2 * half * heads,)
    return torch.randn(shape), heads


def _reordered(shape: Callable[[int, int], tuple[int, ...]]) -> Callable[[Tensor, int], Tensor]:
    """As the reference, with another shape between."""

    def answer(rows: Tensor, heads: int) -> Tensor:
        between = shape(heads, len(rows) // heads)
        return rows.reshape(*between, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    return answer


exercise(
    "rotate",
    reference=lesson.rotate,
    cases=[_rows(1, 4), _rows(1, 6, 2), _rows(2, 4, 3), _rows(3, 8), _rows(2, 2, 2)],
    drawn=_drawn_rows,
    any_dtype=False,
    mistakes=[
        Mistake(
            lambda rows, heads: rows.clone(), "the rows stand as they stood: row i + d/2 has to come behind row i."
        ),
        Mistake(
            _reordered(lambda heads, size: (heads, size // 2, 2)),
            "that is the way back: it puts the even rows before the odd ones. Split each head into two halves, then "
            "take one row of each in turn.",
        ),
        Mistake(
            lambda rows, heads: lesson.rotate(rows, 1),
            "you halve the whole matrix: each head has halves of its own, so split into heads first.",
        ),
        Mistake(
            lambda rows, heads: rows.reshape(heads, 2, -1, *rows.shape[1:]).flip(1).reshape(rows.shape),
            "you exchanged the two halves: their rows have to alternate.",
        ),
        Mistake(
            lambda rows, heads: rows.reshape(heads, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape),
            "that mixes the heads with each other: the rows of a head stay together.",
        ),
        Mistake(
            lambda rows, heads: rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape),
            "you exchanged heads and halves: the two axes to exchange are the half's and its rows', .transpose(1, 2).",
        ),
        Mistake(
            lambda rows, heads: (
                rows.reshape(*rows.shape[:-1], 2, rows.shape[-1] // 2).transpose(-1, -2).reshape(rows.shape)
            ),
            "you reordered the last axis, which for a weight are the columns: the rows are the first.",
        ),
        Mistake(
            lambda rows, heads: lesson.rotate(rows, heads).reshape(heads, -1, *rows.shape[1:]),
            "the order is right and the shape isn't: give the result the shape that came in.",
        ),
    ],
    hints=[
        "A head of size 4 has the rows 0 1 2 3. transformers pairs 0 with 2 and 1 with 3; the result is 0 2 1 3.",
        "reshape to (heads, 2, d/2, ...): the axis of length 2 says which half.",
        ".transpose(1, 2) puts a row of each half side by side, and .reshape(rows.shape) makes them rows again.",
    ],
    why="Queries and keys get the same order, so their dot product has the same terms; only the pairs that RoPE turns "
    "together stand elsewhere.",
)

# ------------------------------------------------------------------------------------------------ an adapter's entries

HEADS = {"q_proj": 6, "k_proj": 2}


def _pair(layer: int, module: str, out: int, r: int = 12) -> Callable[[], tuple[Any, ...]]:
    def made() -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(layer + out)
        part = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        A, B = torch.randn(r, 5, generator=generator), torch.randn(out, r, generator=generator)
        return f"base_model.model.model.layers.{layer}.{part}.{module}", A, B, dict(HEADS)

    return made


def _drawn_pair(draw: random.Random) -> tuple[Any, ...]:
    module = draw.choice(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    return _pair(draw.randrange(32), module, 12 * draw.randint(1, 2), 12 * draw.randint(1, 2))()


def _with(
    change: Callable[[str, Tensor, Tensor, dict[str, int]], tuple[Tensor, Tensor]],
    rename: Callable[[str], str] = lambda name: name,
) -> Callable[..., dict[str, Tensor]]:
    """The right names, renamed, with other matrices."""

    def answer(module: str, lora_A: Tensor, lora_B: Tensor, heads: dict[str, int]) -> dict[str, Tensor]:
        a, b = change(module, lora_A, lora_B, heads)
        names = [rename(name) for name in lesson.entries(module, lora_A, lora_B, heads)]
        return dict(zip(names, (a, b), strict=True))

    return answer


def _right(module: str, A: Tensor, B: Tensor, heads: dict[str, int]) -> tuple[Tensor, Tensor]:
    a, b = lesson.entries(module, A, B, heads).values()
    return a, b


def _rotated_by(chosen: Callable[[str, dict[str, int]], int | None]) -> Callable[..., dict[str, Tensor]]:
    def change(module: str, A: Tensor, B: Tensor, heads: dict[str, int]) -> tuple[Tensor, Tensor]:
        count = chosen(module.rpartition(".")[2], heads)
        return A, lesson.rotate(B, count) if count else B

    return _with(change)


def _a_rotated(module: str, A: Tensor, B: Tensor, heads: dict[str, int]) -> tuple[Tensor, Tensor]:
    _, b = _right(module, A, B, heads)
    count = heads.get(module.rpartition(".")[2])
    return lesson.rotate(A, count) if count else A, b


exercise(
    "entries",
    reference=lesson.entries,
    cases=[_pair(0, "q_proj", 24), _pair(3, "k_proj", 8), _pair(11, "v_proj", 8), _pair(2, "down_proj", 12)],
    drawn=_drawn_pair,
    mistakes=[
        Mistake(
            _with(lambda module, A, B, heads: (A, B)),
            "lora_B isn't rotated: B A is added to W, so the rows of q_proj's and k_proj's B need the order that W's "
            "rows have in the file.",
        ),
        Mistake(
            _rotated_by(lambda kind, heads: heads.get(kind, 1)),
            "RoPE turns queries and keys alone: v_proj, o_proj and the MLP keep their rows. `heads` names what turns.",
        ),
        Mistake(
            _rotated_by(lambda kind, heads: heads["q_proj"] if kind in heads else None),
            "keys have fewer heads than queries here: take the number that `heads` has for this module.",
        ),
        Mistake(
            _rotated_by(lambda kind, heads: heads[kind] if kind == "q_proj" else None),
            "k_proj's rows turn as well as q_proj's.",
        ),
        Mistake(
            _with(_a_rotated), "lora_A reads the hidden state, which has its usual order: only lora_B's rows move."
        ),
        Mistake(
            _with(lambda module, A, B, heads: tuple(reversed(_right(module, A, B, heads)))),  # type: ignore[arg-type]
            "lora_a and lora_b are exchanged.",
        ),
        Mistake(
            _with(_right, lambda name: name.replace(".weight", "")),
            "the name of the weight that is adapted goes with its .weight: blk.0.attn_q.weight.lora_a.",
        ),
        Mistake(
            _with(_right, lambda name: name.replace(".lora_a", ".lora_A").replace(".lora_b", ".lora_B")),
            "GGUF writes lora_a and lora_b in small letters.",
        ),
        Mistake(
            _with(lambda module, A, B, heads: (A, 2 * _right(module, A, B, heads)[1])),
            "lora_B is too large: llama.cpp multiplies by alpha / r itself, so leave the scaling out.",
        ),
    ],
    hints=[
        'module.split(".") is ["base_model", "model", "model", "layers", "3", "self_attn", "q_proj"].',
        "The name is blk.LAYER.PART.weight, with the part from PARTS, and then .lora_a or .lora_b.",
        "heads.get(kind) is None for what RoPE doesn't turn; else rotate(lora_B, that number).",
    ],
    why="W + B A has one order of rows, so B's are put into W's. A meets the hidden state and B alone.",
    points=2,
)

# ------------------------------------------------------------------------------------------------------- four faults


def _same_faults(expected: dict[str, str], got: Any) -> bool | str:
    if not isinstance(got, dict):
        return 'a dictionary is asked for: {"A": ..., "B": ..., "C": ..., "D": ...}.'
    words = {letter: str(word).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").strip() for letter, word in got.items()}
    if words.keys() != expected.keys():
        return "name a fault for each of A, B, C and D."
    if odd := [word for word in words.values() if word not in expected.values()]:
        return f"{odd[0]!r} is none of the four: {', '.join(repr(word) for word in sorted(expected.values()))}."
    if len(set(words.values())) < len(words):
        return "each of the four faults is in one export, and you name one of them twice."
    return words == expected or "begin with the base's line: where it is right, the fault lies in the adapter's file."


def _exchanged(one: str, other: str, said: str) -> Mistake:
    swapped = {one: lesson.faults[other], other: lesson.faults[one]}
    return Mistake(lesson.faults | swapped, f"{one} and {other} are exchanged{said}")


exercise(
    "faults",
    reference=lesson.faults,
    compare=_same_faults,
    mistakes=[
        _exchanged("A", "B", ". One of them leaves the base alone as it was, so its fault is in the adapter."),
        _exchanged("A", "C", ": look at the prompt that the model read."),
        _exchanged("B", "C", ": with which of them is the base wrong, too, which no adapter can explain?"),
        _exchanged("B", "D", ": both lie in the adapter. Which of them is cured by asking with scale 2?"),
        _exchanged("C", "D", ": an adapter's alpha can't change what the base says alone, and C's base is wrong."),
        _exchanged("A", "D", ": D reads the right prompt, so its template is right."),
    ],
    hints=[
        "Look at the base's answers first: where they are right, the fault lies in the adapter's file.",
        "Then at the prompt: does it say what the notebook's tokenizer makes of the same message?",
        "Too small an update gets better with a larger scale. A wrongly turned one doesn't.",
    ],
    why="The base alone separates the base's file from the adapter's; the rendered prompt shows the template; a scale "
    "of 2 shows the lost alpha.",
)
