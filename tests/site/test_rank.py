"""The rank that talks: cut updates answer in the page as they do in PyTorch."""

from __future__ import annotations

import json

import pytest
import torch

from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from tools.site import rank_data
from utils.evaluate.metrics import complete
from utils.models.loading import load_tiny
from utils.tinyworld import task_examples

PROMPT = task_examples("style", "test", 1)[0].prompt
RECORD = json.loads(rank_data.SPECTRA.read_text(encoding="utf-8"))


def test_record_is_what_pytorch_gives_for_the_shipped_update():
    full, lora = rank_data.full_as_adapter(), rank_data.lora_as_adapter()
    assert len(full) == len(lora) == 28
    assert rank_data.matches(full, (8,))["8"] == pytest.approx(RECORD["right"]["full"]["8"], abs=1)
    assert rank_data.matches(lora, (3,))["3"] == pytest.approx(RECORD["right"]["lora"]["3"], abs=1)


@needs_browser
@pytest.mark.slow
def test_the_chapters_own_count_stands_beside_the_figures_forty(site):
    """At rank 8 the figure's prompts have 1 right of 40, and the text around it says a tenth to a quarter."""
    whole = RECORD["chapter"]
    assert rank_data.CHAPTER == whole["prompts"] == 200
    assert rank_data.matches(rank_data.full_as_adapter(), (8,), 200)["8"] == pytest.approx(whole["right"]["8"], abs=3)
    assert 0.1 <= whole["right"]["8"] / 200 <= 0.25 and 0.65 <= whole["right"]["16"] / 200 <= 0.75
    url, own = site
    page, wrong = opened(own, f"{url}/rank-light.html")
    said = f"full fine-tuning cut to rank 8 has {whole['right']['8']} right, to 16 {whole['right']['16']}"
    assert said in page.inner_text(".rank") and wrong == []
    page.close()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_spectra_are_those_of_the_factors(kind):
    adapter = rank_data.full_as_adapter() if kind == "full" else rank_data.lora_as_adapter()
    for name, f in adapter.items():
        own = torch.linalg.svdvals(f.delta().double())[: f.r]
        wanted = torch.tensor(RECORD["spectra"][kind][name][: f.r], dtype=torch.float64)
        assert torch.allclose(own, wanted, rtol=0.01), name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "rank") as url, browser() as own:
        yield url, own


def answered(page) -> str:
    page.wait_for_selector(".rank-answer[data-busy=no]")
    return page.inner_text(".rank-answer")


def wanted(model) -> str:
    return complete(model, load_tiny()[1], [PROMPT], max_new_tokens=40)[0]


@needs_browser
@pytest.mark.slow
def test_page_gives_the_recorded_matches(site):
    """At rank 16 of the full update, and at 3 of LoRA's: cut in the page, not in Python."""
    url, own = site
    for state, kind, rank in (("rank=16", "full", "16"), ("update=lora&rank=3", "lora", "3")):
        page, wrong = opened(own, f"{url}/rank-light.html#rank?{state}")
        page.wait_for_selector(".rank[data-right]")
        assert int(page.get_attribute(".rank", "data-right")) == pytest.approx(RECORD["right"][kind][rank], abs=1)
        page.wait_for_selector("[role=status]:has-text('right')", state="attached")
        assert wrong == []
        page.close()


@needs_browser
@pytest.mark.slow
def test_rank_alpha_and_layers_by_keyboard(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/rank-dark.html")
    full = rank_data.full_as_adapter()
    assert answered(page) == wanted(rank_data.with_update(rank_data.cut(full, 8)))
    squares = [s * s for s in RECORD["spectra"]["full"]["model.layers.1.mlp.up_proj"]]
    assert int(page.get_attribute(".rank", "data-energy")) == round(100 * sum(squares[:8]) / sum(squares))
    page.focus("input[name=rank]")
    page.keyboard.press("End")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.focus("input[name=alpha]")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash === '#rank?rank=28&alpha=1.4'")
    assert answered(page) == wanted(rank_data.with_update(rank_data.cut(full, 28), 1.4))
    page.focus("input[type=checkbox][value=gate]")
    page.keyboard.press("Space")
    page.focus("input[type=checkbox][value='2']")
    page.keyboard.press("Space")
    page.wait_for_function("location.hash.includes('blocks=013')")
    some = rank_data.with_update(
        rank_data.cut(full, 28), 1.4, lambda name: "gate_proj" not in name and "layers.2." not in name
    )
    assert answered(page) == wanted(some)
    page.focus("input[name=rank]")
    page.keyboard.press("Home")
    page.wait_for_function("location.hash.includes('rank=0')")
    assert answered(page) == wanted(load_tiny()[0])
    assert wrong == []
