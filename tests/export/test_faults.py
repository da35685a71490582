"""The exports that chapter 13's reader diagnoses: each has the one symptom that tells its fault from the others'."""

from __future__ import annotations

import pytest

from utils.evaluate import complete
from utils.export import LlamaCpp, to_gguf
from utils.export.faults import FAULTS, faulty
from utils.models import TINY_DIR, load_tiny
from utils.tinyworld import task_examples
from utils.train import adapter_dir

pytest.importorskip("xllamacpp")
ROWS = task_examples("style", "test", 10)
PROMPTS = [row.prompt for row in ROWS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("right")
    return to_gguf(TINY_DIR, folder / "base.gguf", "f32"), to_gguf(adapter_dir("style"), folder / "style.gguf", "f32")


@pytest.fixture(scope="module")
def of_the_base():
    model, tokenizer = load_tiny()
    return complete(model, tokenizer, PROMPTS, 40)


@pytest.mark.parametrize("letter", FAULTS)
def test_base_prompt_and_scale_tell_the_faults_apart(files, of_the_base, tmp_path, letter):
    model, adapter = faulty(letter, *files, tmp_path)
    with LlamaCpp(model, {"it": adapter}) as server:
        template = server.render("Hi") == "<|user|>Hi<|assistant|>"
        base = server.complete(PROMPTS, 40) == of_the_base
        once, twice = (server.complete(PROMPTS, 40, adapter="it", scale=scale) for scale in (1, 2))
    right = [sum(a == row.answer for a, row in zip(said, ROWS, strict=True)) for said in (once, twice)]
    assert (template, base) == {"A": (False, False), "B": (True, True), "C": (True, False), "D": (True, True)}[letter]
    assert right[0] < len(ROWS)
    assert (right[1] == len(ROWS)) == (letter == "D")


def test_another_letter_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match="no export 'E': choose one of A, B, C, D"):
        faulty("E", *files, tmp_path)
