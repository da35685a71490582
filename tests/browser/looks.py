"""What is wrong with a notebook to the eye: lines that run out of their cell, text too faint for its ground.

Code and what it shows have to fit, or wrap. Prose may be wider where it can be scrolled in its place, as long formulas
and tables are in JupyterLab.

Attributes:
    LEAST_CONTRAST: Of text with its ground, as WCAG 2 counts it for large text.
"""

from __future__ import annotations

from typing import Any

LEAST_CONTRAST = 3.0

# Each cell is brought into view first: an editor lays out only what can be seen.
_EACH_CELL = """async (look) => {
  const found = [];
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  for (const [index, cell] of window.jupyterapp.shell.currentWidget.content.widgets.entries()) {
    cell.node.scrollIntoView();
    await frame();
    for (const what of look(cell.node)) found.push(`cell ${index}: ${what}`);
  }
  return found;
}"""

_TOO_WIDE = """(cell) => {
  const prose = (part) => part.matches('.jp-RenderedMarkdown') && getComputedStyle(part).overflowX === 'auto';
  const right = cell.getBoundingClientRect().right;
  return [...cell.querySelectorAll('.cm-scroller, .jp-InputPlaceholder, .jp-RenderedHTMLCommon, .jp-OutputArea-output,'
    + '.jupyter-widgets, .widget-label')]
    .filter((part) => part.clientWidth && !prose(part))
    .map((part) => [Math.max(part.scrollWidth - part.clientWidth, part.getBoundingClientRect().right - right), part])
    .filter(([more]) => more > 1)
    .map(([more, part]) => `${Math.round(more)} px more than its place has: ${part.textContent.trim().slice(0, 60)}`);
}"""

_TOO_FAINT = """(cell) => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = parts(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0.5) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const part of cell.querySelectorAll('.jp-RenderedHTMLCommon, .jp-RenderedText')) {
    const texts = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const holder = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
      if (!text || !holder.getClientRects().length || holder.closest('pre code')) continue;  // JupyterLab's own colours
      const style = getComputedStyle(holder);
      const ink = parts(holder.closest('svg') ? style.fill : style.color);
      const [low, high] = [light(ink), light(ground(holder))].sort((a, b) => a - b);
      const ratio = (high + 0.05) / (low + 0.05);
      if (ratio < LEAST) found.push(`contrast ${ratio.toFixed(1)}: ${text.slice(0, 60)}`);
    }
  }
  return found;
}""".replace("LEAST", str(LEAST_CONTRAST))


def too_wide(page: Any) -> list[str]:
    """The parts of the open notebook that are wider than their place in it."""
    return page.evaluate(f"() => ({_EACH_CELL})({_TOO_WIDE})")


def too_faint(page: Any) -> list[str]:
    """The texts of the open notebook's prose and outputs that have too little contrast with their ground."""
    return page.evaluate(f"() => ({_EACH_CELL})({_TOO_FAINT})")
