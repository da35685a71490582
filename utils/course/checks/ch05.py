"""Chapter 5's exercises: Dolly's fields, a batched map, a conversation's labels, a packed row, leaked prompts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from utils.course.checks.references import ch05 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.data.chat import IGNORED

# ------------------------------------------------------------------------------------------------- Dolly's fields

Fields = dict[str, str]


def _as_the_guide(record: Fields) -> Fields:
    return {name: record.get(name, "") for name in ("instruction", "input", "output")}


def _silent(record: Fields) -> Fields:
    return {
        "instruction": record["instruction"],
        "input": record["context"],
        "output": record.get("response", ""),
    }


def _refused_unless(wanted: Callable[[Fields], bool]) -> Callable[[Fields], Fields]:
    def answer(record: Fields) -> Fields:
        if not wanted(record):
            raise ValueError("no response")
        return _silent(record)

    return answer


def _none_for_bad(record: Fields) -> Fields | None:
    return _silent(record) if record.get("response", "").strip() else None


def _but(change: Callable[[Fields, Fields], Any]) -> Callable[[Fields], Any]:
    """The right answer, changed once more."""
    return lambda record: change(lesson.dolly_record(record), record)


def _renamed_in_place(record: Fields) -> Fields:
    lesson.dolly_record(record)
    record["input"], record["output"] = record.pop("context"), record.pop("response")
    record.pop("category", None)
    return record


def _output_added_in_place(record: Fields) -> Fields:
    lesson.dolly_record(record)
    record["input"], record["output"] = record.pop("context"), record.pop("response")
    return record


_QA = {"instruction": "Who went to the lake?", "context": "Zoe went to the lake.", "response": "Zoe.", "category": "qa"}


def _drawn_dolly(rng: random.Random) -> tuple[Fields]:
    record = {
        "instruction": rng.choice(["Who slept?", "Name a tree.", " Why? "]),
        "context": rng.choice(["", "", "Tom slept.", "  Two\nlines.  "]),
        "response": rng.choice(["Tom.", "An oak.", " yes ", "", "", "  ", "\n\t"]),
        "category": rng.choice(["qa", "closed_qa", "creative_writing"]),
    }
    for name in rng.sample(["category", "response"], rng.choice([0, 0, 1])):
        del record[name]
    return (dict(rng.sample(list(record.items()), len(record))),)


exercise(
    "dolly_record",
    reference=lesson.dolly_record,
    cases=[
        (_QA,),
        ({**_QA, "context": ""},),
        ({**_QA, "response": " "},),
        ({**_QA, "response": ""},),
        ({"instruction": "Say it in French:", "input": "The fox sees a kite.", "output": "Le renard voit un kite."},),
    ],
    drawn=_drawn_dolly,
    mistakes=[
        Mistake(
            _as_the_guide,
            "Dolly's fields are context and response: .get finds no input and no output and gives empty text instead.",
        ),
        Mistake(
            _silent,
            "a record without a response passes with an empty output: the model would learn to say nothing. Raise.",
        ),
        Mistake(
            _refused_unless(lambda record: "response" in record),
            "a response that is there and empty passes: ask whether anything is left after .strip().",
        ),
        Mistake(
            _refused_unless(lambda record: bool(record.get("response"))),
            "a response of spaces alone passes: ask whether anything is left after .strip().",
        ),
        Mistake(
            _refused_unless(lambda record: "response" in record and not record["response"].isspace()),
            "an empty response passes, since ''.isspace() is False: ask whether anything is left after .strip().",
        ),
        Mistake(
            _refused_unless(lambda record: bool(record.get("response", "").strip() and record["context"])),
            "a record without a context is refused: the context may be empty, the response may not.",
        ),
        Mistake(
            _refused_unless(lambda record: record.get("response", "") not in ("", " ")),
            "a response of two spaces passes, or of a line end: .strip() takes all white space off the two ends.",
        ),
        Mistake(
            _refused_unless(lambda record: bool(record.get("response", "").strip(" "))),
            ".strip(' ') takes off spaces alone, and leaves tabs and line ends: call .strip() without an argument.",
        ),
        Mistake(
            _refused_unless(lambda record: bool(record.get("response", "").strip()) and "category" in record),
            "a record without a category is refused: only the response has to be there.",
        ),
        Mistake(
            _refused_unless(lambda record: len(record.get("response", "").strip()) > 4),
            "a short response is refused, and 'Zoe.' is a good answer: refuse only what holds nothing.",
        ),
        Mistake(
            lambda record: lesson.dolly_record({**record, "response": record.get("response", "").strip() or "(none)"}),
            "a text of yours stands in for a missing response, and the model would learn to say that: raise.",
        ),
        Mistake(
            _but(lambda done, record: {**record, "input": done["input"], "output": done["output"]}),
            "Dolly's own fields are still there beside the new ones: only instruction, input and output are asked for.",
        ),
        Mistake(
            _but(lambda done, record: {key: done[key] for key in done if key != "input" or done[key]}),
            "where the context is empty input is missing: every record needs the same fields, so it is an empty text.",
        ),
        Mistake(
            _but(lambda done, record: {**done, "input": done["input"] or None}),
            "an empty context became None: input is a text, and may be an empty one.",
        ),
        Mistake(
            _but(lambda done, record: {**done, "output": done["output"].strip()}),
            "the response was stripped: strip to look whether anything is there, and hand on what was written.",
        ),
        Mistake(
            _but(
                lambda done, record: {
                    **done,
                    "instruction": f"{done['instruction']} {done['input']}".strip(),
                    "input": "",
                }
            ),
            "the context was put behind the instruction: it belongs into input.",
        ),
        Mistake(
            _but(lambda done, record: tuple(done.values())),
            "you return the texts without their names: return a dictionary with instruction, input and output.",
        ),
        Mistake(
            _refused_unless(lambda record: bool(record["response"].strip())),
            "where the response is missing a KeyError is raised, and the task wants a ValueError: ask with .get first.",
        ),
        Mistake(
            _none_for_bad,
            "a bad record becomes None, and whoever maps a data set would not hear of it: raise a ValueError.",
        ),
        Mistake(
            _but(lambda done, record: {key: value for key, value in done.items() if key != "input"}),
            "the context is lost: it belongs into input, or the question can't be answered.",
        ),
        Mistake(
            _but(lambda done, record: {**done, "input": done["output"], "output": done["input"]}),
            "input and output are exchanged: the response is what the model has to say.",
        ),
        Mistake(
            _but(lambda done, record: {key: value.strip() for key, value in done.items()}),
            "the texts were stripped: strip to look whether anything is there, and hand on what was written.",
        ),
        Mistake(
            _but(lambda done, record: {**done, "category": record.get("category", "")}),
            "category was handed on: the task wants instruction, input and output, and nothing else.",
        ),
        Mistake(
            _output_added_in_place,
            "category is still there: the task wants a new dictionary of three fields, and the record left as it is.",
        ),
        Mistake(
            _renamed_in_place, "your function changes its input: the record loses its fields. Make a new dictionary."
        ),
    ],
    hints=[
        "instruction stays, context becomes input, response becomes output.",
        '(record.get("response") or "").strip() is empty when the field is missing, None, or holds nothing.',
        "Then raise ValueError with words that help: which fields does the record have?",
    ],
    why="A missing field that becomes an empty text is never heard of again; an error names the record that it is in.",
)

# -------------------------------------------------------------------------------------------------- a batched map

Batch = dict[str, list[str]]
Messages = list[dict[str, str]]
Template = Callable[..., list[list[int]]]

_MARKS = {"user": 2, "assistant": 3}


def _toy(conversations: list[Messages], add_generation_prompt: bool = False) -> list[list[int]]:
    """A chat template for the cases: a turn is its mark, a token a letter, and the EOS token 1."""
    if not isinstance(conversations, list) or not all(isinstance(talk, list) for talk in conversations):
        raise TypeError("template takes a list of conversations, each a list of messages")
    rows = []
    for talk in conversations:
        ids = [i for turn in talk for i in (_MARKS[turn["role"]], *map(ord, turn["content"]), 1)]
        rows.append(ids + [_MARKS["assistant"]] * add_generation_prompt)
    return rows


def _rows(batch: Batch) -> list[tuple[str, str, str]]:
    return list(zip(batch["instruction"], batch["input"], batch["output"], strict=True))


def _joined(instruction: str, extra: str) -> str:
    return f"{instruction} {extra}" if extra else instruction


def _built(
    user: Callable[[str, str], str] = _joined,
    prompt_too: bool = True,
    generation: bool = True,
    answer: Callable[[str], str] = lambda output: output,
    roles: tuple[str, str] = ("user", "assistant"),
) -> Callable[[Batch, Template], dict[str, list[list[int]]]]:
    """The right answer with one thing done otherwise."""

    def done(batch: Batch, template: Template) -> dict[str, list[list[int]]]:
        asked = [[{"role": roles[0], "content": user(i, e)}] for i, e, _ in _rows(batch)]
        talks = [
            [*q, {"role": roles[1], "content": answer(o)}] for q, (_, _, o) in zip(asked, _rows(batch), strict=True)
        ]
        prompts = {"prompt_ids": template(asked, add_generation_prompt=generation)} if prompt_too else {}
        return {"input_ids": template(talks), **prompts}

    return done


def _both_slips(batch: Batch, template: Template) -> dict[str, list[list[int]]]:
    return _built(user=lambda instruction, extra: f"{instruction} {extra}", generation=False)(batch, template)


def _over_the_keys(batch: Batch, template: Template) -> dict[str, list[list[int]]]:
    # A common loop (C16). That a key is no example is what this mistake gets wrong, and the type checker sees it.
    asked = [[{"role": "user", "content": row.get("instruction", "")}] for row in batch]  # pyright: ignore[reportAttributeAccessIssue]
    return {"input_ids": template(asked), "prompt_ids": template(asked, add_generation_prompt=True)}


def _two_user_turns(batch: Batch, template: Template) -> dict[str, list[list[int]]]:
    asked = [[{"role": "user", "content": text} for text in (i, e) if text] for i, e, _ in _rows(batch)]
    talks = [[*q, {"role": "assistant", "content": o}] for q, (_, _, o) in zip(asked, _rows(batch), strict=True)]
    return {"input_ids": template(talks), "prompt_ids": template(asked, add_generation_prompt=True)}


def _both_opened(batch: Batch, template: Template) -> dict[str, list[list[int]]]:
    return lesson.tokenize_batch(batch, lambda talks, **options: template(talks, add_generation_prompt=True))


def _one_call_each(batch: Batch, template: Template) -> dict[str, Any]:
    rows = [lesson.tokenize_batch({k: [v[n]] for k, v in batch.items()}, template) for n in range(len(_rows(batch)))]
    return {key: [row[key] for row in rows] for key in ("input_ids", "prompt_ids")}  # a list too many


def _changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Batch, Template], Any]:
    return lambda batch, template: change(lesson.tokenize_batch(batch, template))


def _drawn_batch(rng: random.Random) -> tuple[Batch, Template]:
    words = ["ab", "c", "Say it:", "x y", "q.", "Ünï"]
    n = rng.randint(1, 4)
    columns = {
        "instruction": rng.choices(words, k=n),
        "input": rng.choices(["", "", *words], k=n),
        "output": rng.choices(words, k=n),
        "task": rng.choices(words, k=n),
    }
    return dict(rng.sample(list(columns.items()), 4)), _toy


exercise(
    "tokenize_batch",
    reference=lesson.tokenize_batch,
    cases=[
        ({"instruction": ["ab", "c"], "input": ["d", "e"], "output": ["x", "yz"]}, _toy),
        ({"instruction": ["q", "r"], "input": ["", "s"], "output": ["r", "t"]}, _toy),
        ({"output": ["r"], "task": ["style"], "input": ["s"], "instruction": ["q"]}, _toy),
    ],
    drawn=_drawn_batch,
    mistakes=[
        Mistake(
            _over_the_keys,
            "going through a dictionary gives its keys, which are texts. Zip its columns: "
            'zip(batch["instruction"], batch["input"], batch["output"]).',
        ),
        Mistake(
            _built(user=lambda instruction, extra: f"{instruction} {extra}"),
            "where there is no input the instruction ends with a space, and the model would learn to expect it.",
        ),
        Mistake(
            _built(user=lambda instruction, extra: instruction),
            "the input is lost: it stands behind the instruction, after one space.",
        ),
        Mistake(
            _built(user=lambda instruction, extra: f"{instruction}{extra}"),
            "the space between instruction and input is missing: the last word of one and the first of the other run "
            "together.",
        ),
        Mistake(
            _built(user=lambda instruction, extra: f"{instruction}\n{extra}" if extra else instruction),
            "a line end stands between instruction and input; this course's data have a space there.",
        ),
        Mistake(
            _built(user=lambda instruction, extra: _joined(extra, instruction) if extra else instruction),
            "the instruction comes first, then the input.",
        ),
        Mistake(
            _built(generation=False),
            "prompt_ids end before the mark that opens the assistant's turn: pass add_generation_prompt=True, or the "
            "model would have to learn that mark.",
        ),
        Mistake(
            _both_slips,
            "two things: where there is no input the instruction ends with a space, and prompt_ids lack the mark that "
            "opens the assistant's turn (add_generation_prompt=True).",
        ),
        Mistake(
            _built(user=lambda instruction, extra: f"{instruction}  {extra}" if extra else instruction),
            "two spaces stand between instruction and input: one is asked for.",
        ),
        Mistake(
            _built(user=lambda instruction, extra: f"{instruction}: {extra}" if extra else instruction),
            "a colon was put between instruction and input: one space is asked for, and nothing else.",
        ),
        Mistake(
            _built(user=lambda instruction, extra: f"{instruction} {extra or None}"),
            "the text 'None' stands where there is no input: leave the input, and the space before it, out.",
        ),
        Mistake(
            lambda batch, template: {
                "input_ids": (done := lesson.tokenize_batch(batch, template))["prompt_ids"],
                "prompt_ids": done["input_ids"],
            },
            "the two columns are exchanged: input_ids holds the whole conversations, prompt_ids their beginnings.",
        ),
        Mistake(
            _changed(lambda done: {**done, "input_ids": done["prompt_ids"]}),
            "the answers are missing: input_ids holds the whole conversations, the assistant's turn included.",
        ),
        Mistake(
            _changed(lambda done: {**done, "prompt_ids": done["input_ids"]}),
            "prompt_ids hold the answers, too: the prompt is the user's turn alone.",
        ),
        Mistake(
            _changed(
                lambda done: {
                    **done,
                    "input_ids": [i[len(p) :] for i, p in zip(done["input_ids"], done["prompt_ids"], strict=True)],
                }
            ),
            "input_ids hold the answers alone: the model has to read the prompt before them.",
        ),
        Mistake(
            _changed(lambda done: {**done, "prompt_ids": [len(ids) for ids in done["prompt_ids"]]}),
            "prompt_ids hold numbers of tokens: the ids themselves are asked for.",
        ),
        Mistake(
            _changed(lambda done: {"input_ids": done["input_ids"], "labels": done["prompt_ids"]}),
            "the second column is called labels: it is prompt_ids, from which the labels come later.",
        ),
        Mistake(
            lambda batch, template: {**batch, **lesson.tokenize_batch(batch, template)},
            "the old columns are returned as well: two are asked for, input_ids and prompt_ids.",
        ),
        Mistake(
            lambda batch, template: lesson.tokenize_batch(
                {**batch, "input": batch["input"][:1] * len(batch["input"])}, template
            ),
            "every record has the first one's input: take the input that stands in its own row.",
        ),
        Mistake(
            _two_user_turns,
            "instruction and input are two turns of the user: they are one turn, with a space between them.",
        ),
        Mistake(
            _both_opened,
            "input_ids end with the mark that opens a turn: add_generation_prompt=True is for the prompts alone.",
        ),
        Mistake(
            lambda batch, template: lesson.tokenize_batch(
                dict(zip(("instruction", "input", "output"), batch.values(), strict=False)), template
            ),
            "you take the columns by their place, and a data set may have others, or another order: take them by name.",
        ),
        Mistake(_built(prompt_too=False), "prompt_ids are missing: without them nobody knows where the answer begins."),
        Mistake(
            _built(answer=lambda output: f"{output}<|end|>"),
            "an EOS token was put behind the output by hand: the chat template writes it already.",
        ),
        Mistake(_built(roles=("assistant", "user")), "the roles are exchanged: the user asks, the assistant answers."),
        Mistake(
            _changed(lambda done: [dict(zip(done, row, strict=True)) for row in zip(*done.values(), strict=True)]),
            "you return a list of rows; a batched map wants one dictionary of columns back.",
        ),
        Mistake(
            _changed(lambda done: {key: value[0] for key, value in done.items()}),
            "only the first record is returned: each column holds a list for each record of the batch.",
        ),
        Mistake(
            _one_call_each,
            "each row is a list in a list: template gives a list of rows, also where it is called with one record.",
        ),
        Mistake(
            _changed(lambda done: {**done, "input_ids": [i[:-1] for i in done["input_ids"]]}),
            "the EOS token at the end was cut off, and it is what tells the model to stop.",
        ),
    ],
    hints=[
        'batch["instruction"] is the list of all instructions of the batch; zip takes the three columns side by side.',
        'A conversation is [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].',
        "Make the list of prompts and the list of conversations first; then call template once for each.",
    ],
    why="One call for the batch lets the tokenizer work on many texts at once. What stands between the turns is the "
    "template's matter, and the prompt's ids say where the answer begins.",
    points=2,
)

# ---------------------------------------------------------------------------------------- a conversation's labels

Turns = Sequence[tuple[str, list[int]]]


def _with_opening(turns: Turns) -> list[int]:
    return [i if role == "assistant" else IGNORED for role, ids in turns for i in ids]


def _everything(turns: Turns) -> list[int]:
    return [i for _, ids in turns for i in ids]


def _only(chosen: Callable[[int, str, Turns], bool]) -> Callable[[Turns], list[int]]:
    """Labels for the turns that are chosen by their place and role."""

    def labels(turns: Turns) -> list[int]:
        return [
            label
            for n, (role, ids) in enumerate(turns)
            for label in ([IGNORED, *ids[1:]] if chosen(n, role, turns) else [IGNORED] * len(ids))
        ]

    return labels


def _without_end(turns: Turns) -> list[int]:
    ends = {sum(len(ids) for _, ids in turns[: n + 1]) - 1 for n in range(len(turns))}
    return [IGNORED if at in ends else label for at, label in enumerate(lesson.conversation_labels(turns))]


def _users(turns: Turns) -> list[int]:
    return [IGNORED if role == "assistant" else i for role, ids in turns for i in ids]


def _in_place(turns: Turns) -> list[int]:
    for role, ids in turns:
        ids[0] = IGNORED
        if role != "assistant":
            ids[:] = [IGNORED] * len(ids)
    return [i for _, ids in turns for i in ids]


def _drawn_turns(rng: random.Random) -> tuple[Turns]:
    roles = rng.choices(["user", "assistant", "assistant", "system", "tool"], k=rng.randint(1, 6))
    marks = {"user": 2, "assistant": 3, "system": 4, "tool": 5}
    return ([(role, [marks[role], *rng.choices([1, 2, 3, 0, 50, 51], k=rng.randint(0, 3)), 1]) for role in roles],)


exercise(
    "conversation_labels",
    reference=lesson.conversation_labels,
    cases=[
        ([("user", [2, 40, 41]), ("assistant", [3, 50, 51, 1])],),
        ([("user", [2, 40]), ("assistant", [3, 50, 1]), ("user", [2, 42]), ("assistant", [3, 52, 53, 1])],),
        ([("system", [4, 60, 1]), ("user", [2, 40]), ("assistant", [3, 50, 1]), ("tool", [5, 61, 1])],),
    ],
    drawn=_drawn_turns,
    mistakes=[
        Mistake(
            _with_opening,
            "the token that opens the assistant's turn is trained on too; it is put there for the model and gets -100.",
        ),
        Mistake(
            _only(lambda n, role, turns: role in ("assistant", "system")),
            "the system prompt is trained on: it is given, and the assistant's words alone are the model's.",
        ),
        Mistake(
            _only(lambda n, role, turns: role in ("assistant", "tool")),
            "what a tool gave back is trained on: it is given, and the assistant's words alone are the model's.",
        ),
        Mistake(
            _only(lambda n, role, turns: role == "assistant" and "assistant" not in [r for r, _ in turns[:n]]),
            "only the first answer is trained on: in a conversation every turn of the assistant counts.",
        ),
        Mistake(
            _only(lambda n, role, turns: role == "assistant" and n > 0 and turns[n - 1][0] == "user"),
            "an answer is trained on only behind a user's turn: it may begin the conversation, or follow a tool's.",
        ),
        Mistake(
            _only(lambda n, role, turns: True),
            "the user's turns are trained on, but for the marks that open them: all of them get -100.",
        ),
        Mistake(
            lambda turns: [
                label
                for role, ids in turns
                for label in ([IGNORED, IGNORED, *ids[2:]] if role == "assistant" else [IGNORED] * len(ids))
            ],
            "the first word of each answer has no label: only the mark that opens the turn is given.",
        ),
        Mistake(
            lambda turns: [
                label
                for role, ids in turns
                for label in ([IGNORED, *ids[1:]] if role == "assistant" else [IGNORED] * (len(ids) - 1) + ids[-1:])
            ],
            "the last token of the other turns is trained on: the EOS token counts where the assistant ends its own.",
        ),
        Mistake(
            lambda turns: [label != IGNORED for label in lesson.conversation_labels(turns)],
            "those say whether a token is trained on: a label is the token's id, or -100.",
        ),
        Mistake(
            lambda turns: ([i for _, ids in turns for i in ids], lesson.conversation_labels(turns)),
            "you return the ids beside the labels: the labels alone are asked for.",
        ),
        Mistake(
            lambda turns: [[IGNORED, *ids[1:]] if role == "assistant" else [IGNORED] * len(ids) for role, ids in turns],
            "that is a list for each turn: put their labels behind each other, in one list.",
        ),
        Mistake(_everything, "every token is trained on, the user's as well: those get the label -100."),
        Mistake(
            _only(lambda n, role, turns: role == "assistant" and n == len(turns) - 1),
            "only the conversation's very last turn is trained on: every turn of the assistant counts.",
        ),
        Mistake(
            _only(lambda n, role, turns: role == "assistant" and "assistant" not in [r for r, _ in turns[n + 1 :]]),
            "only the last answer is trained on: in a conversation every turn of the assistant counts.",
        ),
        Mistake(
            _only(lambda n, role, turns: n == len(turns) - 1),
            "only the last turn is trained on, whoever speaks it: every turn of the assistant counts, and no other.",
        ),
        Mistake(
            _only(lambda n, role, turns: role != "user"),
            "turns of the system or of a tool are trained on too: only the assistant's words are the model's.",
        ),
        Mistake(
            _only(lambda n, role, turns: n % 2 == 1),
            "every second turn is trained on: a conversation may begin with a system prompt, or have two answers in a "
            "row. Go by the role.",
        ),
        Mistake(
            _without_end, "the EOS token of an answer keeps its label: it is how the model learns that it is done."
        ),
        Mistake(
            lambda turns: [*lesson.conversation_labels(turns)[1:], IGNORED],
            "you shifted the labels; the model does that itself, so label i belongs to token i.",
        ),
        Mistake(_users, "it is the other way round: the assistant's turns are trained on, the others aren't."),
        Mistake(
            lambda turns: [label for label in lesson.conversation_labels(turns) if label != IGNORED],
            "there must be as many labels as tokens: what isn't trained on gets -100 and is not left out.",
        ),
        Mistake(
            lambda turns: [-1 if label == IGNORED else label for label in lesson.conversation_labels(turns)],
            "-1 is no label that cross-entropy skips: the one that it ignores is -100.",
        ),
        Mistake(
            _in_place,
            "your function changes its input: the turns' ids are overwritten, and the model still has to read them.",
        ),
    ],
    hints=[
        "Go through the turns and put their labels behind each other.",
        "A turn that isn't the assistant's gives [-100] * len(ids).",
        "A turn of the assistant keeps its ids for labels, but for one: which does the template write at inference?",
    ],
    why="What the template writes at inference, the opening mark among it, is given; what the model has to say itself, "
    "the EOS token among it, is trained on.",
    points=2,
)

# --------------------------------------------------------------------------------------------------- a packed row

Documents = list[list[int]]


def _otherwise(name: str, change: Callable[[Documents], Any]) -> Callable[[Documents], dict[str, Any]]:
    return lambda documents: {**lesson.packed_row(documents), name: change(documents)}


def _starts(documents: Documents) -> list[int]:
    return [sum(len(d) for d in documents[:n]) for n in range(len(documents))]


def _marked_in_place(documents: Documents) -> dict[str, Any]:
    row = lesson.packed_row(documents)
    for document in documents:
        document[0] = IGNORED
    return row


def _grown(documents: Documents) -> dict[str, Any]:
    row = lesson.packed_row(documents)
    for document in documents[1:]:
        documents[0].extend(document)
    return row


def _drawn_documents(rng: random.Random) -> tuple[Documents]:
    return ([rng.choices([0, 1, 1, 5, 6, 7], k=rng.randint(1, 5)) for _ in range(rng.randint(1, 5))],)


exercise(
    "packed_row",
    reference=lesson.packed_row,
    cases=[([[5, 6, 7], [8, 9]],), ([[4, 1], [5], [6, 7, 8, 1]],), ([[5, 6], [7], [5, 6], [7]],)],
    drawn=_drawn_documents,
    mistakes=[
        Mistake(
            _otherwise("position_ids", lambda d: list(range(sum(map(len, d))))),
            "the positions go on through the row: they begin again at 0 with every document.",
        ),
        Mistake(
            _otherwise("position_ids", lambda d: [p + 1 for x in d for p in range(len(x))]),
            "the positions begin at 1: the first token of a document is at position 0.",
        ),
        Mistake(
            _otherwise("position_ids", lambda d: [n for n, x in enumerate(d) for _ in x]),
            "these are the documents' numbers: a position says where in its document a token stands.",
        ),
        Mistake(
            _otherwise("position_ids", _starts),
            "these are the places where the documents begin: position_ids has a number for every token.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [i for x in d for i in x]),
            "the first token of each document has a label, so the end of one document is trained to predict the next.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [IGNORED, *[i for x in d for i in x][1:]]),
            "only the first document's beginning is left out: every document's first token gets -100.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [i for n, x in enumerate(d) for i in ([IGNORED, *x[1:]] if n else x)]),
            "the row's very first token has a label: it begins a document as well.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [i for x in d for i in [*x[:-1], IGNORED]]),
            "the last token of each document lost its label: the first one has none, since nothing before it should "
            "predict it.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [i for x in d for i in [*x[1:], IGNORED]]),
            "you shifted the labels; the model does that itself, so label i belongs to token i.",
        ),
        Mistake(
            lambda documents: {
                "input_ids": documents,
                "labels": [[IGNORED, *d[1:]] for d in documents],
                "position_ids": [list(range(len(d))) for d in documents],
            },
            "these are still lists of documents: a packed row is one flat list of tokens.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [i for x in d for i in [0, *x[1:]]]),
            "0 is a token's id, and the model would learn to say it: the label to skip is -100.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [IGNORED for x in d for _ in x]),
            "no token has a label, so nothing would be trained on: only the first of each document gets -100.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [i for x in d for i in x[1:]]),
            "the labels are fewer than the tokens: the first of each document gets -100, and isn't left out.",
        ),
        Mistake(
            _otherwise("labels", lambda d: [IGNORED if i in {x[0] for x in d} else i for x in d for i in x]),
            "every token that is like a document's first one lost its label: it is the place that counts.",
        ),
        Mistake(
            _otherwise("input_ids", lambda d: [i for x in d for i in [IGNORED, *x[1:]]]),
            "-100 stands among the ids, and no token has that number: only the label is set.",
        ),
        Mistake(
            _otherwise("position_ids", lambda d: [x.index(i) for x in d for i in x]),
            ".index(token) gives the first place of that token, also for the second one like it: use range.",
        ),
        Mistake(
            lambda documents: lesson.packed_row(sorted(documents, key=len, reverse=True)),
            "the documents stand in another order: leave the one in which they came.",
        ),
        Mistake(
            lambda documents: lesson.packed_row([document for document in documents if len(document) > 1]),
            "documents of one token are left out: they have a place in the row, and -100 for a label.",
        ),
        Mistake(
            lambda documents: {**(row := lesson.packed_row(documents)), "attention_mask": [1] * len(row["input_ids"])},
            "an attention mask was added: three lists are asked for, and a mask of ones joins documents (see below).",
        ),
        Mistake(
            lambda documents: tuple(lesson.packed_row(documents).values()),
            "you return the lists without their names: return a dictionary.",
        ),
        Mistake(
            _marked_in_place, "your function changes its input: the documents are overwritten, and are needed again."
        ),
        Mistake(
            _grown,
            "your function changes its input: the first document grows. Begin with an empty list and add to that.",
        ),
    ],
    hints=[
        "Three empty lists, and a loop over the documents that adds to each.",
        "What positions does a document of n tokens have, counted from 0? Extend your list by them.",
        "The labels are the document's ids again, but for one: the first, which nothing in its document predicts.",
    ],
    why="Positions that begin again tell the model where a document begins; without the -100 the last token of one "
    "document would be trained to predict the first of the next.",
    points=2,
)

# ------------------------------------------------------------------------------------------------- leaked prompts

Records = list[dict[str, str]]


def _by(prompt: Callable[[dict[str, str]], Any]) -> Callable[[Records, Records], list[int]]:
    """Leaks by another idea of when two prompts are the same."""

    def leaked(train: Records, test: Records) -> list[int]:
        known = [prompt(record) for record in train]
        return [n for n, record in enumerate(test) if prompt(record) in known]

    return leaked


def _text(record: dict[str, str]) -> str:
    return f"{record['instruction']} {record['input']}"


def _prompt(record: dict[str, str]) -> str:
    return " ".join(_text(record).lower().split())


def _same_place(train: Records, test: Records) -> list[int]:
    return [n for n, (a, b) in enumerate(zip(train, test, strict=False)) if _prompt(a) == _prompt(b)]


def _by_index(train: Records, test: Records) -> list[int]:
    return [test.index(test[n]) for n in lesson.leaked_prompts(train, test)]


def _once(train: Records, test: Records) -> list[int]:
    found = lesson.leaked_prompts(train, test)
    return [n for n in found if _prompt(test[n]) not in {_prompt(test[m]) for m in found if m < n}]


def _lowered_in_place(train: Records, test: Records) -> list[int]:
    for record in train + test:
        record["instruction"], record["input"] = record["instruction"].lower(), record["input"].lower()
    return lesson.leaked_prompts(train, test)


def _say(text: str, output: str, instruction: str = "Say it in French:") -> dict[str, str]:
    return {"instruction": instruction, "input": text, "output": output}


def _drawn_records(rng: random.Random) -> tuple[Records, Records]:
    def record() -> dict[str, str]:
        words = rng.choice(
            [["the", "fox."], ["the", "fox!"], ["fox.", "the"], ["a", "cat."], ["a", "ca", "t."], ["no."], []]
        )
        text = rng.choice([" ", "  ", "   ", "\t", "\n"]).join(words)
        text = rng.choice(["", " "]) + rng.choice([text, text.upper(), text.title()]) + rng.choice(["", " "])
        asked = rng.choice(["Say it:", "say  it:", " Say it:", "Write it:"])
        return _say(text, rng.choice(["Un.", "Deux.", ""]), asked)

    train, test = ([record() for _ in range(rng.randint(0, 5))] for _ in range(2))
    return train, test + rng.sample(test, min(1, len(test)))


_TRAIN = [
    _say("The fox.", "Le renard."),
    _say("A cat.", "Un chat."),
    _say("A bee.", "Une abeille."),
    _say("No.", "Non."),
]

exercise(
    "leaked_prompts",
    reference=lesson.leaked_prompts,
    cases=[
        (_TRAIN, [_say("A dog.", "Un chien."), _say("A cat.", "Un chat.")]),
        (_TRAIN, [_say("the  Fox.", "Le renard."), _say("The FOX.", "Le renard."), _say("No.", "Nenni.")]),
        (_TRAIN, [_say("The fox.", "Arr!", "Say it like a pirate:"), _say("A cow.", "Une vache."), _say("A bee.", "")]),
        (_TRAIN, [_say("A bee.", "."), _say("The   \t fox.\n", "."), _say("A bee.", "."), _say("Thefox.", ".")]),
        (_TRAIN, [_say("fox. The", "."), _say("The fox?", "."), _say("The fox", "."), _say("the fox.", ".")]),
    ],
    drawn=_drawn_records,
    mistakes=[
        Mistake(_by(_text), "'the  Fox.' and 'The fox.' are the same prompt: compare without case and extra spaces."),
        Mistake(
            _by(lambda record: _text(record).lower()),
            "two spaces still make another prompt: ' '.join(text.split()) makes one of each run.",
        ),
        Mistake(
            _by(lambda record: " ".join(_text(record).split())),
            "capital letters still make another prompt: .lower() both.",
        ),
        Mistake(
            _by(lambda record: _text(record).lower().replace("  ", " ").strip()),
            "replace('  ', ' ') makes one space of two, and two of three, and leaves tabs: ' '.join(text.split()).",
        ),
        Mistake(
            _by(lambda record: _text(record).lower().strip()),
            ".strip() takes the spaces at the two ends; those between the words count as well: ' '.join(text.split()).",
        ),
        Mistake(
            _by(lambda record: _text(record).lower().replace(" ", "")),
            "spaces were taken out, and tabs were left: 'the fox' and 'thefox' became one prompt: leave one each.",
        ),
        Mistake(
            _by(lambda record: "".join(_text(record).lower().split())),
            "all spaces were taken out, and so 'the fox' and 'thefox' became one prompt: leave one of each run.",
        ),
        Mistake(
            _by(lambda record: (_prompt(record), record["output"])),
            "you compare the answers too: a prompt seen in training is leaked, whatever the answer beside it.",
        ),
        Mistake(
            _by(lambda record: " ".join(record["input"].lower().split())),
            "you compare the inputs alone: the same sentence with another instruction is another prompt.",
        ),
        Mistake(
            lambda train, test: lesson.leaked_prompts(test, train),
            "these are places in train: return the places of the leaked records in test.",
        ),
        Mistake(
            _same_place,
            "you compare records at the same place: a test prompt may stand anywhere in train. Make a set of prompts.",
        ),
        Mistake(_by_index, "test.index(record) gives the first equal record, also for the second one: use enumerate."),
        Mistake(_once, "a prompt that stands in test twice is leaked twice: return every place."),
        Mistake(
            lambda train, test: [test[n] for n in lesson.leaked_prompts(train, test)],
            "those are the records: return their places in test.",
        ),
        Mistake(
            lambda train, test: len(lesson.leaked_prompts(train, test)), "that is how many leaked: return their places."
        ),
        Mistake(
            _by(lambda record: " ".join(record["instruction"].lower().split())),
            "you compare the instructions alone: one that is the same for every record makes all of them leak.",
        ),
        Mistake(
            _by(lambda record: " ".join(f"{record['instruction']}{record['input']}".lower().split())),
            "instruction and input are joined without a space, so a space at the seam makes another prompt.",
        ),
        Mistake(
            _by(lambda record: frozenset(_prompt(record).split())),
            "you compare the words without their order: the same words in another order are another prompt.",
        ),
        Mistake(
            _by(lambda record: re.sub(r"[^\w\s]", "", _prompt(record))),
            "punctuation was taken out, and so 'No.' and 'No?' became one prompt: only case and gaps don't count.",
        ),
        Mistake(
            lambda train, test: [n in lesson.leaked_prompts(train, test) for n in range(len(test))],
            "that is True or False for every record: return the places of those that leaked.",
        ),
        Mistake(
            lambda train, test: [n for n in range(len(test)) if n not in lesson.leaked_prompts(train, test)],
            "the other way round: those are the records that are not in train.",
        ),
        Mistake(
            lambda train, test: [n + 1 for n in lesson.leaked_prompts(train, test)],
            "every place is one too large: the first record is at 0, as enumerate counts.",
        ),
        Mistake(
            lambda train, test: [_prompt(test[n]) for n in lesson.leaked_prompts(train, test)],
            "those are the prompts: return their places in test.",
        ),
        Mistake(
            _lowered_in_place,
            "your function changes its input: the records are in lower case now, and would be trained on like that.",
        ),
    ],
    hints=[
        "Write a small function that turns a record into its prompt, in lower case and with single spaces.",
        "Put all prompts of train into a set, then go through test with enumerate.",
    ],
    why="split() without an argument takes any run of spaces, tabs and line ends for one gap; a set finds a prompt in "
    "one step, however many there are.",
)
