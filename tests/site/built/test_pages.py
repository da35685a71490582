"""The built site as a reader's browser has it: no other host, no error, no broken link, not heavy."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from tools.site import figures
from tools.site.collect import ROOT, address_of
from utils.course.colab import origin

HEAVIEST = 3_000_000  # bytes of a page with all that it loads, before the model
WHERE = origin(ROOT)
BASE = address_of(WHERE)
UNLISTED = ("search.html", "genindex.html", "404.html")
FIGURES = [f"figures/{name}.html" for name in figures.available(ROOT)]
LOOKED_AT = ["index.html", "chapters/02_rank_decomposition.html", "chapters/11_many_adapters.html", "claims.html"]
LOOKED_AT += ["measurements/rank_sweep.html", "search.html", "404.html", *FIGURES]


class _Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.ids |= {value for value in (told.get("id"), told.get("name") if tag == "a" else None) if value}
        if tag == "a" and told.get("href"):
            self.links.append(told["href"] or "")
        if tag == "img":
            self.pictures.append(told)
        loaded = told.get("src") or (told.get("href") if tag == "link" and told.get("rel") != "canonical" else None)
        if loaded:
            self.loads.append(loaded)


@pytest.fixture(scope="module")
def parsed(pages: Path) -> dict[str, _Page]:
    found = sorted(pages.rglob("*.html"))
    return {path.relative_to(pages).as_posix(): _Page(path.read_text(encoding="utf-8")) for path in found}


def test_every_chapter_ledger_record_and_figure_has_a_page(parsed):
    stems = [path.stem for path in (ROOT / "lessons").glob("[0-9][0-9]_*.md")]
    wanted = {"index.html", "claims.html", "architecture.html", "search.html", "404.html", *FIGURES}
    wanted |= {f"chapters/{stem}.html" for stem in stems}
    wanted |= {f"measurements/{path.stem}.html" for path in (ROOT / "assets" / "measurements").iterdir()}
    assert not wanted - set(parsed) and len(stems) > 15


def test_internal_links_and_anchors_lead_somewhere(parsed, pages):
    broken = []
    for name, page in parsed.items():
        for link in [*page.links, *page.loads]:
            if re.match(r"[a-z][a-z0-9+.-]*:|//", link) or link.startswith(("#searchbox", "?")):
                continue
            path, anchor = urldefrag(urljoin(f"/{name}", link))
            path = unquote(urlsplit(path).path)
            if name == "404.html":
                assert link.startswith((urlsplit(BASE).path, "#")), link
                path = path.removeprefix(urlsplit(BASE).path)
            path = path.lstrip("/") or "index.html"
            if not (pages / path).is_file():
                broken.append(f"{name}: {link}")
            elif anchor and path in parsed and unquote(anchor) not in parsed[path].ids:
                broken.append(f"{name}: {link}: no such place there")
    assert not broken, "\n".join(broken)


def test_links_to_the_repository_are_of_the_one_ref_and_of_what_is_there(parsed):
    wrong, seen = [], 0
    for name, page in parsed.items():
        for link in page.links:
            found = re.match(rf"https://github\.com/{WHERE.repository}/(blob|tree|edit)/(.*)", link)
            if found:
                seen += 1
                path = urlsplit(found[2].removeprefix(f"{WHERE.ref}/")).path
                there = ROOT / path
                if not found[2].startswith(f"{WHERE.ref}/") or not (
                    there.is_dir() if found[1] == "tree" else there.is_file()
                ):
                    wrong.append(f"{name}: {link}")
    assert not wrong and seen > 150, "\n".join(wrong)


def test_each_chapter_leads_to_colab_kaggle_its_notebook_and_its_lesson(parsed):
    for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md")):
        links = parsed[f"chapters/{path.stem}.html"].links
        notebook = f"{WHERE.repository}/blob/{WHERE.ref}/notebooks/{path.stem}.ipynb"
        assert f"https://colab.research.google.com/github/{notebook}" in links
        assert f"https://kaggle.com/kernels/welcome?src=https://github.com/{notebook}" in links
        assert f"https://github.com/{WHERE.repository}/edit/{WHERE.ref}/lessons/{path.name}" in links
        assert f"../downloads/{path.stem}.ipynb" in links


def test_nothing_is_loaded_from_elsewhere_and_pictures_have_alt_texts(parsed):
    elsewhere = [
        f"{name}: {load}" for name, page in parsed.items() for load in page.loads if re.match("https?:|//", load)
    ]
    assert not elsewhere
    without = [
        f"{name}: {told}" for name, page in parsed.items() for told in page.pictures if len(told.get("alt") or "") < 20
    ]
    assert not without


def test_the_map_and_the_cards_name_every_page(parsed, pages):
    tree = xml.etree.ElementTree.parse(pages / "sitemap.xml")
    listed = {place.text for place in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")}
    assert listed == {BASE + name for name in parsed if name not in UNLISTED}
    for name in parsed:
        head = (pages / name).read_text(encoding="utf-8").split("</head>")[0]
        for what in ("og:title", "og:description", "og:image", "og:url"):
            assert len(re.findall(f'property="{what}" content="[^"]+"', head)) == 1, (name, what)
    assert (pages / "_static" / "card.png").read_bytes()[16:24] == (1200).to_bytes(4) + (630).to_bytes(4)


def test_each_record_is_described_by_what_it_measured(pages):
    """A description of its own, not the site's, cut to what search engines show."""
    seen = {}
    for path in sorted((ROOT / "assets" / "measurements").glob("*.json")):
        name = f"{path.stem}_record" if path.with_suffix(".md").exists() else path.stem
        head = (pages / "measurements" / f"{name}.html").read_text(encoding="utf-8").split("</head>")[0]
        found = re.search(r'<meta name="description" content="([^"]+)">', head)
        what = json.loads(path.read_text(encoding="utf-8")).get("what", "a measurement of the course's")
        said = html.unescape(found[1]) if found else ""
        assert f": {what[:60]}" in said and len(said) <= 204, (name, said)
        seen[name] = said
    assert len(set(seen.values())) == len(seen) > 30


