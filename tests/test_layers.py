"""The packages of utils/ import downwards only, module by module without a circle; what is public there is used."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Bottom to top: a package imports from those before it, and from itself.
ORDER = (
    "front_door quiet notebook plots quant files lora models distributed data tinyworld train evaluate inference "
    "preferences export profiling course start"
).split()  # fmt: skip

# Public in utils/, and named by nothing but the packages' front doors and the tests.
UNUSED = {
    "front_door": "every package's __init__ calls it, and those don't count",
}


def is_module(name: str) -> bool:
    """Whether a dotted name is a file or a folder of this repository."""
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def for_types_only(node: ast.AST) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``, which Python never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, *, types: bool = True) -> set[str]:
    """The modules of utils/ that a file imports anywhere, in functions too, as dotted names; `types`: for types alone
    too."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if not types and for_types_only(node):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports with their whole name"
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else node.module or "" for name in whole.values()}
    return {name for name in found if name.startswith("utils.")}


def modules() -> dict[str, Path]:
    """Every module of utils/ by its dotted name; a package by its own."""
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("utils/**/*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def upward(package: str, imported: set[str]) -> set[str]:
    """What of `imported` does not stand below `package`."""
    return {name for name in imported if ORDER.index(name.split(".")[1]) > ORDER.index(package)}


def test_every_package_has_its_floor():
    there = {name.split(".")[1] for name in modules() if name != "utils"}
    assert there == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_what_stands_below_it(package):
    wrong = {
        name: found
        for name, path in modules().items()
        if name.split(".")[1:2] == [package] and (found := upward(package, imports(path)))
    }
    assert wrong == {}


def test_no_module_imports_itself_by_a_detour():
    known = modules()
    graph = {name: imports(path, types=False) & set(known) - {name} for name, path in known.items()}
    for name in known:  # a package's front door is made of its modules; they don't go through it
        package = name.rpartition(".")[0]
        assert package not in graph[name] or package == "utils", f"{name} imports its own package {package}"
    assert len(list(TopologicalSorter(graph).static_order())) >= len(known)


def test_a_module_that_looks_up_is_found(tmp_path):
    """The negative control: an import inside a function counts too."""
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from utils.train.loop import train\n    return train\n", encoding="utf-8")
    assert upward("models", imports(path)) == {"utils.train.loop"}
    assert upward("evaluate", imports(path)) == set()


def words(root: ast.AST, *, without: ast.AST | None = None) -> set[str]:
    """The names in code, and the words of its strings but the docstrings; `without`: a definition to leave out."""
    found: set[str] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is without or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\w+", node.value))
    return found


def test_every_public_function_and_class_is_used_by_a_lesson_a_tool_or_a_module():
    """What is named outside its own definition; an export of a package isn't a use, and neither is a test."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("tools/**/*.py"), *modules().values()]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    code = {path: words(tree) for path, tree in trees.items() if path.name != "__init__.py"}
    lessons = set(re.findall(r"\w+", "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("lessons/*.md"))))
    unused = {
        node.name: path.relative_to(ROOT).as_posix()
        for path in modules().values()
        for node in trees[path].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if node.name not in lessons | words(trees[path], without=node)
        if not any(node.name in there for other, there in code.items() if other != path)
    }
    assert unused.keys() == UNUSED.keys(), unused
