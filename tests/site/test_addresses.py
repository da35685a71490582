"""Whatever stands in a page's address, its figures work, and what a figure writes there it reads again."""

from __future__ import annotations

import pytest

from tests.site.served import browser, needs_browser, opened, served

pytestmark = [needs_browser, pytest.mark.slow]
FIGURES = ("rank", "mixing", "fit", "ruler", "next", "mask", "layer")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), *FIGURES) as url, browser() as own:
        yield url, own


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("hash", ["100%", "%E0%A4%A", "{name}?prompt=%E0%A4%A&w=%&model=%", "?", "{name}?=&&=1"])
def test_what_cannot_be_decoded_is_no_error(site, name, hash):
    url, own = site
    page, wrong = opened(own, f"{url}/{name}-light.html#{hash.format(name=name)}")
    page.close()
    assert wrong == []


@pytest.mark.parametrize(
    ("address", "chosen"),
    [
        ("mixing?how=constructor", "cat"),
        ("mixing?how=__proto__", "cat"),
        ("rank?update=constructor", "full"),
        ("rank?update=toString&layer=constructor", "full"),
        ("ruler?mx=constructor", "floor"),
        ("next?adapter=constructor", "base"),
        ("mask?template=constructor&mask=toString&eos=valueOf", "tiny"),
        ("fit?method=constructor&targets=toString&model=valueOf", "lora"),
    ],
)
def test_a_name_that_every_object_has_is_no_choice(site, address, chosen):
    url, own = site
    page, wrong = opened(own, f"{url}/{address.split('?')[0]}-light.html#{address}")
    assert page.locator("input[type=radio]:checked").first.get_attribute("value") == chosen
    page.close()
    assert wrong == []


@pytest.mark.parametrize("name", ["rank", "mixing", "next"])
@pytest.mark.parametrize("prompt", ["50%20off", "100% sure", "What? Why? a=b&c=d#e", "%3F%26", "  é 😀 + <b>"])
def test_a_prompt_comes_back_from_the_address_that_it_was_written_to(site, name, prompt):
    url, own = site
    page, wrong = opened(own, f"{url}/{name}-light.html")
    before = page.evaluate("location.hash")
    page.fill("textarea", prompt)
    page.wait_for_function("(before) => location.hash !== before", arg=before)
    page.reload()
    page.wait_for_selector("body[data-mounted=yes]")
    assert page.input_value("textarea") == prompt
    page.close()
    assert [text for text in wrong if not text.startswith("failed")] == []


def test_a_question_mark_that_a_hand_wrote_ends_nothing(site):
    url, own = site
    page, wrong = opened(own, f"{url}/mixing-light.html#mixing?prompt=a?b&style=0")
    assert page.input_value("textarea") == "a?b"
    assert page.input_value("[data-task=style]") == "0"
    page.close()
    assert wrong == []
