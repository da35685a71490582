"""The README's moving picture: the mixing board, its faders pulled in a real Chromium while the model answers.

    python -m tools.site.moving_picture mixing.webp

It takes a Chromium, playwright and pillow. Every frame is a screenshot of the figure; nothing is drawn afterwards.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tools.site.bare import browser, opened, served

WIDTH, HEIGHT = 960, 560
STEP_MS, HOLD_MS = 160, 1500
# Pull these faders, in so many steps, and let the answer and the scores stand.
MOVES: tuple[dict[str, float], ...] = (
    {"translation": 1.0},
    {"translation": 0.0, "style": 0.5, "sentiment": 0.5},
    {"sentiment": 0.0, "style": 1.5},
    {"style": -1.0},
    {"style": 1.0},
)
STEPS = 6
_SET = """([task, value]) => {
  const fader = document.querySelector(`[data-task=${task}]`);
  fader.value = value;
  fader.dispatchEvent(new Event("input"));
}"""


def frames(page: Any) -> list[tuple[Image.Image, int]]:
    """The pictures with the time that each stands, in milliseconds."""
    found: list[tuple[Image.Image, int]] = []
    now = dict.fromkeys(("sentiment", "translation", "summarization", "style"), 0.0) | {"style": 1.0}

    def take(ms: int) -> None:
        shot = page.locator(".figure-body").screenshot()
        found.append((Image.open(io.BytesIO(shot)).convert("RGB"), ms))

    def settle() -> None:
        page.wait_for_selector(".mixing[data-scored] .mixing-answer[data-busy=no]")
        page.wait_for_timeout(300)
        take(HOLD_MS)

    settle()
    for move in MOVES:
        for step in range(1, STEPS + 1):
            for task, goal in move.items():
                page.evaluate(_SET, [task, now[task] + (goal - now[task]) * step / STEPS])
            page.wait_for_selector(".mixing-answer[data-busy=no]")
            take(STEP_MS)
        now |= move
        settle()
    return found


def main(path: str) -> None:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), "mixing") as url, browser() as own:
        page, wrong = opened(own, f"{url}/mixing-light.html", WIDTH, HEIGHT)
        taken = frames(page)
    if wrong:
        raise SystemExit(f"the page complained: {wrong}")
    height = max(picture.height for picture, _ in taken)
    even = [Image.new("RGB", (picture.width, height), "white") for picture, _ in taken]
    for whole, (picture, _) in zip(even, taken, strict=True):
        whole.paste(picture)
    first, *rest = even
    durations = [ms for _, ms in taken]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, quality=80, method=4)
    print(f"{path}: {len(taken)} frames, {sum(durations) / 1000:.0f} s, {Path(path).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
