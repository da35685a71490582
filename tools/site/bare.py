"""A figure on a bare page, opened in a real Chromium: for the figures' tests and pictures, without the built site."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.site import build

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>body {{ font-family: sans-serif; margin: 1rem; background: {ground}; color: {text} }}</style>
<main><h1>{name}</h1><div id="figure"></div></main>
<script type="module">
import {{ mount }} from "./_static/site/figures/{name}/index.js";
await mount(document.getElementById("figure"), {{}});
document.body.dataset.mounted = "yes";
</script></html>"""
_COLOURS = {"light": ("#fff", "#222832"), "dark": ("#14181e", "#ced6dd")}


@contextmanager
def served(folder: Path, *names: str) -> Iterator[str]:
    """Serve a page for each figure and theme, NAME-light.html and NAME-dark.html, from `folder`: the URL."""
    static = folder / "_static" / "site"
    static.mkdir(parents=True)
    for there, wanted in (("site/engine", "engine"), ("site/figures", "figures"), ("assets", "assets")):
        (static / wanted).symlink_to(ROOT / there)
    for name in names:
        for theme, (ground, text) in _COLOURS.items():
            page = PAGE.format(name=name, theme=theme, ground=ground, text=text)
            (folder / f"{name}-{theme}.html").write_text(page, encoding="utf-8")
    with build.served(folder) as address:
        yield address.rstrip("/")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        own = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield own
        finally:
            own.close()


def opened(own: Any, url: str, width: int = 1280, height: int = 900) -> tuple[Any, list[str]]:
    """A page with a mounted figure, and the list that what goes wrong is put into: errors, requests elsewhere."""
    page, wrong = own.new_page(viewport={"width": width, "height": height}), []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    host = url.split("/")[2]
    page.on("request", lambda r: r.url.startswith("http") and r.url.split("/")[2] != host and wrong.append(r.url))
    page.goto(url)
    page.wait_for_selector("body[data-mounted=yes]")
    return page, wrong
