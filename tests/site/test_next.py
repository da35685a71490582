"""The next token: its bars are PyTorch's softmax and the course's top-p, its draws those of the seed."""

from __future__ import annotations

import json
from itertools import accumulate, islice

import pytest
import torch

from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from tools.site import golden
from utils.evaluate.metrics import complete
from utils.models.loading import load_tiny

pytestmark = [needs_browser, pytest.mark.slow]
PROMPT = "Tell me a story about a dog."
PIRATE = "Say it like a pirate: Otto had a tiny house near the village."


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "next") as url, browser() as own:
        yield url, own


@pytest.fixture
def figure(site):
    """The figure on its page; nothing may go wrong there."""
    url, own = site
    page, wrong = opened(own, f"{url}/next-light.html")
    page.wait_for_selector(".next[data-drawn='']")
    yield page
    page.close()
    assert wrong == []


def go(page, state: str) -> None:
    page.evaluate("(state) => { location.hash = `next?${state}`; }", state)
    page.wait_for_timeout(100)


@torch.inference_mode()
def logits(model, prompt: str, drawn: list[int]) -> torch.Tensor:
    ids = load_tiny()[1].encode(f"<|user|>{prompt}<|assistant|>", add_special_tokens=False)
    return model(torch.tensor([ids + drawn])).logits[0, -1]


def held(page, scores: torch.Tensor, temperature: float, p: float) -> None:
    """The rows are the likeliest tokens, with their probabilities before and after the cut."""
    before, after = (golden.distribution(scores, temperature, own) for own in (1.0, p))
    shown = json.loads(page.get_attribute(".next", "data-shown"))
    assert len(shown) == 12 == page.locator(".next-tokens tbody tr").count()
    assert [before[row[0]].item() for row in shown] == pytest.approx(before.topk(12).values.tolist(), abs=1e-5)
    for own, (token, plain, kept) in enumerate(shown):
        assert plain == pytest.approx(before[token].item(), abs=1e-5)
        assert kept == pytest.approx(after[token].item(), abs=1e-5)
        row = page.locator(".next-tokens tbody tr").nth(own)
        assert row.get_attribute("class") == ("next-kept" if after[token] > 0 else "next-cut")
        cells = row.locator("td").all_inner_texts()
        assert cells[1] == ("<0.1%" if plain < 0.0005 else f"{100 * plain:.1f}%")
        assert cells[2] == ("" if p == 1 else "cut" if kept == 0 else f"{100 * kept:.1f}%")
    assert int(page.get_attribute(".next", "data-kept")) == int((after > 0).sum())


def test_bars_are_softmax_at_the_temperature_and_what_top_p_leaves(figure):
    model = load_tiny()[0]
    held(figure, logits(model, PROMPT, []), 1.0, 1.0)
    for temperature, p in ((0.5, 1.0), (1.0, 0.6), (2.0, 0.9)):
        go(figure, f"temperature={temperature}&topp={p}")
        held(figure, logits(model, PROMPT, []), temperature, p)
    assert f"Top-p 0.9 keeps {figure.get_attribute('.next', 'data-kept')} of 1,024 tokens" in figure.inner_text(".next")


def test_an_adapter_has_its_own_bars_and_its_own_greedy_answer(figure):
    pirate = golden.with_mix({"style": 1.0}, "cat")
    go(figure, f"adapter=style&prompt={PIRATE}&drawn=34")
    figure.wait_for_selector(".next[data-drawn='34']")
    held(figure, logits(pirate, PIRATE, [34]), 1.0, 1.0)
    figure.wait_for_function("document.querySelectorAll('.next-answer')[1].dataset.busy === 'no'")
    greedy = complete(pirate, load_tiny()[1], [PIRATE], max_new_tokens=60)[0]
    assert figure.locator(".next-answer").nth(1).inner_text() == greedy


def test_draws_are_the_seeds_by_keyboard_and_come_back_from_the_address(figure):
    """Each draw takes the next number of the seed's sequence; start over and the same comes again."""
    model, tokenizer = load_tiny()
    figure.fill("[name=seed]", "7")
    figure.focus("[name=temperature]")
    figure.keyboard.press("ArrowRight")
    figure.focus("[name=topp]")
    figure.keyboard.press("ArrowLeft")
    figure.keyboard.press("ArrowLeft")
    wanted: list[int] = []
    for number in islice(golden.mulberry32(7), 4):
        p = golden.distribution(logits(model, PROMPT, wanted), 1.1, 0.9).tolist()
        wanted.append(next(token for token, reached in enumerate(accumulate(p)) if reached > number))
    for round in (1, 2):
        for many in range(1, 5):
            figure.focus(".next-draw")
            figure.keyboard.press("Enter")
            figure.wait_for_selector(f".next[data-drawn='{'.'.join(map(str, wanted[:many]))}']")
        assert figure.locator(".next-answer").first.inner_text() == tokenizer.decode(wanted)
        if round == 1:
            figure.click("text=start over")
            figure.wait_for_selector(".next[data-drawn='']")
    address = f"#next?temperature=1.1&topp=0.9&seed=7&drawn={'.'.join(map(str, wanted))}"
    figure.wait_for_function("(wanted) => location.hash === wanted", arg=address)
    figure.reload()
    figure.wait_for_selector(f".next[data-drawn='{'.'.join(map(str, wanted))}']")
    held(figure, logits(model, PROMPT, wanted), 1.1, 0.9)
    assert figure.input_value("[name=seed]") == "7"
    figure.wait_for_selector("[role=status]:has-text('Likeliest next')", state="attached")


def test_an_answer_ends_and_begins_anew(figure):
    """Behind the end-of-turn token nothing is drawn, and the focus isn't lost."""
    go(figure, f"adapter=style&temperature=0.1&topp=0.05&prompt={PIRATE}")
    number = "document.querySelector('.next').dataset.drawn.split('.').filter(Boolean).length"
    for many in range(1, 60):
        figure.focus(".next-draw")
        figure.keyboard.press("Enter")
        figure.wait_for_function(f"(many) => {number} === many", arg=many)
        if figure.is_disabled(".next-draw"):
            break
    assert figure.get_attribute(".next", "data-drawn").endswith(".1")
    assert figure.evaluate("document.activeElement.textContent") == "start over"
    greedy = figure.locator(".next-answer").nth(1).inner_text()
    assert figure.locator(".next-answer").first.inner_text() == f"{greedy}<|end|>"
    told = figure.wait_for_selector("[role=status]:has-text('has ended')", state="attached").inner_text()
    assert f"The answer has ended: {greedy}" in told
    figure.keyboard.press("Enter")
    figure.wait_for_selector(".next[data-drawn='']")
    assert not figure.is_disabled(".next-draw")


def test_what_the_address_cant_mean_is_mended(figure):
    go(figure, "temperature=9&topp=0&seed=-3&drawn=5.x.99999.7&adapter=nobody")
    figure.wait_for_selector(".next[data-drawn='5.7']")
    assert figure.input_value("[name=temperature]") == "2"
    assert figure.input_value("[name=topp]") == "0.05"
    assert figure.input_value("[name=seed]") == "0"
    assert figure.is_checked("input[value=base]")


def test_it_fits_a_phone_and_every_control_has_a_name(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/next-dark.html")
    page.wait_for_selector(".next[data-drawn='']")
    page.close()
    assert wrong == []
