"""A Sphinx extension of the site's own: share cards, a sitemap, a page's description, the page for what isn't there.

Loaded by site/conf.py in the site's environment, which has Sphinx; the course's own hasn't.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.sax.saxutils import escape

CARD = "_static/card.png"
CARD_ALT = "LoRA: zero to hero. A frozen weight W with two small matrices A and B beside it."

# What is mended in every page, each with its reason.
_MENDED = [
    # The theme loads each of its icons twice: as a font, which its style sheet uses, and as a script of 1.6 MB.
    (re.compile(r'\s*<script [^>]*src="[^"]*fontawesome\.js[^"]*"></script>'), ""),
    # A name that isn't the text on the screen is of no use to those who speak what they see (axe-core).
    (re.compile(r'(<summary) aria-label="Toggle hidden content"'), r"\1"),
    (re.compile(r'(<button class="btn search-button-field[^>]*?) aria-label="Search"'), r"\1"),
    # And an arrow alone has none.
    (re.compile(r"<summary>(?=<span class=\"toctree-toggle)"), '<summary aria-label="Pages of this part">'),
    # The theme puts the site's name behind every title, and the first page's is that name.
    (re.compile(r"<title>(.+?) &#8212; \1</title>"), r"<title>\1</title>"),
]

# Pages that Sphinx makes and nobody looks for.
_NOT_LISTED = {"search", "genindex", "404"}

# What a page names others in, relative to itself.
_RELATIVE = re.compile(r'(?<= )(href|src|action|data-content_root)="(?![a-z][a-z0-9+.-]*:|//|#)([^"]*)"')


def tags(title: str, description: str, address: str, base: str, site: str) -> str:
    """The tags in a page's head that a share card is made of."""
    named = {"description": description, "twitter:card": "summary_large_image"}
    properties = {
        "og:type": "article" if title != site else "website",
        "og:site_name": site,
        "og:title": title,
        "og:description": description,
        "og:url": address,
        "og:image": base + CARD,
        "og:image:width": "1200",
        "og:image:height": "630",
        "og:image:alt": CARD_ALT,
    }
    lines = [f'<meta name="{name}" content="{html.escape(value)}">' for name, value in named.items()]
    lines += [f'<meta property="{name}" content="{html.escape(value)}">' for name, value in properties.items()]
    return "\n".join(lines)


def sitemap(base: str, pages: list[str]) -> str:
    """The sitemap of pages, whose names have no ending."""
    rows = "".join(f"<url><loc>{escape(base + page)}.html</loc></url>\n" for page in sorted(pages))
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="{space}">\n{rows}</urlset>\n'


def mended(text: str) -> str:
    """A page's HTML without a few faults of the theme's."""
    for fault, instead in _MENDED:
        text = fault.sub(instead, text)
    return text


def anywhere(text: str, base: str) -> str:
    """A page of the site's root whose links hold wherever it is shown: a server shows 404.html at any address."""
    path = urlsplit(base).path
    return _RELATIVE.sub(lambda found: f'{found[1]}="{urljoin(path, found[2])}"', text)


def _head(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    config = app.config
    description = config.course_descriptions.get(pagename) or config.course_description
    title = html.unescape(str(context.get("title") or config.html_title))
    site = config.html_title
    title = site if pagename == "index" else title.replace("<code>", "").replace("</code>", "")
    address = f"{config.html_baseurl}{pagename}.html"
    context["metatags"] = context.get("metatags", "") + tags(title, description, address, config.html_baseurl, site)


def _finished(app: Any, problem: Exception | None) -> None:
    if problem is None and app.builder.name == "html":
        out = Path(app.outdir)
        pages = [page for page in app.env.found_docs if page not in _NOT_LISTED]
        base = app.config.html_baseurl
        for page in out.rglob("*.html"):
            page.write_text(mended(page.read_text(encoding="utf-8")), encoding="utf-8")
        static = out / "_static"
        for idle in (*static.glob("scripts/fontawesome*"), *static.glob("*macros.html")):
            idle.unlink()
        lost = out / "404.html"
        lost.write_text(anywhere(lost.read_text(encoding="utf-8"), base), encoding="utf-8")
        (out / "sitemap.xml").write_text(sitemap(base, pages), encoding="utf-8")
        (out / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {base}sitemap.xml\n", encoding="utf-8")
        (out / ".nojekyll").write_text("")  # GitHub Pages would leave out what begins with an underscore


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_config_value("course_descriptions", {}, "html")
    app.add_config_value("course_description", "", "html")
    app.connect("html-page-context", _head)
    app.connect("build-finished", _finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
