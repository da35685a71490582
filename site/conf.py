"""Sphinx's settings for the site. Its sources are written by tools/site/collect.py; `make site` builds it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = Path(os.environ.get("COURSE_SITE_BUILD", HERE / "_build"))
sys.path.insert(0, str(HERE.parent))

_told = json.loads((BUILT / "site.json").read_text(encoding="utf-8"))

project = "LoRA: zero to hero"
author = "the course's authors"
language = "en"
extensions = ["myst_nb", "sphinx_copybutton", "tools.site.extension"]
suppress_warnings: list[str] = []

# ------------------------------------------------------------------------------- notebooks and Markdown
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_digits = False  # as at GitHub: "$5 and $6" are prices
myst_dmath_allow_space = False
myst_heading_anchors = 6
myst_update_mathjax = False
copybutton_selector = "div.highlight-ipython3 pre, div.highlight-python pre, div.highlight-console pre"

# ------------------------------------------------------------------------------- formulas, by the vendored MathJax
mathjax_path = "mathjax/tex-chtml.js"
mathjax4_config = {
    "loader": {"load": ["a11y/assistive-mml"]},
    # Fonts differ in their x-height, which MathJax would match: with a tall one lines with a formula drift apart.
    "output": {"fontPath": "[mathjax]/%%FONT%%-font", "matchFontHeight": False, "scale": 1.08},
    "options": {
        "ignoreHtmlClass": ".*",
        "processHtmlClass": "math",
        # Screen readers get hidden MathML; the explorer would load 3 MB of speech rules besides.
        "menuOptions": {"settings": {"enrich": False, "speech": False, "braille": False, "assistiveMml": True}},
    },
}

# ------------------------------------------------------------------------------- HTML
html_theme = "sphinx_book_theme"
html_title = project
html_baseurl = _told["address"]
html_static_path = [str(HERE / "_static"), str(BUILT / "static")]
html_extra_path = [str(BUILT / "extra")]
templates_path = [str(HERE / "_templates")]
html_css_files = ["course.css"]
html_js_files = [("course.js", {"defer": "defer"})]
html_favicon = str(HERE / "_static" / "favicon.svg")
html_copy_source = False
html_context = {"default_mode": "auto"}
html_show_sphinx = False
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {
    "repository_url": f"https://github.com/{_told['repository']}",
    "repository_branch": _told["ref"],
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # the sidebar has a search field already
    "footer_content_items": ["extra-footer"],
    "extra_footer": "<p>Prose CC BY 4.0, code Apache 2.0.</p>",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

course_descriptions = _told["descriptions"]
course_description = (
    "LoRA from its algebra to a layer you write, train and check against PEFT: notebooks, and figures that run a model "
    "in the page."
)
