"""The worked solutions: what they print is whole, and right."""

from dataclasses import replace
from importlib import import_module

import pytest

from utils.course import checks  # noqa: F401  (registers every exercise)
from utils.course.checks import registry
from utils.course.checks.core import evaluate
from utils.course.checks.references import ch10
from utils.course.checks.worked import source
from utils.course.progress import PASSED

EXERCISES = registry.registered()


@pytest.mark.parametrize("name", EXERCISES)
def test_what_is_printed_passes_when_it_is_run_below_the_lessons_imports(name):
    found = EXERCISES[name]
    module = vars(import_module(f"utils.course.checks.references.{found.chapter}"))
    answer = next(key for key, value in module.items() if value is found.reference)
    names = {key: value for key, value in module.items() if key != answer}
    exec(source(name), names)
    assert evaluate(name, names[answer]).state == PASSED


def test_the_cell_is_printed_as_the_lesson_shows_it():
    assert source("scaling").startswith("def scaling(r, lora_alpha, use_rslora):\n    return lora_alpha / (")
    assert source("upper_mlp") == r'upper_mlp = r".*\.layers\.[23]\.mlp\.(gate|up|down)_proj"'
    last = source("merge_four_bit")
    assert last.startswith("from utils.quant import dequantize, quantize\n\n\ndef ") and last.endswith("double=True))")
    assert all("SOLUTION" not in source(name) and "# ----" not in source(name) for name in EXERCISES)


def test_a_name_without_a_cell_is_refused(monkeypatch):
    with pytest.raises(KeyError, match="there is no exercise 'tensor_rnage'; did you mean 'tensor_range'"):
        source("tensor_rnage")
    other = replace(EXERCISES["tensor_range"], name="other")
    monkeypatch.setitem(registry._registered, "other", other)
    with pytest.raises(LookupError, match=f"{ch10.__name__} has no cell of 'other': `make notebooks` writes it"):
        source("other")
