"""The table of parities: it is what its record gives, names tests that are there, and would show a difference."""

import json

from tools import equality_errors as tool

RECORD = json.loads(tool.OUT.read_text(encoding="utf-8"))


def test_the_page_is_what_the_record_gives_and_names_tests_that_are_there():
    assert tool.OUT.with_suffix(".md").read_text(encoding="utf-8") == tool.page(RECORD)
    assert {row["test"] for row in RECORD["rows"]} == {part.test for part in tool.PARTS}
    assert all((tool.ROOT / part.test).is_file() for part in tool.PARTS)


def test_it_has_every_library_and_most_of_it_is_exact():
    """The README says so. What isn't exact is rounding: a thousandth of a logit would be a fault."""
    rows = RECORD["rows"]
    assert {row["library"] for row in rows} == {"PEFT", "bitsandbytes", "TRL", "torchao", "transformers"}
    assert sum(row["difference"] == 0 for row in rows) > 0.75 * len(rows)
    assert max(row["difference"] for row in rows) < 1e-4
    readme = " ".join((tool.ROOT / "README.md").read_text(encoding="utf-8").split())
    exact = sum(row["difference"] == 0 for row in rows)
    assert f"{exact} of {len(rows)} comparisons" in readme


def test_a_layer_with_another_alpha_shows(monkeypatch):
    inject = tool.lora.inject
    monkeypatch.setattr(tool.lora, "inject", lambda model, targets, r, alpha, **kw: inject(model, targets, r, 17, **kw))
    lines = tool.layers()
    assert all(difference > 1e-3 for _, difference in (next(lines) for _ in range(3)))


def test_bytes_that_differ_are_counted(monkeypatch):
    quantize = tool.nf4.quantize
    monkeypatch.setattr(tool.nf4, "quantize", lambda weight, double: quantize(weight * 1.01, double=double))
    assert next(tool.nf4_bytes())[1] > 0.01
