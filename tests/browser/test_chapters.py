"""Whole chapters in the browser: every cell runs, and can be read in a wide window and a narrow one, light and dark."""

from __future__ import annotations

import pytest

from tests.browser.looks import too_faint, too_wide
from tests.browser.reader import faults


def test_it_runs_from_its_first_cell_to_its_last(chapters, chapter):
    assert faults(chapters(chapter).cells()) == []


@pytest.mark.parametrize("pixels", [1280, 800])
def test_nothing_runs_out_of_its_cell(chapters, chapter, pixels):
    reader = chapters(chapter)
    reader.width(pixels)
    reader.pages(f"{chapter}-{pixels}")
    assert too_wide(reader.page) == []


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_all_text_can_be_told_from_its_ground(chapters, chapter, theme):
    reader = chapters(chapter)
    reader.width(1280)
    reader.theme(theme)
    reader.pages(f"{chapter}-{theme}")
    assert too_faint(reader.page) == []


def test_the_playground_answers_by_the_adapter_and_the_slider(chapters):
    """Chapter 12's: another adapter gives another answer, and a slider that is moved says so."""
    reader = chapters("12")
    cell = reader.cell("= playground(")
    answer = cell.locator("textarea:disabled")

    def asked(adapter: str) -> str:
        cell.locator("select").select_option(adapter)
        before = answer.input_value()
        cell.get_by_role("button", name="Answer").click()
        reader.until(lambda: answer.input_value() not in ("", "...", before))
        return answer.input_value()

    pirate, base = asked("style"), asked("base")
    reader.shot("12-playground")
    assert "Arr" in pirate and pirate != base

    cell.locator(".widget-slider .noUi-handle").first.press("ArrowRight")
    reader.until(lambda: cell.locator(".widget-readout").first.inner_text() == "0.10")


def test_the_memory_predictor_says_what_another_method_needs(reader):
    """Chapter 6's, which needs no other cell, in a narrow window."""
    one = reader("work/06_loading_models.ipynb")
    one.width(800)
    one.run("explore()")
    cell = one.cell("explore()")
    assert too_wide(one.page) == []
    cell.get_by_role("button", name="Predict").click()
    report = cell.locator("textarea:disabled")
    one.until(lambda: "GB" in report.input_value())
    lora = report.input_value()
    cell.locator("select").last.select_option("full")
    cell.get_by_role("button", name="Predict").click()
    one.until(lambda: report.input_value() not in ("...", lora))
    one.shot("06-predictor")
    assert "needs" in report.input_value()
