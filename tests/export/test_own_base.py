"""Whether a base is the adapter's own: by its fingerprint, by two ids, by its name, or untold; and how to give one."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.export.adapters_of_all_kinds import copied, saved, settings
from tests.small_llama import small
from utils.export.errors import ExportError
from utils.export.gguf import to_gguf
from utils.export.own_base import base_folder, compared, named_base
from utils.export.preflight_report import preflight
from utils.export.preflight_rules import TARGETS
from utils.lora.checkpoint import save_adapter
from utils.lora.layer import inject
from utils.models.device import TINY_DIR
from utils.models.loading import load_tiny
from utils.train.adapter_cache import adapter_dir


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """An adapter on the tiny model with the fingerprint of its base, saved by this course."""
    folder = tmp_path_factory.mktemp("ours") / "adapter"
    model = load_tiny()[0]
    inject(model, ["q_proj"], r=2, lora_alpha=4)
    save_adapter(model, folder, base_model="tiny-llama")
    return folder


@pytest.fixture(scope="module")
def sibling(tmp_path_factory) -> Path:
    """A base of the same shapes and settings, further trained: half of its embedding moved."""
    folder = tmp_path_factory.mktemp("sibling") / "model"
    model, tokenizer = load_tiny()
    with torch.no_grad():
        model.get_input_embeddings().weight[:512] += 0.01
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def forms(folder: Path) -> list:
    """A base as a folder, as text, and in memory."""
    return [folder, str(folder), AutoModelForCausalLM.from_pretrained(folder)]


def test_the_fingerprint_tells_a_sibling_of_the_same_shapes_in_every_form(ours, sibling, tmp_path):
    for base in forms(sibling):
        same, why = compared(ours, base)
        assert same is False and "blocks of rows differ" in why
        with pytest.raises(ExportError, match="was trained on another base: of the embedding"):
            to_gguf(ours, tmp_path / "a.gguf", base=base)
        for target in TARGETS:
            found = preflight(ours, target, base=base)
            assert [one.name for one in found.wrong if one.name != "folder"] == ["another base"]
            assert "compared (base=)" not in str(found)
    assert list(tmp_path.iterdir()) == []


def test_its_own_base_is_told_and_nothing_is_said(ours, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for base in [*forms(TINY_DIR), None]:
            assert to_gguf(ours, tmp_path / "a.gguf", base=base).is_file()
    for base in forms(TINY_DIR):
        assert compared(ours, base) == (True, "its embedding is the one that the adapter was trained with")
        assert not preflight(ours, "vllm", base=base).findings


def test_the_fingerprint_is_looked_at_of_more_than_plain_lora_too(ours, sibling, tmp_path):
    """`use_rslora` takes the adapter past this course's own reader, which looks at it otherwise."""
    folder = copied(ours, tmp_path / "rslora", use_rslora=True)
    with pytest.raises(ExportError, match="trained on another base"):
        to_gguf(folder, tmp_path / "a.gguf", base=sibling)


def test_where_nothing_tells_it_is_said(sibling, tmp_path):
    style = adapter_dir("style")  # in PEFT's form, without a fingerprint
    words = "nothing tells whether style was trained on this base: the adapter has no fingerprint"
    with pytest.warns(UserWarning, match=words) as caught:
        to_gguf(style, tmp_path / "a.gguf", base=sibling)
    assert caught[0].filename == __file__, "it points at the caller"
    (found,) = preflight(style, "vllm", base=sibling).findings
    assert (found.name, found.verdict) == ("another base", "look") and "nothing tells" in found.what
    assert compared(style, TINY_DIR) == (True, "it is the one that the adapter's settings name")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        to_gguf(style, tmp_path / "b.gguf")
        to_gguf(style, tmp_path / "b.gguf", base=TINY_DIR)


def test_a_base_without_its_numbers_is_told_by_its_name_or_not_at_all(ours):
    config = AutoConfig.from_pretrained(TINY_DIR)
    assert compared(ours, config).same is True
    config._name_or_path = ""
    same, why = compared(ours, config)
    assert same is None and "embedding can't be read" in why


def test_two_ids_of_the_hub_with_other_names_are_two_models(tmp_path):
    folder = saved("plain", tmp_path / "a", name="owner/base")
    model = small()
    told = {}
    for name in ("owner/base", "somebody/base", "other/model"):  # a copy under another owner tells nothing
        model.config._name_or_path = name
        told[name] = compared(folder, model).same
    assert told == {"owner/base": True, "somebody/base": None, "other/model": False}
    with pytest.raises(ExportError, match="settings name owner/base, and this is other/model"):
        to_gguf(folder, tmp_path / "a.gguf", base=model)


def test_what_names_a_base_and_where_it_is(tmp_path, monkeypatch):
    assert named_base({"base_model_name_or_path": "tiny-llama"}) == str(TINY_DIR)
    assert named_base({"base_model_name_or_path": "a/b"}) == "a/b"
    assert [named_base({"base_model_name_or_path": name}) for name in (None, "", " ")] == [None] * 3
    assert named_base({}) is None
    monkeypatch.setenv("HOME", str(TINY_DIR.parent))
    monkeypatch.setenv("USERPROFILE", str(TINY_DIR.parent))
    assert base_folder("~/tiny-llama") == TINY_DIR and base_folder(TINY_DIR) == TINY_DIR
    assert base_folder("nobody/nothing") is None and base_folder(tmp_path / "no") is None


@pytest.mark.parametrize("name", ["/no/such/folder", "~/no-such", "./gone", "owner/model", "not a model"])
def test_a_base_that_cant_be_had_is_told_with_the_way_to_give_it(name, tmp_path):
    """COURSE_MODEL is the course's own setting: whoever calls to_gguf has base=."""
    folder = settings(saved("plain", tmp_path / "a"), base_model_name_or_path=name)
    words = r"base can't be had: .*Give it as base=.*to_gguf\(adapter, path, base="
    for given in ({}, {"base": name}):
        with pytest.raises(ExportError, match=words) as told:
            to_gguf(folder, tmp_path / "a.gguf", **given)
        assert "COURSE_MODEL" not in str(told.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert to_gguf(folder, tmp_path / "a.gguf", base=small()).is_file(), "and that way works"
