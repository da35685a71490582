"""Chapter 4's exercises: Dolly's fields, a batched map, a conversation's labels, a packed row, leaked prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from utils.course.checks.references import ch04 as lesson
from utils.course.checks.registry import Mistake, exercise
from utils.data.chat import IGNORED

# ------------------------------------------------------------------------------------------------- Dolly's fields


def _as_the_guide(record: dict[str, str]) -> dict[str, str]:
    return {name: record.get(name, "") for name in ("instruction", "input", "output")}


def _silent(record: dict[str, str]) -> dict[str, str]:
    return {
        "instruction": record["instruction"],
        "input": record["context"],
        "output": record.get("response", ""),
    }


def _missing_only(record: dict[str, str]) -> dict[str, str]:
    if "response" not in record:
        raise ValueError("no response")
    return _silent(record)


def _none_for_bad(record: dict[str, str]) -> dict[str, str] | None:
    return _silent(record) if record.get("response", "").strip() else None


def _no_context(record: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in lesson.dolly_record(record).items() if key != "input"}


def _swapped(record: dict[str, str]) -> dict[str, str]:
    done = lesson.dolly_record(record)
    return {"instruction": done["instruction"], "input": done["output"], "output": done["input"]}


_QA = {"instruction": "Who went to the lake?", "context": "Zoe went to the lake.", "response": "Zoe.", "category": "qa"}

exercise(
    "dolly_record",
    reference=lesson.dolly_record,
    cases=[
        (_QA,),
        ({**_QA, "context": ""},),
        ({**_QA, "response": " "},),
        ({"instruction": "Say it in French:", "input": "The fox sees a kite.", "output": "Le renard voit un kite."},),
    ],
    mistakes=[
        Mistake(
            _as_the_guide,
            "Dolly's fields are context and response: .get finds no input and no output and gives empty text instead.",
        ),
        Mistake(
            _silent,
            "a record without a response passes with an empty output: the model would learn to say nothing. Raise.",
        ),
        Mistake(_missing_only, "a response of spaces alone passes: ask whether anything is left after .strip()."),
        Mistake(
            _none_for_bad,
            "a bad record becomes None, and whoever maps a data set would not hear of it: raise a ValueError.",
        ),
        Mistake(_no_context, "the context is lost: it belongs into input, or the question can't be answered."),
        Mistake(_swapped, "input and output are exchanged: the response is what the model has to say."),
    ],
    hints=[
        "instruction stays, context becomes input, response becomes output.",
        'record.get("response", "").strip() is empty both when the field is missing and when it holds nothing.',
        "Then raise ValueError with words that help: which fields does the record have?",
    ],
)

# -------------------------------------------------------------------------------------------------- a batched map

_END = 1
Batch = dict[str, list[str]]
Tokenize = Callable[[list[str]], list[list[int]]]


def _toy(texts: list[str]) -> list[list[int]]:
    """A tokenizer for the cases: a letter is a token. It takes a list of texts and nothing else."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("tokenize takes a list of texts")
    return [[ord(letter) for letter in text] for text in texts]


def _over_the_keys(batch: Batch, tokenize: Tokenize, end: int) -> dict[str, list[list[int]]]:
    # The guide's loop. That a key is no example is what this mistake gets wrong, and the type checker sees it.
    texts = [example.get("instruction", "") for example in batch]  # pyright: ignore[reportAttributeAccessIssue]
    return {"input_ids": [[*ids, end] for ids in tokenize(texts)]}


def _no_end(batch: Batch, tokenize: Tokenize, end: int) -> dict[str, list[list[int]]]:
    return {"input_ids": [ids[:-1] for ids in lesson.tokenize_batch(batch, tokenize, end)["input_ids"]]}


