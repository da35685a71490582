"""The README's finding: a chapter's figure as its executed notebook stored it, in assets/readme/rank.png.

    python -m tools.site.readme_figure

Nothing is computed. The README's moving picture is tools/site/moving_picture.py's.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "assets" / "readme" / "rank.png"
NOTEBOOK, ALT = ROOT / "solutions" / "02_rank_decomposition.ipynb", "Exact match against rank."


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
    """A picture in the README's width."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    smaller(stored_figure(NOTEBOOK, ALT)).save(OUT, optimize=True)
