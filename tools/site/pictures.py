"""The README's pictures: a chapter's figure as it was stored, and the mixing board as it moves.

    python -m tools.site.pictures                the figure
    python -m tools.site.pictures --site URL     and the mixing board, of a site that is served there (make site-serve)

Nothing is computed: the figure is the picture in the executed notebook. The mixing board is operated in Chromium and
photographed, so its answers are the model's.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
from pathlib import Path

import nbformat
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "assets" / "readme"
FIGURE = ("02_rank_decomposition", "Exact match against rank.")  # the notebook, and how the figure's alt text begins
BUTTONS = {"style": "pirate", "translation": "French"}
MOVE = "(fader, weight) => { fader.value = weight; fader.dispatchEvent(new Event('input', {bubbles: true})); }"
READY = """() => document.querySelector('.mixing')?.dataset.scored
    && document.querySelector('.mixing-answer').dataset.busy === 'no'"""
PAGE, WIDTH, HEIGHT = "figures/mixing.html", 900, 620


def stored_figure(notebook: Path, alt: str) -> bytes:
    """The PNG of the figure whose cell has an alt text that begins so. Raises LookupError where it isn't there once."""
    found = [
        output["data"]["image/png"]
        for cell in nbformat.read(notebook, 4).cells
        if cell.cell_type == "code" and f'"{alt}' in cell.source
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if len(found) != 1:
        raise LookupError(f"{notebook.name} has {len(found)} figures whose alt text begins with {alt!r}")
    return base64.b64decode(found[0])


def smaller(png: bytes, width: int = 1000) -> Image.Image:
    """A picture in the README's width, in few colours."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS).quantize(64)


STORY: tuple[tuple[str, tuple[dict[str, float], ...]], ...] = (  # a prompt's task, and how the faders move under it
    ("style", ({"style": 0.0}, {"style": 0.5}, {"style": 1.0})),
    ("translation", ({"translation": 0.0}, {"style": 0.5, "translation": 0.5}, {"style": 0.0, "translation": 1.0})),
)


def filmed(page_address: str) -> list[Image.Image]:
    """A picture of the mixing board for each position of its faders, when its answer and its scores have come."""
    from playwright.sync_api import sync_playwright

    frames = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_address)
        board = page.locator(".mixing")
        for task, positions in STORY:
            for number, faders in enumerate(positions):
                if not number:
                    page.locator(".mixing-prompt button", has_text=BUTTONS[task]).click()
                for fader, weight in faders.items():
                    page.locator(f"input[data-task={fader}]").evaluate(MOVE, weight)
                page.wait_for_function(READY, timeout=120_000)
                frames.append(Image.open(io.BytesIO(board.screenshot())).convert("RGB"))
        browser.close()
    return [ImageOps.pad(frame, (frames[0].width, max(f.height for f in frames)), color="white", centering=(0, 0)) for frame in frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", help="where the built site is served")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    smaller(stored_figure(ROOT / "solutions" / f"{FIGURE[0]}.ipynb", FIGURE[1])).save(OUT / "rank.png", optimize=True)
    if args.site:
        frames = filmed(f"{args.site.rstrip('/')}/{PAGE}")
        frames[0].save(OUT / "mixing.webp", save_all=True, append_images=frames[1:], duration=700, loop=0, quality=70)


if __name__ == "__main__":
    main()
