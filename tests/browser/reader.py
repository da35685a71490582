"""Somebody who reads a notebook in a browser: what they do with keyboard and mouse, and what they see.

A code cell is named by a piece of its source. What is done is done on the page; JupyterLab's own objects are asked only
where a cell is and when a command has ended.

Attributes:
    PATIENCE: Seconds for everything but the running of cells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 30

# Counts JupyterLab's commands that have ended, by name, whoever called them: a key, a menu or a button.
_COUNT_COMMANDS = """() => {
  window.ended = {};
  const end = (id) => () => { window.ended[id] = (window.ended[id] || 0) + 1; };
  window.jupyterapp.commands.commandExecuted.connect((_, {id, result}) => { result.then(end(id), end(id)); });
}"""

_OPEN = """() => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  return panel?.context?.isReady && panel.sessionContext?.isReady && panel.content?.widgets?.length > 0
    && panel.sessionContext.session?.kernel?.status === 'idle';
}"""

_INDEX = """(text) => window.jupyterapp.shell.currentWidget.content.widgets.findIndex(
  (cell) => cell.model.type === 'code' && cell.model.sharedModel.getSource().includes(text))"""

# What was out of view is laid out in the frame after it was scrolled to.
_NEXT_FRAME = "() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"

# Scrolls to a screenful by its number, and says whether there is another one.
_TURN_TO = """(page) => {
  const outer = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer');
  outer.scrollTop = page * outer.clientHeight;
  return outer.scrollTop + outer.clientHeight < outer.scrollHeight - 1;
}"""


class Reader:
    """A page on a running JupyterLab.

    page: Playwright's. address: JupyterLab's. shots: the folder for screenshots, or None. left: says how many
    seconds cells may run. errors: what the console
    and the page said of errors, and requests for other machines, in words.
    """

    def __init__(self, page: Any, address: str, shots: Path | None, left: Callable[[], float]) -> None:
        self.page, self.address, self.shots, self.left = page, address, shots, left
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: self.errors.append(f"the page raised {error}"))
        page.on("console", self._hear)
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), self._leave)

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location['url'].split('?')[0]})")

    def _leave(self, route: Any) -> None:
        self.errors.append(f"asked the network for {route.request.url}")
        route.abort()

    # ------------------------------------------------------------------------------------------- notebooks

    def open(self, path: str) -> None:
        """Open the notebook at `path` from the course's folder, and wait for its kernel."""
        self.page.goto(f"{self.address}/lab/tree/{path}?reset", wait_until="domcontentloaded")
        self.page.wait_for_function(_OPEN)
        self.page.evaluate(_COUNT_COMMANDS)

    def run_all(self) -> None:
        """Run all cells by the menu, and wait until they have run."""
        self._until_ended("notebook:run-all-cells", lambda: self.choose("Run", "Run All Cells"))

    def restart(self) -> None:
        """Restart the kernel by the menu, and say yes to the question."""

        def ask_and_accept() -> None:
            self.choose("Kernel", "Restart Kernel…")
            self.page.locator(".jp-Dialog .jp-mod-accept").click()

        self._until_ended("kernelmenu:restart", ask_and_accept)

    def save(self) -> None:
        """Save by the key."""
        self._until_ended("docmanager:save", lambda: self.page.keyboard.press("Control+s"))

    def cells(self) -> list[dict[str, Any]]:
        """The notebook as it is in the page, cell by cell, in the form of its file."""
        return self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.model.toJSON().cells")

    def is_changed(self) -> bool:
        """Whether JupyterLab holds changes that are not in the file."""
        return self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.model.dirty")

    # ------------------------------------------------------------------------------------------- cells

    def cell(self, text: str) -> Any:
        """The first code cell with `text` in its source, scrolled to. Raises LookupError when there is none."""
        index = self.page.evaluate(_INDEX, text)
        if index < 0:
            raise LookupError(f"no code cell has {text!r} in it")
        found = self.page.locator(f'.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell[data-windowed-list-index="{index}"]')
        found.scroll_into_view_if_needed()
        self.page.evaluate(_NEXT_FRAME)
        return found

    def write(self, text: str, source: str) -> None:
        """Put `source` in the place of all that stands in the cell with `text`."""
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def add_below(self, text: str, source: str) -> None:
        """Add a cell below the cell with `text`, by the key, and write `source` into it."""
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("b")
        self.page.keyboard.press("Enter")
        self.page.keyboard.insert_text(source)

    def source(self, text: str) -> str:
        """All that stands in the first cell with `text`, of code or prose. Raises StopIteration when there is none."""
        return next(source for cell in self.cells() if text in (source := "".join(cell["source"])))

    def run(self, text: str) -> str:
        """Run the cell with `text` by the key, and return the text that it shows then."""
        self.cell(text).locator(".cm-content").click()
        self._until_ended("notebook:run-cell", lambda: self.page.keyboard.press("Control+Enter"))
        return self.shown(text)

    def answer(self, exercise: str, source: str) -> str:
        """Write and run an answer to an exercise that is a function, and return what its check says."""
        self.write(f"def {exercise}(", source)
        self.run(f"def {exercise}(")
        return self.run(f'check("{exercise}"')

    def shown(self, text: str) -> str:
        """The text that the cell with `text` shows below itself."""
        return "\n".join(self.cell(text).locator(".jp-OutputArea-output").all_inner_texts())

    # ------------------------------------------------------------------------------------------- the page

    def choose(self, menu: str, entry: str) -> None:
        """Choose an entry of the menu bar."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(entry)}$")).click()

    def theme(self, name: str) -> None:
        """Switch to the theme "Light" or "Dark"."""
        command = json.dumps(f"JupyterLab {name}")
        self.page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: {command}}})")
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeName === {command}")

    def width(self, pixels: int) -> None:
        """Make the window so wide."""
        self.page.set_viewport_size({"width": pixels, "height": 900})

    def shot(self, name: str) -> None:
        """Keep a picture of the window, where there is a folder for it."""
        if self.shots:
            self.page.screenshot(path=str(self.shots / f"{name}.png"))

    def pages(self, name: str) -> None:
        """Keep a picture of every screenful of the notebook, where there is a folder for them."""
        page, more = 0, bool(self.shots)
        while more:
            more = self.page.evaluate(_TURN_TO, page)
            self.page.evaluate(_NEXT_FRAME)
            self.shot(f"{name}-{page:02d}")
            page += 1

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that a page shows. Fails after half a minute."""
        for _ in range(300):
            if holds():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("the page does not show within half a minute what it should")

    def _until_ended(self, command: str, act: Callable[[], None]) -> None:
        """Do something that calls a command of JupyterLab, and wait until that has ended."""
        before = self.page.evaluate("(id) => window.ended[id] || 0", command)
        act()
        more = "([id, n]) => (window.ended[id] || 0) > n"
        self.page.wait_for_function(more, arg=[command, before], timeout=self.left() * 1000)


def faults(cells: list[dict[str, Any]]) -> list[str]:
    """What a reader would see fail in a notebook that was run: errors, stderr, cells that did not run."""
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    found = [] if code else ["no code cell"]
    for index, cell in enumerate(code, 1):
        if cell["execution_count"] is None:
            found.append(f"code cell {index} did not run")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"code cell {index} raised {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"code cell {index} wrote to stderr: {''.join(output['text']).strip()[:200]}")
    return found
