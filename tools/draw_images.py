"""Render the lessons' drawings, lessons/images/NAME.svg, to NAME.png beside them: `python -m tools.draw_images`.

A lesson shows the SVG, which follows the reader's light or dark page. Its notebook carries the PNG, since Colab shows
no SVG in prose: the light one, at twice its size, on its own background. Chromium draws it (``chromium`` or
``google-chrome`` has to be installed), and the PNG holds the SVG's hash, so that the build notices a drawing that was
changed and not rendered.

Attributes:
    FOLDER: Where the drawings are, from the course's folder.
    MARK: The PNG's text field that holds the SVG's hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "lessons/images"
MARK = "svg"


def digest(svg: Path) -> str:
    """The hash of a drawing that its PNG holds."""
    return hashlib.sha256(svg.read_bytes()).hexdigest()[:16]


def is_current(svg: Path) -> bool:
    """Whether the PNG beside a drawing was rendered from it as it is."""
    png = svg.with_suffix(".png")
    if not png.exists():
        return False
    with Image.open(png) as picture:
        return picture.info.get(MARK) == digest(svg)


def size(svg: Path) -> tuple[int, int]:
    """A drawing's width and height in pixels. Raises ValueError when its first tag doesn't name them."""
    found = re.search(r'<svg\b[^>]*\bwidth="(\d+)"[^>]*\bheight="(\d+)"', svg.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f'{svg.name}: write width="..." and height="..." in pixels into the <svg> tag')
    return int(found[1]), int(found[2])


def render(svg: Path) -> None:
    """Draw the PNG beside `svg`. Raises FileNotFoundError without a Chromium, ValueError for a drawing of no size."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        raise FileNotFoundError("no chromium to draw with: install it (Debian: apt install chromium)")
    width, height = size(svg)
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2"]
        flags += ["--default-background-color=00000000", f"--window-size={width},{height}", f"--screenshot={shot}"]
        subprocess.run([chromium, *flags, svg.resolve().as_uri()], check=True, capture_output=True, cwd=scratch)
        with Image.open(shot) as picture:
            drawn = picture.convert("RGBA").quantize(64, method=Image.Quantize.FASTOCTREE)
    text = PngImagePlugin.PngInfo()
    text.add_text(MARK, digest(svg))
    out = io.BytesIO()
    drawn.save(out, "PNG", optimize=True, pnginfo=text)
    part = svg.with_suffix(".png.part")
    part.write_bytes(out.getvalue())
    os.replace(part, svg.with_suffix(".png"))


def main() -> int:
    """Render what isn't current; the exit status."""
    for svg in sorted((ROOT / FOLDER).glob("*.svg")):
        if not is_current(svg):
            render(svg)
            print(f"{svg.with_suffix('.png').relative_to(ROOT)}: {svg.with_suffix('.png').stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
