"""Drawings: an SVG in a lesson, its PNG inside a notebook's cell, and a text for who doesn't see it."""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil

import pytest
from PIL import Image, PngImagePlugin

from tools import draw_images
from tools.build.lesson import ROOT, read_lesson
from tools.build.pictures import PICTURE, embedded, faults
from tools.draw_images import MARK, digest, is_current, render, size

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="30" height="20" fill="red"/></svg>'
ALT = "A red rectangle, thirty wide and twenty high, and nothing else."
DRAWINGS = sorted((ROOT / draw_images.FOLDER).glob("*.svg"))
LED = sorted(path.name[:2] for path in (ROOT / "lessons").glob("[0-9][0-9]_*.md"))


def rendered(svg, mark):
    text = PngImagePlugin.PngInfo()
    text.add_text(MARK, mark)
    Image.new("RGB", (60, 40), "red").save(svg.with_suffix(".png"), pnginfo=text)


@pytest.fixture
def svg(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "one.svg"
    path.write_text(SVG)
    rendered(path, digest(path))
    return path


def test_a_notebook_carries_the_png_itself(svg, tmp_path):
    prose = f"Look:\n\n![{ALT}](images/one.svg)\n\nand ![badge](data:image/png;base64,AAAA), which stays."
    made = embedded(prose, tmp_path)
    inside = re.search(r"!\[(.*?)\]\(data:image/png;base64,([\w+/=]+)\)", made)
    assert inside[1] == ALT and base64.b64decode(inside[2]) == svg.with_suffix(".png").read_bytes()
    assert "(data:image/png;base64,AAAA)" in made and "images/one.svg" not in made


@pytest.mark.parametrize(
    ("alt", "address", "said"),
    [
        (ALT, "images/two.svg", "there is no lessons/images/two.svg"),
        (ALT, "one.png", "the picture one.png is no drawing of the lessons"),
        (ALT, "https://example.org/one.svg", "is no drawing of the lessons"),
        ("A rectangle.", "images/one.svg", "the alt text of images/one.svg doesn't say what is seen"),
    ],
)
def test_what_is_no_drawing_or_says_nothing_is_refused(svg, tmp_path, alt, address, said):
    assert any(said in fault for fault in faults(alt, address, tmp_path))
    assert not list(faults(ALT, "images/one.svg", tmp_path))


def test_a_drawing_that_was_changed_and_not_rendered_is_told(svg, tmp_path):
    assert is_current(svg)
    svg.write_text(SVG.replace("red", "blue"))
    assert not is_current(svg)
    assert list(faults(ALT, "images/one.svg", tmp_path)) == [
        "lessons/images/one.svg was changed after its PNG was drawn: `python -m tools.draw_images`"
    ]
    svg.with_suffix(".png").unlink()
    assert not is_current(svg)


def test_a_drawing_says_its_size(svg):
    assert size(svg) == (30, 20)
    svg.write_text("<svg></svg>")
    with pytest.raises(ValueError, match="one.svg: write width="):
        size(svg)


@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="needs a Chromium")
def test_chromium_draws_it_at_twice_its_size(svg):
    svg.write_text(SVG.replace("red", "#00ff00"))
    render(svg)
    with Image.open(svg.with_suffix(".png")) as picture:
        assert picture.size == (60, 40) and picture.convert("RGBA").getpixel((30, 20)) == (0, 255, 0, 255)
    assert is_current(svg)


@pytest.mark.parametrize("svg", DRAWINGS, ids=lambda path: path.stem)
def test_every_drawing_is_rendered_has_two_colour_schemes_and_is_shown(svg):
    text = svg.read_text(encoding="utf-8")
    assert is_current(svg) and size(svg)
    assert "prefers-color-scheme: dark" in text and "<title" in text and "<desc" in text
    users = [p for p in (ROOT / "lessons").glob("[0-9]*.md") if f"(images/{svg.name})" in p.read_text(encoding="utf-8")]
    assert users, f"no lesson shows {svg.name}"
    for lesson in users:
        notebook = json.loads((ROOT / "notebooks" / f"{lesson.stem}.ipynb").read_text(encoding="utf-8"))
        inside = base64.b64encode(svg.with_suffix(".png").read_bytes()).decode()
        assert any(inside in "".join(cell["source"]) for cell in notebook["cells"])


@pytest.mark.parametrize("number", LED)
def test_every_figure_says_what_is_seen(number):
    (path,) = (ROOT / "lessons").glob(f"{number}_*.md")
    for cell in read_lesson(path).cells:
        if cell.cell_type == "code":
            for call in ast.walk(ast.parse(cell.source)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "plots.show":
                    assert "alt" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)[:120]
        else:
            assert all(len(alt) >= 40 for alt, _ in PICTURE.findall(cell.source))
