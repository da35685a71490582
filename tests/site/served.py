"""What the figures' tests open pages with, and the mark that leaves them out where there is no browser."""

from __future__ import annotations

import importlib.util

import pytest

from tools.site.bare import CHROMIUM, browser, opened, served

__all__ = ["browser", "needs_browser", "opened", "served"]

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="left out: no Chromium or no playwright; apt-get install chromium, pip install playwright",
)