def _rows(batch: Batch, tokenize: Tokenize, end: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": ids} for ids in lesson.tokenize_batch(batch, tokenize, end)["input_ids"]]


def _first_only(batch: Batch, tokenize: Tokenize, end: int) -> dict[str, list[int]]:
    return {"input_ids": lesson.tokenize_batch(batch, tokenize, end)["input_ids"][0]}


def _no_answer(batch: Batch, tokenize: Tokenize, end: int) -> dict[str, list[list[int]]]:
    texts = [" ".join(parts) for parts in zip(batch["instruction"], batch["input"], strict=True)]
    return {"input_ids": [[*ids, end] for ids in tokenize(texts)]}


exercise(
    "tokenize_batch",
    reference=lesson.tokenize_batch,
    cases=[
        ({"instruction": ["ab", "c"], "input": ["d", "e"], "output": ["x", "yz"]}, _toy, _END),
        ({"instruction": ["q"], "input": ["s"], "output": ["r"]}, _toy, 7),
    ],
    mistakes=[
        Mistake(
            _over_the_keys,
            "going through a dictionary gives its keys, which are texts. Zip its columns: "
            'zip(batch["instruction"], batch["input"], batch["output"]).',
        ),
        Mistake(_no_end, "the end mark is missing: append it to the ids of every text."),
        Mistake(_rows, "you return a list of rows; a batched map wants one dictionary of columns back."),
        Mistake(_first_only, "only the first record is returned: input_ids holds a list for each record of the batch."),
        Mistake(_no_answer, "the output is not in the text: it is what the model should learn."),
    ],
    hints=[
        'batch["instruction"] is the list of all instructions of the batch.',
        "Make the list of texts first, call tokenize once, then append the end mark to each list of ids.",
    ],
)

# ---------------------------------------------------------------------------------------- a conversation's labels

Turns = Sequence[tuple[str, list[int]]]


def _with_opening(turns: Turns) -> list[int]:
    return [i if role == "assistant" else IGNORED for role, ids in turns for i in ids]


def _everything(turns: Turns) -> list[int]:
    return [i for _, ids in turns for i in ids]


def _last_only(turns: Turns) -> list[int]:
    return [IGNORED] * sum(len(ids) for _, ids in turns[:-1]) + [IGNORED, *turns[-1][1][1:]]


def _without_end(turns: Turns) -> list[int]:
    ends = {sum(len(ids) for _, ids in turns[: n + 1]) - 1 for n in range(len(turns))}
    return [IGNORED if at in ends else label for at, label in enumerate(lesson.conversation_labels(turns))]


def _shifted(turns: Turns) -> list[int]:
    return [*lesson.conversation_labels(turns)[1:], IGNORED]


def _users(turns: Turns) -> list[int]:
    return [IGNORED if role == "assistant" else i for role, ids in turns for i in ids]


def _learnt_alone(turns: Turns) -> list[int]:
    return [label for label in lesson.conversation_labels(turns) if label != IGNORED]


exercise(
    "conversation_labels",
    reference=lesson.conversation_labels,
    cases=[
        ([("user", [2, 40, 41]), ("assistant", [3, 50, 51, 1])],),
        ([("user", [2, 40]), ("assistant", [3, 50, 1]), ("user", [2, 42]), ("assistant", [3, 52, 53, 1])],),
    ],
    mistakes=[
        Mistake(
            _with_opening,
            "the token that opens the assistant's turn is learnt too; it is put there for the model and gets -100.",
        ),
        Mistake(_everything, "every token is learnt, the user's as well: those get the label -100."),
        Mistake(_last_only, "only the last answer is learnt: in a conversation every turn of the assistant counts."),
        Mistake(_without_end, "the end mark of an answer keeps its label: it is how the model learns that it is done."),
        Mistake(_shifted, "you shifted the labels; the model does that itself, so label i belongs to token i."),
        Mistake(_users, "it is the other way round: the assistant's turns are learnt, the user's aren't."),
        Mistake(
            _learnt_alone, "there must be as many labels as tokens: what isn't learnt gets -100 and is not left out."
        ),
    ],
    hints=[
        "Go through the turns and put their labels behind each other.",
        "A turn of the user gives [-100] * len(ids).",
        "A turn of the assistant gives one -100, for the opening token, and then ids[1:].",
    ],
    points=2,
)

# --------------------------------------------------------------------------------------------------- a packed row


def _changed(name: str, change: Callable[[list[list[int]]], Any]) -> Callable[[list[list[int]]], dict[str, Any]]:
    return lambda documents: {**lesson.packed_row(documents), name: change(documents)}


exercise(
    "packed_row",
    reference=lesson.packed_row,
    cases=[([[5, 6, 7], [8, 9]],), ([[4, 1], [5], [6, 7, 8, 1]],)],
    mistakes=[
        Mistake(
            _changed("position_ids", lambda d: list(range(sum(map(len, d))))),
            "the positions go on through the row: they begin again at 0 with every document.",
        ),
        Mistake(
            _changed("position_ids", lambda d: [p + 1 for x in d for p in range(len(x))]),
            "the positions begin at 1: the first token of a document is at position 0.",
        ),
        Mistake(
            _changed("position_ids", lambda d: [n for n, x in enumerate(d) for _ in x]),
            "these are the documents' numbers: a position says where in its document a token stands.",
        ),
        Mistake(
            _changed("labels", lambda d: [i for x in d for i in x]),
            "the first token of each document has a label, so the end of one document is trained to predict the next.",
        ),
        Mistake(
            _changed("labels", lambda d: [IGNORED, *[i for x in d for i in x][1:]]),
            "only the first document's beginning is left out: every document's first token gets -100.",
        ),
        Mistake(
            lambda documents: {
                "input_ids": documents,
                "labels": [[IGNORED, *d[1:]] for d in documents],
                "position_ids": [list(range(len(d))) for d in documents],
            },
            "these are still lists of documents: a packed row is one flat list of tokens.",
        ),
    ],
    hints=[
        "Three empty lists, and a loop over the documents that adds to each.",
        "A document of n tokens adds the positions range(n), and the labels [-100] + document[1:].",
    ],
    points=2,
)

# ------------------------------------------------------------------------------------------------- leaked prompts

Records = list[dict[str, str]]


def _prompt(record: dict[str, str]) -> str:
    return " ".join(f"{record['instruction']} {record['input']}".lower().split())


def _exactly(train: Records, test: Records) -> list[int]:
    known = {(record["instruction"], record["input"]) for record in train}
    return [n for n, record in enumerate(test) if (record["instruction"], record["input"]) in known]


def _case_only(train: Records, test: Records) -> list[int]:
    known = {(r["instruction"].lower(), r["input"].lower()) for r in train}
    return [n for n, r in enumerate(test) if (r["instruction"].lower(), r["input"].lower()) in known]


def _with_answer(train: Records, test: Records) -> list[int]:
    known = {(_prompt(record), record["output"]) for record in train}
    return [n for n, record in enumerate(test) if (_prompt(record), record["output"]) in known]


def _input_only(train: Records, test: Records) -> list[int]:
    known = {" ".join(record["input"].lower().split()) for record in train}
    return [n for n, record in enumerate(test) if " ".join(record["input"].lower().split()) in known]


def _places_in_train(train: Records, test: Records) -> list[int]:
    return lesson.leaked_prompts(test, train)


def _same_place(train: Records, test: Records) -> list[int]:
    return [n for n, (a, b) in enumerate(zip(train, test, strict=False)) if _prompt(a) == _prompt(b)]


def _say(text: str, output: str, instruction: str = "Say it in French:") -> dict[str, str]:
    return {"instruction": instruction, "input": text, "output": output}


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
    ],
    mistakes=[
        Mistake(_exactly, "'the  Fox.' and 'The fox.' are the same prompt: compare without case and extra spaces."),
        Mistake(_case_only, "two spaces still make another prompt: ' '.join(text.split()) makes one of each run."),
        Mistake(
            _with_answer,
            "you compare the answers too: a prompt seen in training is leaked, whatever the answer beside it.",
        ),
        Mistake(
            _input_only,
            "you compare the inputs alone: the same sentence with another instruction is another prompt.",
        ),
        Mistake(_places_in_train, "these are places in train: return the places of the leaked records in test."),
        Mistake(
            _same_place,
            "you compare records at the same place: a test prompt may stand anywhere in train. Make a set of prompts.",
        ),
    ],
    hints=[
        "Write a small function that turns a record into its prompt, in lower case and with single spaces.",
        "Put all prompts of train into a set, then go through test with enumerate.",
    ],
)
