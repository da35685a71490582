"""Open notebooks in a real JupyterLab in headless Chromium, run all their cells, and fail on what a reader
would see fail.

    python -m tools.lab_smoke                                 every notebook in notebooks/
    python -m tools.lab_smoke notebooks/00_start_here.ipynb --shots /tmp/shots

For maintainers, before a release: it needs two things that the course does not install, ``pip install
playwright`` and a Chromium (``apt-get install chromium``, or --chromium PATH). The notebooks run in a copy
of the repository, because JupyterLab saves what it opens. A notebook that divides by zero is opened first
and has to be seen failing: a check that runs no cell would pass everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTROL = "control_that_fails.ipynb"
KERNEL = "lora-course"

RUN_ALL = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  return panel.context.model.toJSON();
}"""


def copy_of_the_course(folder: Path) -> Path:
    """Copy what notebooks need into `folder`, with the control notebook; returns the copy's root."""
    root = folder / "root"
    left_out = shutil.ignore_patterns(".git", ".venv", "work", ".ipynb_checkpoints", "__pycache__")
    shutil.copytree(ROOT, root, ignore=left_out)
    cell = {"cell_type": "code", "id": "zero", "source": "1 / 0"}
    cell |= {"metadata": {}, "execution_count": None, "outputs": []}
    spec = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    control = {"cells": [cell], "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    (root / CONTROL).write_text(json.dumps(control), encoding="utf-8")
    return root


def lab_environment(folder: Path, root: Path) -> dict[str, str]:
    """JupyterLab's environment: this Python as the course's kernel, no news dialog, all files in `folder`."""
    kernel = folder / "share" / "kernels" / KERNEL
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    return os.environ | {
        "JUPYTER_PATH": str(folder / "share"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def jupyterlab(folder: Path, root: Path) -> Iterator[str]:
    """A running JupyterLab on `root`; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--allow-root", f"--ServerApp.root_dir={root}", "--IdentityProvider.token="]
    command += ["--expose-app-in-browser"]  # gives window.jupyterapp, as JupyterLab's own tests do
    log = folder / "lab.log"
    with log.open("w") as out:
        lab = subprocess.Popen(command, env=lab_environment(folder, root), stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            if lab.poll() is not None:
                raise RuntimeError(f"JupyterLab ended at once:\n{log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise RuntimeError("JupyterLab did not answer within a minute")
        yield address
    finally:
        lab.terminate()
        lab.wait(30)


def run_notebook(page: Any, address: str, notebook: str, shot: Path | None) -> list[str]:
    """Open a notebook, run all its cells, and return what is wrong with it."""
    page_errors: list[str] = []
    page.on("pageerror", lambda error: page_errors.append(str(error)[:200]))
    page.goto(f"{address}/lab/tree/{notebook}?reset", wait_until="domcontentloaded")
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.context?.path", timeout=120_000)
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell", timeout=120_000)
    model = page.evaluate(RUN_ALL)
    if shot:
        page.wait_for_timeout(1500)
        page.screenshot(path=str(shot))
    return [f"the page raised {error}" for error in page_errors] + faults(model["cells"])


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


def main() -> int:
    """The command line; returns the exit status."""
    description, layout = __doc__, argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=layout)
    parser.add_argument("notebooks", nargs="*", help="paths in the repository; without: all of notebooks/")
    parser.add_argument("--shots", type=Path, help="folder for one screenshot a notebook")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    parser.add_argument("--height", type=int, default=2400, help="of the window, in pixels")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("This check needs playwright: pip install playwright", file=sys.stderr)
        return 2
    if not options.chromium:
        print(
            "This check needs a Chromium: install one, or say where it is with --chromium PATH",
            file=sys.stderr,
        )
        return 2
    every = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    notebooks = options.notebooks or every
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    bad = 0
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        root = copy_of_the_course(Path(scratch))
        with jupyterlab(Path(scratch), root) as address:
            switches = ["--no-sandbox", "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path=options.chromium, args=switches)
            for notebook in [CONTROL, *notebooks]:
                start = time.monotonic()
                page = browser.new_page(viewport={"width": 1280, "height": options.height})
                page.set_default_timeout(600_000)
                shot = options.shots and options.shots / f"{notebook.replace('/', '_')}.png"
                found = run_notebook(page, address, notebook, shot)
                page.close()
                if notebook == CONTROL:
                    found = [] if any("ZeroDivisionError" in f for f in found) else ["the control did not fail"]
                bad += bool(found)
                print(f"{'FAIL' if found else 'ok  '} {notebook}  {time.monotonic() - start:.0f} s", flush=True)
                for fault in found:
                    print(f"     {fault}")
            browser.close()
    print(f"{len(notebooks)} notebooks opened and run, {bad} with faults")
    return 1 if bad or not notebooks else 0


if __name__ == "__main__":
    sys.exit(main())
