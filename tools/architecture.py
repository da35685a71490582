"""Write the parts of ARCHITECTURE.md that follow from the code: one line a file, and which chapter uses which modules.

    python -m tools.architecture [--check]

A file's line is the first sentence of its docstring. A chapter's modules are what its lesson imports from utils/; a
name that a package exports counts as the module that defines it.
--check writes nothing and fails when the page is stale.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from importlib import import_module
from pathlib import Path

from utils.quiet import quiet_upstream

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
PACKAGES = (
    "", "plots", "quant", "lora", "models", "distributed", "data", "tinyworld", "train", "evaluate", "inference",
    "preferences", "export", "profiling", "course", "course/checks", "course/checks/references", "start",
)  # fmt: skip
CELL = re.compile(r"(?ms)^```python[^\n]*\n(.*?)^```[ \t]*$")
MARKED = r"(?s)(<!-- {name}: written by make architecture -->\n).*?(<!-- end -->)"


def first_sentence(path: Path) -> str:
    """What a file is, by the first sentence of its docstring. Raises ValueError when it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring: its first sentence is its line on the page")
    sentence = re.split(r"(?<=[.!?])\s", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", sentence).replace("``", "`").replace("|", "\\|")


def files() -> str:
    """A table for each package of utils/, bottom to top, then tools/ and the scripts in the repository's root."""
    parts = []
    for package in PACKAGES:
        folder = ROOT / "utils" / package
        rows = [
            f"| `{path.stem}` | {first_sentence(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        title = f"utils/{package}/" if package else "utils/, ground floor"
        parts.append(
            f"**{title}** {first_sentence(folder / '__init__.py')}\n\n| module | |\n|---|---|\n" + "\n".join(rows)
        )
    for folder in (ROOT / "tools", *sorted(p.parent for p in (ROOT / "tools").glob("*/__init__.py"))):
        rows = [f"| `{p.stem}` | {first_sentence(p)} |" for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
        name = folder.relative_to(ROOT).as_posix()
        parts.append(
            f"**{name}/** {first_sentence(folder / '__init__.py')}\n\n| module | |\n|---|---|\n" + "\n".join(rows)
        )
    return "\n\n".join(parts) + "\n"


def home(module: str, name: str) -> str:
    """The module of utils/ that a lesson's ``from module import name`` is about."""
    if ROOT.joinpath(*module.split("."), f"{name}.py").is_file() or ROOT.joinpath(*module.split("."), name).is_dir():
        return f"{module}.{name}"
    if ROOT.joinpath(*module.split(".")).is_dir():
        thing = getattr(import_module(module), name)
        where = getattr(thing, "__module__", "")
        if where.startswith(f"{module}."):
            return where
        for path in sorted(ROOT.joinpath(*module.split(".")).glob("*.py")):  # a constant doesn't know where it is from
            if re.search(rf"^{name}\b[^\n]*=", path.read_text(encoding="utf-8"), re.M):
                return f"{module}.{path.stem}"
    return module


def modules_of(lesson: Path) -> list[str]:
    """The modules of utils/ that a lesson imports, without the first part of their names."""
    found = set()
    for cell in CELL.findall(lesson.read_text(encoding="utf-8")):
        for line in re.findall(r"(?m)^[ ]*from utils[. ][^(\n]*(?:\([^)]*\))?", cell):
            node = ast.parse(line.strip()).body[0]
            assert isinstance(node, ast.ImportFrom) and node.module
            found |= {home(node.module, alias.name) for alias in node.names}
    return sorted(name.removeprefix("utils.") for name in found)


def chapters() -> str:
    """A table: chapter, its modules."""
    rows = ["| chapter | modules of utils/ |", "|---|---|"]
    for lesson in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.md")):
        names = [f"`{name}`" for name in modules_of(lesson) if name != "course.checks.core"]
        rows.append(f"| {lesson.stem} | {', '.join(names)} |")
    return "\n".join(rows) + "\n"


def filled(page: str) -> str:
    """The page with its two written parts. Raises ValueError when a mark is missing."""
    for name, text in (("files", files()), ("chapters", chapters())):
        pattern = re.compile(MARKED.format(name=name))
        if not pattern.search(page):
            raise ValueError(
                f"ARCHITECTURE.md has no '<!-- {name}: written by make architecture -->' ... '<!-- end -->'"
            )
        page = pattern.sub(lambda m, text=text: f"{m[1]}\n{text}\n{m[2]}", page)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is stale")
    check = parser.parse_args().check
    quiet_upstream()  # a package's export is looked up by importing its module, and PEFT with some
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if check and new != page:
        print("error: ARCHITECTURE.md is stale: run `make architecture` and commit it", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(new, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
