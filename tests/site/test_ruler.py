"""The ruler of 4-bit formats stores what utils/quant stores, and is worked by keyboard, pointer and its URL."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from tests.site.nodes import needs_node, run
from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from utils.quant.nf4 import NF4, bits_per_parameter, dequantize, quantize, unpack_codes
from utils.quant.small_floats import ROUNDINGS, dequantize_floats, quantize_floats

BLOCKS = {"nf4": 64, "mxfp4": 32, "nvfp4": 16}


def stored(name: str, weight: float, block: float, tensor: float, rounding: str) -> tuple[int, float]:
    """The code and the value of `weight` in Python, in a tensor of two blocks with these largest values."""
    values = torch.zeros(2, BLOCKS[name])
    values[0, 0], values[0, 1], values[1, 0] = block, weight, tensor
    if name == "nf4":
        nf4 = quantize(values)
        return int(unpack_codes(nf4.packed, 2)[1]), float(dequantize(nf4)[0, 1])
    floats = quantize_floats(values, name, rounding=rounding)
    return int(floats.codes[0]) >> 4, float(dequantize_floats(floats)[0, 1])


def cases() -> list[dict]:
    """Drawn weights, and awkward ones: the ends, both sides of a power of two, about halfway, minus zero."""
    draw = random.Random(7)
    found = []
    for _ in range(600):
        block = 10 ** draw.uniform(-3, 0.5)
        tensor = block * 10 ** draw.uniform(0, draw.choice([0.2, 6]))
        found.append((draw.uniform(-1, 1) * block, block, tensor))
    for block in (0.124, 0.125, 0.0625, math.nextafter(0.125, 0), 0.109375, 0.1, 6.0, 7.0, 1.5):
        for share in (1, -1, 0, -0.0, 0.25 / 6, 0.75 / 6, 1.25 / 6, 2.5 / 6, 3.5 / 6, 5 / 6, -5 / 6, 1e-7, 0.5):
            found.append((share * block, block, block))
    for _ in range(60):  # on the middle between two of NF4's values, and float32's next numbers beside it
        block, at = draw.choice([1.0, draw.uniform(0.01, 1)]), draw.randrange(15)
        middle = (torch.tensor(NF4[at]) + torch.tensor(NF4[at + 1])) / 2 * torch.tensor(block)
        for towards in (-2.0, middle, 2.0):
            found.append((float(torch.nextafter(middle, torch.as_tensor(towards))), block, block))
    ways = zip(found, ROUNDINGS * len(found), strict=False)
    return [{"weight": w, "block": b, "tensor": t, "rounding": way} for (w, b, t), way in ways]


@needs_node
def test_weights_are_stored_as_in_python(tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(rows := cases()), encoding="utf-8")
    answer = run("ruler_check.js", tmp_path / "cases.json")
    assert answer["bits"] == {"nf4": bits_per_parameter(), "mxfp4": 4.25, "nvfp4": 4.5}
    for row, found in zip(rows, answer["found"], strict=True):
        for name, own in found.items():
            code, value = stored(name, row["weight"], row["block"], row["tensor"], row["rounding"])
            assert (own["code"], own["value"]) == (code, value), (name, row)
            assert own["value"] in own["marks"] and own["marks"] == sorted(own["marks"])
            assert len(own["marks"]) == (16 if name == "nf4" else 15)


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "ruler") as url, browser() as own:
        yield url, own


@pytest.fixture
def figure(site):
    """The figure on its page; nothing may go wrong there."""
    url, own = site
    page, wrong = opened(own, f"{url}/ruler-light.html")
    yield page
    page.close()
    assert wrong == []


def shows(page, weight: float, block: float, tensor: float, rounding: str = "floor") -> None:
    """The three rulers show what Python stores."""
    for name in BLOCKS:
        found = page.evaluate("(name) => ({...document.querySelector(`[data-format=${name}]`).dataset})", name)
        code, value = stored(name, weight, block, tensor, rounding)
        assert (int(found["code"]), float(found["value"])) == (code, value), name


@needs_browser
@pytest.mark.slow
def test_keyboard_fields_and_the_address(figure):
    shows(figure, 0.038, 0.124, 0.3)
    figure.focus(f"#{figure.get_attribute('text=The weight >> nth=0', 'for')}")
    figure.keyboard.press("ArrowRight")  # a thousandth of the block's largest weight
    shows(figure, 0.0381, 0.124, 0.3)
    figure.keyboard.press("End")
    shows(figure, 0.124, 0.124, 0.3)
    assert "cuts it off" in figure.inner_text(".ruler-summary")
    figure.focus("input[value=floor]")
    figure.keyboard.press("ArrowRight")
    shows(figure, 0.124, 0.124, 0.3, "even")
    assert "cuts it off" not in figure.inner_text(".ruler-summary")
    figure.get_by_label("Largest in the tensor (NVFP4 alone), as a number").fill("0.9")
    figure.keyboard.press("Enter")
    shows(figure, 0.124, 0.124, 0.9, "even")
    figure.wait_for_function("location.hash === '#ruler?w=0.124&tensor=0.9&mx=even'")
    told = figure.wait_for_selector("[role=status]:has-text('The weight 0.124 in')", state="attached").inner_text()
    assert "MXFP4 stores 0.125 by code 0110, +0.00100 off (0.8%)." in told


@needs_browser
@pytest.mark.slow
def test_an_address_sets_it_and_what_cant_be_is_mended(figure):
    for hash, wanted in {
        "#ruler?w=-0.0045&block=0.05&tensor=0.7&mx=up": (-0.0045, 0.05, 0.7, "up"),
        "#ruler?w=5&block=0.2&tensor=0.1&mx=sideways": (0.2, 0.2, 0.2, "floor"),
        "#ruler": (0.038, 0.124, 0.3, "floor"),
    }.items():
        figure.evaluate("(hash) => { location.hash = hash; }", hash)
        figure.wait_for_timeout(100)
        shows(figure, *wanted)


@needs_browser
@pytest.mark.slow
def test_it_computes_with_the_numbers_that_it_shows(figure):
    """A typed 0.12345 was shown as 0.123 and stored as 0.12345; 1e-12 was shown as 0.00000000."""
    weight = figure.get_by_label("The weight, as a number")
    weight.fill("0.12345")
    weight.press("Enter")
    assert weight.input_value() == "0.123"
    shows(figure, 0.123, 0.124, 0.3)
    weight.fill("-0.00000000012345")
    weight.press("Enter")
    shows(figure, -1.23e-10, 0.124, 0.3)
    assert figure.inner_text(".ruler-summary").startswith("−1.23e−10 is stored best by")
    figure.evaluate("location.hash = 'ruler?w=0.01&block=0.01'")
    figure.wait_for_function("document.querySelector('.ruler-said').innerText.startsWith('0.0100 by')")


@needs_browser
@pytest.mark.slow
def test_a_pointer_moves_the_weight(figure):
    box = figure.locator("[data-format=mxfp4] svg").bounding_box()
    figure.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    figure.mouse.down()
    shows(figure, 0.0, 0.124, 0.3)
    figure.mouse.move(box["x"] + 2000, box["y"] + 60)
    shows(figure, 0.124, 0.124, 0.3)
    figure.mouse.up()
    figure.mouse.move(box["x"] + 20, box["y"] + 60)
    shows(figure, 0.124, 0.124, 0.3)


@needs_browser
@pytest.mark.slow
def test_it_fits_a_phone_and_every_control_has_a_name(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/ruler-dark.html")
    assert wrong == []
