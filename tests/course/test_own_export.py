"""utils.course.own_export: each export is written, asked, and said for what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import capstone
import utils.export.llama_cpp
from utils.course.own_export import asked, export
from utils.course.own_run import EXPORTS
from utils.evaluate.report import ROOM
from utils.export.errors import ExportError
from utils.models import load_tokenizer
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

EXAMPLES = task_examples("style", "test", 3)


@pytest.fixture
def out(tmp_path) -> Path:
    """A finished run: the shipped style adapter, which has these answers right, with its evaluation."""
    folder = tmp_path / "my adapter"
    shutil.copytree(adapter_dir("style"), folder)
    replies = [
        {"earlier": [], "prompt": e.prompt, "wanted": e.answer, "base": "", "adapter": e.answer} for e in EXAMPLES
    ]
    (folder / "evaluation.json").write_text(json.dumps({"replies": replies}), encoding="utf-8")
    return folder


def changed(out: Path, **settings) -> None:
    """Other settings in the adapter's file."""
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_the_prompts_are_the_runs_with_the_turns_before_and_as_much_room(out):
    path = out / "evaluation.json"
    content = json.loads(path.read_text())
    content["replies"][0]["earlier"] = [["system", "Be brief."]]
    path.write_text(json.dumps(content))
    found = asked(out, load_tokenizer())
    assert found.prompts[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": EXAMPLES[0].prompt},
    ]
    assert found.answers == [e.answer for e in EXAMPLES]
    lengths = [len(load_tokenizer()(e.answer)["input_ids"]) for e in EXAMPLES]
    assert found.most == max(lengths) + ROOM


def test_gguf_and_ollama_are_asked_under_llama_cpp(out):
    pytest.importorskip("xllamacpp", reason="llama.cpp isn't installed here")
    gguf, ollama = export(out, ["gguf", "ollama"])
    assert "llama.cpp loads them and answers 3 of 3 held-out prompts as transformers does." in gguf
    assert sorted(p.name for p in out.with_name("my adapter-gguf").iterdir()) == ["adapter-f16.gguf", "base-f16.gguf"]
    assert "3 of 3" in ollama and "Ollama itself, which computes with llama.cpp, wasn't run." in ollama
    assert "ollama create my-adapter -f" in ollama
    text = (out.with_name("my adapter-ollama") / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./base-f16.gguf" in text and "ADAPTER ./adapter-f16.gguf" in text


def test_an_answer_that_differs_is_shown(out):
    pytest.importorskip("xllamacpp", reason="llama.cpp isn't installed here")
    path = out / "evaluation.json"
    path.write_text(path.read_text().replace(json.dumps(EXAMPLES[1].answer)[1:-1], "Ahoy"))
    (said,) = export(out, ["gguf"])
    assert (
        f"answers 2 of 3 held-out prompts as transformers does; in place of 'Ahoy' it says {EXAMPLES[1].answer!r}"
        in said
    )


def test_without_llama_cpp_the_files_are_written_and_said_to_be_untried(out, monkeypatch):
    def absent(*_, **__):
        raise ExportError("xllamacpp isn't installed: pip install xllamacpp.")

    monkeypatch.setattr(utils.export.llama_cpp, "LlamaCpp", absent)
    (said,) = export(out, ["gguf"])
    assert "Not tried: xllamacpp isn't installed: pip install xllamacpp." in said and "loads" not in said
    assert out.with_name("my adapter-gguf").is_dir()


def test_vllm_gets_its_command_or_the_reason_why_not(out):
    (said,) = export(out, ["vllm"])
    assert "It takes the folder as it is; it wasn't run here." in said
    assert said.endswith(f"--enable-lora --max-lora-rank 8 --lora-modules 'my-adapter={out}'")
    changed(out, use_dora=True)
    (said,) = export(out, ["vllm"])
    assert said.startswith("vllm: not served.") and "refused: it uses DoRA" in said and "vllm serve" not in said


def test_the_hubs_folder_is_loaded_by_peft_and_nothing_is_sent(out):
    (said,) = export(out, ["hub-dry-run"])
    assert "PEFT loads it and answers 3 of 3 held-out prompts as transformers does." in said
    assert "https://huggingface.co/YOU/my-adapter (private)" in said and "left out: evaluation.json" in said
    sent = json.loads((out.with_name("my adapter-hub") / "adapter_config.json").read_text())
    assert sent["base_model_name_or_path"] == "tiny-llama"


def test_one_that_fails_is_said_and_the_next_follows(out):
    (out / "evaluation.json").unlink()
    first, second = export(out, ["hub-dry-run", "vllm"])
    assert first.startswith("hub-dry-run: not exported. ") and "holds no evaluation.json" in first
    assert second.startswith("vllm: my adapter for vLLM")


def test_the_script_exports_a_finished_run_without_another_training(out, capsys, monkeypatch):
    monkeypatch.setattr(capstone, "fine_tune", lambda *_: pytest.fail("it trained again"))
    capstone.main(["--data", "gone.csv", "--out", str(out), "--export", "vllm"])
    assert capsys.readouterr().out.startswith("vllm: my adapter for vLLM: nothing found")


def test_each_that_the_command_line_names_is_there(out):
    changed(out, peft_type="LOHA")
    said = list(export(out, EXPORTS))
    assert [one.partition(":")[0] for one in said] == list(EXPORTS)
    assert all("LOHA" in one for one in said[:3]), said


@pytest.mark.parametrize("damage", [None, "{}", '{"replies": []}', '{"replies": [{"prompt": "x"}]}', "{", "[1]"])
def test_without_answers_to_compare_with_nothing_is_written(out, damage):
    """The folder would be in the way of the next export, and says nothing of itself."""
    path = out / "evaluation.json"
    path.unlink()
    if damage is not None:
        path.write_text(damage)
    said = list(export(out, list(EXPORTS)))
    assert all("not exported. " in line and "evaluation.json" in line for line in said if not line.startswith("vllm"))
    assert [each.name for each in out.parent.iterdir()] == [out.name]


def test_an_export_is_made_once(out):
    assert len(list(export(out, ["vllm", "vllm"]))) == 1
