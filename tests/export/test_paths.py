"""A home folder's sign, ~, is read in every path that utils.export takes: no folder called ~ is looked for or made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.export.adapters_of_all_kinds import saved
from tests.export.small_gguf import write
from utils.export.edit import edited
from utils.export.errors import ExportError
from utils.export.gguf import to_gguf
from utils.export.gguf_facts import gguf_facts
from utils.export.hub import hub_dry_run
from utils.export.mlx import to_mlx
from utils.export.modelfile_checks import check_modelfile
from utils.export.ollama import modelfile, write_modelfile
from utils.export.preflight_report import preflight
from utils.models.device import TINY_DIR
from utils.models.loading import load_config


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder with an adapter, its base and two GGUF files, seen from another folder."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "home"
    folder.mkdir()
    saved("plain", folder / "mine", name="~/base")
    shutil.copytree(TINY_DIR, folder / "base")
    shutil.copytree(TINY_DIR.parent / "adapters" / "style", folder / "style")
    write(folder / "base.gguf")
    write(folder / "adapter.gguf", adapter=True)
    return folder


DOES = {
    "preflight": lambda _: preflight("~/mine", "vllm", base="~/base"),
    "to_mlx": lambda _: to_mlx("~/mine", "~/mlx"),
    "hub_dry_run": lambda _: hub_dry_run("~/mine", "me/x", "~/send", base="owner/base"),
    "to_gguf": lambda _: to_gguf("~/style", "~/style.gguf", base="~/base"),
    "to_gguf, a model": lambda _: to_gguf("~/base", "~/model.gguf"),
    "gguf_facts": lambda _: gguf_facts("~/base.gguf"),
    "modelfile": lambda t: modelfile("~/base.gguf", "~/adapter.gguf", tokenizer=t),
    "write_modelfile": lambda t: write_modelfile("~/ollama", "~/base.gguf", "~/adapter.gguf", tokenizer=t),
    "check_modelfile": lambda _: check_modelfile("FROM ./base.gguf\nADAPTER ~/adapter.gguf\n", folder="~"),
    "edited": lambda _: edited("~/base.gguf", "~/edited.gguf"),
    "load_config": lambda _: load_config("~/base"),
}


@pytest.mark.parametrize("name", DOES)
def test_a_home_is_read_in_every_path(home, tokenizer, name):
    before = {path.name for path in home.iterdir()}
    DOES[name](tokenizer)
    assert list(Path.cwd().iterdir()) == [], "no folder called ~"
    made = {path.name for path in home.iterdir()} - before
    assert len(made) == (name in ("to_mlx", "hub_dry_run", "to_gguf", "to_gguf, a model", "write_modelfile", "edited"))


def test_the_files_are_read_and_not_only_passed_over(home, tokenizer):
    with pytest.raises(ExportError, match="the type 'model', and the adapter is expected"):
        modelfile("~/base.gguf", "~/base.gguf", tokenizer=tokenizer)
    text = write_modelfile("~/ollama", "~/base.gguf", "~/adapter.gguf", tokenizer=tokenizer).read_text(encoding="utf-8")
    assert "FROM ../base.gguf" in text and "ADAPTER ../adapter.gguf" in text
    assert "FROM ~/base.gguf" in modelfile("~/base.gguf", tokenizer=tokenizer), "as it was given: Ollama reads it too"
    found = check_modelfile("FROM ~/adapter.gguf\nADAPTER ~/base.gguf\n", folder="~")
    assert {"no base", "no adapter"} <= {one.name for one in found}


def test_a_home_that_nobody_has_is_a_folder_that_isnt_there(home):
    for take in (
        lambda: preflight("~nobody-here/mine", "vllm"),
        lambda: to_gguf("~nobody-here/mine", "a.gguf"),
        lambda: gguf_facts("~nobody-here/base.gguf"),
        lambda: hub_dry_run("~nobody-here/mine", "me/x", "send"),
    ):
        with pytest.raises(FileNotFoundError, match="nobody-here"):
            take()
