"""What the figures' tests open pages with, and the mark that leaves them out where there is no browser."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tools.site.bare import CHROMIUM, browser, opened, served

__all__ = ["browser", "needs_browser", "on_a_phone", "opened", "served"]

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="left out: no Chromium or no playwright; apt-get install chromium, pip install playwright",
)

UNNAMED = """[...document.querySelectorAll('input, select, textarea')]
    .filter((e) => e.labels.length !== 1 && !e.ariaLabel).map((e) => e.outerHTML)"""


def on_a_phone(own: Any, url: str) -> tuple[Any, list[str]]:
    """:func:`opened` on a screen of 360 pixels, where nothing is wider and every control has its name."""
    page, wrong = opened(own, url, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(UNNAMED) == []
    return page, wrong
