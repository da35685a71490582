"""ARCHITECTURE.md's tables are what the code gives, and every module of utils/ is on it."""

from __future__ import annotations

import pytest

from tools import architecture as tool


def test_the_page_is_what_the_code_gives():
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.filled(page) == page, "run `make architecture`"


def test_every_module_has_its_line():
    packages = {path.parent.relative_to(tool.ROOT / "utils").as_posix() for path in tool.ROOT.glob("utils/**/*.py")}
    assert packages == {package or "." for package in tool.PACKAGES}
    rows = tool.files()
    for path in tool.ROOT.glob("utils/**/*.py"):
        assert path.stem == "__init__" or f"| `{path.stem}` | {tool.first_sentence(path)} |" in rows


def test_a_name_that_a_package_exports_is_traced_to_its_module():
    assert tool.home("utils.lora", "inject") == "utils.lora.layer"
    assert tool.home("utils.models", "ASSETS") == "utils.models.device"
    assert tool.home("utils.train", "sweep") == "utils.train.sweep"
    assert tool.home("utils", "plots") == "utils.plots"


def test_a_file_without_a_docstring_and_a_page_without_marks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    (tmp_path / "bare.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="bare.py has no docstring"):
        tool.first_sentence(tmp_path / "bare.py")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no '<!-- files"):
        tool.filled("# nothing marked")
