"""What the site is built with: locked, apart from the course, and published from the one ref alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.site import __main__, environment, extension, records
from tools.site.collect import ROOT
from utils.course.colab import origin


def test_the_lock_has_one_exact_pin_of_everything_that_the_extra_declares():
    lines = (ROOT / environment.PYTHON_LOCK).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins)
    by_name = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(by_name) == len(pins)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for wanted in map(Requirement, declared["site"]):
        assert by_name[canonicalize_name(wanted.name)] in wanted.specifier, f"python -m tools.site lock: {wanted}"


def test_npms_packages_are_exact_and_locked():
    package = json.loads((ROOT / "site" / "package.json").read_text())
    lock = json.loads((ROOT / environment.NODE_LOCK).read_text())["packages"]
    for name, version in (package["dependencies"] | package["devDependencies"]).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version) and lock[f"node_modules/{name}"]["version"] == version
        assert lock[f"node_modules/{name}"]["integrity"].startswith("sha512-")


def test_what_is_missing_is_what_was_installed_from_no_or_another_lock(tmp_path):
    for lock in (environment.PYTHON_LOCK, environment.NODE_LOCK):
        (tmp_path / lock).parent.mkdir(exist_ok=True)
        (tmp_path / lock).write_text("a==1")
    assert environment.missing(tmp_path) == [environment.PYTHON_LOCK, environment.NODE_LOCK]
    for folder, lock in ((".venv-site", environment.PYTHON_LOCK), ("site/node_modules", environment.NODE_LOCK)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".installed-from").write_text(environment._mark(tmp_path / lock))
    assert environment.missing(tmp_path) == []
    (tmp_path / environment.NODE_LOCK).write_text("a==2")
    assert environment.missing(tmp_path) == [environment.NODE_LOCK]


def test_without_npm_the_set_up_says_so(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / environment.NODE_LOCK).write_text("{}")
    monkeypatch.setattr(environment, "missing", lambda root: [environment.NODE_LOCK])
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(environment.SetUpError, match=r"no npm: install Node\.js"):
        environment.set_up(tmp_path)


def test_the_build_imports_the_standard_library_alone():
    """GitHub's workflow builds the site without the course's environment."""
    code = "import sys, tools.site.__main__; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {"tools", "utils", "sitecustomize", "usercustomize"}
    foreign = set(eval(done.stdout)) - set(sys.stdlib_module_names) - ours - {"__main__", "__mp_main__"}
    assert not foreign


@pytest.mark.parametrize(("ref", "publish"), [(origin(ROOT).ref, "true"), ("another-branch", "false")])
def test_only_the_one_ref_is_published(ref, publish, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GITHUB_REF_NAME", ref)
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setattr(sys, "argv", ["tools.site", "ref"])
    assert __main__.main() == 0
    assert (tmp_path / "output").read_text() == f"publish={publish}\n" and f"this is {ref}" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ heads, map, records


def test_a_card_has_the_pages_title_and_escapes_it():
    text = extension.tags('A "b" & c', "what", "https://x/y.html", "https://x/", "Course")
    assert '<meta property="og:title" content="A &quot;b&quot; &amp; c">' in text
    assert '<meta property="og:image" content="https://x/_static/card.png">' in text and 'content="article"' in text
    assert 'content="website"' in extension.tags("Course", "what", "https://x/", "https://x/", "Course")


def test_the_map_lists_pages_under_the_sites_address():
    text = extension.sitemap("https://x/", ["b", "a/c"])
    assert text.index("<loc>https://x/a/c.html</loc>") < text.index("<loc>https://x/b.html</loc>")


def test_a_page_loses_the_themes_faults_and_nothing_else():
    kept = '<p>a</p><script src="x.js"></script><button class="other" aria-label="Search">'
    faults = '<script defer src="../_static/scripts/fontawesome.js?digest=1"></script>'
    faults += '<summary aria-label="Toggle hidden content">'
    assert extension.mended(kept + faults) == f"{kept}<summary>"
    assert extension.mended("<title>A: b &#8212; A: b</title>") == "<title>A: b</title>"
    assert extension.mended("<title>C &#8212; A: b</title>") == "<title>C &#8212; A: b</title>"


def test_a_records_title_writes_names_as_they_are_written():
    wanted = {
        "sft": "SFT", "dpo": "DPO", "alora": "aLoRA", "full_or_lora": "Full or LoRA",
        "generation_4bit": "Generation 4-bit", "latency_h200": "Latency H200", "loading_7b": "Loading 7B",
        "peft_methods": "PEFT methods", "rank_sweep": "Rank sweep",
    }  # fmt: skip
    assert {name: records.title(name) for name in wanted} == wanted


def test_a_records_page_says_what_on_what_and_when():
    record = {
        "what": "loss by rank_a|b",
        "hardware": "NVIDIA H100",
        "versions": {"torch": "2.11"},
        "date": "2026-11-28",
        "rows": [{"r": r, "on": True, "loss": 0.25, "inner": {"x": 1}, "curve": [{"step": 1}]} for r in range(70)],
    }
    text = records.page("rank_sweep", record, "https://github.com/a.json", ["[chapter 2](../chapters/02.ipynb)"])
    head = (
        "# Rank sweep\n\nloss by rank\\_a\\|b.\n\n- hardware: NVIDIA H100\n- date: 2026-11-28\n- versions: torch 2.11"
    )
    assert text.startswith(head)
    assert "| r | on | loss | inner x |\n|---|---|---|---|\n| 0 | yes | 0.25 | 1 |\n" in text and "curve" not in text
    assert text.rstrip().endswith("60 of 70 rows.") and "quoted in [chapter 2]" in text
