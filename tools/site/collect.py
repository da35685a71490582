"""Collects the site's sources: the pages under site/_build/src, and what is served beside them.

Standard library only. The tree that comes out is a Sphinx project whose settings are site/conf.py.

Attributes:
    ROOT: The repository.
    ASSETS: What the engine and the figures load, by its place in the repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.build.navigation import Chapter as Entry
from tools.build.navigation import chapters
from tools.site import figures, records
from tools.site.chapter import Chapter
from tools.site.links import Links
from tools.site.records import shortened
from utils.course.colab import Origin, origin

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ("assets/tiny-llama", "assets/adapters")

# What npm brings of MathJax, by its place under _static/mathjax: one file, its font, and hidden MathML for screen
# readers.
_MATHJAX = {
    "mathjax/tex-chtml.js": "tex-chtml.js",
    "mathjax/LICENSE": "LICENSE",
    "mathjax/a11y/assistive-mml.js": "a11y/assistive-mml.js",
    "@mathjax/mathjax-newcm-font/chtml.js": "mathjax-newcm-font/chtml.js",
    "@mathjax/mathjax-newcm-font/chtml": "mathjax-newcm-font/chtml",
}


def links_of(root: Path, where: Origin) -> Links:
    """Which files of the repository have become pages."""
    pages = {"ARCHITECTURE.md": "architecture.md", "README.md": "index.md"}
    pages |= {f"lessons/{name}.md": f"{name}.md" for name in beside_the_chapters(root)}
    for chapter in chapters(root):
        for file in (f"lessons/{chapter.stem}.md", f"notebooks/{chapter.notebook}", f"solutions/{chapter.notebook}"):
            pages[file] = f"chapters/{chapter.notebook}"
    for path in sorted((root / records.FOLDER).iterdir()):
        if path.suffix in (".json", ".md"):
            pages[f"{records.FOLDER}/{path.name}"] = f"measurements/{_page_of(path)}.md"
    folders = {path.relative_to(root).as_posix() for path in root.glob("[!.]*/**/") if "node_modules" not in path.parts}
    return Links(where.repository, where.ref, pages, frozenset(folders | {""}))


def address_of(where: Origin) -> str:
    """The site's address: COURSE_SITE_URL, which GitHub's workflow knows, or what GitHub Pages gives a repository."""
    owner, _, name = where.repository.partition("/")
    return (os.environ.get("COURSE_SITE_URL") or f"https://{owner}.github.io/{name}").rstrip("/") + "/"


def beside_the_chapters(root: Path) -> list[str]:
    """The pages of lessons/ that are no chapters: the ledger of claims, and others like it."""
    return sorted(path.stem for path in (root / "lessons").glob("*.md") if not re.match(r"\d\d_", path.name))


def _page_of(path: Path) -> str:
    """A measurement's page: course.json and course.md have one each."""
    both = path.suffix == ".json" and path.with_suffix(".md").exists()
    return f"{path.stem}_record" if both else path.stem


def minutes_of(lesson: str) -> str:
    """The minutes that a lesson says it takes; empty where it doesn't."""
    found = re.search(r"^About (\d+) minutes", lesson, re.M)
    return found[1] if found else ""


def described(lesson: str) -> str:
    """What search engines and share cards say of a lesson: what one will be able to do, without markup."""
    found = re.search(r"^\*\*You will be able to\*\*\n+((?:[-\s].*\n)+)", lesson, re.M)
    points = re.sub(r"^- ", "", found[1], flags=re.M) if found else ""
    text = "You will be able to " + re.sub(r"\s+", " ", points).strip() if points else ""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\$([^$]*)\$", lambda found: re.sub(r"\\(?=Delta|alpha)|\\[a-z]+\s?|[{}]", "", found[1]), text)
    return shortened(re.sub(r"[*`]", "", text))


