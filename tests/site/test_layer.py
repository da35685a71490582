"""LoRA's drawing counts as utils.lora and PEFT do, is to scale, and is worked by keyboard and its URL."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.site.nodes import needs_node, run
from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from utils.lora.lowrank import break_even_rank, forward_flops, lora_parameters, saving
from utils.models import ROOT, TINY_DIR

CONFIGS = json.loads((ROOT / "site" / "figures" / "fit" / "models.json").read_text(encoding="utf-8"))["models"]


def wanted(d_in: int, d_out: int, r: int, alpha: float) -> dict:
    """What utils.lora counts for a layer, under the figure's names."""
    both, alone = forward_flops(d_in, d_out, r, 1)["W0 x + B(A x)"], 2 * d_in * d_out
    a, b = torch.empty(r, d_in, device="meta"), torch.empty(d_out, r, device="meta")
    lora, weight = lora_parameters(d_in, d_out, r), d_in * d_out
    return {
        "weight": weight, "a": a.numel(), "b": b.numel(), "lora": lora,
        "saving": pytest.approx(saving(d_in, d_out, r), rel=1e-12), "breakEven": break_even_rank(d_in, d_out),
        "flops": {"weight": alone, "lora": both - alone}, "bytes": {"weight": 2 * weight, "lora": 2 * lora},
        "scale": pytest.approx(alpha / r), "rsScale": pytest.approx(alpha / math.sqrt(r)),
    }  # fmt: skip


def layers() -> list[tuple[int, int, int, float]]:
    draw = random.Random(5)
    sizes = [(1, 1, 1), (2, 2, 1), (4096, 4096, 8), (4096, 4096, 2048), (64, 131072, 64), (11008, 4096, 16)]
    for _ in range(300):
        d_in, d_out = (round(2 ** draw.uniform(0, 17)) for _ in range(2))
        sizes.append((d_in, d_out, draw.randint(1, min(d_in, d_out))))
    return [(*size, draw.choice((1, 16, 0.5, 512))) for size in sizes]


def case(d_in: int, d_out: int, r: int, alpha: float) -> dict:
    return {"dIn": d_in, "dOut": d_out, "r": r, "alpha": alpha}


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    path = tmp_path_factory.mktemp("layer") / "cases.json"
    path.write_text(json.dumps([case(*own) for own in layers()]), encoding="utf-8")
    return run("layer_check.js", path)


@needs_node
def test_counts_are_those_of_utils_lora(answer):
    for own, found in zip(layers(), answer["found"], strict=True):
        assert found == wanted(*own), own


def shaped(model: str, module: str, r: int, alpha: int, rslora: bool):
    """PEFT's layer of that name in one block of a model's shape, on the meta device."""
    settings = {"num_hidden_layers": 1, "vocab_size": 8}
    if model == "tiny":
        config = AutoConfig.from_pretrained(TINY_DIR, **settings)
    else:
        config = AutoConfig.for_model(**(CONFIGS[model] | settings))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
        lora = LoraConfig(r=r, lora_alpha=alpha, target_modules=[module], use_rslora=rslora)
        peft = get_peft_model(base, lora)
    (layer,) = (part for name, part in peft.named_modules() if name.endswith(module))
    return peft, layer


@needs_node
@pytest.mark.parametrize("name", ["tiny", "q", "down", "v"])
def test_real_layers_have_the_shapes_and_scales_that_peft_finds(answer, name, tmp_path):
    own = answer["layers"][name]
    peft, layer = shaped(own["model"], own["module"], 8, 16, False)
    assert [*layer.base_layer.weight.shape] == [own["dOut"], own["dIn"]]
    assert [*layer.lora_A["default"].weight.shape] == [8, own["dIn"]]
    assert [*layer.lora_B["default"].weight.shape] == [own["dOut"], 8]
    (tmp_path / "cases.json").write_text(json.dumps([case(own["dIn"], own["dOut"], 8, 16)]), encoding="utf-8")
    (found,) = run("layer_check.js", tmp_path / "cases.json")["found"]
    assert found["lora"] == peft.get_nb_trainable_parameters()[0]
    assert found["scale"] == layer.scaling["default"]
    rs = shaped(own["model"], own["module"], 8, 16, True)[1]
    assert found["rsScale"] == pytest.approx(rs.scaling["default"])


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "layer") as url, browser() as own:
        yield url, own


@pytest.fixture
def figure(site):
    """The figure on its page; nothing may go wrong there."""
    url, own = site
    page, wrong = opened(own, f"{url}/layer-light.html")
    yield page
    page.close()
    assert wrong == []


