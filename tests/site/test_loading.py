"""What the figures that run the model show while it comes, and when it doesn't."""

from __future__ import annotations

from typing import Any

import pytest

from tests.site.served import browser, needs_browser, served

pytestmark = [needs_browser, pytest.mark.slow]
FIGURES = ("rank", "mixing", "next")
WEIGHTS, WORDS, WORKER = "**/tiny-llama/model.safetensors", "**/tiny-llama/tokenizer.json", "**/engine/worker.js"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), *FIGURES) as url, browser() as own:
        yield url, own


@pytest.fixture
def page(site):
    own = site[1].new_page()
    own.set_default_timeout(10_000)
    yield own
    own.close()


def shown(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('output, textarea, select')].map((e) => e.value)")


@pytest.mark.parametrize("name", FIGURES)
def test_the_controls_show_what_is_set_while_the_model_loads(site, page, name):
    waiting: list[Any] = []
    page.route(WEIGHTS, lambda route: waiting.append(route))
    page.goto(f"{site[0]}/{name}-light.html")
    page.wait_for_selector("textarea")
    page.wait_for_timeout(500)
    before = shown(page)
    assert "Loading the model" in page.inner_text(".figure-answer")
    assert waiting and all(before)
    page.fill("textarea", "Say it like a pirate: The dog sleeps.")
    waiting[0].continue_()
    page.wait_for_selector("body[data-mounted=yes]")
    page.wait_for_selector(".figure-answer[data-busy=no]")
    after = shown(page)
    assert page.input_value("textarea") == "Say it like a pirate: The dog sleeps."
    assert [a for a, b in zip(after, before, strict=True) if a != b] == ["Say it like a pirate: The dog sleeps."]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    ("file", "status", "body", "said"),
    [
        (WEIGHTS, 404, "", "model.safetensors couldn't be fetched: the server says 404"),
        (WEIGHTS, 200, "x" * 1000, "model.safetensors is no whole safetensors file"),
        (WORDS, 200, "<html>", "tokenizer.json is no JSON"),
        (WORKER, 404, "", "the model's worker couldn't run"),
        ("**/adapter_model.safetensors", 404, "", "adapter_model.safetensors couldn't be fetched"),
    ],
)
def test_what_fails_is_said_and_read_out_and_no_cursor_blinks_on(site, page, name, file, status, body, said):
    page.route(file, lambda route: route.fulfill(status=status, body=body))
    page.goto(f"{site[0]}/{name}-light.html#next?adapter=style")  # the others begin with an adapter
    page.wait_for_selector(".figure-error")
    assert said in page.inner_text(".figure-answer")
    page.wait_for_selector(".figure-answer[data-busy=no]")
    page.wait_for_function("(said) => document.querySelector('[role=status]').textContent.includes(said)", arg=said)
    page.fill("textarea", "again")
    page.wait_for_timeout(300)
    assert said in page.inner_text(".figure-answer")
    assert page.get_attribute(".figure-answer", "data-busy") == "no"


@pytest.mark.parametrize("name", ["rank", "mixing"])
def test_an_answer_that_ends_with_a_full_stop_gets_no_second(site, page, name):
    page.goto(f"{site[0]}/{name}-light.html")
    page.wait_for_selector("[role=status]:has-text('The answer: Arr')", state="attached")
    assert ".." not in page.text_content("[role=status]")