def test_the_front_page_leads_to_every_figure_and_to_using_the_course(pages):
    text = (pages / "index.html").read_text(encoding="utf-8").split("<article", 1)[1].split("</article>")[0]
    for name in (*FIGURES, "using_the_course.html"):
        assert len(re.findall(rf'<a [^>]*href="{name}"', text)) >= 1, name


def test_solutions_are_folded_and_no_set_up_cell_is_left(pages):
    for path in (pages / "chapters").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert (
            "COURSE_REPO" not in text and "BEGIN SOLUTION" not in text and "google.colab" not in text.split("Recap")[0]
        )
    page = (pages / "chapters" / "02_rank_decomposition.html").read_text(encoding="utf-8")
    fold = re.search(r"<details[^>]*>\s*<summary[^>]*>.*?Show the solution.*?</details>", page, re.S)
    assert fold and "best_rank_r" in fold[0]


# ------------------------------------------------------------------------------------ in the browser


def settled(page) -> None:
    """Waits until formulas are set and figures that are in sight are mounted."""
    page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => true) : true")
    page.wait_for_function("!document.querySelector('.course-figure[data-mounted=loading]')")
    page.wait_for_timeout(50)


def _seen(context, address: str, name: str) -> Iterator[str]:
    """Opens a page, and tells what is wrong with it: its requests, its console, its weight, its width."""
    page, told, weight = context.new_page(), [], []

    def answered(response) -> None:
        if response.status >= 400:
            told.append(f"{response.status} {response.url}")

    def finished(request) -> None:
        if request.url.startswith(address) and "/_static/site/assets/" not in request.url:
            weight.append(len(request.response().body()))

    page.on(
        "request",
        lambda it: told.append(f"asks {it.url}") if not it.url.startswith((address, "data:", "blob:")) else None,
    )
    page.on("console", lambda it: told.append(f"says {it.text}") if it.type == "error" else None)
    page.on("pageerror", lambda it: told.append(f"fails {it}"))
    page.on("response", answered)
    page.on("requestfinished", finished)
    page.goto(address + name)
    settled(page)
    formulas = page.locator("span.math, div.math").count()
    if formulas and page.locator("mjx-container").count() < formulas or page.locator("mjx-merror").count():
        told.append("shows formulas raw")
    too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    told += [f"{too_wide} px wider than the screen"] if too_wide > 0 else []
    told += [f"weighs {sum(weight):,} bytes"] if sum(weight) > HEAVIEST else []
    page.close()
    yield from told