def shows(page, d_in: int, d_out: int, r: int, alpha: float = 16) -> None:
    """Fields, counts and table are those of a layer, and the three rectangles are to scale."""
    fields = [page.get_by_label(f"{name}, as a number") for name in ("Rank r", "alpha")]
    fields += [page.locator(f"[aria-label^='{name},']") for name in ("d_in", "d_out")]
    assert [float(field.input_value()) for field in fields] == [r, alpha, d_in, d_out]
    assert json.loads(page.get_attribute(".layer", "data-counted")) == wanted(d_in, d_out, r, alpha)
    cells = page.locator(".layer-table td.figure-number").all_inner_texts()
    assert (cells[0], cells[1]) == (f"{d_in * d_out:,}", f"{r * (d_in + d_out):,}")
    page.wait_for_timeout(50)  # a frame, if the page has just changed
    pixels = float(page.get_attribute(".layer-drawing", "data-pixels"))
    drawn = page.locator(".layer-drawing rect").evaluate_all(
        "(all) => all.map((e) => [e.width, e.height].map((l) => l.baseVal.value))"
    )
    sizes = [(d_in, d_out), (d_in, r), (r, d_out)]
    assert drawn == [[max(1, math.floor(n * pixels + 0.5)) for n in own] for own in sizes]
    told = page.inner_text(".layer-drawn p")
    assert ("A and B are drawn 1 pixel thick and would be" in told) == (r * pixels < 1)
    right = page.locator(".layer-drawing rect").evaluate_all(
        "(all) => Math.max(...all.map((e) => e.getBoundingClientRect().right))"
    )
    box = page.locator(".layer-drawing").bounding_box()
    assert right <= box["x"] + box["width"]


@needs_browser
@pytest.mark.slow
def test_sliders_fields_and_presets_by_keyboard(figure):
    shows(figure, 4096, 4096, 8)
    assert figure.inner_text(".layer-summary").endswith("65,536 parameters, W\u2080 has 16,777,216: 256 times fewer.")
    figure.focus(f"#{figure.get_attribute('text=Rank r', 'for')}")
    figure.keyboard.press("ArrowRight")
    shows(figure, 4096, 4096, 12)
    figure.focus("input[value=q]")
    figure.keyboard.press("ArrowRight")
    shows(figure, 11008, 4096, 12)
    figure.keyboard.press("ArrowRight")
    shows(figure, 4096, 1024, 12)
    figure.get_by_label("Rank r, as a number").fill("900")
    figure.keyboard.press("Enter")
    shows(figure, 4096, 1024, 900)
    assert "1.1 times as many, and fewer than W\u2080 only up to r = 819" in figure.inner_text(".layer-summary")
    figure.get_by_label("d_out, numbers that go out, as a number").fill("300")
    figure.keyboard.press("Enter")
    shows(figure, 4096, 300, 300)  # BA has no higher rank
    assert figure.locator("input[type=radio]:checked").count() == 0
    figure.wait_for_function("location.hash === '#layer?d_out=300&r=300'")
    told = figure.wait_for_selector("[role=status]:has-text('300 by 4,096')", state="attached").inner_text()
    assert "A and B have 1,318,800 parameters" in told


@needs_browser
@pytest.mark.slow
def test_the_formula_has_the_numbers_put_in(figure):
    figure.evaluate("location.hash = 'layer?d_in=11008&r=16&alpha=32'")
    figure.wait_for_selector("text=W₀ [4,096 × 11,008]")
    formula = figure.locator(".layer-formula").nth(1).text_content()
    assert formula == "h [4,096] = W₀ [4,096 × 11,008] x [11,008] + 2 · B [4,096 × 16] (A [16 × 11,008] x)"
    assert "= 32/16 = 2 scales" in figure.inner_text(".layer-formulas")
    shows(figure, 11008, 4096, 16, 32)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "layer"),
    [
        ("d_in=0&d_out=-5&r=1e9&alpha=-1", (1, 1, 1, 0.01)),
        ("d_in=Infinity&d_out=2.6&r=7.4&alpha=Infinity", (131072, 3, 3, 4096)),
        ("d_in=x&r=y", (4096, 4096, 8, 16)),
    ],
)
def test_what_the_address_cant_mean_is_mended(figure, address, layer):
    figure.evaluate(f"location.hash = 'layer?{address}'")
    figure.wait_for_timeout(100)
    shows(figure, *layer)


@needs_browser
@pytest.mark.slow
def test_it_is_drawn_anew_where_the_page_is_narrower(figure):
    before = figure.get_attribute(".layer-drawing", "data-pixels")
    figure.evaluate("location.hash = 'layer?d_in=28672&r=64'")
    for width in (1280, 360, 768):
        figure.set_viewport_size({"width": width, "height": 900})
        figure.wait_for_timeout(200)
        shows(figure, 28672, 4096, 64)
        assert figure.get_attribute(".layer-drawing", "data-pixels") != before
        before = figure.get_attribute(".layer-drawing", "data-pixels")


@needs_browser
@pytest.mark.slow
def test_it_fits_a_phone_and_every_control_has_a_name(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/layer-dark.html#layer?d_in=131072&d_out=131072&r=131072")
    page.close()
    assert wrong == []