@dataclass(frozen=True)
class Site:
    """The site that is collected. root: the repository. out: the folder that is written anew: src/, static/, extra/."""

    root: Path
    out: Path

    def collect(self) -> None:
        """Write all sources and what is served beside them."""
        shutil.rmtree(self.out / "src", ignore_errors=True)
        shutil.rmtree(self.out / "static", ignore_errors=True)
        shutil.rmtree(self.out / "extra", ignore_errors=True)
        where = origin(self.root)
        links, there = links_of(self.root, where), figures.available(self.root)
        descriptions: dict[str, str] = {}
        course = chapters(self.root)
        for chapter in course:
            descriptions[f"chapters/{chapter.stem}"] = described(self._text(f"lessons/{chapter.stem}.md"))
            self._chapter(chapter, links, there)
        for name in beside_the_chapters(self.root):
            self._markdown(f"lessons/{name}.md", f"{name}.md", links)
        self._markdown("ARCHITECTURE.md", "architecture.md", links)
        self._records(links, descriptions)
        self._figures(there, descriptions)
        self._front(course, there, links)
        self._write("404.md", filled(self._text("site/404.md"), {"repository": links.repository}))
        self._ship(course)
        told = {"repository": where.repository, "ref": where.ref, "address": address_of(where)}
        told |= {"descriptions": descriptions}
        self._write("../site.json", json.dumps(told, indent=1))

    def _text(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def _write(self, page: str, text: str) -> None:
        path = self.out / "src" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _chapter(self, chapter: Entry, links: Links, there: list[str]) -> None:
        notebook = json.loads(self._text(f"solutions/{chapter.notebook}"))
        drawings = dict(re.findall(r"!\[([^\]]*)\]\((images/\w+\.svg)\)", self._text(f"lessons/{chapter.stem}.md")))
        for address in drawings.values():
            to = self.out / "src" / "chapters" / address
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / "lessons" / address, to)
        wanted = figures.in_chapter(chapter.stem[:2], there)
        page = Chapter(notebook, chapter.stem, links, drawings, wanted).rendered()
        self._write(f"chapters/{chapter.notebook}", json.dumps(page, ensure_ascii=False))

    def _markdown(self, file: str, page: str, links: Links) -> None:
        self._write(page, links.rewritten(self._text(file), file, page))

    def _records(self, links: Links, descriptions: dict[str, str]) -> None:
        found = records.read(self.root)
        texts = {file: self._text(file) for file in links.pages if file.startswith("lessons/") and file.endswith(".md")}
        titles = {f"lessons/{chapter.stem}.md": f"chapter {chapter.number}" for chapter in chapters(self.root)}
        for name in beside_the_chapters(self.root):
            page = f"lessons/{name}.md"
            titles[page] = "the ledger of claims" if name == "claims" else texts[page].split("\n", 1)[0].lstrip("# ")
        listed: dict[str, dict] = {}
        for name, record in found.items():
            file = f"{records.FOLDER}/{name}.json"
            page = links.pages[file]
            quoted = [f"[{titles[at]}](../{links.pages[at]})" for at, text in texts.items() if f"{name}.json" in text]
            self._write(page, records.page(name, record, links.github(file), quoted))
            listed[Path(page).stem] = record
            descriptions[page.removesuffix(".md")] = shortened(f"{records.title(name)}: {records.about(record)}")
        others = [path.stem for path in sorted((self.root / records.FOLDER).glob("*.md"))]
        for name in others:
            self._markdown(f"{records.FOLDER}/{name}.md", f"measurements/{name}.md", links)
        self._write("measurements/index.md", records.index(listed, others))

    def _figures(self, there: list[str], descriptions: dict[str, str]) -> None:
        for name in there:
            descriptions[f"figures/{name}"] = figures.about(name).summary
            self._write(f"figures/{name}.md", figures.page(name))
        if there:
            self._write("figures/index.md", figures.index(there))

    def _front(self, course: list[Entry], there: list[str], links: Links) -> None:
        rows = []
        for chapter in course:
            minutes = minutes_of(self._text(f"lessons/{chapter.stem}.md"))
            rows.append(f"| {chapter.number} | [{chapter.title}](chapters/{chapter.notebook}) | {minutes} |")
        front = {
            "repository": links.repository,
            "repository_name": links.repository.partition("/")[2],
            "chapters": "\n".join(rows),
            "figure": figures.element("mixing", "", link=True) if "mixing" in there else "",
            "figures": figures.listed(there),
            "toctree_chapters": "\n".join(f"chapters/{chapter.stem}" for chapter in course),
            "toctree_beside": "\n".join(beside_the_chapters(self.root)),
            "toctree_figures": "```{toctree}\n:hidden:\n:caption: Figures\n\nfigures/index\n```" if there else "",
        }
        self._write("index.md", filled(self._text("site/index.md"), front))

    def _ship(self, course: list[Entry]) -> None:
        """What is served beside the pages: engine and figures, model and adapters, MathJax, notebooks to download."""
        served = self.out / "static" / "site"
        no_notes = shutil.ignore_patterns("*.md", "*.py", "*.jinja", "__pycache__")
        for folder in ("engine", "figures"):
            if (self.root / "site" / folder).exists():
                shutil.copytree(self.root / "site" / folder, served / folder, ignore=no_notes)
        for asset in ASSETS:
            shutil.copytree(self.root / asset, served / asset, ignore=no_notes)
        modules, mathjax = self.root / "site" / "node_modules", self.out / "static" / "mathjax"
        for package, place in _MATHJAX.items():
            (mathjax / place).parent.mkdir(parents=True, exist_ok=True)
            if (modules / package).is_dir():
                shutil.copytree(modules / package, mathjax / place)
            else:
                shutil.copy(modules / package, mathjax / place)
        downloads = self.out / "extra" / "downloads"
        downloads.mkdir(parents=True)
        for chapter in course:
            shutil.copy(self.root / "notebooks" / chapter.notebook, downloads)


def filled(text: str, front: Mapping[str, str]) -> str:
    """A text with its {{ names }} filled in. Raises KeyError for one that isn't known."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: front[found[1]], text)