def test_no_page_asks_another_host_says_an_error_is_too_heavy_or_too_wide_for_a_phone(parsed, browser, address):
    context = browser.new_context(viewport={"width": 360, "height": 740})
    wrong = [f"{name} {said}" for name in parsed for said in _seen(context, address, name)]
    context.close()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_no_serious_fault(browser, address, theme, width):
    script = (ROOT / "site" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce")
    context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    wrong = []
    for name in LOOKED_AT:
        page = context.new_page()
        page.goto(address + name)
        settled(page)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        page.evaluate(script)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(found => found.violations)")
        for fault in found:
            if fault["impact"] in ("serious", "critical"):
                nodes = "; ".join(node["html"][:160] for node in fault["nodes"][:3])
                wrong.append(f"{name}: {fault['id']} ({len(fault['nodes'])}): {fault['help']}: {nodes}")
        page.close()
    context.close()
    assert not wrong, "\n".join(wrong)


def test_the_search_finds_a_chapter(browser, address):
    page = browser.new_page()
    page.goto(f"{address}search.html?q=rsLoRA")
    page.wait_for_selector("#search-results li a")
    assert any(
        "16_variants" in (link.get_attribute("href") or "") for link in page.locator("#search-results li a").all()
    )
    page.close()


@pytest.mark.parametrize(("asked", "first"), [("rank", "02_rank"), ("merge", "10_save"), ("learning rate", "15_")])
def test_the_search_puts_the_chapter_first_and_quotes_its_text(browser, address, asked, first):
    """Not the theme's buttons or the table of contents, which stand before the text in each page."""
    page = browser.new_page()
    page.goto(f"{address}search.html?q={asked.replace(' ', '+')}")
    page.wait_for_selector("#search-results li p.context")
    all_there = "[...document.querySelectorAll('#search-results li')].every((e) => e.querySelector('.context'))"
    page.wait_for_function(all_there)
    assert first in (page.locator("#search-results li a").first.get_attribute("href") or "")
    quoted = page.locator("#search-results li p.context").all_inner_texts()
    assert not [text for text in quoted if "System Settings" in text]
    assert asked in quoted[0].lower()
    page.close()


def test_what_isnt_there_has_the_way_back_and_a_search(browser, address):
    """At any depth: its links, style and search hold there, and its links are found by Tab."""
    page, told = browser.new_page(), []
    page.on("response", lambda it: told.append(it.url) if it.status >= 400 else None)
    for lost in ("nothing.html", "chapters/02_gone.html", "a/b/c/"):
        told.clear()
        answer = page.goto(address + lost)
        assert answer.status == 404 and told == [address + lost]
        assert page.inner_text("h1").endswith("t there")
        assert page.evaluate("getComputedStyle(document.querySelector('.bd-sidebar-primary')).position") == "sticky"
    page.click("article >> text=The front page")
    assert page.url == f"{address}index.html"
    page.goto(f"{address}chapters/02_gone.html")
    page.get_by_label("Search the course").fill("rsLoRA")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert page.url == f"{address}search.html?q=rsLoRA"
    page.close()


def test_paper_is_light_whatever_the_screen_is(browser, address):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}chapters/02_rank_decomposition.html")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    for _ in range(2):
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
    ink = "getComputedStyle(document.querySelector('.bd-article p')).color.match(/\\d+/g).map(Number)"
    assert max(page.evaluate(ink)) < 100
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert min(page.evaluate(ink)) > 150
    context.close()


def test_paper_has_the_folds_open_and_no_sidebars(browser, address):
    page = browser.new_page()
    page.goto(f"{address}chapters/02_rank_decomposition.html")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("details:not([open])").count() == 0
    for hidden in (".bd-sidebar-primary", ".course-ways", ".prev-next-footer"):
        assert not page.locator(hidden).first.is_visible(), hidden
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 5
    page.close()


def test_a_drawing_keeps_a_readable_size_on_a_phone_and_scrolls_by_keyboard(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(f"{address}chapters/00_start_here.html")
    drawing = page.locator('p:has(> img[src$=".svg"])').first
    assert drawing.get_attribute("tabindex") == "0" and drawing.locator("img").bounding_box()["width"] >= 480
    page.set_viewport_size({"width": 1280, "height": 740})
    page.wait_for_function("document.querySelector('p:has(> img[src$=\".svg\"])').getAttribute('tabindex') === null")
    page.close()
