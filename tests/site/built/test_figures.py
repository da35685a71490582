"""The script that mounts figures, with figures of its own: one that works, one that doesn't."""

from __future__ import annotations

import shutil

import pytest

from tools.site import figures
from tools.site.build import served
from tools.site.collect import ROOT

TRIAL = """
export async function mount(root, options) {
  const text = document.createElement("p");
  text.textContent = `prompt: ${options.prompt}`;
  root.replaceChildren(text);
}
"""
BROKEN = "export async function mount() { throw new Error('no model'); }"


@pytest.fixture
def page(tmp_path, browser):
    """A page with both figures, the second one far below the first."""
    served_from = tmp_path / "_static" / "site" / "figures"
    served_from.mkdir(parents=True)
    shutil.copy(ROOT / "site" / "figures" / "load.js", served_from)
    for name, text in (("trial", TRIAL), ("broken", BROKEN)):
        (served_from / name).mkdir()
        (served_from / name / "index.js").write_text(text)
    first, second = figures.element("trial", "", {"prompt": 'say "x" & <y>'}), figures.element("broken", "")
    html = f"<!doctype html><title>t</title>{first}<div style='height: 5000px'></div>{second}"
    (tmp_path / "index.html").write_text(html)
    with served(tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        yield page
        page.close()


def test_a_figure_is_mounted_with_its_options(page):
    page.wait_for_selector(".course-figure[data-figure=trial][data-mounted=yes]")
    assert page.locator("[data-figure=trial]").inner_text() == 'prompt: say "x" & <y>'


def test_one_far_below_waits_for_its_reader_and_says_when_it_fails(page):
    page.wait_for_selector("[data-figure=trial][data-mounted=yes]")
    assert page.locator("[data-figure=broken]").get_attribute("data-mounted") is None
    page.locator("[data-figure=broken]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=broken][data-mounted=failed]")
    assert page.locator("[data-figure=broken]").inner_text() == "This figure could not be loaded: no model"


def test_a_link_with_a_figures_state_leads_to_the_figure(page):
    page.goto(f"{page.url.split('#')[0]}?again#broken?a=1")
    page.wait_for_selector("[data-figure=broken][data-mounted=failed]")
    assert page.evaluate("scrollY") > 3000
    page.goto(f"{page.url.split('?')[0]}?other#elsewhere")
    page.wait_for_selector("[data-figure=trial][data-mounted=yes]")
    assert page.evaluate("scrollY") == 0
