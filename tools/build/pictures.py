"""A lesson's drawings in its notebooks: ``![alt text](images/NAME.svg)`` in a lesson, a picture inside the cell there.

Colab finds neither a relative path nor an attachment and shows no SVG in prose, and JupyterLab may be offline, so a
notebook holds the PNG beside the SVG (tools/draw_images.py renders it) as a data URI.

Attributes:
    PICTURE: A picture in a lesson's prose: its alt text and its address.
    SHORTEST: Characters of an alt text, at the least: it says what is seen and what follows.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from tools.draw_images import is_current

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!data:)([^)\s]+)\)")
SHORTEST = 40


def embedded(prose: str, lessons: Path) -> str:
    """Prose with each drawing's PNG inside it. lessons: the folder that addresses start from."""

    def inside(found: re.Match[str]) -> str:
        picture = base64.b64encode((lessons / found[2]).with_suffix(".png").read_bytes()).decode()
        return f"![{found[1]}](data:image/png;base64,{picture})"

    return PICTURE.sub(inside, prose)


def faults(alt: str, address: str, lessons: Path) -> Iterator[str]:
    """What is wrong with one picture of a lesson, in sentences."""
    svg = lessons / address
    if not re.fullmatch(r"images/\w+\.svg", address):
        yield f"the picture {address} is no drawing of the lessons: draw lessons/images/name.svg, link images/name.svg"
    elif not svg.exists():
        yield f"there is no lessons/{address}"
    elif not is_current(svg):
        yield f"lessons/{address} was changed after its PNG was drawn: `python -m tools.draw_images`"
    if len(alt) < SHORTEST:
        yield f"the alt text of {address} doesn't say what is seen and what follows ({SHORTEST} characters at least)"
